"""Small expressions that reach the ops of the table: arithmetic, reductions, losses, products.

Each group is {name: (function, shapes)}: a function of one float tensor a shape, with elements
between 0.1 and 0.9, that gives a tensor or several. Some ops are reached in backward only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

Expression = tuple[Callable[..., Any], list[tuple[int, ...]]]

S = (3, 4)
MASK = torch.tensor(
    [[True, False, True, True], [False, True, False, True], [True, True, False, False]]
)
CLASSES = torch.tensor([0, 1, 3])
EYE = torch.eye(3)
_UNARY = (
    "sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh "
    "cosh tanh erf erfc erfinv sinc logit sigmoid square neg abs sgn relu floor ceil round trunc "
    "frac nan_to_num"
)
_ACTIVATIONS = (
    "logsigmoid softplus silu mish gelu elu leaky_relu hardsigmoid hardswish hardtanh relu6 selu "
    "celu softsign tanhshrink"
)
_BINARY = (
    "add sub mul div atan2 maximum minimum fmax fmin fmod remainder logaddexp xlogy hypot copysign "
    "pow"
)

ELEMENTWISE: dict[str, Expression] = {
    **{name: (getattr(torch, name), [S]) for name in _UNARY.split()},
    **{name: (getattr(F, name), [S]) for name in _ACTIVATIONS.split()},
    **{name: (getattr(torch, name), [S, S]) for name in _BINARY.split()},
    "add_alpha": (lambda x, y: torch.add(x, y, alpha=0.3), [S, S]),
    "rsub": (lambda x: 1.5 - x, [S]),
    "scalar": (lambda x: 2 / (x * 0.3 + 0.2) - 0.1, [S]),
    "pow3": (lambda x: x**3, [S]),
    "pow_base": (lambda x: 2.0**x, [S]),
    "float_power": (lambda x: torch.pow(x, torch.tensor([1.0, 2.0, 3.0, 4.0])), [S]),
    "broadcast": (lambda x, y: x * y + y, [S, (1, 4)]),
    "broadcast2": (lambda x, y: x / y - y, [S, (3, 1)]),
    "addcmul": (lambda x, y, z: torch.addcmul(x, y, z, value=0.5), [S, S, S]),
    "addcdiv": (lambda x, y, z: torch.addcdiv(x, y, z, value=0.5), [S, S, S]),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.3), [S, S]),
    "lerp_t": (lambda x, y, z: torch.lerp(x, y, z), [S, S, S]),
    "prelu": (lambda x, w: F.prelu(x - 0.5, w), [S, (1,)]),
    "glu": (F.glu, [S]),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), [S]),
    "threshold": (lambda x: F.threshold(x, 0.4, 0.1), [S]),
    "clamp": (lambda x: x.clamp(0.3, 0.6), [S]),
    "clamp_min": (lambda x: x.clamp(min=0.3), [S]),
    "clamp_max": (lambda x: x.clamp_max(0.3), [S]),
    "clamp_t": (lambda x, y: torch.clamp(x, y, y + 0.1), [S, S]),
    "clamp_kw": (lambda x, y: torch.clamp(x, max=y), [S, S]),
    "where": (lambda x, y: torch.where(MASK, x, y), [S, S]),
    "where_s": (lambda x: torch.where(x > 0.5, x, 0.0), [S]),
    "masked_fill": (lambda x: x.masked_fill(MASK, 0.5), [S]),
    "digamma": (torch.digamma, [S]),
    "lgamma": (torch.lgamma, [S]),
    "i0": (torch.i0, [S]),
    "deg2rad": (torch.deg2rad, [S]),
    "special": (lambda x: torch.special.xlog1py(x, x), [S]),
    "entr": (lambda x: torch.special.entr(x), [S]),
    "ndtr": (torch.special.ndtr, [S]),
    "sign": (lambda x: x * torch.sign(x - 0.5), [S]),
    "sigmoid_focal": (lambda x: (1 - x.sigmoid()) ** 2 * F.logsigmoid(x), [S]),
    "mul_self": (lambda x: x * 2 * (x * 2), [S]),
    "mul_same": (lambda x: (lambda z: z * z + z)(x * 2), [S]),
}

REDUCTIONS: dict[str, Expression] = {
    "sum": (torch.sum, [S]),
    "sum1": (lambda x: x.sum(1), [S]),
    "mean": (lambda x: x.mean(0, keepdim=True), [S]),
    "mean_all": (torch.mean, [S]),
    "nanmean": (lambda x: x.nanmean(1), [S]),
    "var": (lambda x: x.var(1), [S]),
    "std": (lambda x: x.std(0), [S]),
    "var_mean": (lambda x: torch.var_mean(x, 1), [S]),
    "std_mean": (lambda x: torch.std_mean(x, 1), [S]),
    "prod": (torch.prod, [S]),
    "prod1": (lambda x: x.prod(1), [S]),
    "cumsum": (lambda x: x.cumsum(1), [S]),
    "cumprod": (lambda x: x.cumprod(1), [S]),
    "logsumexp": (lambda x: x.logsumexp(1), [S]),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), [S]),
    "norm": (lambda x: x.norm(dim=1), [S]),
    "vector_norm": (lambda x: torch.linalg.vector_norm(x, 3), [S]),
    "normalize": (lambda x: F.normalize(x, dim=1), [S]),
    "cosine": (lambda x, y: F.cosine_similarity(x, y), [S, S]),
    "dist": (lambda x, y: torch.dist(x, y), [S, S]),
    "cdist": (torch.cdist, [S, (5, 4)]),
    "trace": (torch.trace, [(4, 4)]),
    "amax": (lambda x: x.amax(1), [S]),
    "amin": (lambda x: x.amin(0), [S]),
    "max": (lambda x: x.max(1).values, [S]),
    "min": (lambda x: x.min(1)[0], [S]),
    "max_all": (torch.max, [S]),
    "min_all": (torch.min, [S]),
    "sort": (lambda x: x.sort(1).values, [S]),
    "topk": (lambda x: x.topk(2, 1).values, [S]),
    "median": (lambda x: x.median(1).values, [S]),
    "median_all": (torch.median, [S]),
    "cummax": (lambda x: x.cummax(1).values, [S]),
    "cummin": (lambda x: x.cummin(1).values, [S]),
    "kthvalue": (lambda x: x.kthvalue(2, 1).values, [S]),
    "argmax": (lambda x: x.gather(1, x.argmax(1, keepdim=True)), [S]),
    "quantile": (lambda x: torch.quantile(x, 0.3, dim=1), [S]),
    "softmax": (lambda x: x.softmax(1), [S]),
    "log_softmax": (lambda x: x.log_softmax(1), [S]),
    "trapz": (lambda x: torch.trapezoid(x), [S]),
    "diff": (lambda x: x.diff(dim=1), [S]),
}

LOSSES: dict[str, Expression] = {
    "nll": (lambda x: F.nll_loss(x, CLASSES), [S]),
    "ce": (lambda x: F.cross_entropy(x, CLASSES, ignore_index=1, label_smoothing=0.1), [S]),
    "ce2d": (lambda x: F.cross_entropy(x, torch.zeros(2, 4, 4, dtype=torch.long)), [(2, 3, 4, 4)]),
    "bce": (lambda x, y: F.binary_cross_entropy(x, y.detach()), [S, S]),
    "bcel": (
        lambda x, y: F.binary_cross_entropy_with_logits(
            x, y.detach(), pos_weight=torch.tensor(2.0)
        ),
        [S, S],
    ),
    "mse": (F.mse_loss, [S, S]),
    "l1": (F.l1_loss, [S, S]),
    "smooth": (F.smooth_l1_loss, [S, S]),
    "huber": (F.huber_loss, [S, S]),
    "kl": (lambda x, y: F.kl_div(x.log(), y, reduction="batchmean"), [S, S]),
    "hinge": (lambda x: F.hinge_embedding_loss(x, torch.tensor([1.0, -1.0, 1.0, 1.0])), [S]),
    "margin": (lambda x, y: F.margin_ranking_loss(x, y, torch.ones(3, 4), margin=0.2), [S, S]),
    "triplet": (lambda x, y, z: F.triplet_margin_loss(x, y, z), [S, S, S]),
    "poisson": (lambda x, y: F.poisson_nll_loss(x, y.detach()), [S, S]),
    "multilabel": (lambda x: F.multilabel_soft_margin_loss(x, MASK.float()), [S]),
    "multi_margin": (lambda x: F.multi_margin_loss(x, CLASSES), [S]),
    "soft_margin": (lambda x: F.soft_margin_loss(x, MASK.float() * 2 - 1), [S]),
}

MATRIX: dict[str, Expression] = {
    "mm": (torch.mm, [S, (4, 5)]),
    "matmul_t": (lambda x, y: x @ y.T, [S, (5, 4)]),
    "bmm": (torch.bmm, [(2, 3, 4), (2, 4, 5)]),
    "addmm": (torch.addmm, [(5,), S, (4, 5)]),
    "addmm_ab": (lambda a, x, y: torch.addmm(a, x, y, beta=0.5, alpha=2), [(3, 5), S, (4, 5)]),
    "baddbmm": (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
    "addbmm": (torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)]),
    "linear": (F.linear, [(2, 3, 4), (5, 4), (5,)]),
    "mv": (torch.mv, [S, (4,)]),
    "dot": (torch.dot, [(4,), (4,)]),
    "outer": (torch.outer, [(3,), (4,)]),
    "einsum": (lambda x, y: torch.einsum("bij,bkj->bik", x, y), [(2, 3, 4), (2, 5, 4)]),
    "bilinear": (F.bilinear, [S, (3, 5), (2, 4, 5)]),
    "addmv": (torch.addmv, [(3,), S, (4,)]),
    "addr": (torch.addr, [S, (3,), (4,)]),
    "matmul4": (torch.matmul, [(2, 3, 4, 5), (5, 6)]),
    "kron": (torch.kron, [(2, 2), (2, 3)]),
    "tensordot": (lambda x, y: torch.tensordot(x, y, 1), [S, (4, 5)]),
    "cross": (lambda x, y: torch.linalg.cross(x, y), [(4, 3), (4, 3)]),
    "inv_ex": (lambda x: torch.linalg.inv_ex(x + EYE).inverse, [(3, 3)]),
    "det": (lambda x: torch.linalg.det(x + EYE), [(3, 3)]),
    "slogdet": (lambda x: torch.slogdet(x @ x.T + EYE), [(3, 3)]),
    "solve_ex": (lambda x, y: torch.linalg.solve_ex(x + EYE, y).result, [(3, 3), (3, 2)]),
    "cholesky_ex": (lambda x: torch.linalg.cholesky_ex(x @ x.T + EYE).L, [(3, 3)]),
    "solve_tri": (
        lambda x, y: torch.linalg.solve_triangular(x.tril() + EYE, y, upper=False),
        [(3, 3), (3, 2)],
    ),
}

CONVOLUTIONS: dict[str, Expression] = {
    "conv1d": (lambda x, w: F.conv1d(x, w, padding=1, stride=2), [(2, 3, 8), (4, 3, 3)]),
    "conv2d": (
        lambda x, w, b: F.conv2d(x, w, b, padding=1, stride=2),
        [(2, 3, 8, 8), (4, 3, 3, 3), (4,)],
    ),
    "depthwise": (lambda x, w: F.conv2d(x, w, groups=4), [(2, 4, 6, 6), (4, 1, 3, 3)]),
    "dilated": (lambda x, w: F.conv2d(x, w, dilation=2), [(1, 2, 7, 7), (2, 2, 3, 3)]),
    "conv3d": (lambda x, w: F.conv3d(x, w), [(1, 2, 4, 4, 4), (3, 2, 3, 3, 3)]),
    "conv_t": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2),
        [(2, 3, 4, 4), (3, 5, 2, 2), (5,)],
    ),
    "conv_same": (lambda x, w: F.conv2d(x, w, padding="same"), [(1, 2, 5, 5), (2, 2, 3, 3)]),
    "conv_cl": (
        lambda x, w: F.conv2d(x.contiguous(memory_format=torch.channels_last), w),
        [(2, 3, 6, 6), (4, 3, 3, 3)],
    ),
    "im2col": (lambda x: F.unfold(x, 2), [(1, 2, 4, 4)]),
    "col2im": (lambda x: F.fold(x, (4, 4), 2), [(1, 8, 9)]),
}

RECURRENT: dict[str, Expression] = {
    "lstm_cell": (
        lambda x, h, c, a, b: torch.lstm_cell(x, (h, c), a, b),
        [(2, 3), (2, 4), (2, 4), (16, 3), (16, 4)],
    ),
    "gru_cell": (lambda x, h, a, b: torch.gru_cell(x, h, a, b), [(2, 3), (2, 4), (12, 3), (12, 4)]),
}
