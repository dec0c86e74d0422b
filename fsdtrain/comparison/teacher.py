"""One unit of a step on one side, given values: what it gives, and what an honest machine would.

An honest machine converts operands as the side does, computes without error, and stores the result
in the format that the side says. It does not judge results (`judgement`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fsdtrain.comparison.number_formats import store_as
from fsdtrain.step_graph.graph import GraphOp, Results
from fsdtrain.step_graph.units import UnitSide

Values = Mapping[str, Tensor]
_ULP: Final = 2.0**-24
# Two draws say little of the worst; an op is made of several instructions.
_MARGIN: Final = 10.0
_MARGIN_OF_SUMS: Final = 3.0
_FORMATS: Final = {torch.bfloat16: "bf16", torch.float16: "float16", torch.float32: "float32"}


@dataclass(frozen=True, kw_only=True)
class Store:
    """A tensor that an op stored, and its exact values.

    Args:
        op: that gave it.
        name: the side's.
        exact: in double, from the very operands that the op had.
        stored: None: it is not there.
        format: of it; None: no float.
        inputs: of the op, as it had them.
    """

    op: GraphOp
    name: str
    inputs: tuple[Tensor, ...]
    exact: Tensor
    stored: Tensor | None
    format: str | None


@dataclass(frozen=True, kw_only=True)
class UnitRun:
    """What one side of a unit gave.

    Args:
        results: by the reference's names.
        inner: operands that it converted, and results that do not leave the unit.
        is_measured_by_reference: whether the exact values are the reference's op's, of operands as
            the side converts them; else they are those of the side's own ops.
    """

    results: Mapping[str, Store]
    inner: tuple[Store, ...]
    is_measured_by_reference: bool


def formats_of(unit: UnitSide) -> tuple[str, ...]:
    """Of everything that a side of a unit stores."""
    found = [each for op in unit.ops for each in op.formats if each is not None]
    read = [_FORMATS[each] for each in unit.dtypes.values() if each in _FORMATS]
    return tuple(dict.fromkeys([*found, *read]))


def run_side(
    unit: UnitSide, values: Values, *, reference: UnitSide, exact: Mapping[str, Tensor]
) -> UnitRun:
    """Run a unit as a side does, each op beside its exact self.

    Args:
        unit: of the side.
        values: that it reads, by the reference's names.
        reference: the same unit of the reference. Where both sides have one op that computes, the
            reference says what it should compute; else each op of the side is its own measure.
        exact: the unit's results from `values`, where no operand is converted.
    """
    own = dict(unit.constants)
    is_converted = False
    for name, of_reference in unit.names.items():
        value, dtype = values[of_reference], unit.dtypes[name]
        own[name] = value.to(device=unit.device, dtype=dtype or value.dtype)
        is_converted = is_converted or own[name].dtype != value.dtype
    to_follow = _followed(unit, reference)
    given = dict(unit.results)
    results: dict[str, Store] = {}
    inner: list[Store] = []
    for op in unit.ops:
        inputs = tuple(own[name] for name in op.inputs)
        found = op.run(inputs)
        own |= {
            name: result
            for name, result in zip(op.outputs, found, strict=True)
            if name is not None and result is not None
        }
        is_last = any(name in given for name in op.outputs)
        if op.is_move and not is_last and _only_views(found, inputs):
            continue
        expected: Sequence[Tensor | None]
        if is_last and not op.is_move and not is_converted and to_follow is not None:
            expected = [None if n is None else exact.get(given.get(n, "")) for n in op.outputs]
        else:
            follow = to_follow if not op.is_move and to_follow is not None else op
            expected = follow.run_exactly(inputs)
        for store in _stores(op, inputs, found, expected):
            if store.name in given:
                results |= {
                    of_reference: store for n, of_reference in unit.results if n == store.name
                }
            else:
                inner.append(store)
            if store.stored is None:
                own[store.name] = torch.zeros_like(store.exact).float()
        is_converted = is_converted or (op.is_move and _is_changed(found, expected))
    return UnitRun(
        results=results, inner=tuple(inner), is_measured_by_reference=to_follow is not None
    )


def run_honestly(unit: UnitSide, values: Values, *, reference: UnitSide) -> dict[str, Tensor]:
    """What an honest machine gives from `values`, by the reference's names, rounded to nearest.

    It computes in float32 what the reference computes, from operands as the side converts them.
    """
    own = dict(unit.constants)
    for name, of_reference in unit.names.items():
        value, dtype = values[of_reference], unit.dtypes[name]
        own[name] = value.to(device=unit.device, dtype=dtype or value.dtype)
    to_follow = _followed(unit, reference)
    if to_follow is None:
        results = reference.run(values)
        return {name: store_as(value, unit.formats[name]) for name, value in results.items()}
    for op in unit.ops:
        inputs = [own[name] for name in op.inputs]
        if op.is_move:
            found = op.run(inputs)
        else:
            wide = [each.float() if each.is_floating_point() else each for each in inputs]
            found = tuple(
                None if each is None else store_as(each, format)
                for each, format in zip(to_follow.run(wide), op.formats, strict=True)
            )
        own |= {
            name: result
            for name, result in zip(op.outputs, found, strict=True)
            if name is not None and result is not None
        }
    return {of_reference: own[name] for name, of_reference in unit.results}


def noise_of_float32(
    unit: UnitSide, values: Values, exact: Mapping[str, Tensor], *, seed: int = 0
) -> dict[str, float]:
    """RMS of the error that an op may make in float32, by the condition of its numbers.

    That is by how much results move when every operand moves by its last place, the larger of two
    draws, and more for sums: if the terms of a sum of n are added one after another, each partial
    sum is rounded, and the error is sqrt(n) times that (Higham, Accuracy and Stability of Numerical
    Algorithms, chapter 4).
    """
    generator = torch.Generator().manual_seed(seed)
    largest = dict.fromkeys(exact, 0.0)
    for _ in range(2):
        moved = {name: _moved(value, generator) for name, value in values.items()}
        for name, result in unit.run_exactly(moved).items():
            if result.is_floating_point() and result.numel():
                d = torch.nan_to_num(result - exact[name], nan=0.0, posinf=0.0, neginf=0.0)
                largest[name] = max(largest[name], float(d.square().mean().sqrt()))
    most = max((value.numel() for value in values.values()), default=1)
    return {
        name: rms * (_MARGIN + _MARGIN_OF_SUMS * math.sqrt(most / max((1, *exact[name].shape[:1]))))
        for name, rms in largest.items()
    }


def _moved(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value
    draws = torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value.device)
    return value.double() * (1 + _ULP * (2 * draws - 1))


def _followed(unit: UnitSide, reference: UnitSide) -> GraphOp | None:
    """The reference's op, where it can stand for the side's."""
    ours = [op for op in unit.ops if not op.is_move]
    theirs = [op for op in reference.ops if not op.is_move]
    if len(ours) != 1 or len(theirs) != 1 or ours[0].op != theirs[0].op:
        return None
    return theirs[0] if len(ours[0].inputs) == len(theirs[0].inputs) else None


def _stores(
    op: GraphOp,
    inputs: tuple[Tensor, ...],
    found: Results,
    expected: Sequence[Tensor | None],
) -> list[Store]:
    return [
        Store(op=op, name=name, inputs=inputs, exact=exact, stored=stored, format=format)
        for name, stored, exact, format in zip(op.outputs, found, expected, op.formats, strict=True)
        if name is not None and exact is not None
    ]


def _only_views(found: Results, inputs: Sequence[Tensor]) -> bool:
    addresses = {each.untyped_storage().data_ptr() for each in inputs}
    return all(each is None or each.untyped_storage().data_ptr() in addresses for each in found)


def _is_changed(found: Results, expected: Sequence[Tensor | None]) -> bool:
    return any(
        ours is not None and theirs is not None and not torch.equal(ours.to(theirs.dtype), theirs)
        for ours, theirs in zip(found, expected, strict=True)
    )
