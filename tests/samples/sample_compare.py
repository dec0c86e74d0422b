"""A comparison as `compare` writes it, made up but plausible: one op of b is wrong by 1 %."""

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np

from fsdtrain.comparison.record import (
    Arm,
    Band,
    Check,
    CompareRecord,
    ConfigDifference,
    CostRow,
    Curve,
    Equivalence,
    Errors,
    NumericsComparison,
    PerformanceComparison,
    StoredTensor,
    SwappedSet,
    TensorComparison,
    TrainingComparison,
    TunedRecipe,
    Ulps,
    Verdict,
    WiderRole,
)
from fsdtrain.engine.run_record import Manifest
from fsdtrain.step_profile import OpProfile, Phase, StepProfile, TimelineEvent

FAULTY = 21  # the op that b computes wrongly
MODELLED_RATIO = "measured against modelled; the model is within 25 % of published times"
KINDS = ("convolution", "native_batch_norm", "relu", "convolution", "native_batch_norm", "add")


def make_compare_record(*, num_ops: int = 90, fault: str = "b is 1.010 times the reference",
                        **changes: Any) -> CompareRecord:  # fmt: skip
    """`changes` replace fields of the record."""
    performance = make_performance(num_ops)
    fields: dict[str, Any] = {
        "a_name": "cpu", "b_name": "dojo (cfp8)",
        "a_manifest": make_side_manifest("cpu", "AMD EPYC, 2 cores", "MEASURED"),
        "b_manifest": make_side_manifest("dojo", "Tesla D1 tile, 8,850 nodes", "EMULATED"),
        "config_differences": (
            ConfigDifference(field="backend.name", a="cpu", b="dojo", is_allowed=True),
            ConfigDifference(field="backend.recipe", a="(none)", b="cfp8", is_allowed=True),
            ConfigDifference(field="backend.machine", a="(none)", b="d1_tile", is_allowed=True),
        ),
        "verdict": Verdict(
            exit_code=1,
            sentence="Different: b's network.backbone.stage1.0 convolution (forward) is 1.010 "
            "times the reference; training is the same within the margin.",
            checks=(
                Check(name="numerics", outcome="different", sentence="1 op is outside its band."),
                Check(name="training", outcome="same", sentence="vehicle IoU differs by 0.002, "
                      "90 % interval -0.006 to 0.010, margin 0.020."),
                Check(name="performance", outcome="open", sentence="a is MEASURED and b MODELLED: "
                      "their ratio is no verdict."),
            ),
        ),
        "numerics": make_numerics(num_ops, fault), "bisected": BISECTED, "tuned": TUNED,
        "training": make_training(), "performance": performance,
    }  # fmt: skip
    return CompareRecord(**(fields | changes))


def make_side_manifest(backend: str, device: str, origin: Any) -> Manifest:
    return Manifest(
        command="compare a=cpu b=dojo", started_at="2026-11-22T09:12:44Z", seed=7, backend=backend,
        device=device, origin=origin, config_sha256=("9f2c" if backend == "cpu" else "77d0") * 16,
        data_sha256="51ab" * 16, packages={"fsdtrain": "0.1.0", "torch": "2.13.0+cpu"},
        python="3.11.9", platform="Linux-6.1-x86_64", num_threads=2,
        git_revision="0123456789abcdef0123456789abcdef01234567", git_dirty=False,
    )  # fmt: skip


BISECTED = SwappedSet(
    unit="op", names=("network.backbone.stage1.0 convolution (forward)",), explained_share=0.97,
    num_runs=9, sentence="Swapping one op explains 97 % of the difference.",
)  # fmt: skip
TUNED = TunedRecipe(
    margin_snr_db=25.0,
    is_reached=True,
    steps=(
        WiderRole(
            role="activation_gradient", from_format="cfloat8_1_5_2", to_format="bf16",
            gradient_snr_db=21.4, step_time_s=0.00101, step_time_before_s=0.00093,
            origin="MODELLED",
        ),
        WiderRole(
            role="weight", from_format="cfloat8_1_4_3", to_format="cfloat16_shp",
            gradient_snr_db=26.2, step_time_s=0.00112, step_time_before_s=0.00093,
            origin="MODELLED",
        ),
    ),
    sentence="Two wider roles reach 25 dB for 20 % more modelled time.",
)  # fmt: skip


