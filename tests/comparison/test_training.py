"""Runs made by hand whose comparison is known, and the rates of wrong verdicts by simulation."""

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fsdtrain.comparison.bands_of_runs import (
    find_divergence,
    is_outside,
    make_band,
    samples_to,
    smoothed_at,
)
from fsdtrain.comparison.record import TrainingComparison
from fsdtrain.comparison.training import compare_training
from fsdtrain.errors import UserError
from fsdtrain.report.curves import Curve
from tests.comparison.run_folders import write_run

Losses = NDArray[np.float64]
NUM_POINTS = 50


def falling(num_seeds: int, *, seed: int = 0, scatter: float = 0.02) -> Losses:
    """Losses that fall to 1, each seed's a little off and noisy."""
    rng = np.random.default_rng(seed)
    mean = 1 + 2 * np.exp(-np.linspace(0, 5, NUM_POINTS))
    offsets = rng.normal(0, scatter, (num_seeds, 1))
    return mean + offsets + rng.normal(0, scatter / 4, (num_seeds, NUM_POINTS))


def write_sides(
    folder: Path,
    a: Losses,
    b: Losses,
    *,
    finals: tuple[Sequence[float], Sequence[float]] | None = None,
    norms: tuple[Losses, Losses] | None = None,
) -> tuple[list[Path], list[Path]]:
    if finals is None:
        values = np.linspace(0.4, 0.6, len(a)).tolist()
        finals = (values, values)
    sides: tuple[list[Path], list[Path]] = ([], [])
    for number, (name, losses) in enumerate((("a", a), ("b", b))):
        for seed, of_seed in enumerate(losses):
            run = write_run(
                folder / name / f"seed_{seed}",
                seed=seed,
                losses=of_seed.tolist(),
                norms=None if norms is None else norms[number][seed].tolist(),
                final=finals[number][seed],
            )
            sides[number].append(run)
    return sides


def test_a_side_is_the_same_as_itself(tmp_path: Path) -> None:
    losses = falling(5)
    norms = np.full_like(losses, 3.0)
    found = compare_training(*write_sides(tmp_path, losses, losses, norms=(norms, norms)))
    assert found.outcome == "same"
    assert (found.share_outside, found.divergence_step) == (0, None)
    assert (found.samples_to_target_ratio, found.gradient_norm_ratio) == (1, 1)
    assert found.equivalence.is_equivalent is True
    assert (found.equivalence.difference, found.equivalence.p_value) == (0, 0)
    assert found.a_band == found.b_band
    assert found.a.seeds == (0, 1, 2, 3, 4)
    assert found.a.run_dirs[1] == str(tmp_path / "a" / "seed_1")


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    losses = falling(5)
    norms = np.full_like(losses, 3.0)
    norms[0, 0] = math.inf  # a step that fp16 leaves out
    found = compare_training(*write_sides(tmp_path, losses, losses, norms=(norms, norms)))
    text = msgspec.json.encode(found)
    assert msgspec.json.decode(text, type=TrainingComparison) == found
    assert b"null,null" not in text
    assert len(found.a.gradient_norms[0].steps) == NUM_POINTS - 1


@pytest.mark.parametrize(
    ("num_seeds", "words"),
    [(1, "one seed: no verdict, 5 are needed"), (3, "3 seeds: no verdict, 5 are needed")],
)
def test_few_seeds_give_no_verdict(tmp_path: Path, num_seeds: int, words: str) -> None:
    losses = falling(num_seeds)
    for number, b in enumerate((losses, losses + 1)):  # neither of equal nor of other runs
        found = compare_training(*write_sides(tmp_path / str(number), losses, b))
        assert found.outcome == "open"
        assert found.sentence.startswith(words)
        assert found.equivalence.is_equivalent is None


def test_a_loss_that_leaves_the_band_for_good_is_different(tmp_path: Path) -> None:
    a = falling(5)
    b = a.copy()
    b[:, 30:] += 0.5
    found = compare_training(*write_sides(tmp_path, a, b))
    assert found.outcome == "different"
    assert found.divergence_step is not None
    # Every second step is logged; smoothing blurs the jump by a few points.
    assert abs(found.divergence_step - 61) <= 2 * 4
    assert found.share_outside == pytest.approx(20 / 50, abs=0.08)
    assert f"from step {found.divergence_step} on the mean loss of b stays" in found.sentence


def test_a_final_figure_that_is_lower_for_every_seed_is_different(tmp_path: Path) -> None:
    losses = falling(5)
    finals = ([0.50, 0.51, 0.49, 0.52, 0.48], [0.40, 0.42, 0.38, 0.43, 0.39])
    found = compare_training(*write_sides(tmp_path, losses, losses, finals=finals))
    assert found.outcome == "different"
    assert "more than chance explains" in found.sentence
    assert found.equivalence.difference == pytest.approx(-0.096)
    expected = np.corrcoef(*finals)[0, 1]
    assert any(f"correlate by {expected:.2f}" in note for note in found.notes)


def test_figures_that_scatter_leave_it_open_and_say_how_many_seeds(tmp_path: Path) -> None:
    losses = falling(5)
    finals = ([0.50, 0.52, 0.48, 0.51, 0.49], [0.52, 0.49, 0.51, 0.49, 0.50])
    found = compare_training(*write_sides(tmp_path, losses, losses, finals=finals))
    assert found.outcome == "open"
    assert "neither equal within the margin nor different is shown; about" in found.sentence
    wide = compare_training(*write_sides(tmp_path / "2", losses, losses, finals=finals), margin=0.1)
    assert wide.outcome == "same"
    assert wide.equivalence.margin_source == "stated"


