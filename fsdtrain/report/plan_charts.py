"""The charts of a plan: throughput and efficiency over the number of devices, and what limits them.

It does not know how the points were found.
"""

from collections.abc import Sequence

from fsdtrain.planning.record import Limit, MachinePlan, ScalePoint, Sensitivity
from fsdtrain.planning.words import devices
from fsdtrain.report.amounts import percent, plain_number, with_prefix
from fsdtrain.report.charts.chart import (
    DASHES,
    SYMBOLS,
    Chart,
    Dash,
    LegendEntry,
    PlotlyPart,
    axis,
    layout,
    numbers,
    plain,
    series_color,
)
from fsdtrain.report.plan_words import duration, time_unit

SOURCE = "plan.json"
# Each limit has a colour and a symbol of its own, the same in all charts.
LIMITS: tuple[Limit, ...] = (
    "compute", "memory", "network", "input", "stragglers", "failures",
)  # fmt: skip


def make_rate_chart(machines: Sequence[MachinePlan]) -> Chart:
    """Useful samples a second by number of devices, one line a machine, both axes logarithmic."""
    data: list[PlotlyPart] = []
    legend = []
    for place, machine in enumerate(machines):
        texts = [
            f"{point.num_devices:,} devices: {plain_number(point.samples_per_s)} samples/s, "
            f"{duration(point.time_to_train_s)}, limited by {point.limit}"
            for point in machine.curve
        ]
        trace, entry = _line(place, machine, [p.samples_per_s for p in machine.curve], texts)
        entry_traces = [len(data)]
        data.append(trace)
        if machine.needed is not None:
            entry_traces.append(len(data))
            data.append(_needed(place, machine, machine.needed))
        most = max((point.samples_per_s for point in machine.curve), default=0.0)
        legend.append(
            LegendEntry(label=machine.name, color=series_color(place), traces=tuple(entry_traces),
                        value=f"at most {plain_number(most)}/s", dash=entry)
        )  # fmt: skip
    return Chart(
        title="Throughput", origin=origin_of(machines), source=SOURCE,
        note="A ring marks the fewest devices that meet the target."
        if any(machine.needed for machine in machines) else "",
        figure={
            "data": data,
            "layout": layout(
                x=axis("devices", type="log", dtick=1, tickformat=",d"),
                y=axis("useful samples a second", type="log", exponentformat="power", dtick=1),
                hovermode="closest",
            ),
        },
        summary="Useful samples a second by number of devices. "
        + " ".join(machine.sentence for machine in machines),
        legend=tuple(legend), height_px=360,
    )  # fmt: skip


def _line(
    place: int, machine: MachinePlan, values: Sequence[float], texts: Sequence[str]
) -> tuple[PlotlyPart, Dash]:
    dash = DASHES[place % len(DASHES)]
    color = series_color(place)
    trace: PlotlyPart = {
        "type": "scatter", "mode": "lines+markers", "name": plain(machine.name),
        "x": [point.num_devices for point in machine.curve], "y": numbers(values),
        "line": {"color": color, "dash": dash, "width": 2},
        "marker": {"color": color, "size": 5, "symbol": SYMBOLS[place % len(SYMBOLS)]},
        "customdata": [plain(text) for text in texts],
        "hovertemplate": f"<b>{plain(machine.name)}</b><br>%{{customdata}}<extra></extra>",
    }  # fmt: skip
    return trace, dash


def _needed(place: int, machine: MachinePlan, point: ScalePoint) -> PlotlyPart:
    return {
        "type": "scatter", "mode": "markers", "name": plain(f"{machine.name}, needed"),
        "x": [point.num_devices], "y": numbers([point.samples_per_s]), "hoverinfo": "skip",
        "marker": {"color": "rgba(0,0,0,0)", "size": 16,
                   "line": {"color": series_color(place), "width": 2.5}},
    }  # fmt: skip


def make_efficiency_chart(machine: MachinePlan) -> Chart:
    """Efficiency by number of devices; the colour and the symbol of a point say what limits it."""
    points = machine.curve
    data: list[PlotlyPart] = [
        {
            "type": "scatter", "mode": "lines", "x": [p.num_devices for p in points],
            "y": numbers([100 * p.efficiency for p in points]), "hoverinfo": "skip",
            "line": {"color": "@neutral", "width": 1.5},
        }
    ]  # fmt: skip
    legend = []
    for limit in LIMITS:
        found = [point for point in points if point.limit == limit]
        if not found:
            continue
        place = LIMITS.index(limit)
        symbol = SYMBOLS[place]
        first, last = found[0].num_devices, found[-1].num_devices
        where = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        legend.append(
            LegendEntry(label=f"limited by {limit}", color=series_color(place),
                        traces=(len(data),), value=where, symbol=symbol)
        )  # fmt: skip
        texts = [_losses(point) for point in found]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": limit,
                "x": [p.num_devices for p in found],
                "y": numbers([100 * p.efficiency for p in found]),
                "marker": {"color": series_color(place), "size": 10, "symbol": symbol},
                "customdata": [plain(text) for text in texts],
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )  # fmt: skip
    lowest = min((point.efficiency for point in points), default=0.0)
    return Chart(
        title=f"{machine.name}: efficiency, and what limits it", origin="MODELLED", source=SOURCE,
        figure={
            "data": data,
            "layout": layout(
                x=axis("devices", type="log", dtick=1, tickformat=",d"),
                y=axis("of one device's rate, %", rangemode="tozero"), hovermode="closest",
            ),
        },
        summary=f"Efficiency of {machine.name} by number of devices, at least {percent(lowest)}. "
        + "; ".join(f"{one.label}: {one.value} devices" for one in legend) + ".",
        legend=tuple(legend),
    )  # fmt: skip


