"""How much each op has to do: its FLOPs, and what its tensors hold in bytes.

The bytes are an estimate of what must be read and written: inputs and outputs count once. Of every
call that reaches ATen or a custom op. It knows no clock.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

# They overwrite their first argument without reading it.
OVERWRITING = frozenset(("aten::copy_", "aten::zero_", "aten::fill_"))
ALLOCATING = frozenset(
    ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty")
)


@dataclass(frozen=True, kw_only=True)
class CallWork:
    """Of one call; `flops` is 0 where nobody knows a formula."""

    flops: int
    num_bytes: int


class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the calls made while it is entered.

    `work[name, shapes]` is of one call of the op with tensors of these shapes, as `describe_shapes`
    words them; the mean, where calls differ otherwise.

    Args:
        flop_formulas: torch's, of a call's arguments and its result, by op.
    """

    def __init__(self, flop_formulas: Mapping[Any, Callable[..., int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._formulas = flop_formulas
        self._found: dict[tuple[str, str], list[CallWork]] = defaultdict(list)

    def __torch_dispatch__(
        self,
        func: Any,  # torch's own types are not exported
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverload):
            name = func._schema.name
            shapes = describe_shapes(each.shape for each in args if isinstance(each, Tensor))
            formula = self._formulas.get(func.overloadpacket)
            flops = 0 if formula is None else formula(*args, **kwargs, out_val=result)
            num_bytes = _traffic(func, args, kwargs, result)
            self._found[name, shapes].append(CallWork(flops=flops, num_bytes=num_bytes))
        return result

    @property
    def work(self) -> dict[tuple[str, str], CallWork]:
        return {
            key: CallWork(
                flops=round(mean(call.flops for call in calls)),
                num_bytes=round(mean(call.num_bytes for call in calls)),
            )
            for key, calls in self._found.items()
        }


def describe_shapes(shapes: Any) -> str:
    """4x24x48x48, 24x24x3x3: scalars, and lists of tensors, are left out."""
    is_shape = (shape for shape in shapes if len(shape) and isinstance(shape[0], int))
    return ", ".join("x".join(map(str, shape)) for shape in is_shape)


def _traffic(
    func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> int:
    name = func._schema.name
    if name in ALLOCATING or _is_view(func):
        return 0
    read = list(_tensors((args, kwargs)))
    if name in OVERWRITING:
        read = read[1:]
    return sum(_held_bytes(each) for each in (*read, *_tensors(result)))


def _is_view(func: torch._ops.OpOverload) -> bool:
    aliases = [each.alias_info for each in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (each for each in _pytree.tree_leaves(tree) if isinstance(each, Tensor))


def _held_bytes(tensor: Tensor) -> int:
    """An expanded dimension is read again and again, but lies in memory once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size if stride else min(size, 1) for size, stride in sizes) * tensor.element_size()
