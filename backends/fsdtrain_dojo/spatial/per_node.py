"""Numbers that the nodes of a batch each have one of, and where a batch must be divided.

A batch computes as if it were one node: `Kernel.compute` runs once, and what it is told of ranges
and boxes are `PerNode`s instead of integers. It may calculate with them. As soon as it wants to
know one - to compare it, to cut or to pad by it - that must be the same at all nodes; if it is not,
`Divided` says which nodes agree. Added to a tensor or compared with one it stays each node's own.
So nothing a node's result depends on can be another node's, whatever a kernel computes.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from fsdtrain_dojo.spatial.boxes import Ints, grouped

_ARITHMETIC = frozenset(
    {
        "add", "sub", "__rsub__", "mul", "__floordiv__", "__rfloordiv__", "remainder", "__rmod__",
        "ge", "gt", "le", "lt", "eq", "ne",
    }
)  # fmt: skip


class Divided(Exception):  # noqa: N818  # no error: a batch has to be divided
    """Nodes of a batch do not compute the same; `Batch.parts` says which do."""


class Batch:
    """Nodes that compute together, and, once it is found, how they have to be divided.

    Args:
        node: number of the node in the batch: where `torch.func.vmap` runs, each node's own.
    """

    def __init__(self, node: Tensor) -> None:
        self.node = node
        self.parts: list[Ints] = []  # numbers of nodes, those together that agree

    def agree(self, values: NDArray[Any]) -> Any:
        """What all nodes have.

        Raises:
            Divided: they differ.
        """
        if (values != values[0]).any():
            self.parts = grouped(values)
            raise Divided
        return values[0]


class PerNode:
    """An integer of every node of a batch.

    Args:
        values: by node.
        batch: of these nodes.
    """

    __array_ufunc__ = None  # NumPy's numbers leave arithmetic to this class

    def __init__(self, values: Ints, batch: Batch) -> None:
        self._values = values
        self._batch = batch

    def __int__(self) -> int:
        """The number, which is the same at all nodes."""
        return int(self._batch.agree(self._values))

    __index__ = __int__

    def __hash__(self) -> int:
        return hash(int(self))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Each node's own in arithmetic with tensors; to all other functions, an integer."""
        is_own = func.__name__ in _ARITHMETIC

        def plain(argument: Any) -> Any:
            if not isinstance(argument, PerNode):
                return argument
            return argument._number() if is_own else int(argument)

        return func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))

    def _number(self) -> Tensor | int:
        """Each node's own number, with no dimensions."""
        if (self._values == self._values[0]).all():
            return int(self._values[0])
        table = torch.from_numpy(np.ascontiguousarray(self._values))
        return table.index_select(0, self._batch.node.reshape(1)).reshape(())

    def _join(self, other: Any, function: Callable[[Any, Any], Any]) -> Any:
        if isinstance(other, PerNode):
            return PerNode(function(self._values, other._values), self._batch)
        if isinstance(other, int | np.integer):
            return PerNode(function(self._values, other), self._batch)
        return NotImplemented  # tensors know what to do

    def _decide(self, other: Any, function: Callable[[Any, Any], Any]) -> Any:
        found = self._join(other, function)
        return bool(self._batch.agree(found._values)) if isinstance(found, PerNode) else found

    # Results are numbers, tensors or truth values, as the other operand has it.
    def __add__(self, other: Any) -> Any:
        return self._join(other, operator.add)

    def __radd__(self, other: Any) -> Any:
        return self._join(other, _swapped(operator.add))

    def __sub__(self, other: Any) -> Any:
        return self._join(other, operator.sub)

    def __rsub__(self, other: Any) -> Any:
        return self._join(other, _swapped(operator.sub))

    def __mul__(self, other: Any) -> Any:
        return self._join(other, operator.mul)

    def __rmul__(self, other: Any) -> Any:
        return self._join(other, _swapped(operator.mul))

    def __floordiv__(self, other: Any) -> Any:
        return self._join(other, operator.floordiv)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._join(other, _swapped(operator.floordiv))

    def __mod__(self, other: Any) -> Any:
        return self._join(other, operator.mod)

    def __rmod__(self, other: Any) -> Any:
        return self._join(other, _swapped(operator.mod))

    def __neg__(self) -> "PerNode":
        return PerNode(-self._values, self._batch)

    def __lt__(self, other: Any) -> Any:
        return self._decide(other, operator.lt)

    def __le__(self, other: Any) -> Any:
        return self._decide(other, operator.le)

    def __gt__(self, other: Any) -> Any:
        return self._decide(other, operator.gt)

    def __ge__(self, other: Any) -> Any:
        return self._decide(other, operator.ge)

    def __eq__(self, other: object) -> Any:
        return self._decide(other, operator.eq)

    def __ne__(self, other: object) -> Any:
        return self._decide(other, operator.ne)

    def __bool__(self) -> bool:
        return bool(self._batch.agree(self._values != 0))


def _swapped(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda one, other: function(other, one)
