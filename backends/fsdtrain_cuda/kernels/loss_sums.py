"""What the kernels of losses share: sums in two stages, and the gradient times a scalar.

The programs of a loss leave their parts of the sums of values and of weights; one program adds the
parts in a fixed order, so that repeated runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdtrain_cuda.kernels.arguments import DEVICE_TYPES

MAX_PARTS = 2048  # programs of a loss: some for each multiprocessor, and few parts to add


def empty_parts(values: Tensor, num_programs: int) -> Tensor:
    """Space for the parts: [2, programs], of values and of weights, in the dtype of the loss."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.new_empty(2, num_programs, dtype=dtype)


def add_parts(parts_2G: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, scale) of the parts of G programs: values / weights and 1 / weights, or zeros."""
    loss, scale = parts_2G.new_empty(()), parts_2G.new_empty(())
    _add_parts[1,](parts_2G, loss, scale, parts_2G.shape[1], BLOCK_G=1024)
    return loss, scale


@torch.library.custom_op("fsdtrain::scale_gradient", mutates_args=(), device_types=DEVICE_TYPES)
def scale_gradient(gradient: Tensor, upstream: Tensor, scale: Tensor) -> Tensor:
    """The gradient that a forward pass left times two scalars: one pass, rounded once."""
    scaled = torch.empty_like(gradient)
    assert scaled.stride() == gradient.stride(), "the forward pass leaves it dense in memory"
    if scaled.numel():
        _scale[triton.cdiv(scaled.numel(), 2048),](
            gradient, upstream, scale, scaled, scaled.numel(), BLOCK=2048, num_warps=8
        )
    return scaled


@scale_gradient.register_fake
def _(gradient: Tensor, upstream: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(gradient)


@triton.jit
def _add_parts(parts_ptr, loss_ptr, scale_ptr, num_parts, BLOCK_G: tl.constexpr):
    """Parts [2, num_parts] -> loss [], scale []."""
    part = tl.arange(0, BLOCK_G)
    values = tl.zeros([BLOCK_G], parts_ptr.dtype.element_ty)
    weights = tl.zeros([BLOCK_G], parts_ptr.dtype.element_ty)
    for first in range(0, num_parts, BLOCK_G):
        is_part = first + part < num_parts
        values += tl.load(parts_ptr + first + part, mask=is_part, other=0.0)
        weights += tl.load(parts_ptr + num_parts + first + part, mask=is_part, other=0.0)
    weight = tl.sum(weights, 0)
    scale = tl.where(weight == 0, 0.0, 1 / tl.where(weight == 0, 1.0, weight))
    tl.store(loss_ptr, tl.sum(values, 0) * scale)
    tl.store(scale_ptr, scale)


@triton.jit
def _scale(gradient_ptr, upstream_ptr, scale_ptr, scaled_ptr, num_elements, BLOCK: tl.constexpr):
    """Gradient, upstream [], scale [] -> scaled, both in the order of memory."""
    factor = tl.load(upstream_ptr) * tl.load(scale_ptr)
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_element = element < num_elements
    values = tl.load(gradient_ptr + element, mask=is_element, other=0.0).to(factor.dtype)
    scaled = (values * factor).to(scaled_ptr.dtype.element_ty)
    tl.store(scaled_ptr + element, scaled, mask=is_element)
