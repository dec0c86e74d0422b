"""Bisecting hand-made steps whose faults are known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fsdtrain.comparison.bisect import bisect
from fsdtrain.comparison.hybrid import Difference, HybridRuns
from fsdtrain.errors import UserError

Compute = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class HandMade:
    """A unit of one result, which has the unit's name."""

    name: str
    inputs: tuple[str, ...]
    layer: str
    a: Compute
    b: Compute
    op: str = "aten.mul"
    line: str = "net.py:3"
    phase: str = "forward"

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.name,)

    def run(self, side: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        compute = self.a if side == "a" else self.b
        return {self.name: compute(*(values[name] for name in self.inputs))}


def chain(num_units: int, faults: Mapping[int, Compute], *, per_layer: int = 3) -> list[HandMade]:
    """x -> u0 -> u1 -> ... each a * 1.1 + 0.1; `faults` replaces some on side b."""

    def right(x: Tensor) -> Tensor:
        return x * 1.1 + 0.1

    return [
        HandMade(
            name=f"u{number}",
            inputs=(f"u{number - 1}" if number else "x",),
            layer=f"net.stage{number // per_layer}",
            a=right,
            b=faults.get(number, right),
        )
        for number in range(num_units)
    ]


def given_tensors() -> dict[str, Tensor]:
    return {"x": torch.linspace(0.5, 2, 7)}


def larger(x: Tensor) -> Tensor:
    return (x * 1.1 + 0.1) * 1.01


@pytest.mark.parametrize("place", [0, 11, 29])
def test_one_fault_is_named(place: int) -> None:
    found = bisect(chain(30, {place: larger}), given_tensors(), loss="u29")
    assert found.unit == "op"
    assert found.names == (f"u{place}",)
    assert found.explained_share == pytest.approx(1)
    assert found.is_minimal
    assert not found.is_spread
    assert found.sentence.startswith(
        f"net.stage{place // 3} mul (forward, net.py:3) explains 100 %"
    )


def test_what_did_not_change_is_not_computed_again() -> None:
    found = bisect(chain(30, {27: larger}), given_tensors(), loss="u29")
    # Four sweeps of 30, and three units behind the swap for the one set there is to test.
    assert found.num_unit_runs <= 4 * 30 + 6
    assert found.num_runs <= 8


def test_two_faults_in_different_layers_are_both_named() -> None:
    found = bisect(chain(30, {4: larger, 20: larger}), given_tensors(), loss="u29")
    assert set(found.names) == {"u4", "u20"}
    assert "together explain 100 % of the difference" in found.sentence
    assert "2 of 30 ops" in found.sentence
    assert "no one of them alone explains more than 5" in found.sentence
    assert {each.name for each in found.ranking} == {"u4", "u20"}
    assert all(0.3 < each.share < 0.7 for each in found.ranking)


def test_a_fault_that_shows_only_with_another_is_named_with_it() -> None:
    """b clamps at 1000, which matters only behind an op of b's that is 500 times too large."""

    def far_too_large(x: Tensor) -> Tensor:
        return x * 500

    def clamped(x: Tensor) -> Tensor:
        return (x * 1.1 + 0.1).clamp(max=1000.0)

    def back(x: Tensor) -> Tensor:
        return torch.where(x.mean() > 100, x / 500, x) * 1.1

    units = chain(12, {3: far_too_large, 8: clamped}, per_layer=2)
    # Both sides scale back what is too large, so that alone neither of both makes a difference.
    units[9] = HandMade(name="u9", inputs=("u8",), layer="net.stage4", a=back, b=back)
    alone = HybridRuns(units, given_tensors(), wanted=["u11"])
    difference = Difference(alone.values("a"), alone.values("b"), loss="u11")
    assert difference.share(alone.run({8})) == 0
    found = bisect(units, given_tensors(), loss="u11", min_share=0.99)
    assert "u3" in found.names
    assert set(found.names) <= {"u3", "u8"}
    assert found.explained_share >= 0.99


def test_faults_that_cancel_do_not_hide_the_one_that_matters() -> None:
    """Twice too large and half too large: each alone is a hundred times the whole difference."""
    faults = {
        5: lambda x: (x * 1.1 + 0.1) * 2,
        6: lambda x: x / 2 * 1.1 + 0.1,
        17: larger,
    }
    found = bisect(chain(24, faults), given_tensors(), loss="u23")
    assert found.names == ("u17",)
    assert found.explained_share == pytest.approx(1)


def test_equal_sides_have_nothing_to_explain() -> None:
    found = bisect(chain(9, {}), given_tensors(), loss="u8")
    assert found.names == ()
    assert found.num_runs == 2
    assert "no difference" in found.sentence


def test_a_fault_that_reaches_no_result_is_no_difference() -> None:
    units = chain(9, {})
    units.append(
        HandMade(name="aside", inputs=("u2",), layer="net", a=torch.sin, b=torch.cos),
    )
    assert bisect(units, given_tensors(), loss="u8").names == ()


def test_infinities_are_traced_to_their_origin() -> None:
    found = bisect(chain(20, {13: lambda x: x / 0}), given_tensors(), loss="u19")
    assert found.names == ("u13",)
    assert found.explained_share == pytest.approx(1)
    assert found.difference is None
    assert "not finite" in found.sentence


def spread(num_units: int) -> list[HandMade]:
    """Every unit adds an error of its own direction and of equal length to the gradients."""
    torch.manual_seed(0)
    noise = torch.linalg.qr(torch.randn(num_units, num_units)).Q

    def adds(number: int) -> Compute:
        return lambda x: x + 1e-3 * noise[number]

    return [
        HandMade(
            name=f"u{number}",
            inputs=(f"u{number - 1}" if number else "x",),
            layer=f"net.stage{number // 5}",
            a=lambda x: x * 1.0,
            b=adds(number),
        )
        for number in range(num_units)
    ]


def test_where_it_is_spread_the_largest_are_ranked() -> None:
    units = spread(60)
    units.append(
        HandMade(name="loss", inputs=("x",), layer="", a=torch.sum, b=torch.sum, op="aten.sum")
    )
    found = bisect(units, {"x": torch.ones(60)}, loss="loss", gradients=["u59"])
    assert found.is_spread
    assert found.unit == "op"
    assert len(found.names) == 12
    assert found.num_runs <= 200
    # 12 equal and independent errors of 60 are as long as the root of a fifth of all.
    assert found.explained_share == pytest.approx(0.2**0.5, rel=1e-3)
    assert "12 largest of 61 ops give 44.7 % of it" in found.sentence
    assert "and 89.4 % is there without them" in found.sentence
    assert found.ranking[0].share == pytest.approx(60**-0.5, rel=1e-3)


def test_the_largest_of_many_comes_first() -> None:
    units = spread(60)
    small = units[40].b
    units[40] = replace(units[40], b=lambda x: x + 2 * (small(x) - x))
    found = bisect(units, {"x": torch.ones(60)}, loss="u59")
    assert found.names[0] == "u40"
    assert found.ranking[0].share == pytest.approx(2 / 63**0.5, rel=1e-3)


def test_no_more_runs_than_allowed() -> None:
    units = chain(40, dict.fromkeys(range(0, 40, 4), larger), per_layer=2)
    found = bisect(units, given_tensors(), loss="u39", max_runs=14)
    assert found.num_runs <= 14
    again = bisect(units, given_tensors(), loss="u39", max_runs=14)
    assert again == found


@pytest.mark.parametrize("max_runs", [10, 11, 30, 61])
def test_no_more_runs_than_allowed_where_it_is_spread(max_runs: int) -> None:
    found = bisect(spread(60), {"x": torch.ones(60)}, loss="u59", max_runs=max_runs)
    assert found.num_runs <= max_runs
    assert found.is_spread
    assert found.names


@pytest.mark.parametrize(("argument", "value"), [("min_share", 0.0), ("max_runs", 3)])
def test_arguments_out_of_range(argument: str, value: float) -> None:
    with pytest.raises(UserError, match=argument):
        bisect(chain(2, {}), given_tensors(), loss="u1", **{argument: value})


@given(st.data(), st.integers(2, 14))
def test_planted_faults_of_random_graphs_are_found(data: st.DataObject, num_units: int) -> None:
    """Every unit reads one or two earlier values; b is wrong in up to three of them."""
    sources = [
        data.draw(st.lists(st.integers(-1, number - 1), min_size=1, max_size=2))
        for number in range(num_units)
    ]
    planted = data.draw(st.sets(st.integers(0, num_units - 1), min_size=1, max_size=3))

    def right(*xs: Tensor) -> Tensor:
        return torch.stack(xs).mean(0) + 0.1

    def wrong(number: int) -> Compute:
        # Of a direction of its own, so that no two cancel.
        direction = torch.zeros(num_units + 1, dtype=torch.float64)
        direction[number] = 1.0
        return lambda *xs: right(*xs) + direction

    units = [
        HandMade(
            name=f"u{number}",
            inputs=tuple(f"u{source}" if source >= 0 else "x" for source in sources[number]),
            layer=f"net.{number % 3}",
            a=right,
            b=wrong(number) if number in planted else right,
        )
        for number in range(num_units)
    ]
    wanted = f"u{num_units - 1}"
    tensors = {"x": torch.ones(num_units + 1, dtype=torch.float64)}
    found = bisect(units, tensors, loss=wanted, min_share=1.0)
    runs = HybridRuns(units, tensors, wanted=[wanted])
    reaching = planted & set(runs.numbers)
    assert set(found.names) == {f"u{number}" for number in reaching}


def test_a_hybrid_run_is_the_step_computed_from_the_start() -> None:
    units = chain(15, dict.fromkeys(range(0, 15, 2), larger))
    runs = HybridRuns(units, given_tensors(), wanted=["u14", "u7"])
    for swapped in [{0}, {2, 8}, {4, 5, 14}, set(range(0, 15, 2)), set(range(1, 15))]:
        values = given_tensors()
        for number, unit in enumerate(units):
            values |= unit.run("b" if number in swapped else "a", values)
        found = runs.run(swapped)
        assert all(torch.equal(found[name], values[name]) for name in ("u14", "u7"))
