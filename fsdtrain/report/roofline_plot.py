"""Place a machine's roofs and a step's ops in an SVG box: FLOP/s over FLOP a byte, both by decades.

An op stands at the traffic of that level which takes the longest for it, so that it lies below the
roof of that level. It does not know HTML: the template turns places into elements.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fsdtrain.report.amounts import in_seconds, percent, with_prefix
from fsdtrain.report.profile_text import UNKNOWN_BOUND, op_title
from fsdtrain.step_profile import OpProfile, Rooflines, StepProfile

WIDTH, HEIGHT = 560, 400  # of the box
LEFT, TOP, RIGHT, BOTTOM = 62, 26, 26, 46  # of the plot within it
MIN_RADIUS, MAX_RADIUS = 3.0, 17.0
MAX_OPS = 400  # the slowest; more cannot be told apart
LABEL_HEIGHT = 14.0
LABEL_CHARACTER = 6.4  # width of one, in the type that labels are set in


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A label and where it stands along its axis."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Roof:
    """One line, from (x1, y1) to (x2, y2), and its label with the point it is set from."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str
    label_x: float
    label_y: float
    angle: float  # in degrees; the label of a peak ends at its point, any other begins there
    is_peak: bool


@dataclass(frozen=True, kw_only=True)
class OpCircle:
    """One op; its area stands for its time."""

    x: float
    y: float
    radius: float
    bound: str
    text: str


