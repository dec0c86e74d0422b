"""From torch.compile's graph of a module to ATen graphs, and one sentence for what stops it.

The forward and backward pass are captured as one joint graph, marked by whoever asks, and cut in
two. An op is never decomposed here: the graphs hold what autograd recorded.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException, TorchRuntimeError
from torch._functorch.partitioners import default_partition
from torch.fx import Graph, GraphModule, Node

from fsdtrain.errors import BackendError
from fsdtrain.step_graph.checkpointing import settle_checkpointing
from fsdtrain.step_graph.tracing import tracing_whole_ops
from fsdtrain.step_graph.user_line import user_line

# Takes a list of inputs, empties it, and gives a list, as AOTAutograd wants it.
Program = Callable[[list[Any]], list[Any]]
Build = Callable[[GraphModule], Program]
# From a graph, and the names of its inputs that are trained weights; changes the graph in place.
Mark = Callable[[Graph, Mapping[Node, str]], None]


def set_up_capture() -> None:
    """Settings of torch.compile for the whole process."""
    # Without it nn.LSTM is no graph; on the CPU it is captured as matrix and vector ops.
    torch._dynamo.config.allow_rnn = True
    # Those limits count all modules of a class together.
    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 4096


def compile_graph(
    graph: GraphModule,
    examples: Sequence[Any],
    *,
    names: Mapping[int, str],
    mark: Mark,
    mark_inference: Mark,
    build_forward: Build,
    build_backward: Build,
    build_inference: Build,
) -> Callable[..., Any]:
    """From torch.compile's graph to ATen graphs, marked, and what is built of them.

    Args:
        graph: as torch.compile hands it to its backends.
        examples: its inputs.
        names: of the inputs that are trained weights, by number.
        mark: what to do with the joint graph of a step with gradients before it is cut in two.
        mark_inference: what to do with the graph of a step without gradients.
        build_forward: of the first half of a step with gradients.
        build_backward: of its second half.
        build_inference: of a step without gradients.
    """

    def partition(joint: GraphModule, inputs: Any, **options: Any) -> Any:
        return cut_in_two(joint, inputs, names=names, mark=mark, **options)

    def infer(module: GraphModule, inputs: Any) -> Program:
        mark_inference(module.graph, find_weights(module, names))
        return build_inference(module)

    build = aot_autograd(
        fw_compiler=lambda module, inputs: build_forward(module),
        bw_compiler=lambda module, inputs: build_backward(module),
        inference_compiler=infer,
        partition_fn=partition,
        decompositions={},
    )
    with tracing_as_run():
        compiled: Callable[..., Any] = build(graph, examples)
    return compiled


def cut_in_two(
    joint: GraphModule, inputs: Any, *, names: Mapping[int, str], mark: Mark, **options: Any
) -> tuple[GraphModule, GraphModule]:
    """The forward and the backward pass of a joint graph, which is marked first.

    Args:
        joint: changed in place.
        inputs: its examples.
        names: of the inputs that are trained weights, by number.
        mark: what to do with it before it is cut in two.
        options: of AOTAutograd's partition functions.
    """
    settle_checkpointing(joint.graph)
    mark(joint.graph, find_weights(joint, names))
    return default_partition(joint, inputs, **options)


@contextmanager
def tracing_as_run() -> Iterator[None]:
    """While tracing: ops stay whole, and as in eager the backward pass is outside of autocast."""
    with tracing_whole_ops(), torch._functorch.config.patch(backward_pass_autocast="off"):
        yield


def find_weights(module: GraphModule, names: Mapping[int, str]) -> dict[Node, str]:
    """The graph's inputs that are trained weights, by their numbers among the inputs."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    return {node: names[index] for index, node in enumerate(inputs) if index in names}


def not_captured(who: str) -> BackendError:
    """For a function that ran as it is.

    Args:
        who: wanted to capture it: "backend dojo".
    """
    return BackendError(
        "the step was about to run in FP32, as PyTorch's own ops: torch.compile is switched off "
        "(TORCHDYNAMO_DISABLE, torch.compiler.set_stance), or a TorchDispatchMode such as a FLOP "
        f"counter is active; {who} cannot take a step that is not captured"
    )


def explain(error: TorchDynamoException, who: str) -> BackendError:
    """One sentence of the user's for what torch.compile says in forty lines.

    Args:
        error: what was raised.
        who: wanted to capture the step: "backend dojo".
    """
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, BackendError):
            return inner
        inner = getattr(inner, "inner_exception", None) or inner.__cause__
    text = str(error).strip()
    reason = text.partition("\n")[0]
    found = re.search(r"^ *Explanation: (.*)$", text, re.MULTILINE)
    explanation = found[1].strip() if found else reason
    if isinstance(error, BackendCompilerFailed):
        return BackendError(f"{who} could not compile the step: {reason}")
    if isinstance(error, TorchRuntimeError):
        return BackendError(f"the step fails{user_line(text)}: {explanation}")
    return BackendError(
        f"the step is not one static graph{user_line(text)}: {reason} ({explanation}); {who} "
        "needs fixed shapes and no branch on a tensor's values (use torch.where, drop the last "
        "incomplete batch)"
    )
