"""How a backend's ops differ from PyTorch's: what runs in their place, how results are stored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fsdtrain.step_graph.call import Call
from fsdtrain.step_graph.graph import Results, Run

Store = Callable[[Tensor], None]  # rounds a tensor in place


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How a backend's ops differ from PyTorch's.

    Args:
        function: what runs in an op's place; None: the op itself.
        stores: by number of the result, what rounds it in place.
        formats: by number of the result, the format it is stored in, where it is not the dtype's.
        words: by number of the result, its store in words that `Backend.store` takes.
    """

    function: Callable[[Node], Callable[..., Any] | None] = lambda node: None
    stores: Callable[[Node], Mapping[int, Store]] = lambda node: {}
    formats: Callable[[Node], Mapping[int, str]] = lambda node: {}
    words: Callable[[Node], Mapping[int, Mapping[str, object]]] = lambda node: {}


def run_and_store(call: Call, stores: Mapping[int, Store]) -> Run:
    """The op as a function of its tensors that changes none of them; its results stored."""

    def run(inputs: Sequence[Tensor]) -> Results:
        with torch.no_grad():
            results = call(inputs)
            found = list(results) if isinstance(results, list | tuple) else [results]
            for number, store in stores.items():
                found[number] = _owned(found[number], inputs)
                store(found[number])
        return tuple(each if isinstance(each, Tensor) else None for each in found)

    return run


def _owned(result: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The result in memory of its own: some ops that change nothing give their operand."""
    address = result.untyped_storage().data_ptr()
    is_shared = any(each.untyped_storage().data_ptr() == address for each in inputs)
    return result.clone() if is_shared else result
