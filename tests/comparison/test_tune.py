"""The recipe search on a made-up backend, whose best recipe is found by trying all."""

import itertools
import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from fsdtrain_cpu import CpuBackend
from hypothesis import given
from hypothesis import strategies as st

from fsdtrain.backend import FormatLadders
from fsdtrain.comparison.record import TunedRecipe
from fsdtrain.comparison.tune import find_formats, gradient_snr_db, tune
from fsdtrain.errors import UserError

ROLES = ("activation", "weight", "gradient", "moment")
FORMATS = ("8 bits", "16 bits", "32 bits")


class Ladder:
    """Each role's noise and time by rung; noises add, times add."""

    def __init__(
        self,
        noises: Sequence[Sequence[float]],
        times: Sequence[Sequence[float]],
        rungs: Mapping[str, int] | None = None,
    ) -> None:
        self.noises, self.times = noises, times
        self.rungs = dict.fromkeys(ROLES, 0) | dict(rungs or {})

    def formats(self) -> FormatLadders:
        return FormatLadders(
            formats=dict.fromkeys(ROLES, FORMATS),
            options_at=lambda rungs: {"rungs": dict.fromkeys(ROLES, 0) | dict(rungs)},
            known_name="16 bits",
            known_options={"rungs": dict.fromkeys(ROLES, 1)},
        )

    def load(self, options: Mapping[str, object]) -> "Ladder":
        return type(self)(self.noises, self.times, options["rungs"])  # type: ignore[arg-type]

    def snr_db(self) -> float:
        noise = sum(row[self.rungs[role]] for role, row in zip(ROLES, self.noises, strict=True))
        return -10 * math.log10(noise) if noise else math.inf

    def time_s(self) -> float:
        return 1 + sum(row[self.rungs[role]] for role, row in zip(ROLES, self.times, strict=True))


NOISES = [[0.1, 1e-4, 0.0], [0.02, 1e-4, 0.0], [0.5, 1e-3, 0.0], [0.0, 0.0, 0.0]]
TIMES = [[0.0, 0.2, 0.6], [0.0, 0.1, 0.3], [0.0, 0.4, 0.8], [0.0, 0.1, 0.2]]


def tune_ladder(
    start: Ladder, margin: float | None = None, **arguments: int
) -> tuple[TunedRecipe, list[float]]:
    measured: list[float] = []

    def measure(options: Mapping[str, object]) -> float:
        measured.append(start.load(options).snr_db())
        return measured[-1]

    found = tune(
        start.formats(),
        measure=measure,
        step_time=lambda options: start.load(options).time_s(),
        origin="EMULATED",
        margin_snr_db=margin,
        **arguments,
    )
    return found, measured


def best_time(start: Ladder, margin: float) -> float:
    """Of all recipes that are good enough."""
    recipes = [
        start.load({"rungs": dict(zip(ROLES, rungs, strict=True))})
        for rungs in itertools.product(range(3), repeat=4)
    ]
    return min(each.time_s() for each in recipes if each.snr_db() >= margin)


@pytest.mark.parametrize("margin", [4.0, 9.0, 16.0, 29.0, 35.0])
def test_the_cheapest_recipe_is_found(margin: float) -> None:
    start = Ladder(NOISES, TIMES)
    found, _ = tune_ladder(start, margin)
    assert found.is_reached
    assert found.steps[-1].step_time_s == pytest.approx(best_time(start, margin))
    snr = found.steps[-1].gradient_snr_db
    assert snr is None or snr >= margin  # None: no error at all


def test_the_margin_is_that_of_the_known_recipe_less_6_db() -> None:
    start = Ladder(NOISES, TIMES)
    found, _ = tune_ladder(start)
    assert found.margin_snr_db == pytest.approx(-10 * math.log10(1.2e-3) - 6)
    assert [each.role for each in found.steps] == ["gradient", "activation", "weight"]
    assert all(each.to_format == "16 bits" for each in found.steps)
    assert "3 of 4 roles need wider formats: gradient 8 bits to 16 bits" in found.sentence
    assert "1.700 times as long, 1000 to 1700 ms (MODELLED)" in found.sentence
    assert "(EMULATED; needed: 23.2 dB, that of 16 bits less 6)" in found.sentence
    assert found.overrides == (
        "backend.rungs.activation=1",
        "backend.rungs.weight=1",
        "backend.rungs.gradient=1",
    )


