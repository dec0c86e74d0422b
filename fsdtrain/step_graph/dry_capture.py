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
from torch._dynamo.exc import TorchDynamoException
from torch.fx import Graph, GraphModule, Node

from fsdtrain.step_graph.trace import (
    Mark,
    Program,
    explain,
    not_captured,
    set_up_capture,
    trace_step,
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


def capture_graphs(
    function: Callable[..., Any],
    *arguments: Any,
    names: Mapping[nn.Parameter, str],
    who: str,
    mark: Mark = leave_unmarked,
) -> CapturedGraphs:
    """Capture what `function(*arguments)` would run.

    Args:
        function: calls a module.
        arguments: given to it; tensors in them, and the module's own, may be fake.
        names: of the trained weights.
        who: wants the graphs, for error messages: "backend dojo".
        mark: what to do with the graph of the whole step before it is cut in two.

    Raises:
        BackendError: it is no static graph, or is not captured at all.
    """
    forward: list[GraphModule] = []
    backward: list[GraphModule] = []
    inputs: list[Tensor] = []
    places: list[str] = []

    def keep(graphs: list[GraphModule]) -> Callable[[GraphModule], Program]:
        def build(module: GraphModule) -> Program:
            graphs.append(module)
            return _never_run(module)

        return build

    def backend(graph: GraphModule, examples: Sequence[Any]) -> NoReturn:
        inputs.extend(examples)
        places.extend(node.name for node in graph.graph.find_nodes(op="placeholder"))
        trained = {
            number: names.get(example, f"parameter_{number}")
            for number, example in enumerate(examples)
            if isinstance(example, nn.Parameter)
        }
        # Otherwise the backward pass is built when it first runs.
        with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
            trace_step(
                graph,
                examples,
                names=trained,
                mark=mark,
                mark_inference=mark,
                build_forward=keep(forward),
                build_backward=keep(backward),
                build_inference=keep(forward),
            )
        raise RecordedError

    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
    give_up(lambda: compiled(*arguments), who)
    return CapturedGraphs(
        forward=forward[0], backward=backward[0] if backward else None, inputs=inputs, places=places
    )


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


def _never_run(module: GraphModule) -> Program:
    def run(inputs: list[Any]) -> NoReturn:
        raise AssertionError("a captured graph was run")

    run._boxed_call = True  # type: ignore[attr-defined]  # AOTAutograd looks for it
    return run
