"""One op of a captured graph in plain words: what `expand_macros` turns into kernels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fsdtrain_dojo.lowering.kernel import Kernel, Phase, Value


@dataclass(frozen=True, kw_only=True)
class OpCall:
    """A call of an ATen op.

    Args:
        name: of the FX node; unique in the step.
        op: "aten.convolution", without the overload.
        function: the overload itself, to compute with: torch.ops.aten.convolution.default.
        args: as in the graph, with a `Value` in place of every tensor, also within lists.
        kwargs: the same.
        outputs: its results; None where one is no tensor or is not used.
        phase: of the step.
        layer: module path; "" where not known.
        line: "file.py:12" of the user's code; "" where not known.
    """

    name: str
    op: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Value | None, ...]
    phase: Phase
    layer: str = ""
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """What an op becomes: kernels in order, and values that only these kernels know."""

    kernels: tuple[Kernel, ...]
    values: tuple[Value, ...] = ()


Describe = Callable[[OpCall], Expansion]
