"""compare.json: what a comparison of two hardware paths, a and b, has found.

It does not know how anything is found, nor how it looks. Seconds, bytes, joules, dB; shares are of
1; what could not be told is None. `read_comparison` reads it again.
"""

from pathlib import Path
from typing import Final, Literal

import msgspec

from fsdtrain.engine.run_record import Manifest, read_record
from fsdtrain.step_profile import Origin, StepProfile

RECORD_VERSION: Final = 1

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")
# same: nothing speaks against it; different: something does; open: not enough was run to say.
Outcome = Literal["same", "different", "open"]
Mode = Literal["teacher_forced", "free_running"]
# Of what a tensor is to the step; update: what the optimiser adds to a weight.
TensorKind = Literal["forward", "backward", "gradient", "update", "loss"]


class Ulps(msgspec.Struct, frozen=True, kw_only=True):
    """Distance in units in the last place of the format that both are stored in."""

    p50: float
    p99: float
    max: float


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """How far one tensor is from another one, the reference of this pair.

    Args:
        is_bitwise_equal: also in the sign of zero and the bits of NaN.
        snr_db: 10 log10(sum ref^2 / sum (x - ref)^2); None: no error, no reference signal, or not
            finite.
        cosine: of the angle between both.
        max_over_rms: max |x - ref| / RMS(ref).
        share_within: of the elements that are within the band's tolerance.
        pearson: blind to scale and shift, so never to be used alone.
        scale: the factor that fits best, sum(x ref) / sum(ref^2).
        nan_share: of x, NaN or infinite where the reference is finite.
        ulps: of element-wise ops whose two results have one format.
    """

    is_bitwise_equal: bool
    snr_db: float | None = None
    cosine: float | None = None
    max_over_rms: float | None = None
    share_within: float | None = None
    pearson: float | None = None
    scale: float | None = None
    nan_share: float = 0.0
    ulps: Ulps | None = None


class StoredTensor(msgspec.Struct, frozen=True, kw_only=True):
    """How one side stores a tensor, and what that did to it.

    Args:
        format: "float32", "bf16", "cfloat8_1_4_3".
        saturated_share: had to be clamped to the largest value; None: float32, or the values before
            they were stored are not known, as in the free run.
        underflowed_share: were not zero, but too small, and became zero; None: likewise.
    """

    format: str
    saturated_share: float | None = None
    underflowed_share: float | None = None


class TensorComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of the step on both sides.

    Args:
        mode: teacher_forced: the op got the reference's inputs; free_running: its own side's.
        kind: of the tensor.
        name: of the op that gives it, or of the weight.
        op: "aten.convolution"; "" for gradients and updates.
        layer: module path.
        line: of the user's code.
        shape: of the tensor.
        order: place in the step, from 0.
        a_stored: on side a.
        b_stored: on side b.
        a: side a against the reference.
        b: side b against the reference.
        between: b against a.
        band_snr_db: the least that is expected here, see bands.py; None: no band.
        outside: the sides that are outside of their band.
        finding: what is wrong, in one clause: "b is 1.010 times the reference"; "" if nothing is.
    """

    mode: Mode
    kind: TensorKind
    name: str
    op: str
    layer: str
    line: str
    shape: tuple[int, ...]
    order: int
    a_stored: StoredTensor
    b_stored: StoredTensor
    a: Errors
    b: Errors
    between: Errors
    band_snr_db: float | None = None
    outside: tuple[Side, ...] = ()
    finding: str = ""


class NumericsComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One step on one batch, op by op.

    Args:
        reference: in words: what both are compared with.
        tensors: all rows of both modes, in the order of the step.
        first_divergence: index into `tensors` of the first that is outside of its band when it is
            teacher-forced, else of the first of the free run; None: there is none.
        worst: indices into `tensors`, the worst first.
        unmatched: ops that only one side has, in words; their results are compared where both
            sides meet again.
        notes: what a reader must know.
    """

    reference: str
    tensors: tuple[TensorComparison, ...]
    first_divergence: int | None
    worst: tuple[int, ...]
    outcome: Outcome
    sentence: str
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class RankedUnit(msgspec.Struct, frozen=True, kw_only=True):
    """One op, layer or module by itself as b does it, all else as a: its share of the difference.

    Shares of several do not add up: errors that are independent add as their squares do.
    """

    name: str
    share: float


class SwappedSet(msgspec.Struct, frozen=True, kw_only=True):
    """What --bisect found: run only these as b does, all else as a, and the difference is there.

    Args:
        unit: "op" or "layer".
        names: the smallest set that was found.
        explained_share: of the whole difference of b from a, 1 or more if all of it.
        num_runs: of the step, that it took.
        sentence: in words.
        difference: of the whole: of all gradients and the loss, relative to a's (L2).
        is_spread: no small set explains it; `names` are the largest, and `ranking` has more.
        is_minimal: without any one of `names` the rest explains too little.
        num_units: ops of the step that were looked at.
        num_unit_runs: of single ops, that all runs took together; the rest came from earlier runs.
        ranking: the largest first; not all that there are.
    """

    unit: Literal["op", "layer"]
    names: tuple[str, ...]
    explained_share: float
    num_runs: int
    sentence: str
    difference: float | None = None
    is_spread: bool = False
    is_minimal: bool = True
    num_units: int = 0
    num_unit_runs: int = 0
    ranking: tuple[RankedUnit, ...] = ()


