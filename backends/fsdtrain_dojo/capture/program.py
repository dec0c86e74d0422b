"""The register program: a captured graph flattened into a list of instructions.

    convolution <- aten.convolution(primals_1, primals_2, None, [1, 1], ...)   store convolution
    relu        <- aten.relu_(convolution)                                     store relu
                                                                               free convolution

Every value is freed behind its last use, inputs included, and an op may write over an operand that
nobody reads again. To store is to round in place; the program itself knows no formats.
"""

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule, Node

from fsdtrain.backend import BackendError
from fsdtrain.step_graph.nodes import alias_of, op_name
from fsdtrain_dojo.capture.memory import find_overwritable, in_place_variant
from fsdtrain_dojo.capture.roles import IS_GEOMETRY, SITES
from fsdtrain_dojo.op_rules import Kind, find_rule
from fsdtrain_dojo.site import Site

Store = Callable[[Tensor], None]
# Takes a list of inputs, empties it, and gives a list, as AOTAutograd wants it.
Program = Callable[[list[Any]], list[Any]]
Implementations = Mapping[Any, Callable[..., Any]]


@dataclass(frozen=True)
class _Arguments:
    """Arguments of a call: constants in place, and which registers fill which positions."""

    constants: list[Any]
    registers: list[tuple[int, int]]  # (position, register)
    lists: list[tuple[int, "_Arguments"]]  # (position, list with registers in it)

    def fill(self, registers: list[Any]) -> list[Any]:
        filled = self.constants.copy()
        for position, register in self.registers:
            filled[position] = registers[register]
        for position, inner in self.lists:
            filled[position] = inner.fill(registers)
        return filled


@dataclass(frozen=True)
class _Instruction:
    call: Callable[..., Any]
    arguments: _Arguments
    keywords: dict[str, Any]
    result: int | None  # register; None: several, see `picks`
    picks: list[tuple[int, int]]  # (index of the result, register)
    stores: list[tuple[int, Store]]  # (register, function that rounds it)
    frees: list[int]


def build_program(
    module: GraphModule,
    store_for: Callable[[Site], Store],
    implementations: Implementations,
    *,
    replaced_inputs: Collection[Node] = (),
) -> Program:
    """Flatten a graph.

    Args:
        module: the graph, marked with sites.
        store_for: the function that rounds the tensors of a site in place.
        implementations: of ATen overloads that shall not run as PyTorch runs them.
        replaced_inputs: those that the caller replaces by results, and that may be written over.
    """
    with unset_fake_temporarily():  # AOTAutograd calls this while it traces; sites are real
        return _Flattening(module, store_for, implementations, replaced_inputs).flatten()


def _make_program(
    num_registers: int, instructions: list[_Instruction], outputs: _Arguments
) -> Program:
    def program(inputs: list[Any]) -> list[Any]:
        # The inputs are the first registers. Nothing but the registers may hold a value, or it
        # would outlive its last use.
        registers = inputs + [None] * (num_registers - len(inputs))
        inputs.clear()
        for step in instructions:
            if step.result is None:
                results = step.call(*step.arguments.fill(registers), **step.keywords)
                for index, register in step.picks:
                    registers[register] = results[index]
                del results
            else:
                registers[step.result] = step.call(*step.arguments.fill(registers), **step.keywords)
            for register, store in step.stores:
                store(registers[register])
            for register in step.frees:
                registers[register] = None
        return outputs.fill(registers)

    program._boxed_call = True  # type: ignore[attr-defined]  # AOTAutograd looks for it
    return program


