"""The text of a script that runs one unit of a step as side a, as side b and in double precision.

Every name and number of the step gets into it as a literal of Python. It writes no files.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsdtrain.errors import UserError
from fsdtrain.step_graph.graph import GraphOp, OpCall, Operand
from fsdtrain.step_graph.units import Side, UnitSide


@dataclass(frozen=True, kw_only=True)
class SideBackend:
    """How the backend of a side is loaded; options are plain values, as a config has them."""

    name: str
    options: Mapping[str, object]


def write_script(
    what: str,
    given: Mapping[str, Tensor],
    sides: Mapping[Side, UnitSide],
    *,
    a: SideBackend,
    b: SideBackend,
) -> str:
    """The text, ASCII.

    Args:
        what: is run, in words.
        given: the tensors beside the script: by the reference's names, and constants of a side by
            `constant_name`.
        sides: what each computes.
        a: the backend of side a.
        b: the backend of side b.

    Raises:
        UserError: an op cannot be written down.
    """
    return f"""\
import json

import torch

from fsdtrain.backend import load_backend
from fsdtrain.comparison.rerun import (
    describe_errors,
    describe_sides,
    doubled,
    load_tensors,
    on,
    stored,
)

WHAT = {what!a}
A = load_backend({a.name!a}, json.loads({_json(a.options)!a}))
B = load_backend({b.name!a}, json.loads({_json(b.options)!a}))
OPS = A.op_table(), B.op_table()  # a backend's own kernels are known to torch.ops from here on


def as_a(t):
{_body("a", sides["a"], given)}


def as_b(t):
{_body("b", sides["b"], given)}


def in_double(t):
{_body("reference", sides["reference"], given)}


given = load_tensors(__file__)
print(WHAT)
print(describe_sides(A, B))
with torch.no_grad():
    print(describe_errors(in_double(doubled(given)), as_a(on(A, given)), as_b(on(B, given))))
"""


def _json(options: Mapping[str, object]) -> str:
    try:
        return json.dumps(dict(options))
    except TypeError as error:
        raise UserError(f"repro: options of a backend that are no plain values: {error}") from error


def constant_name(side: Side, name: str) -> str:
    """Of a tensor that only this side has, among those beside the script."""
    return f"{side}: {name}"


def _body(side: Side, ops: UnitSide, given: Mapping[str, Tensor]) -> str:
    """The ops of a side; of the reference in double precision, and nothing is rounded."""
    lines = []
    for name, original in ops.names.items():
        dtype = ops.dtypes[name]
        is_cast = side != "reference" and dtype not in (None, given[original].dtype)
        if is_cast or name != original:
            lines.append(f"t[{name!a}] = t[{original!a}]" + (f".to({dtype})" if is_cast else ""))
    lines += [f"t[{name!a}] = t[{constant_name(side, name)!a}]" for name in ops.constants]
    for op in ops.ops:
        lines += _op_lines(op, None if side == "reference" else side.upper())
    results = ", ".join(f"{original!a}: t[{own!a}]" for own, original in ops.results)
    return "\n".join(f"    {line}" for line in (*lines, f"return {{{results}}}"))


def _op_lines(op: GraphOp, backend: str | None) -> list[str]:
    call = op.call
    if call is None:
        raise UserError(
            f"repro: {op.name} ({op.op}) cannot be written down as a script: it draws random "
            "numbers, or the backend runs something of its own in its place"
        )
    stores = call.stores or (None,) * len(op.outputs)
    called = f"torch.ops.{call.target}({_arguments(call, op.inputs, is_double=backend is None)})"
    is_single = len(op.outputs) == 1
    lines = [] if is_single else [f"r = {called}"]
    for number, (name, words) in enumerate(zip(op.outputs, stores, strict=True)):
        if name is None:
            continue
        result = called if is_single else f"r[{number}]"
        if words is not None and backend is not None:
            assert all(word.isidentifier() for word in words)
            named = ", ".join(f"{word}={_literal(each, (), False)}" for word, each in words.items())
            result = f"stored({result}, {backend}, {named})"
        lines.append(f"t[{name!a}] = {result}")
    return lines


def _arguments(call: OpCall, inputs: Sequence[str], *, is_double: bool) -> str:
    assert all(part.isidentifier() for part in call.target.split(".")), call.target
    assert all(name.isidentifier() for name in call.keywords)
    plain = [_literal(each, inputs, is_double) for each in call.arguments]
    named = [f"{name}={_literal(x, inputs, is_double)}" for name, x in call.keywords.items()]
    return ", ".join((*plain, *named))


def _literal(value: object, inputs: Sequence[str], is_double: bool) -> str:
    """An expression of Python that gives the value.

    Raises:
        UserError: there is none.
    """
    if isinstance(value, Operand):
        return f"t[{inputs[value.place]!a}]"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(each, inputs, is_double) for each in value)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!a})"
    if value is None or isinstance(value, bool | int | float | complex | str):
        return ascii(value)
    if isinstance(value, torch.dtype):
        return "torch.float64" if is_double and value.is_floating_point else str(value)
    if isinstance(value, torch.layout | torch.memory_format):
        return str(value)
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!a})"
    raise UserError(f"repro: an argument of type {type(value).__name__} cannot be written down")
