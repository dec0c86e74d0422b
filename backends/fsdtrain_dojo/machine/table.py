"""A machine for people: its constants with unit, source and confidence, and what they amount to."""

from rich import box
from rich.table import Table
from rich.text import Text

from fsdtrain_dojo.machine.quantity import Confidence, Quantity
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.machine.totals import totals

PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def constants_table(machine: Machine) -> Table:
    """Every constant by the name of its knob, a row each; assumptions are marked.

    A mark is "assumed" where nobody who knows has said so, "given" where the user has set it.
    """
    hypothetical = "hypothetical machine; " if machine.is_hypothetical else ""
    table = Table(
        title=f"{machine.name}: {machine.summary}",
        caption=f"{hypothetical}knobs: backend.machine.<constant>=<value>",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("constant", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("range", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("confidence", no_wrap=True)
    table.add_column("source", overflow="fold")
    for name, each in machine.constants.items():
        between = "" if each.low is None else f"{each.low:g} to {each.high:g}"
        table.add_row(
            name,
            f"{each.value:g}",
            each.unit,
            between,
            _mark(each),
            each.confidence.value,
            Text(each.source),  # not markup: sources may hold brackets
        )
    return table


def _mark(quantity: Quantity) -> Text:
    if quantity.confidence is Confidence.GIVEN:
        return Text("given", style="cyan")
    return Text("assumed", style="yellow") if quantity.is_assumed else Text("")


def totals_table(machine: Machine) -> Table:
    """Peaks, capacities and bandwidths of the whole machine."""
    table = Table(
        title=f"{machine.name}: totals, MODELLED",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        show_header=False,
    )
    table.add_column("total", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    sums = totals(machine)
    rows = [("nodes", f"{sums.num_nodes:,}")]
    for name, rate in sums.matmul_flops_per_s.items():
        rows.append((f"matrix products, {name}", scaled(rate, "FLOP/s")))
    rows.append(("vector, fp32", scaled(sums.vector_flops_per_s["fp32"], "FLOP/s")))
    for what, amount, unit in (
        ("local memories", sums.sram_bytes, "B"),
        ("shared memories", sums.shared_bytes, "B"),
        ("memory", sums.memory_bytes, "B"),
        ("memory bandwidth", sums.memory_bytes_per_s, "B/s"),
        ("interfaces, one way", sums.interface_bytes_per_s, "B/s"),
        ("host, one way", sums.host_bytes_per_s, "B/s"),
        ("network, one way", sums.network_bytes_per_s, "B/s"),
        ("bisection, one way", sums.bisection_bytes_per_s, "B/s"),
        ("four sides, both ways", sums.edge_bytes_per_s, "B/s"),
        ("power limit", sums.limit_watts, "W"),
    ):
        if amount:
            rows.append((what, scaled(amount, unit)))
    for row in rows:
        table.add_row(*row)
    return table


def scaled(value: float, unit: str) -> str:
    """A number with a decimal prefix: 3.62e14 FLOP/s is "362 TFLOP/s"."""
    for factor, prefix in PREFIXES:
        if value >= factor:
            return f"{value / factor:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"
