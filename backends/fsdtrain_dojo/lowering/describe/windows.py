"""Windows that go over an axis: what convolutions and pools touch, and how pieces are padded.

A window at place p covers the points p * stride - padding + r * dilation of the axis that is read,
for r below its length. Knows no op.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from fsdtrain_dojo.lowering.kernel import Range, Span

Pads = tuple[int, int]  # points to add before and after; negative: to cut off


@dataclass(frozen=True, kw_only=True)
class Window:
    """Along one axis; lengths in points."""

    length: int
    stride: int
    padding: int
    dilation: int

    @property
    def reach(self) -> int:
        """From its first point to its last one."""
        return self.dilation * (self.length - 1) + 1

    def covered_by(self, loop: int) -> Span:
        """Points that windows cover, where the loop runs over their places."""
        return Span(((loop, self.stride),), low=-self.padding, high=self.reach - 1 - self.padding)

    def placed_over(self, loop: int) -> Span:
        """Places of the windows that cover a point, where the loop runs over points."""
        return Span(
            ((loop, 1),),
            divide=self.stride,
            low=self.padding - self.reach + self.stride,
            high=self.padding,
        )

    def point(self, place: int) -> int:
        """The first one of the window at a place; may lie before the axis."""
        return place * self.stride - self.padding

    def pads_to_cover(self, places: Range, points: Range) -> Pads:
        """What to add to these points so that windows at these places are whole."""
        first, end = self.point(places[0]), self.point(places[1] - 1) + self.reach
        if points[1] <= points[0]:
            return 0, end - first
        return points[0] - first, end - points[1]

    def pads_to_fit(self, places: Range, points: Range) -> Pads:
        """What to add to all points of windows at these places so that these points are left."""
        first, end = self.point(places[0]), self.point(places[1] - 1) + self.reach
        return first - points[0], points[1] - end


def make_windows(
    length: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> tuple[Window, ...]:
    """A window for each axis; ATen takes one number for all axes."""
    rank = len(length)
    return tuple(
        Window(length=each, stride=step, padding=pad, dilation=gap)
        for each, step, pad, gap in zip(
            length, per_axis(stride, rank), per_axis(padding, rank), per_axis(dilation, rank),
            strict=True,
        )
    )  # fmt: skip


def per_axis(values: int | Sequence[int], rank: int) -> list[int]:
    """One number for every axis."""
    if isinstance(values, int):
        return [values] * rank
    return list(values) * rank if len(values) == 1 else list(values)


def pad_axes(tensor: Tensor, pads: Sequence[Pads], value: float = 0.0) -> Tensor:
    """Pads or crops the last axes."""
    if not any(any(each) for each in pads):
        return tensor
    return F.pad(tensor, [each for pad in reversed(pads) for each in pad], value=value)


def is_empty(box: Sequence[Range]) -> bool:
    """Whether a box has no points."""
    return any(end <= first for first, end in box)