def _losses(point: ScalePoint) -> str:
    return (
        f"{point.num_devices:,} devices: {percent(point.efficiency)}, limited by {point.limit}; "
        f"network {percent(point.exposed_s / point.step_s)}, input "
        f"{percent(point.input_s / point.step_s)} of the step, stragglers "
        f"+{percent(point.straggler_share)}, failures {percent(point.failure_share)} of the time"
    )


def make_power_chart(machines: Sequence[MachinePlan]) -> Chart | None:
    """Energy of the whole training against its time: more devices are faster and cost more."""
    data: list[PlotlyPart] = []
    legend = []
    times_s = [point.time_to_train_s for machine in machines for point in machine.curve]
    unit, unit_s = time_unit(min(times_s, default=0.0))
    for place, machine in enumerate(machines):
        points = [point for point in machine.curve if point.energy_j is not None]
        if not points:
            continue
        texts = [
            f"{p.num_devices:,} devices: {duration(p.time_to_train_s)}, "
            f"{with_prefix((p.energy_j or 0.0) / 3600, 'Wh')}, "
            + ("power not known" if p.power_w is None else with_prefix(p.power_w, "W"))
            for p in points
        ]
        energies = [(p.energy_j or 0.0) / 3.6e9 for p in points]
        trace, dash = _line(place, machine, energies, texts)
        trace |= {"x": numbers([p.time_to_train_s / unit_s for p in points])}
        legend.append(
            LegendEntry(label=machine.name, color=series_color(place), traces=(len(data),),
                        dash=dash)
        )  # fmt: skip
        data.append(trace)
    if not data:
        return None
    return Chart(
        title="Energy against time", origin=origin_of(machines), source=SOURCE,
        figure={
            "data": data,
            "layout": layout(
                x=axis(f"{unit} to train", type="log", dtick=1, exponentformat="power"),
                y=axis("MWh of the whole training", type="log", dtick=1, exponentformat="power"),
                hovermode="closest",
            ),
        },
        summary="Energy of the whole training by the time that it takes, a line a machine.",
        legend=tuple(legend), height_px=360,
    )  # fmt: skip


def make_sensitivity_chart(machine: MachinePlan) -> Chart | None:
    """How far each figure moves the time to train between the ends of its range."""
    rows: Sequence[Sensitivity] = machine.sensitivities
    if not rows:
        return None
    # On two lines: names are long, and phones are narrow.
    names = [
        f"{plain(row.name)}<br>"
        + plain(f"{plain_number(row.low)} to {plain_number(row.high)} {row.unit}")
        for row in rows
    ]
    longest_s = max(max(row.time_at_low_s, row.time_at_high_s) for row in rows)
    unit, unit_s = time_unit(longest_s)
    starts = [min(row.time_at_low_s, row.time_at_high_s) / unit_s for row in rows]
    widths = [abs(row.time_at_high_s - row.time_at_low_s) / unit_s for row in rows]
    texts = [
        plain(f"at {row.low:g}: {duration(row.time_at_low_s)}; at {row.high:g}: "
              f"{duration(row.time_at_high_s)}; {row.origin}: {row.source}")
        for row in rows
    ]  # fmt: skip
    return Chart(
        title=f"{machine.name}: what its time rests on, {devices(rows[0].num_devices)}",
        origin="MODELLED", source=SOURCE,
        figure={
            "data": [
                {
                    "type": "bar", "orientation": "h", "y": names, "base": numbers(starts),
                    "x": numbers(widths), "marker": {"color": "@s0"}, "customdata": texts,
                    "hovertemplate": "<b>%{y}</b><br>%{customdata}<extra></extra>",
                }
            ],
            "layout": layout(
                x=axis(f"{unit} to train", nticks=4), y=axis(autorange="reversed", type="category"),
                hovermode="closest", bargap=0.35,
            ),
        },
        summary="Time to train at both ends of the range of each figure: "
        + "; ".join(f"{row.name} {duration(row.time_at_low_s)} to {duration(row.time_at_high_s)}"
                    for row in rows) + ".",
        height_px=72 + 42 * len(rows),
    )  # fmt: skip


def origin_of(machines: Sequence[MachinePlan]) -> str:
    """MODELLED: whatever the step rests on, more devices than one are a model."""
    assert machines, "a plan has machines"
    return "MODELLED"
