"""One op of a captured graph as a function of its tensors, as it is and in double precision.

What an op draws at random it draws from a generator state of its own, on the CPU: the same numbers
each time, on every device. It does not know how results are stored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fsdtrain.step_graph.graph import OpCall, Operand
from fsdtrain.step_graph.nodes import function_of

Call = Callable[[Sequence[Tensor]], Any]

aten = torch.ops.aten
_NARROW = (torch.float32, torch.bfloat16, torch.float16)
# Whether the half-precision input is to become a float32 result; in double it is neither.
_HALF_TO_FLOAT = {aten._softmax.default: 2, aten._log_softmax.default: 2}
# Give whatever is there, which is not the same each time.
_UNFILLED = (
    aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default,
    aten.new_empty.default, aten.new_empty_strided.default,
)  # fmt: skip
# Read bits rather than numbers.
_OF_BITS = (aten.view.dtype,)


@dataclass(frozen=True, kw_only=True)
class OpArguments:
    """The arguments of a node, with an `Operand` where a tensor goes.

    Args:
        args: positional ones.
        kwargs: those by name.
        nodes: the tensors, in order; one may come twice.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    nodes: tuple[Node, ...]

    def filled(self, tensors: Sequence[Tensor]) -> tuple[list[Any], dict[str, Any]]:
        def fill(argument: Any) -> Any:
            if isinstance(argument, Operand):
                return tensors[argument.place]
            return [fill(each) for each in argument] if isinstance(argument, list) else argument

        return [fill(each) for each in self.args], {k: fill(v) for k, v in self.kwargs.items()}

    def mapped(self, change: Callable[[Any], Any]) -> "OpArguments":
        """With other constants."""

        def walk(argument: Any) -> Any:
            return (
                [walk(each) for each in argument]
                if isinstance(argument, list)
                else change(argument)
            )

        kwargs = {name: walk(each) for name, each in self.kwargs.items()}
        return replace(self, args=tuple(walk(each) for each in self.args), kwargs=kwargs)


def read_arguments(node: Node) -> OpArguments:
    """The arguments of an op, its tensors taken out."""
    nodes: list[Node] = []

    def take(argument: Any) -> Any:
        if isinstance(argument, Node):
            nodes.append(argument)
            return Operand(len(nodes) - 1)
        if isinstance(argument, list | tuple):
            return [take(each) for each in argument]
        return argument

    args = tuple(take(each) for each in node.args)
    kwargs = {name: take(each) for name, each in node.kwargs.items()}
    return OpArguments(args=args, kwargs=kwargs, nodes=tuple(nodes))


def describe_call(
    node: Node, arguments: OpArguments, stores: Sequence[Mapping[str, object] | None]
) -> OpCall | None:
    """What the op calls, in words; None: other than a function of torch.ops."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    return OpCall(
        target=str(target),
        arguments=arguments.args,
        keywords=arguments.kwargs,
        stores=tuple(stores),
    )


def plain_call(
    node: Node, arguments: OpArguments, function: Callable[..., Any] | None = None
) -> Call:
    """The op as PyTorch runs it, or as `function` does."""
    run = function_of(node) if function is None else function
    is_unfilled = node.target in _UNFILLED

    def call(tensors: Sequence[Tensor]) -> Any:
        args, kwargs = arguments.filled(tensors)
        results = run(*args, **kwargs)
        return results.zero_() if is_unfilled else results

    return call


def exact_call(node: Node, arguments: OpArguments) -> Call:
    """The op in double precision, from tensors of any precision."""
    run = plain_call(node, arguments)
    if node.target in _OF_BITS:
        return lambda tensors: widened(run(tensors))
    wide = arguments.mapped(lambda each: torch.float64 if each in _NARROW else each)
    if node.target in _HALF_TO_FLOAT:
        position = _HALF_TO_FLOAT[node.target]
        wide = replace(
            wide, args=tuple(False if n == position else a for n, a in enumerate(wide.args))
        )
    in_double = plain_call(node, wide)
    return lambda tensors: widened(in_double([_widen(each) for each in tensors]))


def widened(results: Any) -> Any:
    """Floating results in double."""
    return [_widen(e) for e in results] if isinstance(results, list | tuple) else _widen(results)


def _widen(value: Any) -> Any:
    is_narrow = isinstance(value, Tensor) and value.dtype in _NARROW
    return value.double() if is_narrow else value


def is_random(node: Node) -> bool:
    """Whether the op draws numbers."""
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in target.tags
    )


def random_call(node: Node, arguments: OpArguments, state: Tensor) -> Call:
    """An op that draws numbers, each time from the same state of the CPU's generator."""
    on_cpu = arguments.mapped(_without_device)
    run = plain_call(node, on_cpu)

    def call(tensors: Sequence[Tensor]) -> Any:
        device = node_device(node)
        with torch.random.fork_rng(devices=()):
            torch.set_rng_state(state)
            results = run([each.cpu() for each in tensors])
        if isinstance(results, list | tuple):
            return [each.to(device) for each in results]
        return results.to(device)

    return call


def exact_random_call(node: Node, arguments: OpArguments, state: Tensor) -> Call:
    """What `random_call` draws, applied in double where a mask is all that is drawn."""
    draw = random_call(node, arguments, state)
    if node.target is not aten.native_dropout.default:
        return lambda tensors: widened(draw([_narrow(each) for each in tensors]))
    probability, is_training = node.args[1:3]

    def drop(tensors: Sequence[Tensor]) -> Any:
        _, mask = draw([torch.ones_like(tensors[0], dtype=torch.float32)])
        if not is_training:
            return tensors[0].double(), mask
        assert isinstance(probability, int | float)
        scale = 1 / (1 - probability) if probability < 1 else 0.0
        return tensors[0].double() * mask * scale, mask

    return drop


def state_behind(node: Node, arguments: OpArguments, state: Tensor) -> Tensor:
    """The generator's state when the op has drawn, which depends on its shapes alone."""
    tensors = [
        torch.full(each.meta["val"].shape, 0.5, dtype=each.meta["val"].dtype)
        if each.meta["val"].is_floating_point()
        else torch.zeros(each.meta["val"].shape, dtype=each.meta["val"].dtype)
        for each in arguments.nodes
    ]
    run = plain_call(node, arguments.mapped(_without_device))
    with torch.random.fork_rng(devices=()):
        torch.set_rng_state(state)
        run(tensors)
        return torch.get_rng_state()


def node_device(node: Node) -> torch.device:
    """Where an op's results are."""
    value = node.meta["val"]
    first = value[0] if isinstance(value, list | tuple) else value
    device: torch.device = first.device
    return device


def _without_device(argument: Any) -> Any:
    return torch.device("cpu") if isinstance(argument, torch.device) else argument


def _narrow(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.float64 else value
