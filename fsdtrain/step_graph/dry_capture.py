"""Captures the graphs of a function without running them.

torch.compile is left as soon as the graphs are there, so that nothing is computed and nothing
stays: module and random numbers are as they were.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import TorchDynamoException
from torch.fx import Graph, GraphModule, Node

from fsdtrain.step_graph.trace import (
    Mark,
    cut_in_two,
    explain,
    find_weights,
    not_captured,
    set_up_capture,
    tracing_as_run,
)


class RecordedError(Exception):
    """Thrown by a compiler that has seen enough."""


@dataclass(frozen=True, kw_only=True)
class CapturedGraphs:
    """The ATen graphs of a function.

    Args:
        forward: the first half of a step with gradients, or all of one without.
        backward: the second half; None: nothing has a gradient.
        inputs: the tensors that they take.
        places: what torch.compile calls each of those.
    """

    forward: GraphModule
    backward: GraphModule | None
    inputs: Sequence[Tensor]
    places: Sequence[str]


def leave_unmarked(graph: Graph, weights: Mapping[Node, str]) -> None:
    """The mark of a step that is stored as it is computed."""


@dataclass(frozen=True, kw_only=True)
class TracedFunction:
    """What a function runs, forward and backward pass in one graph, not marked yet.

    It can be marked and cut in two again and again, each time otherwise.

    Args:
        joint: the graph; never changed.
        examples: its inputs, as fake tensors.
        partition: how AOTAutograd wants it cut; None: nothing has a gradient.
        names: of the inputs that are trained weights, by number.
        inputs: see `CapturedGraphs`.
        places: see `CapturedGraphs`.
    """

    joint: GraphModule
    examples: Any
    partition: Mapping[str, Any] | None
    names: Mapping[int, str]
    inputs: Sequence[Tensor]
    places: Sequence[str]

    def cut(self, mark: Mark = leave_unmarked) -> CapturedGraphs:
        """The graphs with the marks.

        Args:
            mark: what to do with the graph before it is cut in two.

        Raises:
            BackendError: as `mark` does.
        """
        module = _copy_graph(self.joint)
        backward = None
        if self.partition is None:
            mark(module.graph, find_weights(module, self.names))
        else:
            with torch.no_grad():
                module, backward = cut_in_two(
                    module, self.examples, names=self.names, mark=mark, **self.partition
                )
        return CapturedGraphs(
            forward=module, backward=backward, inputs=self.inputs, places=self.places
        )


def trace_function(
    function: Callable[..., Any], *arguments: Any, names: Mapping[nn.Parameter, str], who: str
) -> TracedFunction:
    """Trace what `function(*arguments)` would run.

    Args:
        function: calls a module.
        arguments: given to it; tensors in them, and the module's own, may be fake.
        names: of the trained weights.
        who: wants the graphs, for error messages: "backend dojo".

    Raises:
        BackendError: it is no static graph, or is not captured at all.
    """
    found: list[TracedFunction] = []

    def backend(graph: GraphModule, examples: Sequence[Any]) -> NoReturn:
        def keep(joint: GraphModule, inputs: Any, **partition: Any) -> NoReturn:
            found.append(
                TracedFunction(
                    joint=joint,
                    examples=inputs,
                    partition=partition or None,
                    names={
                        number: names.get(example, f"parameter_{number}")
                        for number, example in enumerate(examples)
                        if isinstance(example, nn.Parameter)
                    },
                    inputs=list(examples),
                    places=[node.name for node in graph.graph.find_nodes(op="placeholder")],
                )
            )
            raise RecordedError

        build = aot_autograd(
            fw_compiler=keep, inference_compiler=keep, partition_fn=keep, decompositions={}
        )
        with tracing_as_run():
            build(graph, examples)
        raise AssertionError("a graph was built")

    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
    give_up(lambda: compiled(*arguments), who)
    return found[0]


def give_up(function: Callable[[], Any], who: str) -> None:
    """Call a compiled function whose capture ends with `RecordedError`.

    Raises:
        BackendError: it ends otherwise: no static graph of known ops, or not captured at all.
    """
    set_up_capture()
    try:
        function()
    except TorchDynamoException as error:
        if isinstance(getattr(error, "inner_exception", None), RecordedError):
            return
        raise explain(error, who) from error
    raise not_captured(who)


@contextmanager
def without_compiled_calls(module: nn.Module) -> Iterator[None]:
    """While capturing, a module that is compiled is called as it was written."""
    compiled = {
        each: each._compiled_call_impl
        for each in module.modules()
        if each._compiled_call_impl is not None
    }
    for each in compiled:
        each._compiled_call_impl = None
    try:
        yield
    finally:
        for each, call in compiled.items():
            each._compiled_call_impl = call


def _copy_graph(module: GraphModule) -> GraphModule:
    """The same nodes with the same names; each with notes of its own."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return GraphModule(module, graph)
