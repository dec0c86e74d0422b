"""Gather what plan.html shows from plan.json, as plain text, charts and tables.

It does not know how the plan was made, nor HTML: `templates/plan.html.j2` says how the page looks.
"""

from dataclasses import dataclass
from pathlib import Path

from fsdtrain.planning.record import (
    MachinePlan,
    PlanRecord,
    Question,
    ScalePoint,
    read_plan,
)
from fsdtrain.report.amounts import in_seconds, percent, plain_number, with_prefix
from fsdtrain.report.charts.chart import Chart
from fsdtrain.report.plan_charts import (
    make_efficiency_chart,
    make_power_chart,
    make_rate_chart,
    make_sensitivity_chart,
)
from fsdtrain.report.plan_words import duration, money
from fsdtrain.report.run_page import Fact
from fsdtrain.report.table import Cell, Column, Table, make_table

SOURCE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class AnswerCard:
    """The answer of one machine."""

    name: str
    device: str
    is_answered: bool
    has_target: bool
    heading: str
    sentence: str
    step: str
    step_origin: str
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PlanPage:
    """Everything that plan.html.j2 shows."""

    title: str
    record: PlanRecord
    question: tuple[Fact, ...]
    answers: tuple[AnswerCard, ...]
    rates: Chart | None
    power: Chart | None
    efficiencies: tuple[Chart, ...]
    sensitivities: tuple[Chart, ...]
    points: Table
    figures: Table
    sections: tuple[tuple[str, str], ...]


def collect_plan_page(folder: Path) -> PlanPage:
    """Read a plan's folder into what its page shows.

    Raises:
        UserError: plan.json is missing, or of another schema or version.
    """
    return make_plan_page(read_plan(folder))


def make_plan_page(record: PlanRecord) -> PlanPage:
    """The page of a plan."""
    machines = record.machines
    sections = (
        ("question", "Question", True),
        ("answers", "Answers", bool(machines)),
        ("scaling", "Scaling", bool(machines)),
        ("points", "Points", bool(machines)),
        ("figures", "Figures", bool(machines)),
        ("press", "Press", bool(record.press)),
    )
    charts = [make_sensitivity_chart(machine) for machine in machines]
    return PlanPage(
        title=f"{record.model} - fsdtrain plan",
        record=record,
        question=_question_facts(record.question),
        answers=tuple(_answer(machine, record.question) for machine in machines),
        rates=make_rate_chart(machines) if machines else None,
        power=make_power_chart(machines) if machines else None,
        efficiencies=tuple(make_efficiency_chart(machine) for machine in machines),
        sensitivities=tuple(chart for chart in charts if chart is not None),
        points=_points_table(record),
        figures=_figures_table(machines),
        sections=tuple((id_, text) for id_, text, is_shown in sections if is_shown),
    )


def _question_facts(question: Question) -> tuple[Fact, ...]:
    limit = question.max_global_batch
    weight, images = question.sample_bytes, question.images_per_sample
    pixels = question.pixels_per_sample
    return (
        Fact(label="Data set", value=f"{question.num_samples:,} samples"),
        Fact(label="Epochs", value=f"{question.num_epochs:g}"),
        Fact(label="Batch of a replica", value=f"{question.batch_per_device:,} samples"),
        Fact(
            label="Largest batch that trains well",
            value="no limit stated" if limit is None else f"{limit:,} samples",
        ),
        Fact(
            label="A sample in storage",
            value="not told" if weight is None else with_prefix(weight, "B"),
        ),
        Fact(label="Pictures of a sample", value="not told" if images is None else f"{images:g}"),
        Fact(
            label="To decode for a sample",
            value="not told" if pixels is None else with_prefix(pixels, "pixel"),
        ),
        Fact(
            label="Time that is asked for",
            value="none" if question.target_s is None else duration(question.target_s),
        ),
        Fact(
            label="Budget that is asked for",
            value="none" if question.budget is None else money(question.budget, question.currency),
        ),
    )


def _answer(machine: MachinePlan, question: Question) -> AnswerCard:
    has_target = question.target_s is not None or question.budget is not None
    point = machine.needed
    shown = point or (machine.curve[0] if machine.curve else None)
    heading = "No number of devices reaches it"
    if point is not None:
        word = "device" if point.num_devices == 1 else "devices"
        heading = f"{point.num_devices:,} {word}"
    elif not has_target:
        heading = "No target was asked for"
    return AnswerCard(
        name=machine.name,
        device=machine.device,
        is_answered=point is not None,
        has_target=has_target,
        heading=heading,
        sentence=machine.sentence,
        step=f"{in_seconds(machine.step_time_s)} a step{_samples_of(machine)}, "
        f"bound by {machine.step_bound}",
        step_origin=machine.step_origin,
        facts=() if shown is None else _point_facts(shown, question),
        notes=machine.notes,
    )


