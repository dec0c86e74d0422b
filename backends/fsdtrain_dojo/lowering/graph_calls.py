"""From captured FX graphs to one list of op calls over one table of values.

    %convolution = aten.convolution(%primals_3, %primals_1, ...)     x: input, conv.weight: weight
    %detach = aten.detach(%convolution)                         =>   convolution = aten.convolution(
                                                                         x, conv.weight, ...)

Names that are only other names for a value disappear, and so do results that nobody reads. Which
graphs there are and what their inputs are, the caller knows.
"""

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fsdtrain.step_graph.nodes import alias_of, function_of, layer_of, op_name, operands
from fsdtrain.step_graph.user_line import user_line
from fsdtrain_dojo.capture.dataflow import is_float
from fsdtrain_dojo.capture.roles import SITES, STORED
from fsdtrain_dojo.formats import Format
from fsdtrain_dojo.lowering.describe.building import stored_as, values_of
from fsdtrain_dojo.lowering.kernel import Phase, Value, ValueKind
from fsdtrain_dojo.lowering.op_call import OpCall
from fsdtrain_dojo.op_rules import Kind, find_rule

Storage = tuple[str, int]  # format, bytes of an element
WRITE_BACK = torch.ops.aten.copy_.default


@dataclass
class CallList:
    """Op calls and values of a step, as graph after graph is added."""

    calls: list[OpCall] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    renews: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)  # value -> module path it belongs to
    wanted: set[str] = field(default_factory=set)  # values that outlive the step
    parents: set[str] = field(default_factory=set)  # names of calls of several results

    def add_value(
        self, name: str, like: Tensor, kind: ValueKind, stored: Storage | None = None
    ) -> Value:
        """A new value of this name, or of one with a number where that is taken."""
        format_name, num_bytes = stored or stored_as(like.dtype)
        value = Value(
            name=self._free_name(name),
            shape=tuple(like.shape),
            format=format_name,
            element_bytes=num_bytes,
            kind=kind,
        )
        self.values[value.name] = value
        return value

    def _free_name(self, name: str) -> str:
        """What checkpointing computes again has the names of the first time."""
        number, free = 1, name
        while free in self.values or free in self.parents:
            number += 1
            free = f"{name}.{number}"
        return free

    def add_given(
        self, name: str, tensor: Tensor, kind: ValueKind, stored: Storage | None = None
    ) -> Value:
        """A value that is there before the step begins."""
        value = self.add_value(name, tensor, kind, stored)
        self.tensors[value.name] = tensor
        return value

    def add_graph(
        self,
        module: GraphModule,
        inputs: Mapping[Node, Value],
        phase: Phase,
        *,
        prefix: str = "",
        only: Collection[Node] | None = None,
    ) -> dict[Node, Value]:
        """Append the calls of a graph; the value of each of its nodes that is a tensor.

        Args:
            module: of ATen ops, with sites marked.
            inputs: the values of its placeholders; those that nobody reads may be missing.
            phase: of the step.
            prefix: of the names of its values.
            only: the nodes to add; None: all.
        """
        found = dict(inputs)
        for node in module.graph.nodes:
            if only is not None and node not in only:
                continue
            original = alias_of(node) if node.op == "call_function" else None
            if original is not None:
                found[node] = found[original]
            elif node.op == "get_attr":
                constant = operator.attrgetter(str(node.target))(module)
                found[node] = self.add_given(node.name, constant, ValueKind.CONSTANT)
            elif node.op == "call_function" and node.target is WRITE_BACK:
                target, value = node.args[:2]
                assert isinstance(target, Node)
                assert isinstance(value, Node)
                self.renew(found[target], found[value], phase)
            elif node.op == "call_function" and node.target is not operator.getitem:
                self._add_call(node, found, phase, prefix)
        return found

    def renew(self, old: Value, new: Value, phase: Phase) -> None:
        """Note that `new` takes the place of `old` when the step has ended."""
        if new is old:
            return
        if new.name in self.tensors or new.name in self.renews:  # belongs to another: copied
            like = torch.empty(old.shape, device="meta")
            copy = self.add_value(
                f"{old.name}.new", like, ValueKind.ACTIVATION, (old.format, old.element_bytes)
            )
            self.calls.append(
                OpCall(
                    name=copy.name,
                    op="aten.clone",
                    function=torch.ops.aten.clone.default,
                    args=(new,),
                    kwargs={},
                    outputs=(copy,),
                    phase=phase,
                    layer=self.owner.get(old.name, ""),
                )
            )
            new = copy
        self.renews[new.name] = old.name
        self.wanted.add(new.name)

    def _add_call(self, node: Node, found: dict[Node, Value], phase: Phase, prefix: str) -> None:
        def fill(argument: Any) -> Any:
            if isinstance(argument, Node):
                return found[argument]
            return [fill(each) for each in argument] if isinstance(argument, list) else argument

        owners = (self.owner.get(found[each].name, "") for _, each in operands(node))
        sites = [site.layer for site in node.meta.get(STORED, {}).values()]
        layer = layer_of(node) or next(filter(None, [*sites, *owners]), "")
        name, outputs = self._outputs(node, found, prefix)
        if phase is Phase.OPTIMIZER:
            self.owner |= {value.name: layer for value in outputs if value is not None and layer}
        self.calls.append(
            OpCall(
                name=name,
                op=op_name(node),
                function=function_of(node),
                args=tuple(map(fill, node.args)),
                kwargs={key: fill(each) for key, each in node.kwargs.items()},
                outputs=outputs,
                phase=phase,
                layer=layer,
                line=user_line(node.meta.get("stack_trace") or "").strip(" ()"),
            )
        )

    def _outputs(
        self, node: Node, found: dict[Node, Value], prefix: str
    ) -> tuple[str, tuple[Value | None, ...]]:
        """A unique name for the call, and its results."""
        results = node.meta.get("val", ())  # an assertion gives nothing
        if isinstance(results, Tensor):
            stored = self._storage(node, 0, results, found)
            found[node] = self.add_value(prefix + node.name, results, ValueKind.ACTIVATION, stored)
            return found[node].name, (found[node],)
        parent = self._free_name(prefix + node.name)
        self.parents.add(parent)
        outputs: list[Value | None] = [None] * len(results)
        for pick in [user for user in node.users if user.target is operator.getitem]:
            index = pick.args[1]
            assert isinstance(index, int)
            value = outputs[index]
            if value is None:
                stored = self._storage(node, index, results[index], found)
                name = f"{parent}.{index}"
                value = self.add_value(name, results[index], ValueKind.ACTIVATION, stored)
            outputs[index] = found[pick] = value
        return parent, tuple(outputs)

    def _storage(
        self, node: Node, index: int, result: Tensor, found: Mapping[Node, Value]
    ) -> Storage:
        """As the recipe has it; what an op only moves stays as it was, as the widest of several."""
        site = node.meta.get(STORED, {}).get(index) or node.meta.get(SITES, {}).get(index)
        if site is not None:
            return storage_of(site.rule.format)
        if result.is_floating_point() and find_rule(node).kind is Kind.MOVE:
            moved = [found[each] for _, each in operands(node) if is_float(each)]
            if moved:
                widest = max(moved, key=lambda value: value.element_bytes)
                return widest.format, widest.element_bytes
        return stored_as(result.dtype)


