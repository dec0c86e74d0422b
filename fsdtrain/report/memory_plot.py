"""Place node memory over time, and its capacity, in an SVG box.

It does not know HTML: the template turns places into elements.
"""

from dataclasses import dataclass

from fsdtrain.report.amounts import in_seconds, with_prefix
from fsdtrain.report.curve_picture import nice_ticks
from fsdtrain.report.roofline_plot import Tick
from fsdtrain.step_profile import PHASES, StepProfile

WIDTH, HEIGHT = 560, 240  # of the box
LEFT, TOP, RIGHT, BOTTOM = 62, 30, 14, 26  # of the plot within it
MAX_POINTS = 1200  # of the line: two in a pixel


@dataclass(frozen=True, kw_only=True)
class PhaseMark:
    """Where the first op of a phase begins."""

    x: float
    text: str


@dataclass(frozen=True, kw_only=True)
class MemoryPlot:
    """A line of steps, in the units of the box."""

    points: str  # of an SVG polyline
    area: str  # of a polygon: the line down to the axis
    capacity_y: float | None
    capacity_text: str
    summary: str
    phases: tuple[PhaseMark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: int = LEFT
    top: int = TOP
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def make_memory_plot(profile: StepProfile) -> MemoryPlot | None:
    """The plot, or None where memory over time is not known."""
    curve = profile.sram_over_time
    if not curve:
        return None
    capacity = profile.sram_capacity_bytes
    end_s = max(profile.step_time_s, curve[-1][0])
    peak_s, peak = max(curve, key=lambda point: point[1])
    top = 1.06 * max(peak, capacity or 0.0, 1.0)

    def u(time_s: float) -> float:
        return round(LEFT + time_s / end_s * (WIDTH - LEFT - RIGHT), 2)

    def v(num_bytes: float) -> float:
        return round(HEIGHT - BOTTOM - num_bytes / top * (HEIGHT - TOP - BOTTOM), 2)

    corners: list[tuple[float, float]] = []
    for time_s, num_bytes in (*_thin(curve), (end_s, curve[-1][1])):
        if corners:
            corners.append((u(time_s), corners[-1][1]))
        corners.append((u(time_s), v(num_bytes)))
    points = " ".join(f"{x:g},{y:g}" for x, y in corners)
    bottom = HEIGHT - BOTTOM
    share = f", {peak / capacity:.0%} of {with_prefix(capacity, 'B')}" if capacity else ""
    scale = _decimal_scale(top)
    return MemoryPlot(
        points=points,
        area=f"{corners[0][0]:g},{bottom} {points} {corners[-1][0]:g},{bottom}",
        capacity_y=v(capacity) if capacity else None,
        capacity_text=f"capacity {with_prefix(capacity, 'B')}" if capacity else "",
        summary=f"At most {with_prefix(peak, 'B')}{share}, at {in_seconds(peak_s)}.",
        phases=_phases(profile, end_s),
        x_ticks=tuple(
            Tick(at=u(time_s), text=in_seconds(time_s) if time_s else "0")
            for time_s in nice_ticks(0, end_s, 5)
        ),
        y_ticks=tuple(
            Tick(at=v(tick * scale), text=with_prefix(tick * scale, "B") if tick else "0")
            for tick in nice_ticks(0, top / scale, 4)
        ),
    )


def _decimal_scale(value: float) -> float:
    return next((scale for scale in (1e9, 1e6, 1e3) if value >= scale), 1.0)


def _thin(curve: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
    """At most MAX_POINTS: the highest of each stretch, so that no peak is lost."""
    stride = -(-len(curve) // MAX_POINTS)
    return [
        max(curve[first : first + stride], key=lambda point: point[1])
        for first in range(0, len(curve), stride)
    ]


def _phases(profile: StepProfile, end_s: float) -> tuple[PhaseMark, ...]:
    marks = []
    for phase in PHASES:
        starts = [op.start_s for op in profile.ops if op.phase == phase and op.start_s is not None]
        if starts:
            x = LEFT + min(starts) / end_s * (WIDTH - LEFT - RIGHT)
            marks.append(PhaseMark(x=round(x, 2), text=phase))
    return tuple(marks)
