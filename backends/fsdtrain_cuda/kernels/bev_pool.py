"""bev_pool on a GPU: depth times features, summed by cell, with no frustum in memory.

Forward: `find_keys` gives each frustum point the number of its cell, a stable radix sort (torch's)
brings the points of a cell together, a search finds where each cell begins. All T frames and all
channels share this index. `sum_cells` owns a few cells and adds up their points; where a cell has
more than CHUNK, `sum_chunks` has summed CHUNK at a time before, so that a cell that holds
everything keeps the whole GPU busy.

Backward needs no sort, only the keys: a feature pixel's points are the D bins on its own ray, so
that `send_back` owns pixels, reads the cells' gradients once, and gives both gradients.

No atomics anywhere: repeated runs give the same bits. The kernels read a pixel's channels, and its
depths, side by side (as DepthSplat leaves them, channels last); from any other layout they are
copied there first, and a gradient with another layout too.

Autocast leaves the op alone: it sums in float32 from features of any dtype, and coordinates never
go down to the features' precision.

Shape letters: those of fsdtrain/ops/bev_pool.py.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdtrain_cuda.checks import check_once
from fsdtrain_cuda.kernels.arguments import DEVICE_TYPES
from fsdtrain_cuda.kernels.bev_pool_backward import send_back
from fsdtrain_cuda.kernels.bev_pool_checks import check_arguments, check_values
from fsdtrain_cuda.kernels.bev_pool_kernels import sum_cells, sum_chunks
from fsdtrain_cuda.kernels.channel_groups import group_channels
from fsdtrain_cuda.kernels.frustum_cells import find_keys

CHUNK = 128  # points; a cell with more of them is summed in parts
MAX_CHANNELS = 256  # that a program of the forward kernels takes


def bev_pool(
    feats_BTNChw: Tensor,
    depth_BTNDhw: Tensor,
    depths_m_D: Tensor,
    intrinsics_BN33: Tensor,
    camera_to_ego_BN44: Tensor,
    image_size: tuple[int, int],
    min_corner_m: tuple[float, float],
    cell_m: float,
    num_cells: tuple[int, int],
    z_range_m: tuple[float, float],
) -> Tensor:
    """As fsdtrain.ops.bev_pool, which see; fastest with channels, and depths, side by side.

    Raises:
        BackendError: shapes, dtypes or devices that do not fit, an index that would overflow, NaN
            in the calibration, no point inside the grid, a gradient asked for of the geometry.
    """
    geometry = (depths_m_D, intrinsics_BN33, camera_to_ego_BN44)
    check_arguments(feats_BTNChw, depth_BTNDhw, geometry, cell_m, num_cells, z_range_m)
    h, w = feats_BTNChw.shape[-2:]
    key = (feats_BTNChw.shape, depths_m_D.shape, min_corner_m, cell_m, num_cells, z_range_m)
    check_once(
        ("bev_pool", *key, image_size, feats_BTNChw.device),
        lambda: check_values(
            *geometry, (h, w), image_size, min_corner_m, cell_m, num_cells,
            z_range_m,
        ),
    )  # fmt: skip
    pooled: Tensor
    pooled, _ = torch.ops.fsdtrain.bev_pool(
        feats_BTNChw, depth_BTNDhw, *geometry,
        *image_size, *min_corner_m, cell_m, *num_cells, *z_range_m,
    )  # fmt: skip
    return pooled


def min_bytes(feats_BTNChw: Tensor, depth_BTNDhw: Tensor, num_cells: tuple[int, int]) -> int:
    """What forward must move at least: features and depths in, each cell's sum out."""
    B, T, _, C = feats_BTNChw.shape[:4]
    sums = B * T * C * num_cells[0] * num_cells[1]
    return (feats_BTNChw.numel() + sums) * feats_BTNChw.element_size() + depth_BTNDhw.nbytes


