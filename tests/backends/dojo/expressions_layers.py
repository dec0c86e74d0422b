"""Small expressions that reach the ops of the table: layers, moved data, random numbers.

Each group is {name: (function, shapes)}: a function of one float tensor a shape, with elements
between 0.1 and 0.9, that gives a tensor or several. Some ops are reached in backward only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

Expression = tuple[Callable[..., Any], list[tuple[int, ...]]]

S = (3, 4)
INDEX = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1], [1, 0, 2, 0]])
MASK = torch.tensor(
    [[True, False, True, True], [False, True, False, True], [True, True, False, False]]
)
NORMS: dict[str, Expression] = {
    "bn": (
        lambda x, w, b: F.batch_norm(x, torch.zeros(3), torch.ones(3), w, b, True),
        [(4, 3, 5, 5), (3,), (3,)],
    ),
    "bn_eval": (
        lambda x, w, b: F.batch_norm(x, torch.zeros(3), torch.ones(3) * 2, w, b, False),
        [(4, 3, 5, 5), (3,), (3,)],
    ),
    "in": (lambda x: F.instance_norm(x), [(2, 3, 5, 5)]),
    "ln": (lambda x, w, b: F.layer_norm(x, (4,), w, b), [S, (4,), (4,)]),
    "gn": (lambda x, w, b: F.group_norm(x, 2, w, b), [(2, 4, 5, 5), (4,), (4,)]),
    "rms": (lambda x, w: F.rms_norm(x, (4,), w), [S, (4,)]),
    "lrn": (lambda x: F.local_response_norm(x, 2), [(2, 4, 5, 5)]),
    "weight_norm": (lambda v, g: torch._weight_norm(v, g, 0), [S, (3, 1)]),
}

POOLS: dict[str, Expression] = {
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), [(2, 3, 8)]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), [(2, 3, 8, 8)]),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), [(1, 2, 4, 4, 4)]),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), [(2, 3, 8)]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), [(2, 3, 8, 8)]),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), [(1, 2, 4, 4, 4)]),
    "aavg1": (lambda x: F.adaptive_avg_pool1d(x, 2), [(2, 3, 8)]),
    "aavg2": (lambda x: F.adaptive_avg_pool2d(x, 3), [(2, 3, 8, 8)]),
    "aavg3": (lambda x: F.adaptive_avg_pool3d(x, 3), [(1, 2, 4, 4, 4)]),
    "amax2": (lambda x: F.adaptive_max_pool2d(x, 3), [(2, 3, 8, 8)]),
    "unpool": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        [(2, 3, 8, 8)],
    ),
    "lp_pool": (lambda x: F.lp_pool2d(x, 2, 2), [(2, 3, 8, 8)]),
}

RESAMPLING: dict[str, Expression] = {
    "up_nearest1": (lambda x: F.interpolate(x, scale_factor=2), [(2, 3, 8)]),
    "up_nearest2": (lambda x: F.interpolate(x, scale_factor=2), [(2, 3, 4, 4)]),
    "up_nearest3": (lambda x: F.interpolate(x, scale_factor=2), [(1, 2, 3, 3, 3)]),
    "up_exact": (lambda x: F.interpolate(x, size=(7, 7), mode="nearest-exact"), [(2, 3, 4, 4)]),
    "up_exact1": (lambda x: F.interpolate(x, size=7, mode="nearest-exact"), [(2, 3, 4)]),
    "up_exact3": (
        lambda x: F.interpolate(x, size=(4, 4, 5), mode="nearest-exact"),
        [(1, 2, 3, 3, 3)],
    ),
    "up_linear": (lambda x: F.interpolate(x, size=11, mode="linear"), [(2, 3, 8)]),
    "up_bilinear": (
        lambda x: F.interpolate(x, size=(7, 9), mode="bilinear", align_corners=True),
        [(2, 3, 4, 4)],
    ),
    "up_bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), [(2, 3, 4, 4)]),
    "up_trilinear": (
        lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"),
        [(1, 2, 3, 3, 3)],
    ),
    "up_aa": (
        lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True),
        [(2, 3, 8, 8)],
    ),
    "up_area": (lambda x: F.interpolate(x, size=(3, 3), mode="area"), [(2, 3, 8, 8)]),
    "grid2": (
        lambda x, g: F.grid_sample(x, g * 2 - 1, align_corners=False),
        [(2, 3, 5, 5), (2, 4, 4, 2)],
    ),
    "grid_nearest": (
        lambda x, g: F.grid_sample(x, g * 2 - 1, mode="nearest", align_corners=False),
        [(2, 3, 5, 5), (2, 4, 4, 2)],
    ),
    "grid_border": (
        lambda x, g: F.grid_sample(x, g * 3 - 1, padding_mode="border", align_corners=True),
        [(2, 3, 5, 5), (2, 4, 4, 2)],
    ),
    "grid3": (
        lambda x, g: F.grid_sample(x, g * 2 - 1, align_corners=False),
        [(1, 2, 3, 3, 3), (1, 2, 2, 2, 3)],
    ),
    "affine": (lambda t: F.affine_grid(t, [2, 3, 4, 4], align_corners=False), [(2, 2, 3)]),
    "affine3": (lambda t: F.affine_grid(t, [2, 3, 4, 4, 4], align_corners=True), [(2, 3, 4)]),
}

ATTENTION: dict[str, Expression] = {
    "sdpa": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), [(2, 2, 5, 4)] * 3),
    "sdpa_causal": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        [(2, 2, 5, 4)] * 3,
    ),
    "sdpa_mask": (
        lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, attn_mask=torch.ones(5, 5).tril().bool()
        ),
        [(2, 2, 5, 4)] * 3,
    ),
    "mha": (
        lambda x, w, b, o: F.multi_head_attention_forward(
            x, x, x, 4, 2, w, b, None, None, False, 0.0, o, None
        )[0],
        [(5, 2, 4), (12, 4), (12,), (4, 4)],
    ),
}

MOVES: dict[str, Expression] = {
    "view": (lambda x: x.view(4, 3) * 2, [S]),
    "permute": (lambda x: x.permute(2, 0, 1) * 2, [(2, 3, 4)]),
    "movedim": (lambda x: x.movedim(0, 1) * 2, [S]),
    "unflatten": (lambda x: x.unflatten(1, (2, 2)) * 2, [S]),
    "expand": (lambda x: x.expand(5, 3, 4) * 2, [S]),
    "squeeze": (lambda x: x.unsqueeze(0).squeeze(0) * 2, [S]),
    "cat": (lambda x, y: torch.cat([x, y * 2], 1), [S, S]),
    "stack": (lambda x, y: torch.stack([x, y * 2], 1), [S, S]),
    "split": (lambda x: [a * 2 for a in x.split(2, 1)], [S]),
    "split_sizes": (lambda x: [a * 2 for a in x.split([1, 3], 1)], [S]),
    "chunk": (lambda x: [a * 2 for a in x.chunk(2, 1)], [S]),
    "unbind": (lambda x: [a * 2 for a in x.unbind(0)], [S]),
    "unfold": (lambda x: x.unfold(1, 2, 1) * 2, [S]),
    "diagonal": (lambda x: x.diagonal() * 2, [S]),
    "diag_embed": (lambda x: torch.diag_embed(x) * 2, [S]),
    "block_diag": (lambda x: torch.block_diag(x, x) * 2, [S]),
    "flip": (lambda x: x.flip(1) * 2, [S]),
    "roll": (lambda x: x.roll(1, 1) * 2, [S]),
    "rot90": (lambda x: torch.rot90(x) * 2, [S]),
    "gather": (lambda x: x.gather(0, INDEX) * 2, [S]),
    "index": (lambda x: x[INDEX] * 2, [S]),
    "index2": (lambda x: x[[0, 2], [1, 3]] * 2, [S]),
    "index_select": (lambda x: x.index_select(1, INDEX[0]) * 2, [S]),
    "take": (lambda x: x.take(INDEX) * 2, [S]),
    "take_along": (lambda x: torch.take_along_dim(x, INDEX, 0) * 2, [S]),
    "embedding": (lambda w: F.embedding(INDEX, w) * 2, [S]),
    "embedding_pad": (lambda w: F.embedding(INDEX, w, padding_idx=1) * 2, [S]),
    "embedding_bag": (lambda w: F.embedding_bag(INDEX, w) * 2, [S]),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1), value=0.3) * 2, [S]),
    "pad_zero": (lambda x: F.pad(x, (1, 2, 0, 1)) * 2, [S]),
    "pad_reflect1": (lambda x: F.pad(x, (2, 1), mode="reflect") * 2, [(2, 3, 5)]),
    "pad_reflect": (lambda x: F.pad(x, (2, 1, 1, 1), mode="reflect") * 2, [(2, 3, 5, 5)]),
    "pad_reflect3": (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="reflect") * 2, [(1, 2, 3, 3, 3)]),
    "pad_replicate1": (lambda x: F.pad(x, (2, 1), mode="replicate") * 2, [(2, 3, 5)]),
    "pad_replicate": (lambda x: F.pad(x, (2, 1, 1, 1), mode="replicate") * 2, [(2, 3, 5, 5)]),
    "pad_replicate3": (
        lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="replicate") * 2,
        [(1, 2, 3, 3, 3)],
    ),
    "pad_circular": (lambda x: F.pad(x, (2, 1, 1, 1), mode="circular") * 2, [(2, 3, 5, 5)]),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2) * 2, [(2, 8, 3, 3)]),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2) * 2, [(2, 2, 4, 4)]),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2) * 2, [(2, 4, 3, 3)]),
    "repeat": (lambda x: x.repeat(2, 3) * 2, [S]),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 0) * 2, [S]),
    "tile": (lambda x: x.tile(2, 2) * 2, [S]),
    "tril": (lambda x: x.tril(), [S]),
    "triu": (lambda x: x.triu(1) * 2, [S]),
    "as_strided": (lambda x: (x * 2).as_strided((2, 2), (4, 1), 1) * 3, [S]),
    "as_strided_t": (lambda x: (x * 2).t().as_strided((2, 2), (4, 1), 1) * 3, [S]),
    "as_strided_conv": (
        lambda x, w: F.conv2d(x.permute(0, 3, 1, 2), w, groups=4).as_strided((3, 3), (5, 2), 1) * 2,
        [(2, 6, 6, 4), (4, 1, 3, 3)],
    ),
    "alias": (lambda x: x.detach() * x, [S]),
    "to": (lambda x: x.to(torch.float32, copy=True) * 2, [S]),
    "chan_last": (lambda x: x.to(memory_format=torch.channels_last) * 2, [(2, 3, 4, 4)]),
}

SCATTERS: dict[str, Expression] = {
    "select_assign": (lambda x, y: torch.select_scatter(x, y, 0, 1) * 2, [S, (4,)]),
    "slice_scatter": (lambda x, y: torch.slice_scatter(x, y, 1, 1, 3) * 2, [S, (3, 2)]),
    "set_item": (
        lambda x, y: (lambda z: (z.__setitem__((slice(None), 1), y), z * 2)[1])(x.clone()),
        [S, (3,)],
    ),
    "scatter": (lambda x, y: x.scatter(0, INDEX[:1], y[:1]) * 2, [S, S]),
    "scatter_add": (lambda x, y: x.scatter_add(0, INDEX, y), [S, S]),
    "scatter_reduce": (lambda x, y: x.scatter_reduce(0, INDEX, y, "amax"), [S, S]),
    "index_add": (lambda x, y: x.index_add(0, torch.tensor([0, 2, 2]), y), [S, S]),
    "index_copy": (lambda x, y: x.index_copy(0, torch.tensor([0, 2, 1]), y) * 2, [S, S]),
    "index_put": (lambda x, y: x.index_put((torch.tensor([0, 2, 2]),), y, accumulate=True), [S, S]),
    "index_fill": (lambda x: x.index_fill(0, torch.tensor([0, 2]), 0.5) * 2, [S]),
    "index_reduce": (lambda x, y: x.index_reduce(0, torch.tensor([0, 2, 2]), y, "mean"), [S, S]),
    "masked_scatter": (lambda x, y: x.masked_scatter(MASK, y), [S, S]),
    "relu_inplace": (lambda x: F.relu((x - 0.5) * 2, inplace=True), [S]),
    "inplace": (lambda x, y: (x * 2).add_(y).mul_(3).sub_(y).div_(2), [S, S]),
    "inplace_view": (lambda x: (lambda z: (z[0].mul_(3), z * 2)[1])(x * 2), [S]),
    "copy": (lambda x, y: (x * 2).copy_(y) * 3, [S, S]),
}

RANDOM: dict[str, Expression] = {
    "dropout": (lambda x: F.dropout(x, 0.4), [S]),
    "dropout1d": (lambda x: F.dropout1d(x, 0.4), [(2, 3, 4)]),
    "alpha_dropout": (lambda x: F.alpha_dropout(x, 0.4, True), [S]),
    "rand_like": (lambda x: x * torch.rand_like(x), [S]),
    "randn_like": (lambda x: x * torch.randn_like(x), [S]),
    "rand": (lambda x: x * torch.rand(3, 4), [S]),
    "randn": (lambda x: x + torch.randn(3, 4), [S]),
    "bernoulli": (lambda x: x * torch.bernoulli(torch.full((3, 4), 0.4)), [S]),
    "normal": (lambda x: x * torch.empty(3, 4).normal_(), [S]),
    "uniform": (lambda x: x * torch.empty(3, 4).uniform_(), [S]),
    "randint": (lambda x: x[torch.randint(0, 3, (5,))], [S]),
    "gumbel": (lambda x: F.gumbel_softmax(x, hard=True), [S]),
    "rrelu": (lambda x: F.rrelu(x - 0.5, training=True), [S]),
    "multinomial": (lambda x: x.gather(1, torch.multinomial(x.detach(), 2)), [S]),
}

CONSTANTS: dict[str, Expression] = {
    "bucketize": (lambda x: x * torch.bucketize(x, torch.tensor([0.2, 0.5, 0.7])), [S]),
    "searchsorted": (lambda x: x * torch.searchsorted(torch.tensor([0.2, 0.5, 0.7]), x), [S]),
    "searchsorted_kw": (
        lambda x: (
            x * torch.searchsorted(torch.tensor([0.7, 0.2, 0.5]), x, sorter=torch.tensor([1, 2, 0]))
        ),
        [S],
    ),
    "long": (lambda x: x * (x * 4).long(), [S]),
    "one_hot": (lambda x: x @ F.one_hot(torch.tensor([0, 1, 2, 1]), 3).float(), [S]),
    "meshgrid": (
        lambda x: x * torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")[0],
        [S],
    ),
    "eye": (lambda x: x @ torch.eye(4), [S]),
    "linspace": (lambda x: x * torch.linspace(0, 1, 4), [S]),
    "full_like": (lambda x: x * torch.full_like(x, 0.3), [S]),
    "new": (lambda x: x * x.new_full((4,), 2.0) + x.new_ones(4) + x.new_zeros(4), [S]),
    "tensor": (lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]), [S]),
    "empty": (lambda x: x * torch.empty(4).fill_(2.0), [S]),
}
