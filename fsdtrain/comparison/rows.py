"""One row of the record for each tensor of a unit: its errors, its band, and what is wrong.

It does not know the step as a whole.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import msgspec
from torch import Tensor

from fsdtrain.comparison.alternatives import Context
from fsdtrain.comparison.bands import DRIFT_MARGIN_DB, FLOAT32_MARGIN_DB, default_snr_db
from fsdtrain.comparison.errors import compare_tensors, shortened
from fsdtrain.comparison.finding import find_cause
from fsdtrain.comparison.judgement import Judgement, band_snr_db, format_of, judge, judge_meaning
from fsdtrain.comparison.lockstep import UnitEvidence
from fsdtrain.comparison.number_formats import find_format, grid_of
from fsdtrain.comparison.record import (
    SIDES,
    Errors,
    Mode,
    Side,
    StoredTensor,
    TensorComparison,
    TensorKind,
)
from fsdtrain.comparison.storage import measure_storage
from fsdtrain.comparison.teacher import Store, formats_of

_FLOAT32: Final = find_format("float32")
_MISSING: Final = Errors(is_bitwise_equal=False, share_within=0.0)
# A free run's figure of few elements says little of what another one gives: dB over the elements.
_FEW_ELEMENTS_DB: Final = 40.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the record, and how far outside of its band it is; 0 dB or less: it is within."""

    tensor: TensorComparison
    excess_db: float