class _Flattening:
    """One graph on its way to a program."""

    def __init__(
        self,
        module: GraphModule,
        store_for: Callable[[Site], Store],
        implementations: Implementations,
        replaced_inputs: Collection[Node],
    ) -> None:
        self.module = module
        self.store_for = store_for
        self.implementations = implementations
        self.nodes: list[Node] = list(module.graph.nodes)
        self.registers = _number_registers(self.nodes)
        self.overwritable = find_overwritable(self.nodes, replaced_inputs)
        self.frees = _find_last_uses(self.nodes, self.registers)

    def flatten(self) -> Program:
        instructions = [
            self._instruction(node)
            for node in self.nodes
            if node.op in ("call_function", "get_attr")
            and alias_of(node) is None
            and node.target is not operator.getitem  # picked where it was made
        ]
        results = self.module.graph.output_node().args[0]
        assert isinstance(results, list | tuple)
        num_registers = len(set(self.registers.values()))
        return _make_program(num_registers, instructions, self._arguments(results))

    def _instruction(self, node: Node) -> _Instruction:
        picks = {u.args[1]: u for u in node.users if u.target is operator.getitem}
        frees = [r for each in (node, *picks.values()) for r in self.frees.get(each, [])]
        keywords = dict(node.kwargs)
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.module)
            call: Callable[..., Any] = lambda: value  # noqa: E731 - a constant of the graph
            arguments = self._arguments(())
        else:
            call = find_matrix_op(node, self.implementations) or in_place_variant(
                node, self.overwritable
            )
            arguments = self._arguments(node.args)
            named = {key: each for key, each in keywords.items() if isinstance(each, Node)}
            if named:
                call = _name_last(call, list(named))
                arguments = self._arguments((*node.args, *named.values()))
                keywords = {key: each for key, each in keywords.items() if key not in named}
        is_single = not isinstance(node.meta.get("val"), list | tuple)
        sites: dict[int, Site] = node.meta.get(SITES, {})
        return _Instruction(
            call=call,
            arguments=arguments,
            keywords=keywords,
            result=self.registers[node] if is_single else None,
            picks=[(int(str(index)), self.registers[pick]) for index, pick in picks.items()],
            stores=[
                (self.registers[node if is_single else picks[index]], self.store_for(site))
                for index, site in sites.items()
                if is_single or index in picks  # nobody in this half of the step reads the others
            ],
            frees=frees,
        )

    def _arguments(self, arguments: Iterable[Any]) -> _Arguments:
        found = _Arguments([], [], [])
        for position, each in enumerate(arguments):
            has_registers = isinstance(each, list | tuple) and any(
                isinstance(inner, Node) for inner in each
            )
            if isinstance(each, Node):
                found.registers.append((position, self.registers[each]))
            elif has_registers:
                found.lists.append((position, self._arguments(each)))
            found.constants.append(None if isinstance(each, Node) or has_registers else each)
        return found


def find_matrix_op(node: Node, implementations: Implementations) -> Callable[..., Any] | None:
    """What runs in a matrix op's place, if anything shall.

    Raises:
        BackendError: matrix ops have implementations, but this one has none.
    """
    if not implementations or node.meta.get(IS_GEOMETRY, False):
        return None
    found = implementations.get(node.target)
    if found is None and find_rule(node).kind is Kind.MATRIX:
        raise BackendError(
            f"op {op_name(node)} is not built with exact sums: write it as matrix products, "
            "or set backend.accumulate=fast"
        )
    return found


def _name_last(call: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """`call` with its last arguments, which are tensors, given by name."""

    def call_by_name(*args: Any, **kwargs: Any) -> Any:
        named = dict(zip(names, args[-len(names) :], strict=True))
        return call(*args[: -len(names)], **named, **kwargs)

    return call_by_name


def _number_registers(nodes: Iterable[Node]) -> dict[Node, int]:
    """Inputs first, in order; an alias has the register of what it is another name for."""
    registers: dict[Node, int] = {}
    next_register = count()
    for node in nodes:
        original = alias_of(node)
        if original is not None:
            registers[node] = registers[original]
        elif node.op != "output":
            registers[node] = next(next_register)
    return registers


def _find_last_uses(nodes: list[Node], registers: Mapping[Node, int]) -> dict[Node, list[int]]:
    """Node -> the registers nobody reads behind it."""
    last: dict[int, Node] = {}
    for node in nodes:
        if alias_of(node) is not None:  # no instruction of its own, and read if it is of any use
            continue
        for value in (node, *node.all_input_nodes):
            if value in registers:
                last[registers[value]] = node
    freed: dict[Node, list[int]] = {}
    for register, node in last.items():
        if node.op not in ("output", "placeholder"):
            freed.setdefault(node, []).append(register)
    return freed
