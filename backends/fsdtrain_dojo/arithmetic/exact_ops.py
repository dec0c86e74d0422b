"""PyTorch's matrix operators in the arithmetic of the matrix unit, with ATen's signatures.

What joins a product (addend, bias, beta, alpha) does so at the end, in FP32, each operation
rounding once: the vector unit does it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain_dojo.arithmetic.exact_convolution import (
    Window,
    convolve,
    convolve_transposed,
    find_bias_gradient,
    find_weight_gradient,
)
from fsdtrain_dojo.arithmetic.exact_matmul import (
    MatrixUnit,
    check_float32_on_cpu,
    check_operands,
)
from fsdtrain_dojo.formats import Format

aten = torch.ops.aten


class ExactOps:
    """The operators for one accumulator and K-tile.

    Every method raises BackendError for operands that are not float32 on the CPU or whose shapes
    do not fit. None differentiates.
    """

    def __init__(self, accumulator: Format, k_tile: int) -> None:
        self._unit = MatrixUnit(accumulator, k_tile)

    def by_overload(self) -> dict[Any, Callable[..., Any]]:
        """What to call in place of each ATen overload."""
        return {
            aten.mm.default: self.mm,
            aten.addmm.default: self.addmm,
            aten.bmm.default: self.bmm,
            aten.baddbmm.default: self.baddbmm,
            aten.convolution.default: self.convolution,
            aten.convolution_backward.default: self.convolution_backward,
        }

    def mm(self, self_: Tensor, mat2: Tensor) -> Tensor:
        """[M, K] times [K, N]."""
        check_operands("mm", self_, mat2, num_dims=2)
        return self._unit.multiply(self_[None], mat2[None])[0]

    def addmm(
        self, self_: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        """The sum beta * self + alpha * (mat1 @ mat2); beta 0 leaves self out, NaN and all."""
        check_operands("addmm", mat1, mat2, num_dims=2)
        product = self._unit.multiply(mat1[None], mat2[None])[0]
        return _join(product, self_, beta, alpha)

    def bmm(self, self_: Tensor, mat2: Tensor) -> Tensor:
        """[B, M, K] times [B, K, N]."""
        check_operands("bmm", self_, mat2, num_dims=3)
        return self._unit.multiply(self_, mat2)

    def baddbmm(
        self, self_: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        """The sum beta * self + alpha * (batch1 @ batch2), as `addmm`."""
        check_operands("baddbmm", batch1, batch2, num_dims=3)
        return _join(self._unit.multiply(batch1, batch2), self_, beta, alpha)

    def convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> Tensor:
        """1 to 3 spatial axes, ordinary and transposed; the layout of the result is ATen's."""
        _check_convolution("convolution", input, weight, transposed, groups)
        window = _window(input.ndim - 2, stride, padding, dilation, groups)
        sizes = _find_output_size(
            input, weight, window, _per_axis(output_padding, input.ndim - 2), transposed
        )
        channels = weight.shape[1] * groups if transposed else weight.shape[0]
        out = torch.empty(
            (input.shape[0], channels, *sizes), memory_format=_memory_format(input, weight)
        )
        run = convolve_transposed if transposed else convolve
        run(input, weight, out, window, self._unit)
        if bias is not None:
            out += bias.detach().view(-1, *[1] * (input.ndim - 2))
        return out

    def convolution_backward(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        bias_sizes: Sequence[int] | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
        output_mask: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias, None where `output_mask` says so."""
        _check_convolution("convolution_backward", input, weight, transposed, groups)
        check_float32_on_cpu("convolution_backward", grad_output)
        window = _window(input.ndim - 2, stride, padding, dilation, groups)
        layout = _memory_format(input, weight)
        grad_input = grad_weight = grad_bias = None
        if output_mask[0]:
            grad_input = torch.empty(input.shape, memory_format=layout)
            run = convolve if transposed else convolve_transposed
            run(grad_output, weight, grad_input, window, self._unit)
        if output_mask[1]:
            grad_weight = torch.empty(weight.shape, memory_format=layout)
            placed, read = (input, grad_output) if transposed else (grad_output, input)
            find_weight_gradient(placed, read, grad_weight, window, self._unit)
        if output_mask[2]:
            grad_bias = find_bias_gradient(grad_output, self._unit.k_tile)
        return grad_input, grad_weight, grad_bias


def _join(product: Tensor, addend: Tensor, beta: float, alpha: float) -> Tensor:
    """The sum product * alpha + addend * beta in the memory of `product`, rounded at each step."""
    if alpha != 1:
        product *= alpha
    if beta != 0:
        product += addend.detach() if beta == 1 else addend.detach() * beta
    return product


def _check_convolution(
    op: str, input: Tensor, weight: Tensor, transposed: bool, groups: int
) -> None:
    check_float32_on_cpu(op, input, weight)
    per_group = weight.shape[0] // groups if transposed else weight.shape[1]
    does_fit = input.ndim == weight.ndim and input.shape[1] == per_group * groups
    if not 3 <= input.ndim <= 5 or not does_fit or weight.shape[0] % groups:
        raise BackendError(
            f"{op} of input {list(input.shape)} with weight {list(weight.shape)} in {groups} "
            f"groups{', transposed' if transposed else ''}: these shapes do not fit; supported are "
            "batches with 1 to 3 spatial axes"
        )


def _window(
    num_axes: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Window:
    return Window(
        stride=_per_axis(stride, num_axes),
        padding=_per_axis(padding, num_axes),
        dilation=_per_axis(dilation, num_axes),
        groups=groups,
    )


def _per_axis(values: Sequence[int], num_axes: int) -> list[int]:
    """ATen takes one number for all axes."""
    return list(values) * num_axes if len(values) == 1 else list(values)


def _find_output_size(
    input: Tensor,
    weight: Tensor,
    window: Window,
    output_padding: Sequence[int],
    transposed: bool,
) -> list[int]:
    sizes = []
    for n, k, stride, padding, dilation, extra in zip(
        input.shape[2:], weight.shape[2:], window.stride, window.padding, window.dilation,
        output_padding, strict=True,
    ):  # fmt: skip
        reach = dilation * (k - 1) + 1
        if transposed:
            sizes.append((n - 1) * stride - 2 * padding + reach + extra)
        else:
            sizes.append((n + 2 * padding - reach) // stride + 1)
    if min(sizes) < 1:
        raise BackendError(
            f"convolution of input {list(input.shape)} with weight {list(weight.shape)}: the "
            f"output would have spatial size {sizes}; use a larger input or more padding"
        )
    return sizes


def _memory_format(input: Tensor, weight: Tensor) -> torch.memory_format:
    """Channels last if one of the two is: as ATen where oneDNN convolves for it."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if input.ndim in formats and (_is_channels_last(input) or _is_channels_last(weight)):
        return formats[input.ndim]
    return torch.contiguous_format


def _is_channels_last(tensor: Tensor) -> bool:
    """What PyTorch takes for channels last by its strides, one channel included.

    Source: is_channels_last_strides_2d in c10/core/MemoryFormat.h.
    """
    if tensor.stride(1) == 0:
        return False
    least = 0
    for axis in (1, *range(tensor.ndim - 1, 1, -1), 0):
        size, stride = tensor.shape[axis], tensor.stride(axis)
        if size == 0 or stride < least or (axis == 0 and least == tensor.stride(1)):
            return False
        least = stride * size
    return True
