"""What one step costs on both sides, side by side. Nothing of different origin is ever added up.

A ratio of a clock to a machine model says so, and how far the model is known to be off. It does not
know how a profile is made.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import msgspec

from fsdtrain.comparison.op_names import main_op
from fsdtrain.comparison.record import CostRow, PerformanceComparison
from fsdtrain.step_profile import OpProfile, StepProfile

MAX_SHAPES = 120  # characters of the shapes in a row's detail

# (phase, layer, op): what matches a row of one side with one of the other.
OpKey = tuple[str, str, str]


def compare_performance(
    a: StepProfile, b: StepProfile, *, num_samples: int
) -> PerformanceComparison:
    """Compare the profiles of one step on two sides.

    Args:
        a: side a.
        b: side b, of the same step on a batch of the same size.
        num_samples: of the step.
    """
    return PerformanceComparison(
        a=replace(a, timeline=()),
        b=replace(b, timeline=()),
        num_samples=num_samples,
        totals=tuple(_totals(a, b, num_samples)),
        bounds=tuple(_bounds(a, b)),
        ops=tuple(_ops(a, b)),
        sentence=_sentence(a, b),
        notes=tuple(_notes(a, b)),
    )


def _row(
    a: StepProfile,
    b: StepProfile,
    *,
    name: str,
    unit: str,
    of_a: float | None,
    of_b: float | None,
    detail: str = "",
    is_short: bool = False,
) -> CostRow:
    ratio = of_b / of_a if of_a and of_b is not None else None
    return CostRow(
        name=name,
        unit=unit,
        a=of_a,
        b=of_b,
        a_origin=a.origin,
        b_origin=b.origin,
        ratio=ratio,
        ratio_note="" if ratio is None else _ratio_note(a, b, is_short=is_short),
        detail=detail,
    )


def _ratio_note(a: StepProfile, b: StepProfile, *, is_short: bool = False) -> str:
    """The label of a ratio of two origins; `is_short`: the model's error is told elsewhere."""
    if a.origin == b.origin:
        return ""
    label = " against ".join(sorted((a.origin.lower(), b.origin.lower())))
    return label if is_short else f"{label}: {_model_error(a, b)}"


def _model_error(a: StepProfile, b: StepProfile) -> str:
    modelled = [side for side in (a, b) if side.origin == "MODELLED"]
    told = "; ".join(dict.fromkeys(side.validation for side in modelled if side.validation))
    return told or "the model's error is not known"


def _totals(a: StepProfile, b: StepProfile, num_samples: int) -> Iterator[CostRow]:
    quantities: tuple[tuple[str, str, Callable[[StepProfile], float | None]], ...] = (
        ("step time", "s", lambda side: side.step_time_s),
        ("samples a second", "1/s", lambda side: num_samples / side.step_time_s),
        ("wait for data", "s", lambda side: side.data_wait_s),
        ("work", "FLOP", lambda side: side.flops),
        ("share of the peak rate", "share", lambda side: side.utilisation),
        ("share of the roofline", "share", _roofline_share),
        ("bytes read and written by ops", "B", lambda side: _sum_bytes(side.ops)),
        ("energy", "J", lambda side: side.energy_j),
    )
    for name, unit, of in quantities:
        row = _row(a, b, name=name, unit=unit, of_a=of(a), of_b=of(b))
        # Work is counted on both sides, by neither a clock nor a model.
        yield msgspec.structs.replace(row, ratio_note="") if name == "work" else row
    memories = [{each.name: each.peak_bytes for each in side.memory} for side in (a, b)]
    for name in dict.fromkeys((*memories[0], *memories[1])):
        yield _row(
            a,
            b,
            name=f"peak of {name}",
            unit="B",
            of_a=memories[0].get(name),
            of_b=memories[1].get(name),
        )


def _roofline_share(side: StepProfile) -> float | None:
    return None if side.roofline_s is None else side.roofline_s / side.step_time_s


def _sum_bytes(ops: Iterable[OpProfile]) -> float | None:
    counted = [op.num_bytes for op in ops if op.num_bytes is not None]
    return float(sum(counted)) if counted else None