def min_bytes_backward(
    feats_BTNChw: Tensor, depth_BTNDhw: Tensor, num_cells: tuple[int, int]
) -> int:
    """As `min_bytes`, and 4 bytes a point of the index in, both gradients out."""
    num_frames = feats_BTNChw.shape[1]
    index_bytes = 4 * depth_BTNDhw.numel() // num_frames
    gradients = feats_BTNChw.nbytes + depth_BTNDhw.nbytes
    return min_bytes(feats_BTNChw, depth_BTNDhw, num_cells) + index_bytes + gradients


def gather_bytes(feats_BTNChw: Tensor, depth_BTNDhw: Tensor, share_inside: float) -> int:
    """What forward reads in pieces through the L2 cache, and backward, too, but for the depths.

    Args:
        feats_BTNChw: as given.
        depth_BTNDhw: as given.
        share_inside: of the frustum points that lie in a cell.
    """
    row_bytes = feats_BTNChw.shape[3] * feats_BTNChw.element_size()
    return round(share_inside * depth_BTNDhw.numel() * (row_bytes + depth_BTNDhw.element_size()))


@torch.library.custom_op("fsdtrain::bev_pool", mutates_args=(), device_types=DEVICE_TYPES)
def _forward(
    feats: Tensor,
    depth: Tensor,
    depths_m: Tensor,
    intrinsics: Tensor,
    poses: Tensor,
    image_height: int,
    image_width: int,
    x_min_m: float,
    y_min_m: float,
    cell_m: float,
    num_x: int,
    num_y: int,
    z_min_m: float,
    z_max_m: float,
) -> tuple[Tensor, Tensor]:
    B, T, N, C, h, w = feats.shape
    D = depths_m.shape[0]
    num_cells, pixels_of_clip = num_x * num_y, N * h * w
    num_points, num_keys = B * pixels_of_clip * D, B * num_cells
    if feats.numel() == 0:
        keys = feats.new_empty(B, pixels_of_clip, D, dtype=torch.int32)
        return feats.new_empty(B, T, num_x, num_y, C).permute(0, 1, 4, 2, 3), keys
    keys = find_keys(
        depths_m, intrinsics, poses, (h, w), (image_height, image_width),
        (x_min_m, y_min_m), cell_m, (num_x, num_y), (z_min_m, z_max_m),
    )  # fmt: skip
    sorted_keys, order = torch.sort(keys.view(-1), stable=True)
    each_key = torch.arange(num_keys + 1, device=feats.device, dtype=torch.int32)
    starts = torch.searchsorted(sorted_keys, each_key, out_int32=True)

    feats, depth = _innermost(feats), _innermost(depth)
    num_chunks = triton.cdiv(num_points, CHUNK)
    accumulate = _accumulator(feats, depth)
    width = torch.float64 if accumulate == tl.float64 else torch.float32
    parts = torch.empty(T, num_chunks, 2, C, device=feats.device, dtype=width)
    sums = feats.new_empty(B, T, num_cells, C)
    sizes = (num_points, num_keys, num_cells, pixels_of_clip)
    group, main, tail = group_channels(min(C, MAX_CHANNELS))
    num_blocks = triton.cdiv(C, group * (main + tail))
    how = {
        "C": C, "D": D, "CHUNK": CHUNK, "ACCUMULATE": accumulate,
        "GROUP": group, "MAIN": main, "TAIL": tail, "enable_fp_fusion": True,
    }  # fmt: skip
    sum_chunks[num_chunks, T, num_blocks](
        feats, depth, sorted_keys, order, starts, parts,
        *sizes, *_strides(feats), *_strides(depth), BLOCK_P=32, num_warps=2, **how,
    )  # fmt: skip
    sum_cells[lambda meta: (triton.cdiv(num_keys, meta["CELLS"]), T, num_blocks)](
        feats, depth, order, starts, parts, sums,
        *sizes, *_strides(feats), *_strides(depth),
        IS_DEPTH_DENSE=_strides(depth)[2] == D, NUM_BLOCKS=num_blocks, **how,
    )  # fmt: skip
    return sums.view(B, T, num_x, num_y, C).permute(0, 1, 4, 2, 3), keys


