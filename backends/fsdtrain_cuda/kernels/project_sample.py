"""project_sample on a GPU: projection, bilinear samples and masked mean over cameras, fused.

Forward, two launches. `locate` projects each point once for all frames and channels and keeps 12
bytes for each view that counts; in the sampling kernel the same arithmetic would be repeated by
every thread along the channels. `sample` owns a block of points and goes over their views.

Backward, without atomics, so that repeated runs give the same bits. `locate` again, which costs
less than keeping its results; the views are sorted by the feature pixel at their upper left corner;
a program owns one pixel and adds what the runs of entries around it send there.

Autocast leaves the op alone: it computes in float32 from features of any dtype, and coordinates
never go down to the features' precision.

Shape letters: those of fsdtrain/ops/project_sample.py; P = Z * X * Y points.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain_cuda.checks import check_once
from fsdtrain_cuda.kernels import project_sample_kernels as kernels
from fsdtrain_cuda.kernels.arguments import (
    DEVICE_TYPES,
    FLOATS,
    MAX_INT32,
    check_device,
    check_dtype,
    check_shape,
)

MAX_CAMERAS = 1 << 7
MAX_EDGE = 1 << 12
LOCATE_BLOCK = 128


def project_sample(
    feats_BTNChw: Tensor,
    points_ZXY3: Tensor,
    intrinsics_BN33: Tensor,
    camera_to_ego_BN44: Tensor,
    image_size: tuple[int, int],
    max_views: int,
) -> Tensor:
    """As fsdtrain.ops.project_sample, which see; fastest where the channels lie together.

    Raises:
        BackendError: shapes, dtypes or devices that do not fit, NaN in the calibration, a gradient
            asked for of anything but the features.
    """
    _check(feats_BTNChw, points_ZXY3, intrinsics_BN33, camera_to_ego_BN44, max_views)
    sampled: Tensor = torch.ops.fsdtrain.project_sample(
        feats_BTNChw, points_ZXY3, intrinsics_BN33, camera_to_ego_BN44, *image_size, max_views
    )
    return sampled


def min_bytes(feats_BTNChw: Tensor, num_points: int) -> int:
    """What forward must move, and backward too: features once, one value a point and channel."""
    B, T, _, C, _, _ = feats_BTNChw.shape
    return (feats_BTNChw.numel() + B * T * C * num_points) * feats_BTNChw.element_size()


def _check(feats: Tensor, points: Tensor, intrinsics: Tensor, poses: Tensor, views: int) -> None:
    op = "project_sample"
    if feats.ndim != 6 or points.ndim != 4:
        raise BackendError(
            f"{op}: features must be [B, T, N, C, h, w] and points [Z, X, Y, 3], not "
            f"{tuple(feats.shape)} and {tuple(points.shape)}"
        )
    B, _, N, _, h, w = feats.shape
    check_shape(op, "points", points, (*points.shape[:3], 3))
    check_shape(op, "intrinsics", intrinsics, (B, N, 3, 3))
    check_shape(op, "camera_to_ego", poses, (B, N, 4, 4))
    check_dtype(op, "features", feats, FLOATS)
    for name, tensor in (("points", points), ("intrinsics", intrinsics), ("camera_to_ego", poses)):
        check_dtype(op, name, tensor, (torch.float32, torch.float64))
        check_dtype(op, name, tensor, (points.dtype,))
        if tensor.requires_grad and torch.is_grad_enabled():
            raise BackendError(f"{op}: gradients go to the features only, but {name} asks for one")
    check_device(op, features=feats, points=points, intrinsics=intrinsics, camera_to_ego=poses)
    if not 1 <= N < MAX_CAMERAS or not 1 <= h <= MAX_EDGE or not 1 <= w <= MAX_EDGE or views < 1:
        raise BackendError(
            f"{op}: {N} cameras, features of {h} x {w}, max_views={views}; allowed are 1 to "
            f"{MAX_CAMERAS - 1} cameras, 1 to {MAX_EDGE} rows and columns, at least one view"
        )
    num_slots = B * (points.numel() // 3) * min(views, N)
    if max(num_slots, B * N * h * w) >= MAX_INT32:
        raise BackendError(
            f"{op}: {num_slots} views of points and {B * N * h * w} feature pixels in a batch; "
            f"both must stay below {MAX_INT32}; take fewer clips"
        )
    check_once(
        (op, feats.shape, points.shape, feats.device), lambda: _check_values(intrinsics, poses)
    )


def _check_values(intrinsics: Tensor, poses: Tensor) -> None:
    for name, tensor in (("intrinsics", intrinsics), ("camera_to_ego", poses)):
        is_bad = ~tensor.isfinite().all(-1).all(-1)
        if bool(is_bad.any()):
            clip, camera = is_bad.nonzero()[0].tolist()
            raise BackendError(
                f"project_sample: {name} of clip {clip}, camera {camera} has NaN or infinity"
            )


@torch.library.custom_op("fsdtrain::project_sample", mutates_args=(), device_types=DEVICE_TYPES)
def _forward(
    feats: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    poses: Tensor,
    image_height: int,
    image_width: int,
    max_views: int,
) -> Tensor:
    B, T, N, C, h, w = feats.shape
    P = points.numel() // 3
    sampled = feats.new_empty(B, T, C, *points.shape[:3])
    if sampled.numel() == 0:
        return sampled
    image = (image_height, image_width)
    pixels, fractions, counts = _located(points, intrinsics, poses, (h, w), image, max_views, False)

    def launch_shape(meta: dict[str, Any]) -> tuple[int, int]:
        return triton.cdiv(P, meta["BLOCK_P"]), B * T

    kernels.sample[launch_shape](
        feats, pixels, fractions, counts, sampled,
        T, C, P, h, w, *feats.stride(),
        V=pixels.shape[-1], ACCUMULATE=_accumulator(feats), BLOCK_C=_channel_block(C),
    )  # fmt: skip
    return sampled


@_forward.register_fake
def _(
    feats: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    poses: Tensor,
    image_height: int,
    image_width: int,
    max_views: int,
) -> Tensor:
    B, T, _, C, _, _ = feats.shape
    return feats.new_empty(B, T, C, *points.shape[:3])


@torch.library.custom_op(
    "fsdtrain::project_sample_backward", mutates_args=(), device_types=DEVICE_TYPES
)
def _backward(
    grad: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    poses: Tensor,
    feature_height: int,
    feature_width: int,
    image_height: int,
    image_width: int,
    max_views: int,
    is_channels_last: bool,
) -> Tensor:
    B, T, C = grad.shape[:3]
    N = intrinsics.shape[1]
    P = points.numel() // 3
    h, w = feature_height, feature_width
    feats_grad = _empty_features(grad, N, h, w, is_channels_last)
    if feats_grad.numel() == 0 or P == 0:
        return feats_grad.zero_()
    image = (image_height, image_width)
    keys, fractions, counts = _located(points, intrinsics, poses, (h, w), image, max_views, True)
    num_pixels = B * N * h * w
    keys, order = torch.sort(keys.view(-1), stable=True)
    each_pixel = torch.arange(num_pixels + 1, device=grad.device, dtype=torch.int32)
    starts = torch.searchsorted(keys, each_pixel, out_int32=True)
    grad = _with_channels_last(grad.reshape(B, T, C, P))
    block_c = _channel_block(C)
    kernels.gather[num_pixels, T, triton.cdiv(C, block_c)](
        grad, order, starts, fractions, counts, feats_grad,
        N, C, P, h, w, *grad.stride(), *feats_grad.stride(),
        V=fractions.shape[-1], ACCUMULATE=_accumulator(grad), BLOCK_C=block_c,
    )  # fmt: skip
    return feats_grad


@_backward.register_fake
def _(
    grad: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    poses: Tensor,
    feature_height: int,
    feature_width: int,
    image_height: int,
    image_width: int,
    max_views: int,
    is_channels_last: bool,
) -> Tensor:
    num_cameras = intrinsics.shape[1]
    return _empty_features(grad, num_cameras, feature_height, feature_width, is_channels_last)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feats, points, intrinsics, poses, *rest = inputs
    ctx.save_for_backward(points, intrinsics, poses)
    ctx.sizes = (*feats.shape[-2:], *rest, feats.stride(3) == 1)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    feats_grad = torch.ops.fsdtrain.project_sample_backward(grad, *ctx.saved_tensors, *ctx.sizes)
    return feats_grad, None, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _located(
    points: Tensor,
    intrinsics: Tensor,
    poses: Tensor,
    feature_size: tuple[int, int],
    image_size: tuple[int, int],
    max_views: int,
    is_key: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `kernels.locate` finds: views [B, P, V], fractions [2, B, P, V], counts [B, P]."""
    B, N = intrinsics.shape[:2]
    P = points.numel() // 3
    shape = (B, P, min(max_views, N))
    views = torch.empty(shape, device=points.device, dtype=torch.int32)
    fractions = points.new_empty(2, *shape)
    counts = torch.empty(shape[:2], device=points.device, dtype=torch.int32)
    kernels.locate[triton.cdiv(P, LOCATE_BLOCK), B](
        points.contiguous(), intrinsics.contiguous(), poses.contiguous(),
        views, fractions, counts,
        P, N, *feature_size, *image_size,
        V=shape[2], IS_KEY=is_key, BLOCK_P=LOCATE_BLOCK,
    )  # fmt: skip
    return views, fractions, counts


