"""Questions from the press about Dojo, answered from the parts' figures with every step shown.

Peaks are what the units can do at best; nobody has published how long any training takes on Dojo.
"""

from fsdtrain.planning import press_figures as figures
from fsdtrain.planning.arithmetic import Sheet, in_unit
from fsdtrain.planning.press_figures import published
from fsdtrain.planning.record import PressQuestion, Sourced


def answer_press_questions() -> tuple[PressQuestion, ...]:
    """All of them; nothing is asked of any backend."""
    return (
        _hundred_exaflops(),
        _exapod(),
        _half_and_half(),
        _exapods_for_hundred(),
        _power(),
        _tile_edge(),
        _boxes(),
        _h100_equivalents(),
    )


def _die_peak(sheet: Sheet) -> Sourced:
    return sheet.multiply(
        "peak of a D1",
        "FLOP/s",
        figures.NODES_PER_DIE,
        figures.FLOP_PER_CLOCK,
        figures.CLOCK,
    )


def _exapod_dies(sheet: Sheet) -> Sourced:
    return sheet.multiply(
        "D1 of an ExaPOD",
        "",
        figures.DIES_PER_TILE,
        figures.TILES_PER_TRAY,
        figures.TRAYS_PER_CABINET,
        figures.CABINETS_PER_EXAPOD,
    )


def _exapod_peak(sheet: Sheet) -> Sourced:
    return sheet.multiply("peak of an ExaPOD", "FLOP/s", _exapod_dies(sheet), _die_peak(sheet))


def _exapod_trays(sheet: Sheet) -> Sourced:
    return sheet.multiply(
        "trays of an ExaPOD", "", figures.TRAYS_PER_CABINET, figures.CABINETS_PER_EXAPOD
    )


def _hundred_exaflops() -> PressQuestion:
    sheet = Sheet()
    as_printed = sheet.divide("D1", "D1", figures.HUNDRED_EXAFLOPS, figures.PEAK_SAID)
    sheet.compare(as_printed, figures.DIES_SAID)
    exact = sheet.divide("D1", "D1", figures.HUNDRED_EXAFLOPS, _die_peak(sheet))
    off = sheet.compare(exact, figures.DIES_SAID)
    a100s = sheet.divide("A100", "A100", figures.HUNDRED_EXAFLOPS, figures.A100_PEAK)
    a100_off = sheet.compare(a100s, figures.A100S_SAID)
    return PressQuestion(
        name="100 exaflops",
        question="How many D1 or A100 are 100 exaflops?",
        lines=sheet.lines,
        answer=(
            f"{in_unit(as_printed.value, 'D1')} by the peak that is printed, 362 TFLOP/s of BF16 "
            f"or CFP8 a die; {in_unit(exact.value, 'D1')} by its parts, which is {off:+.2%} of the "
            f"published figure. {in_unit(a100s.value, 'A100')} by the dense BF16 peak of 312 "
            f"TFLOP/s, {a100_off:+.3%}. Both are peaks of 8 or 16 bits, not of FP64 as lists of "
            "supercomputers have them."
        ),
        published="over 276,000 D1 or about 320,500 A100: " + figures.ARTICLE,
    )


def _exapod() -> PressQuestion:
    sheet = Sheet()
    peak = _exapod_peak(sheet)
    off = sheet.compare(peak, figures.EXAPOD_PEAK_SAID)
    dies = _exapod_dies(Sheet())
    nodes = sheet.multiply("nodes of an ExaPOD", "", dies, figures.NODES_PER_DIE)
    sram = sheet.multiply("SRAM of an ExaPOD", "B", nodes, figures.SRAM_PER_NODE)
    sheet.compare(sram, figures.EXAPOD_SRAM_SAID)
    hbm = sheet.multiply(
        "HBM of an ExaPOD",
        "B",
        _exapod_trays(sheet),
        figures.INTERFACES_PER_TRAY,
        figures.HBM_PER_INTERFACE,
    )
    sheet.compare(hbm, figures.EXAPOD_HBM_SAID)
    return PressQuestion(
        name="one ExaPOD",
        question="What is an ExaPOD, from its parts?",
        lines=sheet.lines,
        answer=(
            f"{in_unit(dies.value, 'D1')} of {in_unit(nodes.value, 'nodes')} in all: "
            f"{in_unit(peak.value, 'FLOP/s')} of BF16 or CFP8, {in_unit(sram.value, 'B')} of SRAM "
            f"and {in_unit(hbm.value, 'B')} of HBM. The printed 1.1 EFLOP/s is rounded: the parts "
            f"give {off:+.1%}."
        ),
        published="1.1 EFLOP/s of BF16 or CFP8, 1.3 TB of SRAM, 13 TB of HBM: AI Day 2022",
    )