def storage_of(stored: Format) -> Storage:
    """Its name, and bytes of an element."""
    return stored.name, -(-stored.num_bits // 8)


def without_dead(
    calls: Sequence[OpCall], values: Mapping[str, Value], wanted: Iterable[str]
) -> tuple[tuple[OpCall, ...], dict[str, Value]]:
    """The calls that lead to wanted values, which are marked as outputs, and the values they use.

    Args:
        calls: in order.
        values: by name.
        wanted: values that outlive the step.
    """
    outputs = set(wanted)
    used, kept = set(outputs), []
    for call in reversed(calls):
        if any(value is not None and value.name in used for value in call.outputs):
            used |= {value.name for value in values_of(call)}
            kept.append(call)
    final = {
        name: replace(value, is_output=name in outputs)
        for name, value in values.items()
        if name in used
    }
    return tuple(_with_values(call, final) for call in reversed(kept)), final


def _with_values(call: OpCall, values: Mapping[str, Value]) -> OpCall:
    def renew(argument: Any) -> Any:
        if isinstance(argument, Value):
            return values[argument.name]
        return [renew(each) for each in argument] if isinstance(argument, list) else argument

    return replace(
        call,
        args=tuple(map(renew, call.args)),
        kwargs={name: renew(each) for name, each in call.kwargs.items()},
        outputs=tuple(
            values.get(value.name) if value is not None else None for value in call.outputs
        ),
    )