def test_a_figure_without_spread_tells_nothing(tmp_path: Path) -> None:
    a, finals = falling(5), ([0.0] * 5, [0.0] * 5)
    noise = np.random.default_rng(1).normal(0, 1e-4, a.shape)
    found = compare_training(*write_sides(tmp_path / "1", a, a + noise, finals=finals))
    assert found.outcome == "open"
    assert "vehicle_iou is the same for all seeds of a, so it can tell nothing" in found.sentence
    equal = compare_training(*write_sides(tmp_path / "2", a, a, finals=finals))
    assert equal.outcome == "same"
    stated = compare_training(*write_sides(tmp_path / "3", a, a + noise, finals=finals), margin=0.1)
    assert stated.outcome == "same"


# --- parts -------------------------------------------------------------------------------------


def test_the_band_is_mean_and_two_standard_deviations() -> None:
    values = np.random.default_rng(0).normal(size=(5, 7))
    band = make_band(values, np.arange(7))
    assert band.mean == pytest.approx(values.mean(0))
    assert band.high == pytest.approx(values.mean(0) + 2 * values.std(0, ddof=1))
    assert band.low == pytest.approx(values.mean(0) - 2 * values.std(0, ddof=1))
    assert is_outside((np.array(band.high) + [0, 1e-9, 0, 0, -1, 0, 0]).tolist(), band).sum() == 1


def test_the_band_of_one_run_has_no_width() -> None:
    band = make_band(np.ones((1, 3)), np.arange(3))
    assert band.low == band.mean == band.high
    assert is_outside([1.0, 1.0 + 1e-12, 1.0], band).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("outside", "step"),
    [
        ("....................", None),
        ("................####", 160),
        (".......####.........", None),  # it comes back
        ("..................##", None),  # too short to tell from chance
        ("####################", 0),
        ("###.............####", 160),
    ],
)
def test_parting_lasts_to_the_end(outside: str, step: int | None) -> None:
    flags = np.array([mark == "#" for mark in outside])
    assert find_divergence(flags, range(0, 200, 10)) == step


def test_samples_are_counted_until_the_smoothed_loss_is_there(tmp_path: Path) -> None:
    """Batches of 4, every second step logged."""
    a = np.tile(np.linspace(3.0, 1.0, 41), (5, 1))
    b = np.tile(np.linspace(5.0, 1.0, 41), (5, 1))
    found = compare_training(*write_sides(tmp_path, a, b), target=2.0)
    # 3 - 0.05 n = 2 at n = 20, and 5 - 0.1 n = 2 at n = 30; point n is step 2 n + 1.
    assert found.a.samples_to_target == (4 * 42,) * 5
    assert found.b.samples_to_target == (4 * 62,) * 5
    assert found.samples_to_target_ratio == pytest.approx(62 / 42)


def test_the_target_is_what_all_runs_of_a_reach(tmp_path: Path) -> None:
    a = falling(5)
    found = compare_training(*write_sides(tmp_path, a, a + 0.5))
    smoothed = [smoothed_at(Curve(steps=np.arange(50), values=each), np.arange(50)) for each in a]
    assert found.target == pytest.approx(max(each.min() for each in smoothed))
    assert all(samples is not None for samples in found.a.samples_to_target)
    assert found.b.samples_to_target == (None,) * 5
    assert found.samples_to_target_ratio is None


def test_a_target_that_is_never_reached_has_no_samples() -> None:
    losses, steps = np.array([3.0, 2.0, 1.0]), np.array([9, 19, 29])
    assert samples_to(1.5, losses, steps, samples_per_step=8) == 240
    assert samples_to(0.5, losses, steps, samples_per_step=8) is None


def test_the_gradient_norm_ratio_is_by_step_and_seed(tmp_path: Path) -> None:
    losses = falling(5)
    norms = np.random.default_rng(0).uniform(1, 100, losses.shape)
    sides = write_sides(tmp_path, losses, losses, norms=(norms, 1.01 * norms))
    assert compare_training(*sides).gradient_norm_ratio == pytest.approx(1.01)


def test_runs_without_norms_are_compared_and_it_is_said(tmp_path: Path) -> None:
    losses = falling(5)
    found = compare_training(*write_sides(tmp_path, losses, losses))
    assert found.gradient_norm_ratio is None
    assert any("no train/gradient_norm" in note for note in found.notes)


def test_an_unknown_metric_names_those_that_there_are(tmp_path: Path) -> None:
    losses = falling(1)
    sides = write_sides(tmp_path, losses, losses)
    with pytest.raises(UserError, match="no figure 'iou'; it has vehicle_iou"):
        compare_training(*sides, metric="iou")


def test_a_metric_that_one_run_lacks_is_refused(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", metric="path_ade")
    with pytest.raises(UserError, match="b/results.json has no figure 'vehicle_iou', which"):
        compare_training([a], [b])


# --- rates -------------------------------------------------------------------------------------


def test_sides_that_are_alike_seldom_part() -> None:
    """The means of five seeds differ by t * sqrt(2/5) standard deviations, t of 4 dof."""
    rng, num_trials = np.random.default_rng(8), 4000
    hits = 0
    for _ in range(num_trials):
        a, b = rng.normal(size=(2, 5, 1)).repeat(20, 2)  # offsets that last for the whole training
        band = make_band(a, np.arange(20))
        outside = is_outside(b.mean(0).tolist(), band)
        hits += find_divergence(outside, band.steps) is not None
    expected = 2 * stats.t.sf(2 / math.sqrt(2 / 5), 4)
    assert expected == pytest.approx(0.034, abs=0.001)
    assert hits / num_trials == pytest.approx(expected, abs=3 * math.sqrt(0.034 / num_trials))
