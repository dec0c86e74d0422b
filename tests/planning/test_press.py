"""Questions from the press: published figures come out, and every line can be computed again."""

import re

import pytest
from fsdtrain_dojo.machine.catalog import PRESETS, read_machine
from fsdtrain_dojo.machine.totals import totals

from fsdtrain.planning import press_figures as figures
from fsdtrain.planning.arithmetic import Sheet, in_unit
from fsdtrain.planning.press import answer_press_questions
from fsdtrain.planning.record import PressQuestion, Sourced

QUESTIONS = {question.name: question for question in answer_press_questions()}


def value_of(question: PressQuestion, start: str) -> float:
    return next(line.value for line in question.lines if line.text.startswith(start))


def test_hundred_exaflops_by_both_divisors() -> None:
    question = QUESTIONS["100 exaflops"]
    counts = [line.value for line in question.lines if line.unit == "D1"]
    assert counts[0] == pytest.approx(100e18 / 362e12)
    assert 276_000 < counts[0] < 276_500  # "over 276,000": by the printed peak
    assert counts[1] == pytest.approx(100e18 / (354 * 512 * 2e9))
    assert counts[1] < 276_000  # by the parts it is not "over"
    assert value_of(question, "A100 = ") == pytest.approx(320_500, rel=1e-4)
    assert "276,243 D1" in question.answer
    assert "275,865 D1" in question.answer
    assert "320,513 A100" in question.answer


def test_an_exapod_from_its_parts() -> None:
    question = QUESTIONS["one ExaPOD"]
    assert value_of(question, "D1 of an ExaPOD") == 3000
    assert value_of(question, "nodes of an ExaPOD") == 1_062_000
    assert value_of(question, "peak of an ExaPOD = ") == pytest.approx(1.0875e18, rel=1e-4)
    assert value_of(question, "SRAM of an ExaPOD = ") == pytest.approx(1.3275e12)
    assert value_of(question, "HBM of an ExaPOD = ") == pytest.approx(12.8e12)
    assert value_of(question, "peak of an ExaPOD: ") == pytest.approx(-0.0114, abs=1e-4)


def test_a_tiles_edge_and_the_power_of_an_exapod() -> None:
    edge, power = QUESTIONS["a tile's edge"], QUESTIONS["power"]
    assert value_of(edge, "an edge, both ways = ") == 9e12
    assert value_of(edge, "all edges = ") == 36e12
    assert value_of(edge, "across a tile, one way = ") == pytest.approx(10.08e12)
    assert value_of(power, "power of an ExaPOD = ") == 2e6
    assert value_of(power, "A100 of the same peak") == pytest.approx(3486, abs=1)
    assert value_of(QUESTIONS["100 exaflops in ExaPODs"], "ExaPODs = ") == pytest.approx(
        92, abs=0.1
    )


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_line_has_a_source_and_its_result_follows_from_its_text(name: str) -> None:
    """The products are multiplied once more out of the words."""
    for line in QUESTIONS[name].lines:
        assert line.source
        assert line.text
        left, equals, result = re.sub(r" \([^)]*\)", "", line.text).rpartition(" = ")
        if not equals:
            assert "published" in line.text
            continue
        factors = re.split(r" (?:x|/|\+) ", left.partition(" = ")[2])
        values = [quantity(factor) for factor in factors]
        if " / " in left:
            again = values[0] / values[1]
        elif " + " in left:
            again = sum(values)
        else:
            again = 1.0
            for value in values:
                again *= value
        assert line.value == pytest.approx(again, rel=2e-3), line.text
        assert quantity(result) == pytest.approx(again, rel=5e-3), line.text


def quantity(text: str) -> float:
    """What "362 TFLOP/s" says: 3.62e14."""
    match = re.match(r"([\d,.]+)(%?)(?: ([kMGTPE])(?=FLOP/s|B\b|W\b|Hz))?", text)
    assert match, text
    number, percent, prefix = match.groups(default="")
    factor = 10.0 ** (3 * " kMGTPE".index(prefix)) if prefix else 1.0
    return float(number.replace(",", "")) * factor / (100 if percent else 1)


@pytest.mark.parametrize(
    ("figure", "constant", "machine"),
    [
        (figures.CLOCK, "clock_ghz", "exapod"),
        (figures.SRAM_PER_NODE, "sram_kb", "exapod"),
        (figures.TRAYS_PER_CABINET, "cabinet_trays", "exapod"),
        (figures.CABINETS_PER_EXAPOD, "exapod_cabinets", "exapod"),
        (figures.HBM_PER_INTERFACE, "hbm_gb", "exapod"),
        (figures.HBM_RATE, "hbm_gb_per_s", "exapod"),
        (figures.DIE_OVER_TILE_EDGE, "tile_edge_gb_per_s", "exapod"),
        (figures.TRAY_WATTS, "tray_watts", "exapod"),
        (figures.DIE_WATTS, "die_watts", "d1_die"),
        (figures.A100_WATTS, "gpu_watts", "a100"),
    ],
)
def test_figures_are_those_of_the_modelled_machines(
    figure: Sourced, constant: str, machine: str
) -> None:
    assert figure.value == pytest.approx(PRESETS[machine].constants[constant].si)


def test_counts_and_peaks_are_those_of_the_modelled_machines() -> None:
    exapod, die = totals(read_machine("exapod")), totals(read_machine("d1_die"))
    question = QUESTIONS["one ExaPOD"]
    assert value_of(question, "nodes of an ExaPOD") == exapod.num_nodes
    assert value_of(question, "SRAM of an ExaPOD = ") == pytest.approx(exapod.sram_bytes)
    assert value_of(question, "HBM of an ExaPOD = ") == pytest.approx(exapod.memory_bytes)
    peak = exapod.matmul_flops_per_s["bf16"]
    assert value_of(question, "peak of an ExaPOD = ") == pytest.approx(peak)
    assert die.num_nodes == figures.NODES_PER_DIE.value
    for figure, name in ((figures.A100_PEAK, "a100"), (figures.H100_PEAK, "h100")):
        modelled = totals(read_machine(name)).matmul_flops_per_s["bf16"]
        assert figure.value == pytest.approx(modelled, rel=1e-3)


def test_a_difference_from_what_was_published_is_told() -> None:
    sheet = Sheet()
    product = sheet.multiply("area", "", figures.EDGES, figures.BOTH_WAYS)
    off = sheet.compare(product, figures.published("area, as said", 10, "", "a page"))
    assert off == pytest.approx(-0.2)
    assert sheet.lines[-1].text == "area: 8 here against 10 published: -20.00%"
    assert sheet.lines[-1].source == "a page"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3.62e14, "FLOP/s", "362 TFLOP/s"),
        (276243.1, "D1", "276,243 D1"),
        (2.728, "D1", "2.73 D1"),
        (0.2682, "share", "26.8%"),
        (25, "", "25"),
    ],
)
def test_amounts(value: float, unit: str, text: str) -> None:
    assert in_unit(value, unit) == text