def test_steps_say_what_each_of_them_gives() -> None:
    found, _ = tune_ladder(Ladder(NOISES, TIMES), 9.0)
    assert [each.role for each in found.steps] == ["gradient"]
    assert found.steps[0].gradient_snr_db == pytest.approx(-10 * math.log10(0.121))
    assert found.steps[0].step_time_s == pytest.approx(1.4)
    assert found.steps[0].step_time_before_s == pytest.approx(1.0)


@pytest.mark.parametrize("cheap", [0, 1, 2])
def test_of_equal_gains_the_cheapest_is_taken(cheap: int) -> None:
    noises = [[0.1, 0.0, 0.0], [0.1, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.0]]
    times = [[0.0, 0.1 if number == cheap else 0.3, 0.5] for number in range(4)]
    found, _ = tune_ladder(Ladder(noises, times), 6.5)
    assert [each.role for each in found.steps] == [ROLES[cheap]]


def test_where_steps_hide_each_other_all_are_taken_and_then_reduced() -> None:
    """Either of two roles leaves so much noise that the other alone seems to give nothing."""

    class Capped(Ladder):
        def snr_db(self) -> float:
            return 30.0 if self.rungs["activation"] >= 1 and self.rungs["weight"] >= 1 else 10.0

    found, _ = tune_ladder(Capped(NOISES, TIMES), 20.0)
    assert {each.role for each in found.steps} == {"activation", "weight"}
    assert all(each.to_format == "16 bits" for each in found.steps)


def test_a_recipe_that_is_good_enough_stays() -> None:
    found, measured = tune_ladder(Ladder(NOISES, TIMES), 1.0)
    assert found.is_reached
    assert found.steps == ()
    assert "no role needs" in found.sentence
    assert len(measured) == 1


def test_what_cannot_be_reached_is_said() -> None:
    noises = [[0.5, 0.4, 0.3], *NOISES[1:]]
    found, measured = tune_ladder(Ladder(noises, TIMES), 20.0)
    assert not found.is_reached
    assert "not enough" in found.sentence
    assert "5.2 dB" in found.sentence
    assert len(measured) == 2


@given(st.data())
def test_nothing_can_be_left_out(data: st.DataObject) -> None:
    """Of random noises and times: one rung less anywhere is not enough."""
    noises = [
        sorted(data.draw(st.lists(st.floats(1e-6, 1), min_size=3, max_size=3)), reverse=True)
        for _ in ROLES
    ]
    times = [sorted(data.draw(st.lists(st.floats(0, 1), min_size=3, max_size=3))) for _ in ROLES]
    start = Ladder(noises, times)
    widest = start.load({"rungs": dict.fromkeys(ROLES, 2)}).snr_db()
    margin = data.draw(st.floats(min(start.snr_db(), widest), widest))
    found, measured = tune_ladder(start, margin)
    assert found.is_reached
    assert len(measured) <= 60
    rungs = {each.role: FORMATS.index(each.to_format) for each in found.steps}
    assert start.load({"rungs": rungs}).snr_db() >= margin
    for role, rung in rungs.items():
        assert start.load({"rungs": {**rungs, role: rung - 1}}).snr_db() < margin


def test_runs_are_bounded() -> None:
    found, measured = tune_ladder(Ladder(NOISES, TIMES), 29.0, max_runs=12)
    assert len(measured) <= 12
    assert found.is_reached
    assert found.steps[-1].gradient_snr_db is None or found.steps[-1].gradient_snr_db >= 29


def test_a_backend_without_formats_is_refused() -> None:
    with pytest.raises(UserError, match="backend cpu has no wider number formats"):
        find_formats(CpuBackend())


def test_the_snr_is_of_all_gradients_together() -> None:
    expected = {"weight": torch.tensor([3.0, 4.0]), "bias": torch.tensor([0.0])}
    found = {"weight": torch.tensor([3.0, 4.0]), "bias": torch.tensor([0.5])}
    assert gradient_snr_db(expected, found) == pytest.approx(20.0)
    assert gradient_snr_db(expected, expected) == math.inf
    assert gradient_snr_db(expected, {**found, "weight": torch.tensor([math.nan, 4])}) == -math.inf
