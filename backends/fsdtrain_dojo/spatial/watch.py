"""What a node's computation calls, and whether `torch.func.vmap` can do that for many nodes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fsdtrain_dojo.spatial.together import adds_up

_RULES = ("FuncTorchBatched", "FuncTorchBatchedDecomposition", "CompositeImplicitAutograd")
_PRODUCTS = frozenset(
    {
        "aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::mv", "aten::dot",
        "aten::convolution", "aten::convolution_backward", "aten::_trilinear",
    }
)  # fmt: skip
_BY_INDEX = frozenset({"aten::index", "aten::index_put", "aten::index_put_"})
# What gives the numbers in a tensor to others than torch.
_WAYS_OUT = frozenset({"numpy", "__array__", "tolist", "data_ptr", "untyped_storage", "__dlpack__"})


class Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's
    """Whether vmap has a rule for every op that is called.

    Args:
        local: the node's own tensors, of which vmap would have many.
    """

    def __init__(self, local: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self.have_rules = True
        self.is_within_sum = False
        self._local: dict[int, Tensor] = {}  # and what was made of them; kept alive
        self._take(local)

    def _take(self, made: Any) -> None:
        self._local |= {id(each): each for each in tree_leaves(made) if isinstance(each, Tensor)}

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        is_local = any(id(each) in self._local for each in given)
        if given and not self.is_within_sum:
            self.have_rules &= _has_rule(func, given)
        if is_local and func._schema.is_mutable:  # vmap cannot put many tensors into one
            self.have_rules &= id(args[0]) in self._local
        if is_local:
            self._take(found)
        return found


class Calls(TorchFunctionMode):
    """Whether the numbers in tensors are given to others than torch; tells `Ops` of sums."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self.leave_torch = False
        self._ops = ops

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.leave_torch |= getattr(func, "__name__", "") in _WAYS_OUT
        self._ops.is_within_sum = adds_up(func)
        found = func(*args, **(kwargs or {}))
        self._ops.is_within_sum = False
        return found


def _has_rule(func: OpOverload, given: Sequence[Tensor]) -> bool:
    """Whether vmap computes an op for many nodes at once; shapes must not hang on numbers."""
    name = func._schema.name
    if name in _PRODUCTS or torch.Tag.data_dependent_output in func.tags:
        return False
    if name in _BY_INDEX:
        return not any(each.dtype in (torch.bool, torch.uint8) for each in given[1:])
    if torch.Tag.dynamic_output_shape in func.tags:
        return False
    if func is torch.ops.aten.lift_fresh.default:  # of a new tensor, the same for all
        return True
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    overload = func.name()  # type: ignore[no-untyped-call]  # PyTorch's
    return any(has_kernel(overload, rule) for rule in _RULES)