def _bounds(a: StepProfile, b: StepProfile) -> Iterator[CostRow]:
    """Time by what bounds it, the longest of either side's step first."""
    by_bound: list[dict[str, float]] = []
    for side in (a, b):
        times: dict[str, float] = defaultdict(float)
        for op in side.ops:
            times[op.bound_by or "not told"] += op.time_s
        by_bound.append(times)
    of_a, of_b = by_bound

    def share(bound: str) -> float:
        return max(of_a.get(bound, 0.0) / a.step_time_s, of_b.get(bound, 0.0) / b.step_time_s)

    for bound in sorted({*of_a, *of_b}, key=lambda bound: (-share(bound), bound)):
        yield _row(a, b, name=bound, unit="s", of_a=of_a.get(bound), of_b=of_b.get(bound))


def _ops(a: StepProfile, b: StepProfile) -> list[CostRow]:
    """All ops, the largest difference first: of times, or across origins of shares of the step."""
    of_a, of_b = _group(a), _group(b)
    scale_a, scale_b = (1.0, 1.0) if a.origin == b.origin else (a.step_time_s, b.step_time_s)

    def difference(key: OpKey) -> float:
        return abs(_time(of_b.get(key, [])) / scale_b - _time(of_a.get(key, [])) / scale_a)

    keys = sorted({*of_a, *of_b}, key=lambda key: (-difference(key), key))
    return [_op_row(a, b, key, of_a.get(key, []), of_b.get(key, [])) for key in keys]


def _group(side: StepProfile) -> dict[OpKey, list[OpProfile]]:
    found: dict[OpKey, list[OpProfile]] = defaultdict(list)
    for op in side.ops:
        found[_key(op)].append(op)
    return found


def _key(op: OpProfile) -> OpKey:
    # One side updates weight by weight, the other one all weights of a kind together.
    if op.phase == "optimizer":
        return ("optimizer", "", "update of the weights")
    return (op.phase or "", op.layer or "", main_op(op.name))


def _time(ops: list[OpProfile]) -> float:
    return sum(op.time_s for op in ops)


def _op_row(
    a: StepProfile, b: StepProfile, key: OpKey, of_a: list[OpProfile], of_b: list[OpProfile]
) -> CostRow:
    phase, layer, name = key
    places = [layer or "no layer", phase or "phase not told"]
    if phase == "optimizer":
        places = ["all weights"]
    shapes = max((*of_a, *of_b), key=lambda op: op.time_s).shapes
    if shapes and phase != "optimizer":
        places.append(shapes if len(shapes) <= MAX_SHAPES else f"{shapes[:MAX_SHAPES]}...")
    for side, ops in (("a", of_a), ("b", of_b)):
        places += _fused(side, ops) if ops and phase != "optimizer" else []
    if not (of_a and of_b):
        places.append(f"only {'a' if of_a else 'b'} has it by itself")
    return _row(
        a,
        b,
        name=name,
        unit="s",
        of_a=_time(of_a) if of_a else None,
        of_b=_time(of_b) if of_b else None,
        detail="; ".join(places),
        is_short=True,
    )


def _fused(side: str, ops: list[OpProfile]) -> list[str]:
    names = dict.fromkeys(op.name for op in ops if " + " in op.name)
    return [f"{side} fuses {', '.join(names)}"] if names else []


def _sentence(a: StepProfile, b: StepProfile) -> str:
    ratio = b.step_time_s / a.step_time_s
    speed = f"{1 / ratio:.3g} times as fast as" if ratio < 1 else f"{ratio:.3g} times as slow as"
    if ratio == 1:
        speed = "as fast as"
    note = _ratio_note(a, b)
    return f"a step takes {_milliseconds(a)} on a and {_milliseconds(b)} on b: b is {speed} a" + (
        f" ({note})" if note else ""
    )


def _milliseconds(side: StepProfile) -> str:
    return f"{1e3 * side.step_time_s:.4g} ms ({side.origin})"


def _notes(a: StepProfile, b: StepProfile) -> Iterator[str]:
    if a.origin != b.origin:
        yield (
            f"ratios are {_ratio_note(a, b)}. Ops are ordered by the difference of their shares of "
            "their own side's step, since times of different origin cannot be subtracted"
        )
    for name, side in (("a", a), ("b", b)):
        counted = sum(op.num_bytes is not None for op in side.ops)
        if 0 < counted < len(side.ops):
            yield (
                f"the bytes of {name} are of the {counted} of its {len(side.ops)} ops that tell "
                "them"
            )
    if a.flops and b.flops and a.flops != b.flops:
        yield f"the sides do not do the same work: {a.flops:.4g} and {b.flops:.4g} FLOP a step"