def layer_of(number: int) -> str:
    part = ("stem", "stage1", "stage2", "stage3")[min(number // 12, 3)]
    if number >= 60:
        head = ("vehicle", "path", "occupancy")[number % 3]
        return f"network.heads.{head}.{number % 4}"
    return f"network.backbone.{part}.{number % 12 // 2}.{number % 2}"


def make_numerics(num_ops: int, fault: str) -> NumericsComparison:
    random = Random(5)
    modes = ("teacher_forced", "free_running")
    rows = [row for mode in modes for row in _rows(random, mode, num_ops, fault)]
    outside = [at for at, row in enumerate(rows) if row.outside]
    ranked = sorted(range(len(rows)), key=lambda at: _margin(rows[at]))
    return NumericsComparison(
        reference="the same step in float32, each op in double precision",
        tensors=tuple(rows),
        first_divergence=outside[0] if outside else None,
        worst=tuple(ranked),
        outcome="different" if outside else "same",
        sentence=f"{len(outside)} of {len(rows)} tensors are outside their bands."
        if outside
        else "All tensors are within their bands.",
        unmatched=("b: 14 format conversions",),
        notes=("Batch of 2 clips, seed 7.",),
    )


def _margin(row: TensorComparison) -> float:
    snr = row.b.snr_db if row.b.snr_db is not None else math.inf
    return snr - (row.band_snr_db or 0.0) - (1000.0 if row.outside else 0.0)


def _rows(random: Random, mode: Any, num_ops: int, fault: str) -> Iterator[TensorComparison]:
    is_free = mode == "free_running"
    order = 0
    for number in range(num_ops):
        is_wrong = bool(fault) and number == FAULTY
        snr = 31 + random.gauss(0, 1.5) - (number * 14 / num_ops if is_free else 0)
        if bool(fault) and number > FAULTY and is_free:
            snr = min(snr, 27.0)
        yield _row(mode, "forward", number, order, 0.0 if is_wrong else snr,
                   fault if is_wrong else "")  # fmt: skip
        order += 1
    yield _row(mode, "loss", num_ops, order, 40.0, "")
    for number in reversed(range(num_ops)):
        order += 1
        snr = 18 + random.gauss(0, 1.2) - ((num_ops - number) * 3 / num_ops if is_free else 0)
        yield _row(mode, "backward", number, order, snr, "")
    for kind in ("gradient", "update") if is_free else ():
        for number in range(0, num_ops, 3):
            order += 1
            yield _row(mode, kind, number, order, 16.5 + random.gauss(0, 0.8), "")


def _row(mode: Any, kind: Any, number: int, order: int, snr: float, fault: str) -> TensorComparison:
    is_parameter = kind in ("gradient", "update")
    op = KINDS[number % len(KINDS)]
    layer = "losses" if kind == "loss" else layer_of(number)
    stored = StoredTensor(
        format="float32" if kind in ("loss", "update") else "cfloat8_1_5_2"
        if kind != "forward" else "cfloat8_1_4_3",
        saturated_share=0.0 if number % 7 else 0.002, underflowed_share=0.001 * (number % 5),
    )  # fmt: skip
    b = _errors(40.0 if fault else snr, op, kind)
    if fault:
        b = Errors(is_bitwise_equal=False, snr_db=40.0, cosine=0.99999, max_over_rms=0.04,
                   share_within=0.1, pearson=0.99999, scale=1.0101)  # fmt: skip
    return TensorComparison(
        mode=mode, kind=kind, order=order, op="" if is_parameter else f"aten.{op}",
        name=f"{layer}.weight" if is_parameter else f"{op}_{number}", layer=layer,
        line="" if is_parameter else f"fsdtrain/models/backbone.py:{20 + number % 40}",
        shape=(2, 24, 48 >> number % 3, 48 >> number % 3),
        a_stored=StoredTensor(format="float32"), b_stored=stored,
        a=_errors(128.0 - number % 9, op, kind), b=b, between=b,
        band_snr_db=20.0 if kind == "forward" else 14.0,
        outside=("b",) if fault else (), finding=fault,
    )  # fmt: skip


def _errors(snr_db: float, op: str, kind: str) -> Errors:
    noise = 10 ** (-snr_db / 20)
    ulps = Ulps(p50=0.0, p99=1.0, max=2.0) if op == "relu" and kind == "forward" else None
    return Errors(
        is_bitwise_equal=False, snr_db=snr_db, cosine=1 - noise**2 / 2, max_over_rms=4.1 * noise,
        share_within=max(0.0, 1 - noise / 3), pearson=1 - noise**2 / 2, scale=1.0, ulps=ulps,
    )  # fmt: skip


def make_training(num_seeds: int = 5, num_steps: int = 200) -> TrainingComparison:
    rng = np.random.default_rng(11)
    steps = tuple(range(0, num_steps, 2))
    a = _arm(rng, steps, num_seeds, "MEASURED", 0.0)
    b = _arm(rng, steps, num_seeds, "EMULATED", 0.012)
    is_verdict = num_seeds >= 5
    return TrainingComparison(
        a=a, b=b, a_band=_band(a), b_band=_band(b),
        equivalence=Equivalence(
            metric="vehicle_iou", margin=0.02, margin_source="stated: compare.margin=0.02",
            difference=0.002, low=-0.006 if is_verdict else None,
            high=0.010 if is_verdict else None, p_value=0.003 if is_verdict else None,
            is_equivalent=True if is_verdict else None,
        ),
        share_outside=0.03, divergence_step=None, target=0.9, samples_to_target_ratio=1.04,
        gradient_norm_ratio=1.01, outcome="same" if is_verdict else "open",
        sentence="vehicle IoU is the same within 0.02." if is_verdict else "One seed: no verdict.",
        overhead_share=0.031,
    )  # fmt: skip


def _arm(rng: Any, steps: Sequence[int], num_seeds: int, origin: Any, extra: float) -> Arm:
    done = np.asarray(steps) / max(steps)
    losses, norms = [], []
    for _ in range(num_seeds):
        level = 0.4 + 2 * np.exp(-5 * done) + extra + rng.normal(0, 0.02)
        losses.append(Curve(steps=tuple(steps), values=tuple(
            (level + rng.normal(0, 0.05, len(steps))).tolist())))  # fmt: skip
        norms.append(Curve(steps=tuple(steps), values=tuple(
            np.exp(rng.normal(0, 0.2, len(steps))).tolist())))  # fmt: skip
    return Arm(
        seeds=tuple(range(num_seeds)), losses=tuple(losses), gradient_norms=tuple(norms),
        final=tuple(rng.normal(0.38, 0.008, num_seeds).tolist()),
        samples_to_target=tuple(float(320 + 8 * seed) for seed in range(num_seeds)),
        run_dirs=tuple(f"runs/{origin.lower()}-{seed}" for seed in range(num_seeds)),
        origin=origin,
    )  # fmt: skip


def _band(arm: Arm) -> Band:
    values = np.array([curve.values for curve in arm.losses])
    mean, spread = values.mean(0), 2 * values.std(0)
    return Band(
        steps=arm.losses[0].steps,
        mean=tuple(mean.tolist()),
        low=tuple((mean - spread).tolist()),
        high=tuple((mean + spread).tolist()),
    )


def make_performance(num_ops: int = 90) -> PerformanceComparison:
    a = make_side_profile("cpu", "AMD EPYC, 2 cores", "MEASURED", 0.412, num_ops)
    b = make_side_profile("dojo", "Tesla D1 tile", "MODELLED", 0.00093, num_ops)
    rows = [
        _cost(op.name, "s", op.time_s, other.time_s, detail=f"{op.phase}, {op.layer}, {op.shapes}")
        for op, other in zip(a.ops, b.ops, strict=True)
    ]
    rows.sort(key=lambda row: -abs((row.b or 0) - (row.a or 0)))
    return PerformanceComparison(
        a=a, b=b, num_samples=2,
        totals=(
            _cost("step time", "s", a.step_time_s, b.step_time_s),
            _cost("samples a second", "1/s", 2 / a.step_time_s, 2 / b.step_time_s),
            _cost("energy of a step", "J", None, 4.1),
            _cost("memory at most", "B", 812e6, 1.1e9),
            _cost("share of the roofline", "1", 0.22, 0.41),
        ),
        bounds=(
            _cost("matrix", "s", None, 0.00038), _cost("HBM", "s", None, 0.00031),
            _cost("not known", "s", a.step_time_s, None),
        ),
        ops=tuple(rows),
        sentence="The step takes 412 ms on a (MEASURED) and 930 \u00b5s on b (MODELLED).",
        notes=("a was measured with 2 threads.",),
    )  # fmt: skip


def _cost(name: str, unit: str, a: float | None, b: float | None, *, detail: str = "") -> CostRow:
    is_ratio = a is not None and b is not None and a != 0
    return CostRow(
        name=name, unit=unit, a=a, b=b, a_origin="MEASURED", b_origin="MODELLED",
        ratio=b / a if is_ratio else None,  # type: ignore[operator]  # checked by is_ratio
        ratio_note=MODELLED_RATIO if is_ratio else "", detail=detail,
    )  # fmt: skip


def make_side_profile(
    backend: str, device: str, origin: Any, step_s: float, num_ops: int
) -> StepProfile:
    random = Random(backend)
    weights = [random.expovariate(1.0) + 0.02 for _ in range(num_ops)]
    ops, events, start_s = [], [], 0.0
    for number, weight in enumerate(weights):
        time_s = step_s * weight / sum(weights)
        phase: Phase = "forward" if number < num_ops // 2 else "backward"
        op = KINDS[number % len(KINDS)]
        ops.append(OpProfile(
            name=f"{op}_{number}", shapes="2x24x48x48, 24x24x3x3", dtype="float32", num_calls=1,
            time_s=time_s, flops=int(1e8 * weight), num_bytes=int(1e6 * weight),
            bound_by=("matrix", "HBM", "link")[number % 3] if origin == "MODELLED" else None,
            phase=phase, layer=layer_of(number), line="fsdtrain/models/backbone.py:33",
            start_s=start_s,
        ))  # fmt: skip
        events.append(TimelineEvent(
            resource="cpu" if backend == "cpu" else ("matrix", "HBM")[number % 2],
            name=f"{op}_{number}", start_s=start_s, end_s=start_s + time_s,
        ))  # fmt: skip
        start_s += time_s
    return StepProfile(
        backend=backend, device=device, origin=origin, step_time_s=step_s, ops=tuple(ops),
        timeline=tuple(events),
    )  # fmt: skip
