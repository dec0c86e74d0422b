"""Convolutions of 1 to 3 spatial axes and their gradients, accumulated as the matrix unit does.

Each is a matrix product whose factors are read where they lie, without unfolding. The order along
K, all ascending:

    convolution             input channel of the group, then kernel rows and columns
    transposed convolution  the same, of those taps that meet the input at its stride; the taps that
                            would meet the zeros between its elements are left out
    gradient of the input   of a convolution: a transposed convolution, and the other way round
    gradient of the weight  image, then rows and columns of the positions the kernel was put at
    gradient of the bias    the same, always in FP32: it is a sum of the vector unit

Padding takes part as zeros. Not here: what the operators of PyTorch are called and return.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fsdtrain_dojo.arithmetic.exact_kernel import Offsets, Operand, Result
from fsdtrain_dojo.arithmetic.exact_matmul import MatrixUnit, combine, flat_view, offsets
from fsdtrain_dojo.formats import FP32

EXTRA_BYTES = 24 << 20  # for the padded copy and the tables of offsets of one block


@dataclass(frozen=True)
class Axis:
    """One spatial axis: position o of the kernel meets input element o * step + taps[i].

    `kernel` says which element of the kernel each tap is. Taps beyond the input meet zeros.
    """

    num_positions: int
    step: int
    taps: tuple[int, ...]
    kernel: tuple[int, ...]

    def first_met(self) -> int:
        return min(self.taps)

    def last_met(self) -> int:
        return (self.num_positions - 1) * self.step + max(self.taps)

    def part(self, first: int, num_positions: int) -> "Axis":
        """Only these positions."""
        taps = tuple(tap + first * self.step for tap in self.taps)
        return replace(self, num_positions=num_positions, taps=taps)


@dataclass(frozen=True, kw_only=True)
class Window:
    """How a kernel moves over its input; one number per spatial axis."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def axes(self, num_positions: Sequence[int], kernel_size: Sequence[int]) -> list[Axis]:
        """Of an ordinary convolution."""
        return [
            Axis(n, stride, tuple(i * dilation - padding for i in range(k)), tuple(range(k)))
            for n, k, stride, padding, dilation in zip(
                num_positions, kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        ]


def convolve(input: Tensor, weight: Tensor, out: Tensor, window: Window, unit: MatrixUnit) -> None:
    """Of input [N, C, *in] with weight [O, C / groups, *kernel] into out [N, O, *positions]."""
    axes = window.axes(out.shape[2:], weight.shape[2:])
    _convolve_at(axes, input, weight, out, window.groups, unit)


def convolve_transposed(
    input: Tensor, weight: Tensor, out: Tensor, window: Window, unit: MatrixUnit
) -> None:
    """Of input [N, C, *in] with weight [C, O / groups, *kernel] into out [N, O, *positions].

    Output positions that are equal modulo the stride meet the same taps and are one convolution.
    """
    # As the weight of a convolution, group by group: outputs first.
    by_group = weight.view(window.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    for phases in itertools.product(*(range(stride) for stride in window.stride)):
        axes = []
        for phase, num, k, stride, padding, dilation in zip(
            phases, out.shape[2:], weight.shape[2:], window.stride, window.padding, window.dilation,
            strict=True,
        ):  # fmt: skip
            meeting = [(i, phase + padding - i * dilation) for i in range(k)]
            meeting = [(i, distance // stride) for i, distance in meeting if distance % stride == 0]
            taps, kernel = tuple(tap for _, tap in meeting), tuple(i for i, _ in meeting)
            axes.append(Axis(len(range(phase, num, stride)), 1, taps, kernel))
        every = [
            slice(phase, None, stride) for phase, stride in zip(phases, window.stride, strict=True)
        ]
        target = out[:, :, *every]
        if target.numel() > 0 and all(axis.taps for axis in axes):
            _convolve_at(axes, input, by_group, target, window.groups, unit)
        else:
            target.zero_()


def find_weight_gradient(
    placed: Tensor, read: Tensor, grad_weight: Tensor, window: Window, unit: MatrixUnit
) -> None:
    """Of placed [N, P, *positions] and read [N, R, *in] into one [P, R / groups, *kernel].

    Of a convolution: the gradient of its output and its input. Of a transposed one: its input and
    the gradient of its output.
    """
    axes = window.axes(placed.shape[2:], grad_weight.shape[2:])
    left = _grouped_operand(placed, window.groups)
    grouped = (window.groups, read.shape[1] // window.groups)
    by_group = read.view(read.shape[0], *grouped, *read.shape[2:])
    channel_bytes = by_group.shape[0] * window.groups * _num_met(axes) * read.itemsize
    num_channels = max(1, EXTRA_BYTES // max(1, channel_bytes))
    for first in range(0, by_group.shape[2], num_channels):
        channels = slice(first, first + num_channels)
        _correlate(axes, left, by_group[:, :, channels], grad_weight[:, channels], unit)


def find_bias_gradient(grad_output: Tensor, k_tile: int) -> Tensor:
    """The sums of grad_output [N, O, *positions] over all but O: products with ones."""
    out = grad_output.new_empty(grad_output.shape[1])
    left = _grouped_operand(grad_output, 1)
    nothing = np.zeros(1, np.int64)
    ones = Operand(np.ones(1, np.float32), nothing, nothing, np.zeros_like(left.steps))
    MatrixUnit(FP32, k_tile).run(
        left, ones, Result(flat_view(out), nothing, offsets([out.numel()], [1]), nothing)
    )
    return out


def _convolve_at(
    axes: Sequence[Axis], input: Tensor, weight: Tensor, out: Tensor, groups: int, unit: MatrixUnit
) -> None:
    """A convolution in the sense of `Axis`: weight [O, C / groups, *kernel]."""
    kernel_strides = weight.stride()[2:]
    kernel = [
        np.array(axis.kernel) * stride for axis, stride in zip(axes, kernel_strides, strict=True)
    ]
    per_group = weight.shape[0] // groups
    left = Operand(
        flat_view(weight),
        offsets([groups], [per_group * weight.stride(0)]),
        offsets([per_group], [weight.stride(0)]),
        combine([offsets([weight.shape[1]], [weight.stride(1)]), *kernel]),
    )
    for images, target, part in _blocks(axes, input, out):
        _convolve_block(part, left, images, target, groups, unit)


def _convolve_block(
    axes: Sequence[Axis],
    left: Operand,
    input: Tensor,
    out: Tensor,
    groups: int,
    unit: MatrixUnit,
) -> None:
    padded, shifts = _pad(input, axes)
    image, channel, *spatial = padded.stride()
    per_group = input.shape[1] // groups
    positions = [input.shape[0], *(axis.num_positions for axis in axes)]
    steps = [image, *(axis.step * stride for axis, stride in zip(axes, spatial, strict=True))]
    unit.run(
        left,
        Operand(
            flat_view(padded),
            offsets([groups], [per_group * channel]),
            offsets(positions, steps),
            combine([offsets([per_group], [channel]), *_tap_offsets(axes, shifts, spatial)]),
        ),
        Result(*_grouped_operand(out, groups)),
    )


def _correlate(
    axes: Sequence[Axis], left: Operand, read: Tensor, grad_weight: Tensor, unit: MatrixUnit
) -> None:
    """The gradient of a weight from read [N, groups, R, *in]."""
    padded, shifts = _pad(read, axes)
    image, group, channel, *spatial = padded.stride()
    positions = [read.shape[0], *(axis.num_positions for axis in axes)]
    steps = [image, *(axis.step * stride for axis, stride in zip(axes, spatial, strict=True))]
    groups, placed_per_group = read.shape[1], grad_weight.shape[0] // read.shape[1]
    unit.run(
        left,
        Operand(
            flat_view(padded),
            offsets([groups], [group]),
            combine([offsets([read.shape[2]], [channel]), *_tap_offsets(axes, shifts, spatial)]),
            offsets(positions, steps),
        ),
        Result(
            flat_view(grad_weight),
            offsets([groups], [placed_per_group * grad_weight.stride(0)]),
            offsets([placed_per_group], [grad_weight.stride(0)]),
            offsets(grad_weight.shape[1:], grad_weight.stride()[1:]),
        ),
    )


def _blocks(
    axes: Sequence[Axis], input: Tensor, out: Tensor
) -> Iterator[tuple[Tensor, Tensor, list[Axis]]]:
    """Images, or rows of one image, whose padded copy and tables stay below `EXTRA_BYTES`."""
    first_axis, *others = axes
    num_rows = first_axis.num_positions
    table_bytes = 16 * math.prod(axis.num_positions for axis in axes)
    image_bytes = input.shape[1] * _num_met(axes) * input.itemsize + table_bytes
    num_images = max(1, EXTRA_BYTES // image_bytes)
    rows_at_once = max(1, min(num_rows, num_rows * EXTRA_BYTES // image_bytes))
    for image in range(0, input.shape[0], num_images):
        images = slice(image, image + num_images)
        for row in range(0, num_rows, rows_at_once):
            rows = min(rows_at_once, num_rows - row)
            yield input[images], out[images, :, row : row + rows], [
                first_axis.part(row, rows), *others
            ]  # fmt: skip


def _num_met(axes: Sequence[Axis]) -> int:
    """Elements of a channel that the kernel meets, padding included."""
    return math.prod(axis.last_met() - axis.first_met() + 1 for axis in axes)


def _pad(tensor: Tensor, axes: Sequence[Axis]) -> tuple[Tensor, list[int]]:
    """`tensor` with zeros where its last axes are met beyond their ends, and what to add to taps.

    A tensor that is nowhere met beyond its ends is not copied.
    """
    sizes = tensor.shape[-len(axes) :]
    starts = [axis.first_met() for axis in axes]
    stops = [axis.last_met() + 1 for axis in axes]
    spans = list(zip(starts, stops, sizes, strict=True))
    if all(start >= 0 and stop <= size for start, stop, size in spans):
        return tensor, [0] * len(axes)
    others = tensor.shape[: -len(axes)]
    padded = tensor.new_zeros((*others, *(stop - start for start, stop, _ in spans)))
    inside = [(start, max(start, 0), min(stop, size)) for start, stop, size in spans]
    if all(first < last for _, first, last in inside):
        whole = [slice(None)] * len(others)
        target = [slice(first - start, last - start) for start, first, last in inside]
        source = [slice(first, last) for _, first, last in inside]
        padded[tuple(whole + target)] = tensor[tuple(whole + source)]
    return padded, [-start for start in starts]


def _tap_offsets(
    axes: Sequence[Axis], shifts: Sequence[int], strides: Sequence[int]
) -> list[Offsets]:
    return [
        (np.array(axis.taps) + shift) * stride
        for axis, shift, stride in zip(axes, shifts, strides, strict=True)
    ]


def _grouped_operand(tensor: Tensor, groups: int) -> Operand:
    """A tensor [N, groups * C, *positions] by group, channel, and image with position."""
    image, channel, *spatial = tensor.stride()
    per_group = tensor.shape[1] // groups
    return Operand(
        flat_view(tensor),
        offsets([groups], [per_group * channel]),
        offsets([per_group], [channel]),
        offsets([tensor.shape[0], *tensor.shape[2:]], [image, *spatial]),
    )
