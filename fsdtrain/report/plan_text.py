"""A plan for the terminal: one row a machine, its scaling curve, what it rests on, the press.

It does not know how anything was found; the page of a plan has more.
"""

from collections.abc import Iterator

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fsdtrain.planning.record import MachinePlan, PlanRecord, PressQuestion, Question, ScalePoint
from fsdtrain.planning.words import amount, devices, duration, limit_words, money
from fsdtrain.report.amounts import in_seconds, percent, plain_number

NUM_SENSITIVITIES = 4
NOTHING = "-"


def plan_text(record: PlanRecord) -> Group:
    """All of a plan: the machines side by side, then each by itself, then the press."""
    parts: list[Table | Text | Padding] = [summary_table(record)]
    parts += [Text(f"Note: {note}") for note in record.notes]
    for plan in record.machines:
        parts += machine_parts(plan, record.question)
    for question in record.press:
        parts += [Text(""), press_table(question), Text(question.answer)]
    return Group(*parts)


def summary_table(record: PlanRecord) -> Table:
    """One row a machine: the point that meets the target, or else the quickest of its curve."""
    question = record.question
    table = _table(
        f"{record.model}: {_asked(question)}\nMODELLED; a step that was MEASURED says so"
    )
    table.add_column("machine", overflow="fold")
    for heading in ("devices", "time", "efficiency", "power", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("limited by", overflow="fold")
    for plan in record.machines:
        point = plan.needed or min(plan.curve, key=lambda each: each.time_to_train_s)
        missed = "" if plan.needed is not None or not _is_asked(question) else " (misses)"
        table.add_row(
            Text(f"{plan.name} ({plan.step_origin})"),
            f"{point.num_devices:,}",
            duration(point.time_to_train_s) + missed,
            percent(point.efficiency),
            NOTHING if point.power_w is None else amount(point.power_w, "W"),
            NOTHING if point.cost is None else money(point.cost, question.currency),
            Text(limit_words(point.limit, plan.step_bound)),
        )
    return table


def machine_parts(plan: MachinePlan, question: Question) -> Iterator[Table | Text | Padding]:
    """One machine: its answer, its curve, what moves it the most, and what must be known."""
    yield Text("")
    yield Text(f"{plan.name}: {plan.sentence}", style="bold")
    yield curve_table(plan, question)
    for each in plan.sensitivities[:NUM_SENSITIVITIES]:
        yield Text(
            f"rests on {each.name} {plain_number(each.value)} {each.unit} ({each.origin}): with "
            f"{plain_number(each.low)} to {plain_number(each.high)}, {devices(each.num_devices)} "
            f"train in {duration(each.time_at_low_s)} to {duration(each.time_at_high_s)}"
        )
    for note in plan.notes:
        yield Padding(Text(note, style="dim"), (0, 0, 0, 2))


def curve_table(plan: MachinePlan, question: Question) -> Table:
    """The scaling curve; the needed point is marked. What takes more room is on the page."""
    table = _table(f"{plan.device}, {in_seconds(plan.step_time_s)} a step ({plan.step_origin})")
    for heading in ("devices", "batch", "step", "samples/s", "time", "efficiency"):
        table.add_column(heading, justify="right", no_wrap=True)
    has_cost = any(point.cost is not None for point in plan.curve)
    if has_cost:
        table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    for point in plan.curve:
        cells = _curve_cells(point)
        if has_cost:
            cells.append(NOTHING if point.cost is None else money(point.cost, question.currency))
        is_needed = plan.needed is not None and plan.needed.num_devices == point.num_devices
        table.add_row(*cells, point.limit, style="bold green" if is_needed else "")
    return table


def _curve_cells(point: ScalePoint) -> list[str]:
    return [
        f"{point.num_devices:,}",
        NOTHING if point.samples_per_step is None else amount(point.samples_per_step, ""),
        in_seconds(point.step_s),
        amount(point.samples_per_s, ""),
        duration(point.time_to_train_s),
        percent(point.efficiency),
    ]


def press_table(question: PressQuestion) -> Table:
    """The arithmetic, a line each with its source."""
    table = _table(f"{question.name}: {question.question}")
    table.add_column("arithmetic", overflow="fold", ratio=3)
    table.add_column("source", overflow="fold", ratio=2, style="dim")
    for line in question.lines:
        table.add_row(Text(line.text), Text(line.source))
    if question.published:
        table.caption = f"published: {question.published}"
        table.caption_justify = "left"
    return table


def _table(title: str) -> Table:
    return Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        pad_edge=False,
    )  # fmt: skip


def _asked(question: Question) -> str:
    text = f"{question.num_samples:,} samples x {question.num_epochs:g}"
    if question.target_s is not None:
        text += f" in {duration(question.target_s)}"
    if question.budget is not None:
        text += f" for {money(question.budget, question.currency)}"
    return text


def _is_asked(question: Question) -> bool:
    return question.target_s is not None or question.budget is not None