def _samples_of(machine: MachinePlan) -> str:
    """Of one device, which may hold many replicas of the model: " of 100 samples"."""
    first = machine.curve[0] if machine.curve else None
    if first is None or first.samples_per_step is None:
        return ""
    return f" of {first.samples_per_step / first.num_devices:,g} samples"


def _point_facts(point: ScalePoint, question: Question) -> tuple[Fact, ...]:
    interval = point.checkpoint_interval_s
    samples = point.samples_per_step
    return (
        Fact(label="Devices", value=f"{point.num_devices:,}"),
        Fact(label="Time to train", value=duration(point.time_to_train_s)),
        Fact(label="Throughput", value=f"{plain_number(point.samples_per_s)} samples/s"),
        Fact(label="Global batch", value="not known" if samples is None else f"{samples:,.0f}"),
        Fact(label="Efficiency", value=f"{percent(point.efficiency)}, limited by {point.limit}"),
        Fact(label="Power", value=_or_unknown(point.power_w, "W")),
        Fact(
            label="Energy",
            value=_or_unknown(None if point.energy_j is None else point.energy_j / 3600, "Wh"),
        ),
        Fact(label="Ingest", value=with_prefix(point.ingest_bytes_per_s, "B/s")),
        Fact(
            label="Save a checkpoint",
            value="not known" if interval is None else f"every {duration(interval)}",
        ),
        Fact(label="Lost to failures", value=percent(point.failure_share)),
        Fact(label="Cost", value=money(point.cost, question.currency)),
    )


def _or_unknown(value: float | None, unit: str) -> str:
    return "not known" if value is None else with_prefix(value, unit)


def _points_table(record: PlanRecord) -> Table:
    columns = (
        Column(heading="machine", is_choice=True),
        Column(heading="devices", is_number=True),
        Column(heading="time to train", is_number=True),
        Column(heading="samples/s", is_number=True),
        Column(heading="efficiency", is_number=True),
        Column(heading="limited by", is_choice=True),
        Column(heading="step", is_number=True),
        Column(heading="network", is_number=True, hint="exchange that is not hidden"),
        Column(heading="input", is_number=True, hint="that the step waits for its data"),
        Column(heading="stragglers", is_number=True, hint="added to compute and exchange"),
        Column(heading="failures", is_number=True, hint="of the time, by Young and Daly"),
        Column(heading="checkpoint every", is_number=True),
        Column(heading="power", is_number=True),
        Column(heading="ingest", is_number=True),
        Column(heading="cost", is_number=True),
    )
    cells = [
        _point_cells(machine, point, record.question.currency)
        for machine in record.machines
        for point in machine.curve
    ]
    note = "All points are MODELLED."
    return make_table("Points of the scaling curves", columns, cells, note=note, source=SOURCE)


def _point_cells(machine: MachinePlan, point: ScalePoint, currency: str) -> list[Cell]:
    is_needed = machine.needed is not None and machine.needed.num_devices == point.num_devices
    interval = point.checkpoint_interval_s
    return [
        Cell(machine.name, small=("meets the target",) if is_needed else ()),
        Cell(f"{point.num_devices:,}", point.num_devices),
        Cell(duration(point.time_to_train_s), point.time_to_train_s),
        Cell(plain_number(point.samples_per_s), point.samples_per_s),
        Cell(percent(point.efficiency), point.efficiency),
        Cell(point.limit),
        Cell(in_seconds(point.step_s), point.step_s),
        Cell(in_seconds(point.exposed_s), point.exposed_s),
        Cell(in_seconds(point.input_s), point.input_s),
        Cell(percent(point.straggler_share), point.straggler_share),
        Cell(percent(point.failure_share), point.failure_share),
        Cell("not known" if interval is None else duration(interval), interval),
        Cell(_or_unknown(point.power_w, "W"), point.power_w),
        Cell(with_prefix(point.ingest_bytes_per_s, "B/s"), point.ingest_bytes_per_s),
        Cell(money(point.cost, currency), point.cost),
    ]


def _figures_table(machines: tuple[MachinePlan, ...]) -> Table:
    columns = (
        Column(heading="figure", is_code=True),
        Column(heading="machine", is_choice=True),
        Column(heading="value", is_number=True),
        Column(heading="origin", is_choice=True),
        Column(heading="source"),
    )
    cells = [
        [
            Cell(one.name), Cell(machine.name),
            Cell(f"{plain_number(one.value)} {one.unit}", one.value), Cell(one.origin),
            Cell(one.source),
        ]
        for machine in machines
        for one in machine.figures
    ]  # fmt: skip
    return make_table("Figures that the plan rests on", columns, cells, source=SOURCE)
