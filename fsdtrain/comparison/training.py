"""Do two sides train the same? What the finished runs of both say, seed by seed.

One seed is never a verdict: the spread between seeds is the yardstick, and five pairs are the least
that shows it. It does not know how runs are made, nor how findings look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import correlation, median

import numpy as np

from fsdtrain.comparison.bands_of_runs import (
    Array,
    common_steps,
    find_divergence,
    is_outside,
    make_band,
    reachable_target,
    samples_to,
    smoothed_at,
)
from fsdtrain.comparison.configs import read_fields
from fsdtrain.comparison.equivalence import (
    ALPHA,
    MIN_SEEDS,
    equivalence_of_pairs,
    num_seeds_needed,
    p_value_of_difference,
)
from fsdtrain.comparison.folders import Run, read_pairs
from fsdtrain.comparison.record import (
    Arm,
    Band,
    Curve,
    Equivalence,
    Outcome,
    TrainingComparison,
)
from fsdtrain.errors import UserError


def compare_training(
    a_runs: Sequence[Path],
    b_runs: Sequence[Path],
    *,
    metric: str | None = None,
    margin: float | None = None,
    target: float | None = None,
    overhead_share: float | None = None,
) -> TrainingComparison:
    """Compare finished runs of the same seeds.

    Args:
        a_runs: run folders of side a, the reference.
        b_runs: of side b.
        metric: the final figure, "vehicle_iou"; None: the one that training monitored.
        margin: of the metric, within which both count as the same; None: one standard deviation of
            side a over its seeds.
        target: a training loss, for samples-to-target; None: the lowest that all runs of a reach.
        overhead_share: what making the comparison cost over the trainings themselves, if known.

    Raises:
        UserError: runs that cannot be compared, see `folders.read_pairs`, or an unknown metric.
    """
    a, b = read_pairs(a_runs, b_runs)
    name = _find_metric(a[0], metric)
    steps = common_steps([run.losses for run in (*a, *b)])
    if not len(steps):
        raise UserError(
            f"{a[0].folder} and {b[0].folder} have no logged step in common: log both with the "
            "same training.log_every_steps"
        )
    a_losses, b_losses = (
        np.stack([smoothed_at(run.losses, steps) for run in runs]) for runs in (a, b)
    )
    a_band, b_band = make_band(a_losses, steps), make_band(b_losses, steps)
    goal = reachable_target(list(a_losses)) if target is None else target
    of_a, of_b = (
        _make_arm(runs, losses, a_band, metric=name, target=goal)
        for runs, losses in ((a, a_losses), (b, b_losses))
    )
    outside = is_outside(b_band.mean, a_band)
    equivalence = equivalence_of_pairs(of_a.final, of_b.final, metric=name, margin=margin)
    finding = _Finding(
        a=of_a,
        b=of_b,
        equivalence=equivalence,
        share_outside=float(outside.mean()),
        divergence_step=find_divergence(outside, a_band.steps),
    )
    outcome, sentence = finding.conclude()
    return TrainingComparison(
        a=of_a,
        b=of_b,
        a_band=a_band,
        b_band=b_band,
        equivalence=equivalence,
        share_outside=finding.share_outside,
        divergence_step=finding.divergence_step,
        target=goal,
        samples_to_target_ratio=_ratio_of_medians(of_a, of_b),
        gradient_norm_ratio=_gradient_norm_ratio(a, b),
        outcome=outcome,
        sentence=sentence,
        overhead_share=overhead_share,
        notes=(
            *_notes(a, b, a_band, equivalence, is_target_given=target is not None),
            *_correlation(of_a.final, of_b.final),
        ),
    )


def _find_metric(run: Run, metric: str | None) -> str:
    names = [figure.name for figure in run.results.figures]
    if metric is None:
        fields = read_fields(run.config_yaml, run.folder / "config.yaml")
        monitored = str(fields.get("training.monitor", "")).removeprefix("val/")
        metric = monitored if monitored in names else next(iter(names), "")
    if metric not in names:
        raise UserError(
            f"{run.folder}/results.json has no figure {metric!r}; it has "
            f"{', '.join(names) or 'none'}: choose one of them as the metric"
        )
    return metric


def _final(run: Run, metric: str) -> float:
    values = [figure.value for figure in run.results.figures if figure.name == metric]
    if not values:
        raise UserError(
            f"{run.folder}/results.json has no figure {metric!r}, which other runs have: choose a "
            "metric that all runs give, or train this seed again"
        )
    return values[0]


def _make_arm(runs: Sequence[Run], losses: Array, band: Band, *, metric: str, target: float) -> Arm:
    steps = np.array(band.steps)
    return Arm(
        seeds=tuple(run.manifest.seed for run in runs),
        losses=tuple(_as_curve(run.losses.steps, run.losses.values) for run in runs),
        gradient_norms=tuple(
            _as_curve(run.gradient_norms.steps, run.gradient_norms.values)
            for run in runs
            if run.gradient_norms is not None
        ),
        final=tuple(_final(run, metric) for run in runs),
        samples_to_target=tuple(
            samples_to(target, of_run, steps, samples_per_step=run.samples_per_step)
            for run, of_run in zip(runs, losses, strict=True)
        ),
        run_dirs=tuple(str(run.folder) for run in runs),
        origin=runs[0].manifest.origin,
    )


def _as_curve(steps: np.typing.NDArray[np.int64], values: Array) -> Curve:
    """Without what is not finite, such as the gradients of a step that fp16 left out."""
    finite = np.isfinite(values)
    return Curve(steps=tuple(steps[finite].tolist()), values=tuple(values[finite].tolist()))


def _ratio_of_medians(a: Arm, b: Arm) -> float | None:
    """Of b over a; None where the median run of one does not reach the target."""
    medians = [
        median(float("inf") if samples is None else samples for samples in arm.samples_to_target)
        for arm in (a, b)
    ]
    return medians[1] / medians[0] if max(medians) < float("inf") else None


def _gradient_norm_ratio(a: Sequence[Run], b: Sequence[Run]) -> float | None:
    """The median of b over a, over steps and seeds; early steps of one seed are very alike."""
    ratios: list[float] = []
    for one, other in zip(a, b, strict=True):
        if one.gradient_norms is None or other.gradient_norms is None:
            return None
        steps, of_a, of_b = np.intersect1d(
            one.gradient_norms.steps, other.gradient_norms.steps, return_indices=True
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            found = other.gradient_norms.values[of_b] / one.gradient_norms.values[of_a]
        ratios += found[np.isfinite(found)].tolist()
    return median(ratios) if ratios else None


@dataclass(frozen=True, kw_only=True)
class _Finding:
    a: Arm
    b: Arm
    equivalence: Equivalence
    share_outside: float
    divergence_step: int | None

    def conclude(self) -> tuple[Outcome, str]:
        """same: equal within the margin; different: shown to differ; open: neither was shown."""
        num_seeds, test = len(self.a.seeds), self.equivalence
        what = f"{test.metric} of b is {_beside(test.difference)}"
        if num_seeds < MIN_SEEDS:
            seeds = "one seed: no verdict" if num_seeds == 1 else f"{num_seeds} seeds: no verdict"
            return "open", f"{seeds}, {MIN_SEEDS} are needed; {what}"
        assert test.low is not None
        assert test.high is not None
        interval = f"90 % interval {test.low:+.3g} to {test.high:+.3g}"
        what = f"{num_seeds} seeds: {what} ({interval}, margin {test.margin:.3g})"
        if self.divergence_step is not None:
            return "different", (
                f"{what}; from step {self.divergence_step} on the mean loss of b stays outside of "
                "a's band"
            )
        if test.margin == 0 and self.a.losses != self.b.losses:
            return "open", (
                f"{what}; {test.metric} is the same for all seeds of a, so it can tell nothing: "
                "train longer, choose another metric or state a margin"
            )
        if test.is_equivalent:
            return "same", (
                f"{what}, the same within the margin; b's mean loss is outside of a's band in "
                f"{100 * self.share_outside:.0f} % of the steps"
            )
        p_value = p_value_of_difference(self.a.final, self.b.final)
        if p_value is not None and p_value < ALPHA:
            return "different", f"{what}, more than chance explains (p = {p_value:.2g})"
        needed = num_seeds_needed(self.a.final, self.b.final, test.margin)
        more = (
            "state a wider margin, or train more seeds"
            if needed is None
            else f"about {needed} seeds would show it if all stays as it is"
        )
        return "open", f"{what}: neither equal within the margin nor different is shown; {more}"


def _notes(
    a: Sequence[Run], b: Sequence[Run], band: Band, test: Equivalence, *, is_target_given: bool
) -> list[str]:
    notes = [f"the test is Schuirmann's, on pairs of one seed; its margin: {test.margin_source}"]
    if test.margin_source != "stated" and len(a) >= MIN_SEEDS:
        notes.append(
            "a margin that is estimated from the seeds passes sides that differ by just that much "
            "in up to 15 % of comparisons, rather than the 5 % of a stated one"
        )
    if len(a) == 1:
        notes.append("one seed: a's band has no width, so any difference lies outside of it")
    if not is_target_given:
        notes.append("the target is the lowest smoothed loss that all runs of a reach")
    if len(band.steps) < 10:
        notes.append(
            f"only {len(band.steps)} losses were logged: lower training.log_every_steps to see more"
        )
    if any(run.gradient_norms is None for run in (*a, *b)):
        notes.append("some runs have no train/gradient_norm: their ratio is not known")
    if a[0].samples_per_step != b[0].samples_per_step:
        notes.append(
            f"a step of a takes {a[0].samples_per_step} samples and one of b "
            f"{b[0].samples_per_step}: losses are compared by step"
        )
    versions = [run.manifest.packages.get("torch") for run in (*a, *b)]
    if len(set(versions)) > 1:
        notes.append(
            f"torch is not the same in all runs: {', '.join(sorted(map(str, set(versions))))}"
        )
    return notes


def _correlation(a: Sequence[float], b: Sequence[float]) -> list[str]:
    """What pairs gain: the higher it is, the narrower is the interval of the difference."""
    if len(a) < MIN_SEEDS or len(set(a)) == 1 or len(set(b)) == 1:
        return []
    return [
        f"over the seeds, the final figures of a and b correlate by {correlation(a, b):.2f}; pairs "
        "narrow the interval from about 0.25 on"
    ]


def _beside(difference: float) -> str:
    if difference == 0:
        return "equal to a's"
    return f"{abs(difference):.3g} {'above' if difference > 0 else 'below'} a's"