@dataclass(frozen=True, kw_only=True)
class RooflinePlot:
    """Roofs, ops and ticks, in the units of the box."""

    roofs: tuple[Roof, ...]
    circles: tuple[OpCircle, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    note: str
    left: int = LEFT
    top: int = TOP
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True, kw_only=True)
class _Point:
    op: OpProfile
    level: str
    intensity: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """Powers of ten at the ends of both axes."""

    x: tuple[float, float]
    y: tuple[float, float]

    def u(self, intensity: float) -> float:
        share = (math.log10(intensity) - self.x[0]) / (self.x[1] - self.x[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def v(self, rate: float) -> float:
        share = (math.log10(rate) - self.y[0]) / (self.y[1] - self.y[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def make_roofline(profile: StepProfile) -> RooflinePlot | None:
    """The plot, or None where roofs or ops are not known."""
    rooflines = profile.rooflines
    if rooflines is None or not rooflines.flops_per_s or not rooflines.bytes_per_s:
        return None
    known = [point for op in profile.ops if (point := _place(op, rooflines)) is not None]
    points = known[:MAX_OPS]
    if not points:
        return None
    axes = _axes(points, rooflines)
    longest_s = max(point.op.time_s for point in points)
    total_s = sum(op.time_s for op in profile.ops)
    return RooflinePlot(
        roofs=(*_slopes(rooflines, axes), *_peaks(rooflines, axes)),
        # The large ones first, so that the small ones lie on top.
        circles=tuple(_circle(point, axes, longest_s, total_s) for point in points),
        x_ticks=tuple(
            Tick(at=round(axes.u(10.0**power), 2), text=_plain(10.0**power))
            for power in range(math.ceil(axes.x[0]), math.floor(axes.x[1]) + 1)
        ),
        y_ticks=tuple(
            Tick(at=round(axes.v(10.0**power), 2), text=with_prefix(10.0**power, ""))
            for power in range(math.ceil(axes.y[0]), math.floor(axes.y[1]) + 1)
        ),
        note=_note(profile, known),
    )


def _place(op: OpProfile, rooflines: Rooflines) -> _Point | None:
    if not op.flops or not op.alone:
        return None
    known = {
        level: num_bytes / rooflines.bytes_per_s[level]
        for level, num_bytes in op.bytes_by_level.items()
        if num_bytes and level in rooflines.bytes_per_s
    }
    if not known:
        return None
    level = max(known, key=lambda each: known[each])
    return _Point(
        op=op,
        level=level,
        intensity=op.flops / op.bytes_by_level[level],
        rate=op.flops / op.alone,
    )


def _axes(points: Sequence[_Point], rooflines: Rooflines) -> _Axes:
    """Wide enough for every op and for the corner of every roof."""
    peak = max(rooflines.flops_per_s.values())
    ridges = [peak / bandwidth for bandwidth in rooflines.bytes_per_s.values()]
    intensities = [*(point.intensity for point in points), *ridges]
    lowest_rate = min(point.rate for point in points)
    return _Axes(
        x=(math.log10(min(intensities)) - 0.3, math.log10(max(intensities)) + 0.6),
        # Seven decades show the ops that matter; what is slower than that sits on the axis.
        y=(max(math.log10(lowest_rate) - 0.3, math.log10(peak) - 7), math.log10(peak) + 0.45),
    )


def _slopes(rooflines: Rooflines, axes: _Axes) -> list[Roof]:
    """A line for each level, from the axis to the highest peak; its label runs along it."""
    peak = max(rooflines.flops_per_s.values())
    roofs: list[Roof] = []
    last_x, last_end = -math.inf, 0.0
    for level, bandwidth in sorted(rooflines.bytes_per_s.items(), key=lambda item: -item[1]):
        begin = max(10 ** axes.x[0], 10 ** axes.y[0] / bandwidth)
        x1, y1 = axes.u(begin), axes.v(bandwidth * begin)
        x2, y2 = axes.u(peak / bandwidth), axes.v(peak)
        label = f"{level} {with_prefix(bandwidth, 'B/s')}"
        slope = (y2 - y1) / (x2 - x1) if x2 > x1 else 0.0
        cosine = 1 / math.hypot(1, slope)
        # Two lines that are closer than a label is tall have theirs one after the other.
        is_crowded = (x2 - last_x) * abs(slope) * cosine < LABEL_HEIGHT
        after = last_end if is_crowded else 0.0
        along = max(after, 10.0)
        last_x, last_end = x2, along + LABEL_CHARACTER * len(label) + 8
        roofs.append(
            Roof(
                x1=round(x1, 2),
                y1=round(y1, 2),
                x2=round(x2, 2),
                y2=round(y2, 2),
                label=label,
                label_x=round(x1 + along * cosine + 5 * slope * cosine, 2),
                label_y=round(y1 + along * slope * cosine - 5 * cosine, 2),
                angle=round(math.degrees(math.atan(slope)), 2),
                is_peak=False,
            )
        )
    return roofs


def _peaks(rooflines: Rooflines, axes: _Axes) -> list[Roof]:
    """A level line for each peak rate, with all formats that have it."""
    formats: dict[float, list[str]] = {}
    for name, rate in rooflines.flops_per_s.items():
        formats.setdefault(rate, []).append(name)
    widest = max(rooflines.bytes_per_s.values())
    roofs: list[Roof] = []
    for rate, names in sorted(formats.items(), reverse=True):
        if rate <= 10 ** axes.y[0]:
            continue
        y = axes.v(rate)
        roofs.append(
            Roof(
                x1=round(max(axes.u(rate / widest), LEFT), 2),
                y1=round(y, 2),
                x2=WIDTH - RIGHT,
                y2=round(y, 2),
                label=f"{_list(names)}: {with_prefix(rate, 'FLOP/s')}",
                label_x=WIDTH - RIGHT,
                label_y=round(y - 6, 2),
                angle=0.0,
                is_peak=True,
            )
        )
    return roofs


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} other formats"


def _circle(point: _Point, axes: _Axes, longest_s: float, total_s: float) -> OpCircle:
    op = point.op
    where = f" of {op.layer}" if op.layer else ""
    phase = f", {op.phase}" if op.phase else ""
    bound = f"; bound by {op.bound_by}" if op.bound_by else ""
    return OpCircle(
        x=round(axes.u(point.intensity), 2),
        y=round(min(axes.v(point.rate), HEIGHT - BOTTOM), 2),
        radius=round(max(MAX_RADIUS * math.sqrt(op.time_s / longest_s), MIN_RADIUS), 2),
        bound=op.bound_by or UNKNOWN_BOUND,
        text=f"{op_title(op)}{where}{phase}: {in_seconds(op.time_s)}, "
        f"{percent(op.time_s / total_s)} of all ops; {with_prefix(point.rate, 'FLOP/s')} at "
        f"{point.intensity:.3g} FLOP a byte of {point.level}{bound}",
    )


def _note(profile: StepProfile, known: Sequence[_Point]) -> str:
    left_out = len(profile.ops) - len(known)
    parts = []
    if left_out:
        parts.append(f"{left_out} ops without FLOPs or counted traffic are not shown")
    if len(known) > MAX_OPS:
        parts.append(f"the slowest {MAX_OPS} of {len(known)} are")
    return "; ".join(parts)


def _plain(value: float) -> str:
    """0.1, 1, 1,000: an intensity has no prefix."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
