"""Sampling at given coordinates, and its gradients, as loop nests.

    out[n, c, o] = sum over taps of weight(grid[n, o]) * x[n, c, point(grid[n, o])]

Which points are read only the grid knows: planes stay together and are gathered from, or, by the
gradient of the input, added to. That gradient may divide the places: planes are then partial sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import make_kernel
from fsdtrain_dojo.lowering.describe.nest import Indexed, bind, box_shape, index_access
from fsdtrain_dojo.lowering.kernel import Block, Kernel, Loop, Unit, Value
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall

_SETTINGS = "interpolation padding is_aligned"
_LINEAR, _NEAREST, _CUBIC = 0, 1, 2  # ATen's kinds of interpolation


@dataclass(frozen=True, kw_only=True)
class _Sampling:
    """One call.

    Args:
        call: the op.
        data: what is sampled, [n, c, *points].
        grid: where, [n, *places, axes].
        settings: the op's: interpolation, padding, alignment.
    """

    call: OpCall
    data: Value
    grid: Value
    settings: tuple[Any, ...]

    @property
    def num_axes(self) -> int:
        return len(self.data.shape) - 2

    @property
    def taps(self) -> int:
        """Points that one sample is made of."""
        along_axis = {_LINEAR: 2, _NEAREST: 1, _CUBIC: 4}[self.settings[0]]
        return int(along_axis**self.num_axes)

    @property
    def share(self) -> float:
        """Of a plane's points, how many are read, each as often as it is."""
        return self.taps * prod(self.grid.shape[1:-1]) / prod(self.data.shape[2:])

    def flops(self, per_sample: int) -> int:
        """For every channel of every sample, and for its coordinates, which channels share."""
        num_places = prod(self.grid.shape[:-1])
        coordinates = 5 * self.num_axes + self.taps
        return num_places * (coordinates + per_sample * self.data.shape[1])

    def loops(self, order: str) -> tuple[Loop, ...]:
        """Of these letters; o and i stand for all axes of places and of points."""
        batch, channels, *points = self.data.shape
        places = self.grid.shape[1:-1]
        found = {
            "n": [Loop("n", batch)],
            "c": [Loop("c", channels)],
            "o": [Loop(f"o{axis}", size) for axis, size in enumerate(places)],
            "i": [Loop(f"i{a}", size, is_splittable=False) for a, size in enumerate(points)],
        }
        return tuple(loop for letter in order for loop in found[letter])


def describe_sampling(call: OpCall) -> Expansion:
    """Of grid_sampler_2d and 3d."""
    given = bind(call, f"input grid {_SETTINGS}")
    (out,) = call.outputs
    assert out is not None
    sampling = _make_sampling(call, given)
    loops = sampling.loops("nco")
    places = tuple(range(2, len(loops)))
    planes = (None,) * sampling.num_axes

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        return [call.function(*tensors, *sampling.settings)]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops,
        reads=(
            index_access(Indexed(sampling.data, (0, 1, *planes), sampling.share), loops),
            index_access(Indexed(sampling.grid, (0, *places, None)), loops),
        ),
        writes=(index_access(Indexed(out, (0, 1, *places)), loops),),
        flops=sampling.flops(2 * sampling.taps),
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def describe_sampling_backward(call: OpCall) -> Expansion:
    """Of grid_sampler_2d_backward and 3d: a kernel for each gradient that is wanted."""
    given = bind(call, f"gradient input grid {_SETTINGS} output_mask")
    sampling = _make_sampling(call, given)
    for_input, for_grid = call.outputs
    kernels = []
    if for_input is not None:
        kernels.append(_make_input_gradient(sampling, given["gradient"], for_input))
    if for_grid is not None:
        mask = given["output_mask"]
        kernels.append(_make_grid_gradient(sampling, given["gradient"], for_grid, mask))
    return Expansion(kernels=tuple(kernels))


def _make_sampling(call: OpCall, given: dict[str, Any]) -> _Sampling:
    settings = tuple(given[name] for name in _SETTINGS.split())
    return _Sampling(call=call, data=given["input"], grid=given["grid"], settings=settings)


def _make_input_gradient(sampling: _Sampling, gradient: Value, out: Value) -> Kernel:
    """Every sample adds to the points that it was made of."""
    loops = sampling.loops("ncio")
    rank = sampling.num_axes
    points, places = tuple(range(2, 2 + rank)), tuple(range(2 + rank, 2 + 2 * rank))

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        gradient, grid = tensors
        # Of the input ATen takes no more than the shape here.
        unread = gradient.new_empty(box_shape(block.boxes[-1]))
        settings = (*sampling.settings, [True, False])
        return [sampling.call.function(gradient, unread, grid, *settings)[0]]

    return make_kernel(
        sampling.call,
        suffix=".dinput",
        unit=Unit.VECTOR,
        loops=loops,
        reads=(
            index_access(Indexed(gradient, (0, 1, *places)), loops),
            index_access(Indexed(sampling.grid, (0, *places, None)), loops),
        ),
        writes=(index_access(Indexed(out, (0, 1, *points), sampling.share), loops),),
        flops=sampling.flops(2 * sampling.taps),
        compute=compute,
    )


def _make_grid_gradient(
    sampling: _Sampling, gradient: Value, out: Value, mask: Sequence[bool]
) -> Kernel:
    """How every sample would change with its coordinates, over all channels."""
    loops = sampling.loops("noc")
    rank = sampling.num_axes
    places, channel = tuple(range(1, 1 + rank)), 1 + rank

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        # ATen's cubic kernel rounds otherwise where it finds this gradient alone.
        return [sampling.call.function(*tensors, *sampling.settings, mask)[1]]

    planes = (None,) * rank
    return make_kernel(
        sampling.call,
        suffix=".dgrid",
        unit=Unit.VECTOR,
        loops=loops,
        reads=(
            index_access(Indexed(gradient, (0, channel, *places)), loops),
            index_access(Indexed(sampling.data, (0, channel, *planes), sampling.share), loops),
            index_access(Indexed(sampling.grid, (0, *places, None)), loops),
        ),
        writes=(index_access(Indexed(out, (0, *places, None)), loops),),
        # A difference along each axis, weighted, for every tap.
        flops=sampling.flops(2 * sampling.taps * rank),
        compute=compute,
    )


RULES: dict[str, Describe] = {
    "aten.grid_sampler_2d": describe_sampling,
    "aten.grid_sampler_3d": describe_sampling,
    "aten.grid_sampler_2d_backward": describe_sampling_backward,
    "aten.grid_sampler_3d_backward": describe_sampling_backward,
}
