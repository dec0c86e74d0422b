"""From the captured graphs of a step to its list of ops over named values.

    %relu = aten.relu(%convolution)   =>   GraphOp(name="relu", inputs=("convolution",), ...)

Names that are only other names for a value disappear, and so do ops that lead to nothing. What an
op computes and how its results are stored, a `Behaviour` says.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fsdtrain.errors import BackendError
from fsdtrain.step_graph.behaviour import Behaviour, run_and_store
from fsdtrain.step_graph.call import (
    OpArguments,
    describe_call,
    exact_call,
    exact_random_call,
    is_random,
    plain_call,
    random_call,
    read_arguments,
    state_behind,
)
from fsdtrain.step_graph.dry_capture import CapturedGraphs
from fsdtrain.step_graph.graph import GraphOp, OpCall, StepGraph
from fsdtrain.step_graph.nodes import alias_of, is_op, layer_of, op_name, output_values
from fsdtrain.step_graph.user_line import user_line

Phase = Literal["forward", "backward"]
# They change no number: layouts, copies, other dtypes.
_MOVES = {
    "aten.view", "aten._unsafe_view", "aten.reshape", "aten.permute", "aten.transpose", "aten.t",
    "aten.numpy_T", "aten.slice", "aten.select", "aten.expand", "aten.squeeze", "aten.unsqueeze",
    "aten.cat", "aten.stack", "aten.split", "aten.split_with_sizes", "aten.unsafe_split",
    "aten.unsafe_split_with_sizes", "aten.unbind", "aten.unfold", "aten.clone", "aten.detach",
    "aten.alias", "aten.as_strided", "aten.diagonal", "aten.flip", "aten.roll", "aten.rot90",
    "aten.contiguous", "aten._to_copy", "aten.copy", "aten.lift_fresh", "aten.lift_fresh_copy",
    "aten.view_copy", "aten.expand_copy", "aten.repeat", "aten.pixel_shuffle",
    "aten.pixel_unshuffle", "aten.channel_shuffle", "prims.convert_element_type",
}  # fmt: skip
_SHORT_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def assemble_step(
    captured: CapturedGraphs, module: nn.Module, behaviour: Behaviour | None = None
) -> StepGraph:
    """The step; the loss is the first output of what was captured.

    The generator's state is taken as the step's first op shall find it.

    Raises:
        BackendError: no weight gets a gradient.
    """
    assembly = _Assembly(module, behaviour or Behaviour())
    inputs = assembly.add_inputs(captured)
    forward, backward = captured.forward, captured.backward
    found = assembly.add_graph(forward, _by_number(forward, inputs), "forward")
    outputs = _outputs(forward, found)
    gradients = {}
    if backward is not None:
        saved = {node.name: value for node, value in found.items()}
        known = {
            node: saved[node.name] if node.name in saved else assembly.add_seed(node, number)
            for number, node in enumerate(backward.graph.find_nodes(op="placeholder"))
        }
        gradients = _gradients(backward, assembly.add_graph(backward, known, "backward"), inputs)
    weights = [name for name, _ in module.named_parameters() if name in gradients]
    if not weights:
        raise BackendError(
            "no weight of the module gets a gradient from the step's loss: there is nothing to "
            "train; set requires_grad"
        )
    gradients = {name: gradients[name] for name in weights}
    return assembly.finish(outputs, gradients)


def _by_number(module: GraphModule, inputs: Sequence[str]) -> dict[Node, str]:
    nodes = module.graph.find_nodes(op="placeholder")
    return {node: inputs[node.meta["desc"].idx] for node in nodes}


def _outputs(module: GraphModule, found: Mapping[Node, str]) -> list[str]:
    """What the step gives, in the order in which it gives it."""
    output = module.graph.output_node()
    numbered = {
        meaning.idx: found[node]
        for node, meaning in zip(output.args[0], output.meta["desc"], strict=True)  # type: ignore[arg-type]  # a tuple
        if isinstance(node, Node) and type(meaning).__name__ == "PlainAOTOutput"
    }
    return [numbered[number] for number in sorted(numbered)]


def _gradients(
    module: GraphModule, found: Mapping[Node, str], inputs: Sequence[str]
) -> dict[str, str]:
    output = module.graph.output_node()
    return {
        inputs[meaning.grad_of.idx]: found[node]
        for node, meaning in zip(output.args[0], output.meta["desc"], strict=True)  # type: ignore[arg-type]  # a tuple
        if isinstance(node, Node)
    }


@dataclass
class _Assembly:
    """A step while its graphs are added one after another."""

    module: nn.Module
    behaviour: Behaviour
    ops: list[GraphOp] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)  # of values, and of ops of several results
    formats: dict[str, str | None] = field(default_factory=dict)  # of values
    owners: dict[str, str] = field(default_factory=dict)  # of weights and buffers: the layer
    state: Tensor = field(default_factory=torch.get_rng_state)

    def add_inputs(self, captured: CapturedGraphs) -> list[str]:
        """Names of what the graphs take, in its order; copies, for training goes on."""
        own = {id(each): name for name, each in self.module.named_parameters()}
        own |= {id(each): name for name, each in self.module.named_buffers()}
        found = {
            number: self._add_given(own[id(tensor)], tensor.detach().clone())
            for number, tensor in enumerate(captured.inputs)
            if id(tensor) in own
        }
        self.owners = {name: name.rpartition(".")[0] for name in found.values()}
        return [
            found[number]
            if number in found
            else self._add_given(_plain(captured.places[number]), tensor.detach())
            for number, tensor in enumerate(captured.inputs)
        ]

    def add_seed(self, tangent: Node, number: int) -> str:
        """The gradient that the backward pass starts from: of the loss, and no other output."""
        value = tangent.meta["val"]
        is_of_loss = tangent.meta["desc"].output.idx == 0
        seed = torch.full(
            value.shape, 1.0 if is_of_loss else 0.0, dtype=value.dtype, device=value.device
        )
        return self._add_given("loss.seed" if is_of_loss else f"output.{number}.seed", seed)

    def _add_given(self, name: str, tensor: Tensor) -> str:
        name = self._free_name(name)
        self.tensors[name] = tensor
        return name

    def _free_name(self, name: str) -> str:
        """What checkpointing computes again has the names of the first time."""
        number, free = 1, name
        while free in self.names:
            number += 1
            free = f"{name}.{number}"
        self.names.add(free)
        return free

    def add_graph(
        self, module: GraphModule, inputs: Mapping[Node, str], phase: Phase
    ) -> dict[Node, str]:
        """Append the ops of a graph; the name of each of its values."""
        found = dict(inputs)
        for node in module.graph.nodes:
            original = alias_of(node) if node.op == "call_function" else None
            if original is not None:
                found[node] = found[original]
            elif node.op == "get_attr":
                constant = operator.attrgetter(str(node.target))(module)
                found[node] = self._add_given(node.name, constant)
            elif is_op(node) and output_values(node):
                self._add_op(node, found, phase)
        return found

    def _add_op(self, node: Node, found: dict[Node, str], phase: Phase) -> None:
        name, outputs = self._outputs(node, found)
        results = node.meta["val"]
        every = [results] if isinstance(results, Tensor) else list(results)
        arguments = read_arguments(node)
        inputs = tuple(found[each] for each in arguments.nodes)
        stores = self.behaviour.stores(node)
        if is_random(node):
            call = random_call(node, arguments, self.state)
            exactly = exact_random_call(node, arguments, self.state)
            self.state = state_behind(node, arguments, self.state)
        else:
            call = plain_call(node, arguments, self.behaviour.function(node))
            exactly = exact_call(node, arguments)
        is_move = op_name(node) in _MOVES
        formats = self._formats(node, every, inputs, is_move=is_move)
        self.formats |= {
            output: each
            for output, each in zip(outputs, formats, strict=True)
            if output is not None
        }
        self.ops.append(
            GraphOp(
                name=name,
                op=op_name(node),
                phase=phase,
                layer=layer_of(node) or self._owner(inputs),
                line=user_line(node.meta.get("stack_trace") or "").strip(" ()"),
                inputs=inputs,
                outputs=outputs,
                is_move=is_move,
                is_elementwise=_is_elementwise(node),
                formats=formats,
                run=run_and_store(call, stores),
                run_exactly=run_and_store(exactly, {}),
                call=self._call(node, arguments, len(every)),
                shapes=tuple(
                    tuple(each.shape) if isinstance(each, Tensor) else None for each in every
                ),
                dtypes=tuple(each.dtype if isinstance(each, Tensor) else None for each in every),
            )
        )

    def _call(self, node: Node, arguments: OpArguments, num_results: int) -> OpCall | None:
        if self.behaviour.function(node) is not None or is_random(node):
            return None
        words = self.behaviour.words(node)
        return describe_call(node, arguments, [words.get(each) for each in range(num_results)])

    def _outputs(self, node: Node, found: dict[Node, str]) -> tuple[str, tuple[str | None, ...]]:
        """A unique name for the op, and those of the results that are used."""
        name = self._free_name(node.name)
        results = node.meta["val"]
        if isinstance(results, Tensor):
            found[node] = name
            return name, (name,)
        outputs: list[str | None] = [None] * len(results)
        for pick in [user for user in node.users if user.target is operator.getitem]:
            index = pick.args[1]
            assert isinstance(index, int)
            found[pick] = outputs[index] = outputs[index] or self._free_name(f"{name}.{index}")
        return name, tuple(outputs)

    def _formats(
        self, node: Node, results: Sequence[Any], inputs: Sequence[str], *, is_move: bool
    ) -> tuple[str | None, ...]:
        """As the backend says; what is only moved stays as it was; else the dtype's name."""
        said = self.behaviour.formats(node)
        moved = {self.formats[each] for each in inputs if each in self.formats}
        found: list[str | None] = []
        for number, result in enumerate(results):
            if not isinstance(result, Tensor) or not result.is_floating_point():
                found.append(None)
                continue
            own = _SHORT_NAMES.get(result.dtype, str(result.dtype).removeprefix("torch."))
            is_kept = is_move and len(moved) == 1 and own == "float32"
            found.append(said.get(number) or (moved.copy().pop() if is_kept else None) or own)
        return tuple(found)

    def _owner(self, inputs: Sequence[str]) -> str:
        """The layer whose weight the op reads."""
        return next((self.owners[each] for each in inputs if each in self.owners), "")

    def finish(self, outputs: Sequence[str], gradients: Mapping[str, str]) -> StepGraph:
        """The step, without what leads to nothing that it gives."""
        used = {*outputs, *gradients.values()}
        kept = []
        for op in reversed(self.ops):
            if any(each in used for each in op.outputs):
                used |= set(op.inputs)
                kept.append(op)
        given = {name: each for name, each in self.tensors.items() if name in used}
        return StepGraph(
            ops=tuple(reversed(kept)),
            tensors=given,
            weights=tuple(gradients),
            loss=outputs[0],
            gradients=gradients,
            outputs=tuple(outputs),
        )


def _is_elementwise(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags


def _plain(place: str) -> str:
    """batch_images for torch.compile's l_batch_images_."""
    return place.removeprefix("l_").rstrip("_") or place
