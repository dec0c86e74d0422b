"""What kernels of pools have in common: loops over places or points of planes, and windows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import make_kernel
from fsdtrain_dojo.lowering.describe.nest import Indexed, Over, index_access
from fsdtrain_dojo.lowering.describe.windows import Pads, Window
from fsdtrain_dojo.lowering.kernel import Block, Kernel, Loop, Range, Unit, Value
from fsdtrain_dojo.lowering.op_call import OpCall


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Windows over the last axes of planes.

    Args:
        call: the op.
        windows: along every axis.
        planes: shape of the tensor that windows cover.
        places: shape of the tensor with a window at each point.
    """

    call: OpCall
    windows: tuple[Window, ...]
    planes: tuple[int, ...]
    places: tuple[int, ...]

    @property
    def num_leading(self) -> int:
        return len(self.planes) - len(self.windows)

    @property
    def num_taps(self) -> int:
        return prod(self.places) * prod(window.length for window in self.windows)

    def loops(self, letter: str) -> tuple[Loop, ...]:
        """Images and channels; points of planes ("i") or places ("o"); taps of the window."""
        shape = self.places if letter == "o" else self.planes
        return (
            *leading_loops(shape, self.num_leading),
            *(Loop(f"{letter}{a}", size) for a, size in enumerate(shape[self.num_leading :])),
            *(Loop(f"r{a}", w.length, is_splittable=False) for a, w in enumerate(self.windows)),
        )

    @property
    def plain(self) -> tuple[Over, ...]:
        return tuple(range(len(self.planes)))

    @property
    def covered(self) -> tuple[Over, ...]:
        """Points of planes, where loops are over places."""
        first = self.num_leading
        spans = [each.covered_by(loop) for loop, each in enumerate(self.windows, start=first)]
        return (*range(first), *spans)

    @property
    def placed(self) -> tuple[Over, ...]:
        """Places, where loops are over points of planes."""
        first = self.num_leading
        spans = [each.placed_over(loop) for loop, each in enumerate(self.windows, start=first)]
        return (*range(first), *spans)

    def pads_to_cover(self, places: Sequence[Range], points: Sequence[Range]) -> list[Pads]:
        """See `Window`; of boxes of all dimensions."""
        first = self.num_leading
        return [
            window.pads_to_cover(*each)
            for window, *each in zip(self.windows, places[first:], points[first:], strict=True)
        ]

    def pads_to_fit(self, places: Sequence[Range], points: Sequence[Range]) -> list[Pads]:
        """See `Window`; of boxes of all dimensions."""
        first = self.num_leading
        return [
            window.pads_to_fit(*each)
            for window, *each in zip(self.windows, places[first:], points[first:], strict=True)
        ]


def leading_loops(shape: Sequence[int], num_leading: int) -> tuple[Loop, ...]:
    """Over images and channels, or channels only."""
    names = "nc"[2 - num_leading :]
    return tuple(Loop(name, size) for name, size in zip(names, shape, strict=False))


def make_planes_kernel(
    call: OpCall,
    reads: Sequence[Value],
    writes: Sequence[Value],
    num_axes: int,
    compute: Callable[[Sequence[Tensor], Block], list[Tensor]],
    *,
    flops: int,
) -> Kernel:
    """Of an op that treats planes one by one: a plane, its last axes, stays together."""
    out = writes[0]
    num_leading = len(out.shape) - num_axes
    loops = (
        *leading_loops(out.shape, num_leading),
        *(
            Loop(f"o{axis}", size, is_splittable=False)
            for axis, size in enumerate(out.shape[num_leading:])
        ),
    )
    leading = tuple(range(num_leading))
    return make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops,
        reads=tuple(
            index_access(Indexed(value, leading + (None,) * num_axes), loops) for value in reads
        ),
        writes=tuple(
            index_access(Indexed(value, tuple(range(len(loops)))), loops) for value in writes
        ),
        flops=flops,
        compute=compute,
    )