@dataclass(kw_only=True)
class UnitRows:
    """Makes the rows of one unit.

    Args:
        evidence: of the unit.
        previous: weights in the step before, where known.
        honest_snr_db: for each side the free run's figures of what units before gave, by name; the
            unit's own are added.
    """

    evidence: UnitEvidence
    previous: Mapping[str, Tensor]
    honest_snr_db: Mapping[Side, dict[str, float]]
    _exact_of_sides: dict[Side, Mapping[str, Tensor]] = field(default_factory=dict)

    @cached_property
    def noise_rms(self) -> Mapping[str, float]:
        return self.evidence.noise_rms()

    def forced(self, name: str, kind: TensorKind) -> Row:
        """The row of a result, each side given the reference's values."""
        found = self.evidence.forced
        stores = {side: found[side].results.get(name) for side in SIDES}
        judged = {side: self._judge(side, name) for side in SIDES}
        reference = self.evidence.reference[name]
        bands = [
            band
            for side, store in stores.items()
            if store is not None
            and (band := band_snr_db(store, reference, judged[side][0])) is not None
        ]
        tensors = {side: None if store is None else store.stored for side, store in stores.items()}
        return self._row(
            "teacher_forced",
            name,
            kind,
            tensors,
            stored={side: self._stored(side, name, store) for side, store in stores.items()},
            band=min(bands, default=None),
            excess_db={side: judged[side][0].excess_db for side in SIDES},
            clauses={
                side: self._clause(side, name, judged[side][1])
                for side in SIDES
                if judged[side][0].is_outside
            },
        )

    def _judge(self, side: Side, name: str) -> tuple[Judgement, Store | None]:
        """The worst judgement of a result and of what was stored on its way, and the store."""
        run = self.evidence.forced[side]
        store = run.results.get(name)
        if store is None:
            return Judgement(is_outside=True, excess_db=math.inf), None
        judged = judge(store, lambda: self.noise_rms[name])
        worst, place = judged, store
        for inner in run.inner:
            other = judge(inner, lambda: 0.0)
            if other.is_outside and not worst.is_outside:
                worst, place = other, inner
        if not worst.is_outside and not run.is_measured_by_reference:
            exact = self.evidence.exact[name]
            own = self._own_exact(side)[name]
            meaning = judge_meaning(exact, own, lambda: self.noise_rms[name])
            if meaning.is_outside:
                return meaning, replace(store, exact=exact)
        return worst, place

    def _own_exact(self, side: Side) -> Mapping[str, Tensor]:
        """What the side's ops compute, nothing rounded."""
        if side not in self._exact_of_sides:
            values = self.evidence.values
            self._exact_of_sides[side] = self.evidence.unit.sides[side].run_exactly(values)
        return self._exact_of_sides[side]

    def _clause(self, side: Side, name: str, store: Store | None) -> str:
        if store is None:
            return "is missing"
        unit, run = self.evidence.unit, self.evidence.forced[side]
        fault = judge(store, lambda: self.noise_rms.get(name, 0.0)).fault
        is_result = all(store is not inner for inner in run.inner)
        op = store.op
        if is_result and not op.is_move:
            # What the side's own op says that it computes may be what is wrong.
            computing = [each for each in unit.sides["reference"].ops if not each.is_move]
            op = computing[0] if len(computing) == 1 else op
        context = None
        if len(op.inputs) == len(store.inputs):
            context = Context(
                op=op.op,
                exactly=op.run_exactly,
                inputs=store.inputs,
                output=store.op.outputs.index(store.name),
                earlier={
                    each: (number, self.previous[each])
                    for number, each in enumerate(op.inputs)
                    if each in self.previous
                },
            )
        cause = find_cause(
            store.exact, store.stored, format_of(store), fault=fault, context=context
        )
        return cause if is_result else f"has an operand, {store.name}, that {cause}"

    def free(self, name: str, kind: TensorKind) -> Row:
        """The row of a result, each side from its own values."""
        evidence = self.evidence
        reference = evidence.reference[name]
        tensors: dict[Side, Tensor | None] = {side: evidence.free[side][name] for side in SIDES}
        bands = {side: self._drift_band(side, name, reference) for side in SIDES}
        errors = {side: compare_tensors(reference, evidence.free[side][name]) for side in SIDES}
        excess = {side: _excess_db(errors[side], bands[side], reference) for side in SIDES}
        known = [band for band in bands.values() if band is not None]
        clauses: dict[Side, str] = {}
        for side in SIDES:
            if excess[side] <= 0:
                continue
            snr = errors[side].snr_db
            found = "is not finite or not there" if snr is None else f"is {snr:.1f} dB"
            clauses[side] = (
                f"{found} from the reference, where {bands[side] or 0:.0f} dB is expected"
            )
        return self._row(
            "free_running",
            name,
            kind,
            tensors,
            # What a side's own values were before it stored them is not known.
            stored={side: StoredTensor(format=self._format(side, name)) for side in SIDES},
            band=min(known, default=None),
            excess_db=excess,
            clauses=clauses,
        )

    def _drift_band(self, side: Side, name: str, reference: Tensor) -> float | None:
        """What the honest machine has here or in what it reads, less a margin."""
        if not reference.is_floating_point() or not reference.numel():
            return None
        known = self.honest_snr_db[side]
        snr = compare_tensors(reference, self.evidence.honest[side][name]).snr_db
        known[name] = math.inf if snr is None else snr
        read = [known[each] for each in self.evidence.unit.inputs if each in known]
        least = min([known[name], *read])
        formats = [find_format(each) for each in formats_of(self.evidence.unit.sides[side])]
        is_float32 = all(each.mantissa_bits >= _FLOAT32.mantissa_bits for each in formats)
        margin = FLOAT32_MARGIN_DB if is_float32 else DRIFT_MARGIN_DB
        margin += _FEW_ELEMENTS_DB / reference.numel()
        return min(default_snr_db(*formats), least - margin)

    def _row(
        self,
        mode: Mode,
        name: str,
        kind: TensorKind,
        tensors: Mapping[Side, Tensor | None],
        *,
        stored: Mapping[Side, StoredTensor],
        band: float | None,
        excess_db: Mapping[Side, float],
        clauses: Mapping[Side, str],
    ) -> Row:
        unit, reference = self.evidence.unit, self.evidence.reference[name]
        formats = {side: each.format for side, each in stored.items()}
        worst = [find_format(each) for side in SIDES for each in formats_of(unit.sides[side])]
        errors = self._errors(name, tensors, formats, 10 ** (-default_snr_db(*worst) / 20))
        tensor = TensorComparison(
            mode=mode,
            kind=kind,
            name=unit.name,
            op=unit.op,
            layer=unit.layer,
            line=unit.line,
            shape=tuple(reference.shape),
            order=self.evidence.order,
            a_stored=stored["a"],
            b_stored=stored["b"],
            a=errors[0],
            b=errors[1],
            between=errors[2],
            band_snr_db=shortened(band),
            outside=tuple(side for side in SIDES if side in clauses),
            finding="; ".join(f"{side} {clause}" for side, clause in clauses.items()),
        )
        return Row(tensor=tensor, excess_db=max(excess_db.values()))

    def _format(self, side: Side, name: str) -> str:
        known = self.evidence.unit.sides[side].formats[name]
        return known or str(self.evidence.reference[name].dtype).removeprefix("torch.")

    def _stored(self, side: Side, name: str, store: Store | None) -> StoredTensor:
        format = self._format(side, name)
        if store is None or store.stored is None or store.stored.shape != store.exact.shape:
            return StoredTensor(format=format)
        return measure_storage(store.exact, store.stored, format)

    def _errors(
        self,
        name: str,
        tensors: Mapping[Side, Tensor | None],
        formats: Mapping[Side, str],
        tolerance: float,
    ) -> tuple[Errors, Errors, Errors]:
        reference = self.evidence.reference[name]
        is_elementwise = self.evidence.unit.is_elementwise and reference.is_floating_point()

        def compare(first: Tensor | None, second: Tensor | None, *pair: str) -> Errors:
            if first is None or second is None or first.shape != second.shape:
                return _MISSING
            is_one_format = is_elementwise and pair[0] == pair[1]
            grid = grid_of(find_format(pair[0]), _amax(first)) if is_one_format else None
            return compare_tensors(first, second, tolerance=tolerance, ulps_of=grid)

        a, b = tensors["a"], tensors["b"]
        return (
            compare(reference, a, "float32", formats["a"]),
            compare(reference, b, "float32", formats["b"]),
            compare(a, b, formats["a"], formats["b"]),
        )


def of_weight(row: Row, weight: str, order: int) -> Row:
    """The row of a weight's gradient, from that of the op that gave it."""
    layer = weight.rpartition(".")[0]
    tensor = msgspec.structs.replace(
        row.tensor, kind="gradient", name=weight, op="", layer=layer, line="", order=order
    )
    return Row(tensor=tensor, excess_db=row.excess_db)


def _excess_db(errors: Errors, band: float | None, reference: Tensor) -> float:
    if errors.is_bitwise_equal or band is None:
        return -math.inf
    if errors.snr_db is None:
        # No signal, or not finite where the reference is.
        return math.inf if errors.nan_share else -math.inf
    return band - errors.snr_db


def _amax(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0
