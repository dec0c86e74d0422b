"""Records a training step as op calls, without computing it.

The step is captured as the emulation captures it; the capture is given up before anything runs,
so that module, optimiser and random numbers are left as they were. Knows no machine.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.optim import Optimizer

from fsdtrain.backend import BackendError
from fsdtrain.step_graph.dry_capture import (
    CapturedGraphs,
    TracedFunction,
    trace_function,
    without_compiled_calls,
)
from fsdtrain_dojo.capture.compiler import WHO, refuse_autocast
from fsdtrain_dojo.capture.roles import mark_sites
from fsdtrain_dojo.lowering.graph_calls import CallList, storage_of, without_dead
from fsdtrain_dojo.lowering.kernel import Phase, Value, ValueKind
from fsdtrain_dojo.lowering.record_update import TracedUpdate, add_update, trace_update
from fsdtrain_dojo.lowering.recorded import RecordedStep, run_directly
from fsdtrain_dojo.optimizer import check_owned
from fsdtrain_dojo.recipe import Recipe, Role

__all__ = ["RecordedStep", "StepRecorder", "record_forward", "record_step", "run_directly"]


class StepRecorder:
    """A traced step, which can be recorded with one recipe after another.

    Args:
        module: in the mode that it trains in.
        batch: its input; module and batch may be fake tensors (FakeTensorMode).
        optimizer: of the module's weights; None: the step ends with their gradients.
        run: from module and batch to the loss; None: module(batch).loss.

    Raises:
        BackendError: the step is no static graph of known ops, as when it is compiled to run.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Any,
        optimizer: Optimizer | None = None,
        *,
        run: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self._update: TracedUpdate | None = None
        loss_of = _default_loss if run is None else run
        with torch.enable_grad(), without_compiled_calls(module):
            self._traced = _trace(lambda: loss_of(module, batch), module)

    def record(self, recipe: Recipe) -> RecordedStep:
        """Forward pass, backward pass from the loss, and the optimiser's update.

        Args:
            recipe: the formats that values are stored in.

        Raises:
            BackendError: an op without a rule, a dtype or a shape the machine does not have, or
                nothing is trained.
        """
        graphs = _cut(self._traced, recipe)
        recording = _Recording(self.module, recipe)
        inputs = recording.add_inputs(graphs.inputs, graphs.places)
        gradients = (
            recording.add_halves(graphs.forward, graphs.backward, inputs)
            if graphs.backward is not None
            else {}
        )
        if not gradients:
            raise BackendError(
                "no weight of the module gets a gradient from the step's loss: there is nothing to "
                "train; set requires_grad, and keep modules that cannot be held in memory as fake "
                "tensors (torch._subclasses.FakeTensorMode) rather than on the meta device, where "
                "PyTorch has no gradient of the cross entropy"
            )
        if self.optimizer is not None:
            names = recording.weight_names
            if self._update is None:
                check_owned(self.optimizer, names)
                self._update = trace_update(self.optimizer, names, gradients.keys())
            add_update(recording.list, self._update, names, gradients, recipe)
        return recording.finish(gradients)


def record_step(
    module: nn.Module,
    batch: Any,
    optimizer: Optimizer | None = None,
    *,
    recipe: Recipe,
    run: Callable[[nn.Module, Any], Tensor] | None = None,
) -> RecordedStep:
    """A step with one recipe; see `StepRecorder`."""
    return StepRecorder(module, batch, optimizer, run=run).record(recipe)


def record_forward(module: nn.Module, *inputs: Any, recipe: Recipe) -> RecordedStep:
    """Inference without gradients, in evaluation mode.

    Args:
        module: of any mode; it is put back.
        inputs: of the module.
        recipe: the formats that values are stored in.

    Raises:
        BackendError: see `record_step`.
    """
    recording = _Recording(module, recipe)
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        with torch.no_grad(), without_compiled_calls(module):
            graphs = _cut(_trace(lambda: module(*inputs), module), recipe)
    finally:
        for each in training:
            each.training = True
    recording.add_inference(graphs.forward, recording.add_inputs(graphs.inputs, graphs.places))
    return recording.finish({})


def _default_loss(module: nn.Module, batch: Any) -> Tensor:
    loss: Tensor = module(batch).loss
    return loss


def _trace(function: Callable[[], Any], module: nn.Module) -> TracedFunction:
    refuse_autocast()
    names = {each: name for name, each in module.named_parameters()}
    return trace_function(function, names=names, who=WHO)