class WiderRole(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a recipe that --tune proposes.

    Args:
        role: "vector_gradient".
        from_format: as it is.
        to_format: as proposed.
        gradient_snr_db: of all gradients with this change and those above it.
        step_time_s: of the modelled machine with these changes.
        step_time_before_s: without any.
        origin: of both times.
    """

    role: str
    from_format: str
    to_format: str
    gradient_snr_db: float | None
    step_time_s: float | None
    step_time_before_s: float | None
    origin: Origin


class TunedRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """The roles that need a wider format, and what that costs.

    Args:
        margin_snr_db: that was asked for.
        is_reached: whether wider formats get there.
        steps: the proposal; empty where none is needed or none is enough.
        sentence: of it all.
        overrides: what to add to the command line of `fit` for it.
    """

    margin_snr_db: float
    is_reached: bool
    steps: tuple[WiderRole, ...]
    sentence: str
    overrides: tuple[str, ...] = ()


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A scalar by optimiser step."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of one side; all tuples by run go with `seeds`."""

    seeds: tuple[int, ...]
    losses: tuple[Curve, ...]
    gradient_norms: tuple[Curve, ...]
    final: tuple[float, ...]
    samples_to_target: tuple[float | None, ...]  # None: never reached
    run_dirs: tuple[str, ...]
    origin: Origin


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and mean +- 2 standard deviations of the smoothed loss over the seeds."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class Equivalence(msgspec.Struct, frozen=True, kw_only=True):
    """Two one-sided t-tests (Schuirmann 1987) on the final metric, b minus a.

    Args:
        metric: "vehicle_iou".
        margin: that counts as the same.
        margin_source: in words.
        difference: of the means.
        low: of the 90 % confidence interval of the difference.
        high: see `low`.
        p_value: the larger of the two; equivalent if it is below 0.05.
        is_equivalent: the verdict; None: too few seeds for one.
    """

    metric: str
    margin: float
    margin_source: str
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    is_equivalent: bool | None


class TrainingComparison(msgspec.Struct, frozen=True, kw_only=True):
    """The same seeds, data order and schedule on both sides.

    Args:
        a: the runs of side a.
        b: the runs of side b.
        a_band: of the training loss.
        b_band: of the training loss.
        equivalence: of the final metric.
        share_outside: of the steps, b's mean outside of a's band.
        divergence_step: from which on it stays outside; None: it does not.
        target: of the loss, that both are asked for.
        samples_to_target_ratio: b over a, of the medians.
        gradient_norm_ratio: b over a, median over the steps.
        overhead_share: of the comparison over the two trainings themselves.
    """

    a: Arm
    b: Arm
    a_band: Band
    b_band: Band
    equivalence: Equivalence
    share_outside: float
    divergence_step: int | None
    target: float | None
    samples_to_target_ratio: float | None
    gradient_norm_ratio: float | None
    outcome: Outcome
    sentence: str
    overhead_share: float | None = None
    notes: tuple[str, ...] = ()


class CostRow(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity on both sides: "step time", "samples a second", "energy".

    Args:
        name: of the quantity, or of the op.
        unit: of both values.
        a: None: not known.
        b: None: not known.
        a_origin: of `a`.
        b_origin: of `b`.
        ratio: b over a; None where one is missing.
        ratio_note: "measured against modelled" where the origins differ, with the model's error.
        detail: where it is: phase, layer, shapes.
    """

    name: str
    unit: str
    a: float | None
    b: float | None
    a_origin: Origin
    b_origin: Origin
    ratio: float | None
    ratio_note: str = ""
    detail: str = ""


class PerformanceComparison(msgspec.Struct, frozen=True, kw_only=True):
    """What a step costs on both sides.

    Args:
        a: the profile, without its timeline.
        b: the profile, without its timeline.
        num_samples: of the step.
        totals: of the step.
        bounds: time by what bounds it.
        ops: the largest difference first.
        sentence: in words.
    """

    a: StepProfile
    b: StepProfile
    num_samples: int
    totals: tuple[CostRow, ...]
    bounds: tuple[CostRow, ...]
    ops: tuple[CostRow, ...]
    sentence: str
    notes: tuple[str, ...] = ()


class ConfigDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One knob that is not the same on both sides; is_allowed: by name, or of the backend."""

    field: str
    a: str
    b: str
    is_allowed: bool


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One of the questions that were asked: numerics, training, performance."""

    name: str
    outcome: Outcome
    sentence: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Exit code 0: same; 1: different; 2: no verdict. What is not comparable has no record."""

    exit_code: Literal[0, 1, 2]
    sentence: str
    checks: tuple[Check, ...]


class CompareRecord(msgspec.Struct, frozen=True, kw_only=True):
    """compare.json."""

    schema: Literal["fsdtrain-compare"] = "fsdtrain-compare"
    version: Literal[1] = RECORD_VERSION
    a_name: str  # "cpu", "dojo (cfp8)", or a folder
    b_name: str
    a_manifest: Manifest
    b_manifest: Manifest
    config_differences: tuple[ConfigDifference, ...]
    verdict: Verdict
    numerics: NumericsComparison | None = None
    bisected: SwappedSet | None = None
    tuned: TunedRecipe | None = None
    training: TrainingComparison | None = None
    performance: PerformanceComparison | None = None


def read_comparison(folder: Path) -> CompareRecord:
    """The comparison in a folder.

    Raises:
        UserError: it is missing, or of another schema or version.
    """
    return read_record(folder / "compare.json", CompareRecord, remedy="compare again")
