"""Whether the kernels of an op, computed piece by piece, give what the op gives.

`check_kernels` divides every loop that may be divided at random places, hands `Kernel.compute`
nothing but copies of the boxes that it says it reads, puts the pieces together and adds up partial
ones.
"""

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fsdtrain_dojo.lowering.describe.building import call_with, stored_as, values_of
from fsdtrain_dojo.lowering.kernel import Combine, Kernel, Phase, Range, Value, ValueKind
from fsdtrain_dojo.lowering.mapping import node_block
from fsdtrain_dojo.lowering.op_call import Describe, OpCall
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

MAX_PIECES = 200
_COMBINE: dict[Combine, Callable[[Tensor, Tensor], Tensor]] = {
    Combine.SUM: torch.add,
    Combine.MAX: torch.maximum,
    Combine.MIN: torch.minimum,
}


def make_call(
    function: Callable[..., Any], *args: Any, used: tuple[int, ...] | None = None, **kwargs: Any
) -> tuple[OpCall, dict[str, Tensor]]:
    """A call of an ATen overload on these arguments, and its tensors by names of values.

    Args:
        function: torch.ops.aten.mm.default.
        args: with tensors, also in lists.
        used: the results that somebody reads; None: all tensors among them.
        kwargs: the same.
    """
    tensors: dict[str, Tensor] = {}

    def name(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            value = make_value(f"x{len(tensors)}", argument, ValueKind.INPUT)
            tensors[value.name] = argument
            return value
        return [name(each) for each in argument] if isinstance(argument, list) else argument

    results = _as_tuple(function(*args, **kwargs))
    op_name = function._schema.name.replace("::", ".")  # type: ignore[attr-defined]
    call = OpCall(
        name="op",
        op=op_name,
        function=function,
        args=tuple(map(name, args)),
        kwargs={key: name(each) for key, each in kwargs.items()},
        outputs=tuple(
            make_value(f"y{number}", each, ValueKind.ACTIVATION)
            if isinstance(each, Tensor) and (used is None or number in used)
            else None
            for number, each in enumerate(results)
        ),
        phase=Phase.FORWARD,
    )
    return call, tensors


def make_value(name: str, tensor: Tensor, kind: ValueKind) -> Value:
    format_name, num_bytes = stored_as(tensor.dtype)
    return Value(
        name=name,
        shape=tuple(tensor.shape),
        format=format_name,
        element_bytes=num_bytes,
        kind=kind,
    )


def check_kernels(
    describe: Describe,
    call: OpCall,
    tensors: Mapping[str, Tensor],
    *,
    tolerance: float = 1e-5,
    is_exact: bool = False,
    num_divisions: int = 6,
    seed: int = 0,
) -> tuple[Kernel, ...]:
    """Assert that undivided and divided kernels give the op's results; the kernels.

    Args:
        describe: of the op.
        call: the op.
        tensors: of the call's values.
        tolerance: of a result's elements, as a share of its largest magnitude.
        is_exact: whether the undivided kernels must give every bit of the op's result.
        num_divisions: random ones, beside the undivided.
        seed: of the divisions.
    """
    expansion = describe(call)
    results = _as_tuple(call_with(call, tensors))
    wanted = {
        value.name: result
        for value, result in zip(call.outputs, results, strict=True)
        if value is not None and value.num_elements
    }
    known = {
        value.name: value
        for value in (*values_of(call), *expansion.values, *filter(None, call.outputs))
    }
    shapes = {name: value.shape for name, value in known.items()}
    written = [access.value for kernel in expansion.kernels for access in kernel.writes]
    assert len(written) == len(set(written))
    assert set(written) == set(wanted) | {value.name for value in expansion.values}
    chance = random.Random(seed)
    for division in range(num_divisions + 1):
        found = dict(tensors)
        for kernel in expansion.kernels:
            missing = {access.value for access in kernel.reads} - set(found)
            assert not missing, f"{kernel.name} reads {missing} before they are written"
            if kernel.is_random:
                found |= {access.value: wanted[access.value] for access in kernel.writes}
                continue
            found |= run_pieces(kernel, cut_loops(kernel, chance, division), found, shapes)
        for name, result in wanted.items():
            if division == 0 and is_exact:
                same = (found[name] == result) | ((found[name] != found[name]) & (result != result))
                assert same.all(), (name, "undivided, not the op's bits")
            _assert_near(found[name], result, tolerance, f"{name}, division {division}")
    return expansion.kernels


def cut_loops(kernel: Kernel, chance: random.Random, division: int) -> list[list[Range]]:
    """Ranges of every loop, of not too many pieces; the whole loops for division 0."""
    cuts = [[(0, loop.size)] for loop in kernel.loops]
    numbers = [i for i, loop in enumerate(kernel.loops) if loop.is_splittable and loop.size > 1]
    chance.shuffle(numbers)
    num_pieces = 1
    for number in numbers if division else ():
        size = kernel.loops[number].size
        parts = min(chance.choice((1, 2, 3, 5, size)), MAX_PIECES // num_pieces, size)
        if parts < 2:
            continue
        places = sorted(chance.sample(range(1, size), parts - 1))
        cuts[number] = list(itertools.pairwise([0, *places, size]))
        num_pieces *= parts
    return cuts


def run_pieces(
    kernel: Kernel, cuts: list[list[Range]], tensors: Mapping[str, Tensor], shapes: Shapes
) -> dict[str, Tensor]:
    """The written values, put together of pieces that see no more than their boxes."""
    written: dict[str, Tensor] = {}
    counts = {access.value: torch.zeros(shapes[access.value]) for access in kernel.writes}
    reductions = kernel.reductions
    for ranges in itertools.product(*cuts):
        block = node_block(kernel, ranges, dict(shapes))
        # A box may end before it begins: nothing of a value that is joined to others.
        boxes = [tuple(slice(first, max(end, first)) for first, end in box) for box in block.boxes]
        local = [
            tensors[access.value][box].clone(memory_format=torch.contiguous_format)
            for access, box in zip(kernel.reads, boxes, strict=False)
        ]
        results = kernel.compute(local, block)
        assert len(results) == len(kernel.writes)
        is_first = all(ranges[loop][0] == 0 for loop in reductions)
        for access, box, piece in zip(
            kernel.writes, boxes[len(kernel.reads) :], results, strict=True
        ):
            name = access.value
            whole = written.setdefault(name, torch.zeros(shapes[name], dtype=piece.dtype))
            assert piece.shape == whole[box].shape, (name, piece.shape, box)
            if is_first:
                counts[name][box] += 1
            whole[box] = piece if is_first else _COMBINE[kernel.combine](whole[box], piece)
    for name, count in counts.items():
        assert (count == 1).all(), (
            f"{name}: elements are written {set(count.flatten().tolist())} times"
        )
    return written


def _assert_near(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    assert found.dtype == wanted.dtype, (what, found.dtype, wanted.dtype)
    assert found.shape == wanted.shape, (what, found.shape, wanted.shape)
    is_float = wanted.is_floating_point()
    finite = wanted[wanted.isfinite()] if is_float else wanted
    largest = finite.abs().max().item() if is_float and finite.numel() else 0.0
    torch.testing.assert_close(
        found, wanted, rtol=0, atol=tolerance * largest if is_float else 0, equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )  # fmt: skip


def _as_tuple(results: Any) -> tuple[Any, ...]:
    return tuple(results) if isinstance(results, list | tuple) else (results,)