def _cut(traced: TracedFunction, recipe: Recipe) -> CapturedGraphs:
    def mark(graph: Graph, weights: Mapping[Node, str]) -> None:
        mark_sites(graph, recipe, weights)

    return traced.cut(mark)


class _Recording:
    """A step while its graphs are added one after another."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        self.list = CallList()
        self.weight_names = {each: name for name, each in module.named_parameters()}
        self.buffer_names = {id(each): name for name, each in module.named_buffers()}
        self.outputs: list[str] = []

    def add_inputs(self, examples: Sequence[Tensor], places: Sequence[str]) -> list[Value]:
        """Values of what the captured graphs take, in its order; weights have the first names."""
        master = storage_of(self.recipe.rule(Role.MASTER_WEIGHT).format)
        found: dict[int, Value] = {}
        for number, tensor in enumerate(examples):
            if isinstance(tensor, nn.Parameter):
                name = self.weight_names.get(tensor, places[number])
                found[number] = self.list.add_given(name, tensor, ValueKind.WEIGHT, master)
            elif id(tensor) in self.buffer_names:
                name = self.buffer_names[id(tensor)]
                found[number] = self.list.add_given(name, tensor, ValueKind.STATE)
        self.list.owner |= {each.name: each.name.rpartition(".")[0] for each in found.values()}
        return [
            found[number]
            if number in found
            else self.list.add_given(_plain(places[number]), tensor, ValueKind.INPUT)
            for number, tensor in enumerate(examples)
        ]

    def add_inference(self, module: GraphModule, inputs: Sequence[Value]) -> None:
        """A graph whose outputs are the results."""
        found = self.list.add_graph(module, _by_number(module, inputs), Phase.FORWARD)
        self._take_outputs(module, found, inputs)

    def add_halves(
        self, forward: GraphModule, backward: GraphModule, inputs: Sequence[Value]
    ) -> dict[str, Value]:
        """Forward and backward pass; the gradients by name of weight."""
        found = self.list.add_graph(forward, _by_number(forward, inputs), Phase.FORWARD)
        self._take_outputs(forward, found, inputs)
        saved = {node.name: value for node, value in found.items()}
        known = {}
        for node in backward.graph.find_nodes(op="placeholder"):
            known[node] = saved[node.name] if node.name in saved else self._seed(node)
        found = self.list.add_graph(backward, known, Phase.BACKWARD)
        output = backward.graph.output_node()
        return {
            inputs[meaning.grad_of.idx].name: found[node]
            for node, meaning in zip(output.args[0], output.meta["desc"], strict=True)  # type: ignore[arg-type]  # a tuple
            if isinstance(node, Node)
        }

    def _seed(self, tangent: Node) -> Value:
        """The gradient that the backward pass starts from."""
        seed = torch.ones(tangent.meta["val"].shape)
        return self.list.add_given(f"{self.outputs[0]}.seed", seed, ValueKind.CONSTANT)

    def _take_outputs(
        self, module: GraphModule, found: Mapping[Node, Value], inputs: Sequence[Value]
    ) -> None:
        """Note which buffers are renewed, and which values the step gives."""
        output = module.graph.output_node()
        for node, meaning in zip(output.args[0], output.meta["desc"], strict=True):  # type: ignore[arg-type]  # a tuple
            if not isinstance(node, Node):
                continue
            kind = type(meaning).__name__
            if kind == "InputMutationAOTOutput":
                self.list.renew(inputs[meaning.mutated_input.idx], found[node], Phase.FORWARD)
            elif kind == "PlainAOTOutput":
                self.outputs.append(found[node].name)

    def finish(self, gradients: Mapping[str, Value]) -> RecordedStep:
        """What was recorded, without what nobody reads."""
        renewed = set(self.list.renews.values())
        wanted = {*self.list.wanted, *self.outputs}
        wanted |= {value.name for weight, value in gradients.items() if weight not in renewed}
        calls, values = without_dead(self.list.calls, self.list.values, wanted)
        return RecordedStep(
            calls=calls,
            values=values,
            renews=self.list.renews,
            tensors={
                name: tensor.detach() if tensor.requires_grad else tensor
                for name, tensor in self.list.tensors.items()
                if name in values
            },
            outputs=tuple(self.outputs),
            gradients={name: value.name for name, value in gradients.items()},
        )


def _by_number(module: GraphModule, inputs: Sequence[Value]) -> dict[Node, Value]:
    nodes = module.graph.find_nodes(op="placeholder")
    return {node: inputs[node.meta["desc"].idx] for node in nodes}


def _plain(place: str) -> str:
    """batch_images for torch.compile's l_batch_images_."""
    return place.removeprefix("l_").rstrip("_") or place