def _half_and_half() -> PressQuestion:
    sheet = Sheet()
    peak = _die_peak(sheet)
    pair = sheet.add("a D1 and an H100", "FLOP/s", peak, figures.H100_PEAK)
    share = sheet.divide("Dojo's share with as many of each", "share", peak, pair)
    ratio = sheet.divide("D1 for each H100 at equal peaks", "D1", figures.H100_PEAK, peak)
    return PressQuestion(
        name="half Dojo, half NVIDIA",
        question='What does "half Dojo, half NVIDIA" mean?',
        lines=sheet.lines,
        answer=(
            f"It can be read in two ways. As many D1 as H100: Dojo then has {share.value:.1%} of "
            f"the peak. Half of the peak each: {ratio.value:.2f} D1 for each H100. What either "
            "does for one training is in the plans of the mixed fleets, where the batch is divided "
            "so that both kinds end their step together."
        ),
    )


def _exapods_for_hundred() -> PressQuestion:
    sheet = Sheet()
    peak = _exapod_peak(sheet)
    count = sheet.divide("ExaPODs", "ExaPODs", figures.HUNDRED_EXAFLOPS, peak)
    tray = sheet.multiply("power of an ExaPOD", "W", _exapod_trays(sheet), figures.TRAY_WATTS)
    power = sheet.multiply("power", "W", count, tray)
    planned = sheet.multiply("peak of those planned", "FLOP/s", figures.EXAPODS_PLANNED, peak)
    share = sheet.divide("of 100 exaflops", "share", planned, figures.HUNDRED_EXAFLOPS)
    return PressQuestion(
        name="100 exaflops in ExaPODs",
        question="How many ExaPODs are 100 exaflops, and what do they draw?",
        lines=sheet.lines,
        answer=(
            f"{count.value:.1f} ExaPODs and {in_unit(power.value, 'W')}, without hosts and "
            f"cooling. The 7 that were planned at Palo Alto are "
            f"{in_unit(planned.value, 'FLOP/s')}, {share.value:.1%} of it."
        ),
        published="7 ExaPODs planned at Palo Alto: " + figures.AI_DAY,
    )


def _power() -> PressQuestion:
    sheet = Sheet()
    peak = _exapod_peak(sheet)
    exapod = sheet.multiply("power of an ExaPOD", "W", _exapod_trays(sheet), figures.TRAY_WATTS)
    sheet.compare(exapod, figures.LOAD_TEST_SAID)
    a100s = sheet.divide("A100 of the same peak", "A100", peak, figures.A100_PEAK)
    boxes = sheet.divide("their boxes", "boxes", a100s, figures.GPUS_PER_BOX)
    power = sheet.multiply("their power", "W", boxes, figures.DGX_A100_WATTS)
    dojo = sheet.divide("Dojo, trays", "FLOP/s/W", peak, exapod)
    nvidia = sheet.divide("A100, boxes", "FLOP/s/W", peak, power)
    ratio = sheet.divide("Dojo against A100 a watt", "times", dojo, nvidia)
    sheet.compare(ratio, figures.EFFICIENCY_SAID)
    die = sheet.divide("D1 by itself", "FLOP/s/W", _die_peak(Sheet()), figures.DIE_WATTS)
    gpu = sheet.divide("A100 by itself", "FLOP/s/W", figures.A100_PEAK, figures.A100_WATTS)
    chips = sheet.divide("chip against chip a watt", "times", die, gpu)
    return PressQuestion(
        name="power",
        question="What does an ExaPOD draw against A100s of the same peak?",
        lines=sheet.lines,
        answer=(
            f"{in_unit(exapod.value, 'W')} or more against {in_unit(power.value, 'W')} of "
            f"{in_unit(a100s.value, 'A100')} in boxes of 8: {ratio.value:.2f} times the peak a "
            f"watt, and {chips.value:.2f} times chip against chip. Boxes include their hosts, "
            "trays do not. Peaks are not what a training reaches."
        ),
        published="1.3 times the work a watt at equal cost, a projection: " + figures.SA,
    )