def _with_channels_last(grad_BTCP: Tensor) -> Tensor:
    """The same values with the channels together, so that an entry's row is read at once."""
    if grad_BTCP.stride(2) == 1:
        return grad_BTCP
    B, T, C, P = grad_BTCP.shape
    turned = grad_BTCP.new_empty(B, T, P, C)
    block_c = min(64, triton.next_power_of_2(C))
    kernels.turn[triton.cdiv(P, 64), triton.cdiv(C, block_c), B * T](
        grad_BTCP, turned, T, C, P, *grad_BTCP.stride(), BLOCK_P=64, BLOCK_C=block_c
    )
    return turned.transpose(2, 3)


def _empty_features(grad: Tensor, N: int, h: int, w: int, is_channels_last: bool) -> Tensor:
    B, T, C = grad.shape[:3]
    if is_channels_last:
        return grad.new_empty(B, T, N, h, w, C).permute(0, 1, 2, 5, 3, 4)
    return grad.new_empty(B, T, N, C, h, w)


def _accumulator(values: Tensor) -> tl.dtype:
    return tl.float64 if values.dtype == torch.float64 else tl.float32


def _channel_block(num_channels: int) -> int:
    """The power of two up to 64 that leaves the fewest lanes idle; of equals the largest."""
    blocks = [block for block in (64, 32, 16) if block < 2 * num_channels]
    if not blocks:
        return int(triton.next_power_of_2(num_channels))
    return min(blocks, key=lambda block: -(-num_channels // block) * block)
