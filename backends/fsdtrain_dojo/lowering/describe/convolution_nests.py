"""The kernels that convolutions and their gradients consist of.

A convolution ties each place of one tensor ("placed") to a window of another one ("read"): output
and input, or, of a transposed convolution, input and output. Three kinds of kernels are all:

    gather   placed[n, k, p] += read[n, c, p * stride - padding + r * dilation] * w[k, c, r]
    spread   read[n, c, q] += placed[n, k, p] * w[k, c, r], where q lies in the window of p
    weight   w[k, c, r] += placed[n, k, p] * read[n, c, p * stride - padding + r * dilation]

With groups there is a loop g around, and a group's channels stay together. A piece is computed by
the op itself, without its padding: what windows lack is padded beforehand, and what spreads too far
is cropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import make_kernel
from fsdtrain_dojo.lowering.describe.nest import (
    Indexed,
    Over,
    box_shape,
    fill_rest,
    index_access,
    is_all,
)
from fsdtrain_dojo.lowering.describe.windows import Window, is_empty, pad_axes
from fsdtrain_dojo.lowering.kernel import Block, Compute, Kernel, Loop, Span, Unit, Value
from fsdtrain_dojo.lowering.op_call import OpCall

# (operand, weight, settings, shape of the result) -> result, by the op itself.
Run = Callable[[Tensor, Tensor, tuple[Any, ...], Sequence[int]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """What the kernels of a call share.

    Args:
        call: the op.
        windows: along every axis.
        placed: tensor with a window at each of its points, as a shape.
        read: tensor that the windows cover, as a shape.
        weight: shape: [all channels of placed, channels of read in a group, *window].
        settings: the op's: stride, padding, dilation, transposed, output padding, groups.
    """

    call: OpCall
    windows: tuple[Window, ...]
    placed: tuple[int, ...]
    read: tuple[int, ...]
    weight: tuple[int, ...]
    settings: tuple[Any, ...]

    @property
    def is_transposed(self) -> bool:
        return bool(self.settings[3])

    @property
    def groups(self) -> int:
        return int(self.settings[5])

    def loops(self, order: str) -> tuple[Loop, ...]:
        """Of these letters; p, q and r stand for all axes of placed, read and window.

        A channel that is the only one of its group has no loop beside that of the groups.
        """
        is_free = self.groups == 1
        axes = {"p": self.placed[2:], "q": self.read[2:], "r": self.weight[2:]}
        plain = {
            "n": Loop("n", self.read[0]),
            "g": Loop("g", self.groups),
            "k": Loop("k", self.placed[1] // self.groups, is_splittable=is_free),
            "c": Loop("c", self.read[1] // self.groups, is_splittable=is_free),
        }
        loops: list[Loop] = []
        for letter in order:
            if letter in axes:
                loops += (
                    Loop(f"{letter}{axis}", size, is_splittable=letter != "r")
                    for axis, size in enumerate(axes[letter])
                )
            elif letter == "g":
                loops += () if is_free else (plain["g"],)
            elif letter == "n" or is_free or plain[letter].size > 1:
                loops.append(plain[letter])
        return tuple(loops)

    def piece_settings(self, loops: Sequence[Loop], block: Block) -> tuple[Any, ...]:
        """The op's without padding, and with the groups of the piece."""
        stride, _, dilation, transposed, extra, groups = self.settings
        at = _numbers(loops)
        if "g" in at:
            groups = block.ranges[at["g"]][1] - block.ranges[at["g"]][0]
        return stride, [0] * len(self.windows), dilation, transposed, [0] * len(extra), groups


def make_gather(
    conv: Convolution, suffix: str, operand: Value, weight: Value, out: Value, run: Run
) -> Kernel:
    """Every place of the result reads a window of the operand."""
    loops = conv.loops("ngkpcr")
    at = _numbers(loops)

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        tensor, taps = tensors
        shape = box_shape(block.boxes[-1])
        if is_all(loops, block):
            return [
                run(fill_rest(tensor, operand.shape, block.boxes[0]), taps, conv.settings, shape)
            ]
        pads = [
            window.pads_to_cover(places, points)
            for window, places, points in zip(
                conv.windows, block.boxes[-1][2:], block.boxes[0][2:], strict=True
            )
        ]
        return [run(pad_axes(tensor, pads), taps, conv.piece_settings(loops, block), shape)]

    windows = [window.covered_by(at[f"p{axis}"]) for axis, window in enumerate(conv.windows)]
    places = [at[f"p{axis}"] for axis in range(len(conv.windows))]
    return _make_product(
        conv,
        suffix,
        loops,
        reads=(
            Indexed(operand, (at["n"], _channels(at, "c"), *windows)),
            _weight_of(weight, at),
        ),
        write=Indexed(out, (at["n"], _channels(at, "k"), *places)),
        compute=compute,
    )


