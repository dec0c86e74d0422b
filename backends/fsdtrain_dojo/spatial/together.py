"""What `torch.func.vmap` does not do as a node alone does, done so that each node gets the same.

In which order a library adds up hangs on how much it is given at once and on where that lies in
memory: sums, matrix products and convolutions are computed node by node, each in memory of its own.
Layouts with channels last are for four dimensions, of which many nodes' images have five: they are
left out, no value depends on them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

_NAMES = frozenset(
    {
        "mm.default", "bmm.default", "addmm.default", "baddbmm.default", "mv.default",
        "dot.default", "_trilinear.default", "convolution.default",
        "convolution_backward.default", "tensordot", "matmul", "sum", "nansum", "mean",
    }
)  # fmt: skip
_LAYOUTS_OF_IMAGES = (torch.channels_last, torch.channels_last_3d)


def adds_up(function: Any) -> bool:
    """Whether a function of PyTorch makes sums, of products or not."""
    return getattr(function, "__name__", "") in _NAMES


class Together(TorchFunctionMode):
    """For calls within `torch.func.vmap`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("memory_format") in _LAYOUTS_OF_IMAGES:
            del kwargs["memory_format"]
        if not adds_up(func):
            return func(*args, **kwargs)
        leaves, structure = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def call(*tensors: Tensor) -> Any:
            filled = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            given, named = tree_unflatten(filled, structure)
            return func(*given, **named)

        tensors = [leaves[place] for place in places]
        return _NodeByNode.apply(call, *tensors)  # type: ignore[no-untyped-call]  # PyTorch's


class _NodeByNode(torch.autograd.Function):
    """A function that vmap calls for one node after another."""

    @staticmethod
    def forward(call: Callable[..., Any], *tensors: Tensor) -> Any:
        """Without vmap: the function."""
        return call(*tensors)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: Any, output: Any) -> None:
        """Nothing is kept: there are no gradients."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], call: Callable[..., Any], *tensors: Tensor
    ) -> Any:
        """All nodes' results, stacked."""
        made = [
            call(
                *(
                    tensor if dim is None else tensor.select(dim, node).clone()
                    for dim, tensor in zip(in_dims[1:], tensors, strict=True)
                )
            )
            for node in range(info.batch_size)
        ]
        if isinstance(made[0], Tensor):
            return torch.stack(made), 0
        stacked = [
            None if each[0] is None else torch.stack(each) for each in zip(*made, strict=True)
        ]
        return tuple(stacked), tuple(None if each is None else 0 for each in stacked)
