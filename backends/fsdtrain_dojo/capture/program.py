"""The register program: a captured graph flattened into one Python function.

    def program(inputs):
        primals_1, primals_2 = inputs; inputs.clear()
        convolution = c0(primals_1, primals_2, None, [1, 1], ...); c1(convolution)
        relu = c2(convolution); c3(relu); convolution = None
        return [relu]

c0, c2 are ops, c1, c3 round what was stored. Every value is freed behind its last use, inputs
included, and an op may write over an operand that nobody reads again. It knows no formats.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule, Node

from fsdtrain_dojo.capture.memory import find_overwritable, in_place_variant
from fsdtrain_dojo.capture.roles import SITES
from fsdtrain_dojo.site import Site

Store = Callable[[Tensor], None]
Program = Callable[[list[Any]], list[Any]]

# Another name for the same tensor.
_ALIASES = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}


def build_boxed_program(
    module: GraphModule,
    store_for: Callable[[Site], Store],
    implementations: Mapping[Any, Callable[..., Any]],
) -> Program:
    """Flatten a graph into a function that takes a list of inputs, empties it, and gives a list.

    Args:
        module: the graph, marked with sites.
        store_for: the function that rounds the tensors of a site in place.
        implementations: of ATen overloads that shall not run as PyTorch runs them.
    """
    with unset_fake_temporarily():  # AOTAutograd calls this while it traces; sites are real
        program = _build(module, store_for, implementations)
    program._boxed_call = True  # type: ignore[attr-defined]  # AOTAutograd looks for it
    return program


def _build(
    module: GraphModule,
    store_for: Callable[[Site], Store],
    implementations: Mapping[Any, Callable[..., Any]],
) -> Program:
    nodes = list(module.graph.nodes)
    source = _Source(_name_registers(nodes))
    overwritable = find_overwritable(nodes)
    frees = _find_last_uses(nodes, source.registers)
    for node in nodes:
        if node.op == "placeholder":
            continue
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(module)
            source.lines.append(f"{source.registers[node]} = {source.constant(value)}")
        elif node.op == "output":
            source.lines.append(f"return {source.render(list(node.args[0]))}")  # type: ignore[arg-type]
        elif node.target not in _ALIASES and not _is_unpacked(node):
            call = implementations.get(node.target) or in_place_variant(node, overwritable)
            source.add_call(node, call)
            for index, site in node.meta.get(SITES, {}).items():
                source.add_store(node, index, store_for(site))
        source.free(frees.get(node, []))
    return source.compile([each for each in nodes if each.op == "placeholder"])


def _is_unpacked(node: Node) -> bool:
    """Whether the node only picks a result, which is unpacked where it was made."""
    return node.target is operator.getitem


def _name_registers(nodes: Iterable[Node]) -> dict[Node, str]:
    registers: dict[Node, str] = {}
    for node in nodes:
        original = node.args[0] if node.target in _ALIASES else node
        assert isinstance(original, Node)
        registers[node] = registers.get(original, node.name)
    return registers


def _find_last_uses(nodes: list[Node], registers: Mapping[Node, str]) -> dict[Node, list[str]]:
    """node -> the registers nobody reads behind it."""
    last: dict[str, Node] = {}
    for node in nodes:
        for value in (node, *node.all_input_nodes):
            last[registers[value]] = node
    freed: dict[Node, list[str]] = {}
    for register, node in last.items():
        if node.op != "output":
            freed.setdefault(node, []).append(register)
    return freed


class _Source:
    """The text of the function as it grows, and the objects it names."""

    def __init__(self, registers: dict[Node, str]) -> None:
        self.registers = registers
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self._constant_names: dict[int, str] = {}

    def constant(self, value: Any) -> str:
        """The name by which the text calls an object."""
        name = self._constant_names.setdefault(id(value), f"c{len(self.constants)}")
        self.constants[name] = value  # keeps it alive, and with it its id
        return name

    def render(self, argument: Any) -> str:
        """An argument as source text."""
        if isinstance(argument, Node):
            return self.registers[argument]
        if isinstance(argument, list | tuple):
            inner = "".join(f"{self.render(each)}, " for each in argument)
            return f"[{inner}]" if isinstance(argument, list) else f"({inner})"
        if argument is None or isinstance(argument, bool | int):
            return repr(argument)
        return self.constant(argument)

    def add_call(self, node: Node, call: Callable[..., Any]) -> None:
        """One op; several results go into a register each."""
        arguments = [self.render(each) for each in node.args]
        arguments += [f"{key}={self.render(value)}" for key, value in node.kwargs.items()]
        results = self.registers[node]
        picks = {user.args[1]: user for user in node.users if _is_unpacked(user)}
        if isinstance(node.meta.get("val"), list | tuple):
            count = len(node.meta["val"])
            results = "".join(
                f"{self.registers[picks[i]] if i in picks else '_'}, " for i in range(count)
            )
        self.lines.append(f"{results} = {self.constant(call)}({', '.join(arguments)})")

    def add_store(self, node: Node, index: int, store: Store) -> None:
        """Round the result of this index in place."""
        picks = [u for u in node.users if _is_unpacked(u) and u.args[1] == index]
        value = picks[0] if picks else node
        self.lines.append(f"{self.constant(store)}({self.registers[value]})")

    def free(self, registers: Iterable[str]) -> None:
        """Let go of values behind their last use."""
        names = sorted(registers)
        if names:
            self.lines.append(" = ".join([*names, "None"]))

    def compile(self, inputs: list[Node]) -> Program:
        """The function."""
        names = "".join(f"{self.registers[node]}, " for node in inputs)
        unpack = [f"{names} = inputs" if names else "", "inputs.clear()"]
        body = "\n    ".join([*filter(None, unpack), "_ = None", *self.lines])
        scope = dict(self.constants)
        # The text is made of node names and constants above; nothing in it comes from outside.
        exec(compile(f"def program(inputs):\n    {body}\n", "<dojo program>", "exec"), scope)
        program: Program = scope["program"]
        return program
