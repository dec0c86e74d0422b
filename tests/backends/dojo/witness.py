"""The witness of a running step: notes every op, and the formats of what it reads.

It sees what PyTorch's dispatcher sees, knows nothing of the captured graph, its sites or our
rounding. A value is a piece of memory between two writes; views of it are the same value.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Value = tuple[int, int]  # storage, number of the write


def cfloat_biases(x: NDArray[np.float32], exponent_bits: int, mantissa_bits: int) -> range:
    """The biases, of 0..63, at which every element is a value of such a format."""
    if not np.isfinite(x).all():
        return range(0)
    fraction, exponent = np.frexp(x[x != 0].astype(np.float64))
    if not fraction.size:
        return range(64)
    whole = np.abs(fraction * 2**24).astype(np.int64)
    lowest_bit = whole & -whole
    highest = exponent - 1
    lowest = exponent - 24 + np.frexp(lowest_bit)[1] - 1
    if (highest - lowest > mantissa_bits).any():
        return range(0)
    first = max(0, 1 - mantissa_bits - int(lowest.min()))
    last = min(63, 2**exponent_bits - 1 - int(highest.max()))
    return range(first, last + 1)


def formats_of(x: NDArray[np.float32]) -> frozenset[str]:
    """The formats that can hold all of `x`."""
    found = {"fp32"}
    with np.errstate(invalid="ignore"):  # NaN, in memory that was never written
        rounded = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    if np.array_equal(rounded, x, equal_nan=True):
        found.add("bf16")
    if cfloat_biases(x, 4, 3):
        found.add("cfloat8_1_4_3")
    if cfloat_biases(x, 5, 2):
        found.add("cfloat8_1_5_2")
    return frozenset(found)


@dataclass(frozen=True, kw_only=True)
class Read:
    position: int
    value: Value
    formats: frozenset[str] | None  # None: no floating-point numbers
    shape: tuple[int, ...]


@dataclass(kw_only=True)
class Event:
    """One op."""

    op: str
    reads: list[Read]
    gives_integers: bool
    is_second_half: bool  # run by autograd
    has_floats: bool
    writes: list[tuple[int, Value]] = field(default_factory=list)  # (index of the result, value)


class Recorder(TorchDispatchMode):
    """Notes every op, and the formats of its operands at the moment they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.is_second_half = False
        self._writes: Counter[int] = Counter()
        self._alive: list[Tensor] = []  # so that no storage is used twice

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Lets torch.compile run what it has compiled before."""
        return True

    def value(self, tensor: Tensor) -> Value:
        self._alive.append(tensor)
        storage = tensor.untyped_storage()._cdata
        return storage, self._writes[storage]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        reads = [
            Read(
                position=position,
                value=self.value(each),
                formats=formats_of(each.detach().numpy()) if each.is_floating_point() else None,
                shape=tuple(each.shape),
            )
            for position, each in _tensor_operands(func, args, kwargs)
        ]
        results = func(*args, **kwargs)
        tensors = [each for each in tree_leaves(results) if isinstance(each, Tensor)]
        name = str(func._schema.name).partition("::")[2]
        event = Event(
            op=name.removesuffix("_"),
            reads=reads,
            gives_integers=bool(tensors)
            and not any(t.is_floating_point() or t.dtype == torch.bool for t in tensors),
            is_second_half=self.is_second_half,
            has_floats=any(t.is_floating_point() for t in tensors)
            or any(read.formats is not None for read in reads),
        )
        before = {read.value[0] for read in reads}
        for index, tensor in enumerate(tensors):
            storage = tensor.untyped_storage()._cdata
            if storage not in before or func._schema.is_mutable:
                self._writes[storage] += 1
                event.writes.append((index, self.value(tensor)))
        self.events.append(event)
        return results


def _tensor_operands(
    func: Any, args: Iterable[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[int, Tensor]]:
    """(position, tensor); what is only written to is no operand."""
    for position, argument in enumerate(args):
        for each in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(each, Tensor):
                yield position, each
    written = {a.name for a in func._schema.arguments if a.is_out}
    for name, each in kwargs.items():
        if isinstance(each, Tensor) and name not in written:
            yield -1, each