@_forward.register_fake
def _(
    feats: Tensor,
    depth: Tensor,
    depths_m: Tensor,
    intrinsics: Tensor,
    poses: Tensor,
    image_height: int,
    image_width: int,
    x_min_m: float,
    y_min_m: float,
    cell_m: float,
    num_x: int,
    num_y: int,
    z_min_m: float,
    z_max_m: float,
) -> tuple[Tensor, Tensor]:
    B, T, N, C, h, w = feats.shape
    sums = feats.new_empty(B, T, num_x, num_y, C).permute(0, 1, 4, 2, 3)
    return sums, feats.new_empty(B, N * h * w, depths_m.shape[0], dtype=torch.int32)


@torch.library.custom_op("fsdtrain::bev_pool_backward", mutates_args=(), device_types=DEVICE_TYPES)
def _backward(grad: Tensor, feats: Tensor, depth: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    B, T, N, C, h, w = feats.shape
    D = depth.shape[3]
    num_cells = grad.shape[3] * grad.shape[4]
    grad, feats, depth = grad.unsqueeze(2), _innermost(feats), _innermost(depth)
    grad = _innermost(grad)
    feats_grad = feats.new_empty(B, T, N, h, w, C)
    depth_grad = depth.new_empty(B, T, N, h, w, D)
    gradients = (feats_grad.permute(0, 1, 2, 5, 3, 4), depth_grad.permute(0, 1, 2, 5, 3, 4))
    if feats.numel() == 0:
        depth_grad.zero_()
        return gradients
    group, main, tail = group_channels(C)

    def launch_shape(meta: dict[str, Any]) -> tuple[int, int]:
        return B * N * triton.cdiv(h * w, meta["BLOCK_P"]), T

    send_back[launch_shape](
        grad, feats, depth, keys, feats_grad, depth_grad,
        N, h, w, B * num_cells, num_cells,
        *_strides(grad), *_strides(feats), *_strides(depth),
        C=C, D=D, ACCUMULATE=_accumulator(feats, depth),
        GROUP=group, MAIN=main, TAIL=tail, enable_fp_fusion=True,
    )  # fmt: skip
    return gradients


@_backward.register_fake
def _(grad: Tensor, feats: Tensor, depth: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    B, T, N, C, h, w = feats.shape
    feats_grad = feats.new_empty(B, T, N, h, w, C)
    depth_grad = depth.new_empty(B, T, N, h, w, depth.shape[3])
    return feats_grad.permute(0, 1, 2, 5, 3, 4), depth_grad.permute(0, 1, 2, 5, 3, 4)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.fsdtrain.bev_pool_backward(grad, *ctx.saved_tensors)
    return (*gradients, *[None] * 12)


_forward.register_autograd(_differentiate, setup_context=_save)


def _innermost(values_BTNChw: Tensor) -> Tensor:
    """The same values with channels side by side and pixels at one stride; copied if need be."""
    _, _, N, C, h, w = values_BTNChw.shape
    _, _, stride_n, stride_c, stride_h, stride_w = values_BTNChw.stride()
    pixel = _strides(values_BTNChw)[2]
    is_ready = all(
        size == 1 or stride == wanted
        for size, stride, wanted in (
            (C, stride_c, 1), (w, stride_w, pixel), (h, stride_h, w * pixel),
            (N, stride_n, h * w * pixel),
        )
    )  # fmt: skip
    if is_ready:
        return values_BTNChw
    return values_BTNChw.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)


def _strides(values_BTNChw: Tensor) -> tuple[int, int, int]:
    """From clip to clip, frame to frame and pixel to pixel of what `_innermost` gives."""
    _, _, N, _, h, w = values_BTNChw.shape
    stride_b, stride_t, stride_n, _, stride_h, stride_w = values_BTNChw.stride()
    # A dimension of size one may have any stride.
    pixel = stride_w if w > 1 else stride_h if h > 1 else stride_n if N > 1 else 1
    return stride_b, stride_t, pixel


def _accumulator(*values: Tensor) -> tl.dtype:
    return tl.float64 if any(each.dtype == torch.float64 for each in values) else tl.float32