def _tile_edge() -> PressQuestion:
    sheet = Sheet()
    one_way = sheet.multiply(
        "an edge, one way", "B/s", figures.DIES_PER_EDGE, figures.DIE_OVER_TILE_EDGE
    )
    both = sheet.multiply("an edge, both ways", "B/s", one_way, figures.BOTH_WAYS)
    sheet.compare(both, figures.TILE_EDGE_SAID)
    edges = sheet.multiply("all edges", "B/s", both, figures.EDGES)
    sheet.compare(edges, figures.TILE_EDGES_SAID)
    lanes = sheet.divide("lanes of a D1's edge", "", figures.LANES_PER_DIE, figures.EDGES)
    inside = sheet.multiply("between two D1, one way", "B/s", lanes, figures.LANE_RATE)
    across = sheet.multiply("across a tile, one way", "B/s", inside, figures.DIES_PER_EDGE)
    sheet.compare(across, figures.BISECTION_SAID)
    cliff = sheet.divide("inside against outside", "times", inside, figures.DIE_OVER_TILE_EDGE)
    hbm = sheet.multiply("HBM behind an edge", "B/s", figures.INTERFACES_PER_EDGE, figures.HBM_RATE)
    return PressQuestion(
        name="a tile's edge",
        question="How much passes over the edge of a tile?",
        lines=sheet.lines,
        answer=(
            f"{in_unit(one_way.value, 'B/s')} one way: the printed 9 TB/s counts both ways. "
            f"Between two D1 inside it is {cliff.value:.2f} times as much for each, and the HBM "
            f"behind an edge gives {in_unit(hbm.value, 'B/s')}."
        ),
        published="9 TB/s an edge, 36 TB/s in all, 10 TB/s bisection: " + figures.HC34,
    )


def _boxes() -> PressQuestion:
    sheet = Sheet()
    tile = sheet.multiply("peak of a tile", "FLOP/s", figures.DIES_PER_TILE, _die_peak(sheet))
    boxes = sheet.multiply(
        "peak of those boxes", "FLOP/s", figures.BOXES_PER_TILE, figures.GPUS_PER_BOX,
        figures.A100_PEAK,
    )  # fmt: skip
    by_tile = sheet.divide("boxes' peak against the tile's", "times", boxes, tile)
    cabinets = sheet.multiply(
        "peak of those cabinets", "FLOP/s", figures.CABINETS_SAID, figures.TRAYS_PER_CABINET,
        figures.TILES_PER_TRAY, tile,
    )  # fmt: skip
    gpus = sheet.multiply("peak of those GPUs", "FLOP/s", figures.GPUS_SAID, figures.A100_PEAK)
    by_cabinet = sheet.divide("GPUs' peak against the cabinets'", "times", gpus, cabinets)
    return PressQuestion(
        name="boxes and racks",
        question="Does a tile replace 6 GPU boxes, and 4 cabinets 72 racks?",
        lines=sheet.lines,
        answer=(
            f"Not by peak, if the GPUs are A100: the boxes have {by_tile.value:.2f} times a tile's "
            f"and the racks {by_cabinet.value:.2f} times the cabinets'. The claims then need Dojo "
            "to reach so many times the share of its peak that the GPUs reach. Which GPUs and "
            "which work were meant was not said in full (auto-labelling)."
        ),
        published="1 tile for 6 GPU boxes, 4 cabinets for 72 racks of 4,000 GPUs: AI Day 2022",
    )


def _h100_equivalents() -> PressQuestion:
    sheet = Sheet()
    total = sheet.multiply("their peak", "FLOP/s", figures.H100_EQUIVALENTS, figures.H100_PEAK)
    count = sheet.divide("ExaPODs", "ExaPODs", total, _exapod_peak(sheet))
    sheet.compare(published("ExaPODs", count.value, "", ""), figures.EXAPODS_PLANNED)
    return PressQuestion(
        name="8,000 H100",
        question="How much of Dojo equals 8,000 H100?",
        lines=sheet.lines,
        answer=(
            f"{in_unit(total.value, 'FLOP/s')} of dense BF16, so {count.value:.1f} ExaPODs by "
            "peak: about as many as the 7 that were planned."
        ),
        published="Dojo 1 about 8,000 H100 by the end of 2024, a plan of E. Musk: right-ai.com",
    )
