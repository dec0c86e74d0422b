"""Memory of the fullest node over the step, with its capacity and the phases of the step."""

from fsdtrain.report.amounts import in_seconds, with_prefix
from fsdtrain.report.charts.chart import PROFILE_SOURCE, Chart, PlotlyPart, axis, layout
from fsdtrain.step_profile import PHASES, StepProfile

MAX_POINTS = 1200  # of the line: two in a pixel


def make_memory(profile: StepProfile) -> Chart | None:
    """The chart, or None where memory over time is not known."""
    curve = profile.sram_over_time
    if not curve:
        return None
    capacity = profile.sram_capacity_bytes
    end_s = max(profile.step_time_s, curve[-1][0])
    peak_s, peak = max(curve, key=lambda point: point[1])
    points = [*_thin(curve), (end_s, curve[-1][1])]
    share = f", {peak / capacity:.0%} of {with_prefix(capacity, 'B')}" if capacity else ""
    summary = f"At most {with_prefix(peak, 'B')}{share}, at {in_seconds(peak_s)}."
    data: list[PlotlyPart] = [
        {
            "type": "scatter", "mode": "lines", "name": "in the fullest node",
            "x": [float(f"{time_s:.7g}") for time_s, _ in points],
            "y": [float(f"{num_bytes:.7g}") for _, num_bytes in points],
            "line": {"color": "@s0", "width": 1.6, "shape": "hv"}, "fill": "tozeroy",
            "fillcolor": "@s0/0.15",
            "text": [
                f"{with_prefix(num_bytes, 'B')} at {in_seconds(time_s)}"
                for time_s, num_bytes in points
            ],
            "hovertemplate": "%{text}<extra></extra>",
        }
    ]  # fmt: skip
    marks: list[PlotlyPart] = []
    lines: list[PlotlyPart] = []
    if capacity:
        tone = {"color": "@s1", "width": 1.5, "dash": "dash"}
        lines.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": capacity,
                      "y1": capacity, "line": tone})  # fmt: skip
        marks.append({"xref": "paper", "x": 0.5, "y": capacity, "xanchor": "center",
                      "yanchor": "top", "text": f"capacity {with_prefix(capacity, 'B')}",
                      "showarrow": False, "bgcolor": "@card/0.8",
                      "font": {"size": 11, "color": "@s1"}})  # fmt: skip
    for name, start_s in _phases(profile):
        tone = {"color": "@faint", "width": 1, "dash": "dot"}
        lines.append({"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": start_s,
                      "x1": start_s, "line": tone})  # fmt: skip
        is_late = start_s > 0.85 * end_s
        marks.append({"yref": "paper", "y": 1, "x": start_s, "yanchor": "bottom", "text": name,
                      "xanchor": "right" if is_late else "left", "showarrow": False,
                      "font": {"size": 11, "color": "@soft"}})  # fmt: skip
    top = 1.08 * max(peak, capacity or 0.0, 1.0)
    return Chart(
        title="Memory of the fullest node over the step",
        figure={
            "data": data,
            "layout": layout(
                x=axis("time in the step", ticksuffix="s", exponentformat="SI", minexponent=1,
                       range=[0, end_s or 1.0]),
                y=axis(ticksuffix="B", exponentformat="SI", minexponent=1, range=[0, top]),
                hovermode="closest", shapes=lines, annotations=marks,
                margin={"l": 40, "r": 12, "t": 22, "b": 24},
            ),
        },
        summary=f"Memory of the fullest node over the step. {summary}", note=summary,
        origin=profile.origin, source=PROFILE_SOURCE, height_px=260,
    )  # fmt: skip


def _thin(curve: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
    """At most MAX_POINTS: the highest of each stretch, so that no peak is lost."""
    stride = -(-len(curve) // MAX_POINTS)
    return [
        max(curve[first : first + stride], key=lambda point: point[1])
        for first in range(0, len(curve), stride)
    ]


def _phases(profile: StepProfile) -> list[tuple[str, float]]:
    """Where the first op of each phase begins."""
    found: list[tuple[str, float]] = []
    for phase in PHASES:
        starts = [op.start_s for op in profile.ops if op.phase == phase and op.start_s is not None]
        if starts:
            found.append((phase, min(starts)))
    return found