def make_spread(
    conv: Convolution, suffix: str, operand: Value, weight: Value, out: Value, run: Run
) -> Kernel:
    """Every point of the result adds up what windows that it is in have brought there."""
    loops = conv.loops("ngcqkr")
    at = _numbers(loops)

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        tensor, taps = tensors
        shape = box_shape(block.boxes[-1])
        if is_all(loops, block):
            return [
                run(fill_rest(tensor, operand.shape, block.boxes[0]), taps, conv.settings, shape)
            ]
        places, points = block.boxes[0][2:], block.boxes[-1][2:]
        if is_empty(places):
            return [tensor.new_zeros(shape)]
        pads = [
            window.pads_to_fit(*each)
            for window, *each in zip(conv.windows, places, points, strict=True)
        ]
        spread = [size - sum(pad) for size, pad in zip(shape[2:], pads, strict=True)]
        settings = conv.piece_settings(loops, block)
        return [pad_axes(run(tensor, taps, settings, (*shape[:2], *spread)), pads)]

    windows = [window.placed_over(at[f"q{axis}"]) for axis, window in enumerate(conv.windows)]
    points = [at[f"q{axis}"] for axis in range(len(conv.windows))]
    return _make_product(
        conv,
        suffix,
        loops,
        reads=(
            Indexed(operand, (at["n"], _channels(at, "k"), *windows)),
            _weight_of(weight, at),
        ),
        write=Indexed(out, (at["n"], _channels(at, "c"), *points)),
        compute=compute,
    )


def make_weight_gradient(conv: Convolution, gradient: Value, data: Value, out: Value) -> Kernel:
    """What every tap has met: products of places with the points of their windows."""
    loops = conv.loops("gkcrnp")
    at = _numbers(loops)
    mask = [False, True, False]

    def run(
        placed: Tensor, read: Tensor, shape: Sequence[int], settings: tuple[Any, ...]
    ) -> list[Tensor]:
        pair = (placed, read) if conv.is_transposed else (read, placed)
        data, gradient = pair
        unread = data.new_empty(shape)
        return [conv.call.function(gradient, data, unread, None, *settings, mask)[1]]

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        placed, read = tensors
        shape = box_shape(block.boxes[-1])
        if is_all(loops, block):
            return run(
                placed, fill_rest(read, read_value.shape, block.boxes[1]), shape, conv.settings
            )
        pads = [
            window.pads_to_cover(places, points)
            for window, places, points in zip(
                conv.windows, block.boxes[0][2:], block.boxes[1][2:], strict=True
            )
        ]
        return run(placed, pad_axes(read, pads), shape, conv.piece_settings(loops, block))

    placed_value, read_value = (data, gradient) if conv.is_transposed else (gradient, data)
    axes = range(len(conv.windows))
    windows = [
        Span(
            ((at[f"p{axis}"], window.stride), (at[f"r{axis}"], window.dilation)),
            low=-window.padding,
            high=-window.padding,
        )
        for axis, window in enumerate(conv.windows)
    ]
    return _make_product(
        conv,
        ".dw",
        loops,
        reads=(
            Indexed(
                placed_value, (at["n"], _channels(at, "k"), *(at[f"p{axis}"] for axis in axes))
            ),
            Indexed(read_value, (at["n"], _channels(at, "c"), *windows)),
        ),
        write=_weight_of(out, at),
        compute=compute,
        # FlopCounterMode takes every channel of the input to meet every one of the output.
        times_counted=conv.groups,
    )


def _make_product(
    conv: Convolution,
    suffix: str,
    loops: tuple[Loop, ...],
    *,
    reads: tuple[Indexed, ...],
    write: Indexed,
    compute: Compute,
    times_counted: int = 1,
) -> Kernel:
    """On the matrix unit, which is of no use where a group has one channel."""
    # Each tap of the window at each place; zeros between places are not multiplied with.
    macs = prod(conv.placed) * prod(conv.weight[1:])
    is_matrix = conv.groups == 1 or min(conv.placed[1], conv.read[1]) > conv.groups
    return make_kernel(
        conv.call,
        suffix=suffix,
        unit=Unit.MATRIX if is_matrix else Unit.VECTOR,
        loops=loops,
        reads=tuple(index_access(each, loops) for each in reads),
        writes=(index_access(write, loops),),
        macs=macs if is_matrix else 0,
        flops=0 if is_matrix else 2 * macs,
        counted_flops=2 * macs * times_counted,
        compute=compute,
    )


def _numbers(loops: Sequence[Loop]) -> dict[str, int]:
    return {loop.name: number for number, loop in enumerate(loops)}


def _channels(at: dict[str, int], letter: str) -> Over:
    """What a dimension with the channels of all groups runs over."""
    if "g" not in at:
        return at[letter]
    return (at["g"], at[letter]) if letter in at else at["g"]


def _weight_of(weight: Value, at: dict[str, int]) -> Indexed:
    taps = (at[f"r{axis}"] for axis in range(len(weight.shape) - 2))
    return Indexed(weight, (_channels(at, "k"), at.get("c"), *taps))
