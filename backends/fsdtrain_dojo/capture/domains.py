"""Which values of a graph stay FP32 whatever the recipe: addresses, and the inside of the loss.

Both are derived from the graph. Pure functions; nothing here knows formats.
"""

import operator

import torch
from torch.fx import Graph, Node

from fsdtrain.step_graph.nodes import is_backward, operands, output_values
from fsdtrain_dojo.capture.dataflow import (
    Rules,
    is_float,
    reachable,
    reads,
)
from fsdtrain_dojo.op_rules import Kind

# A loss does not reach back over these: they are layers of the model.
_LAYERS = (Kind.MATRIX, Kind.NORM)


def is_layer(node: Node, rules: Rules) -> bool:
    """Whether the value is one of a layer's results."""
    producer = node.args[0] if node.target is operator.getitem else node
    return isinstance(producer, Node) and producer in rules and rules[producer].kind in _LAYERS


def find_addresses(graph: Graph, rules: Rules, trained: set[Node]) -> set[Node]:
    """Everything an index or a sampling coordinate is computed from.

    Goes back from casts of floats to integers and from arguments that are coordinates, over
    geometry of any kind, and stops at layers that depend on a trained weight: an offset a network
    predicts is an activation up to the place where it becomes a coordinate.

    Args:
        graph: of ATen ops.
        rules: of its ops.
        trained: the inputs that are weights.
    """
    learnt = reachable(trained, lambda node: node.users, is_wall=lambda node: False)

    def is_learnt_layer(node: Node) -> bool:
        return node in learnt and is_layer(node, rules)

    ends = [
        value
        for node, rule in rules.items()
        for position, value in operands(node)
        if is_float(value) and (position in rule.addresses or _gives_integers(node))
    ]
    return reachable(
        ends,
        lambda node: [each for each in node.all_input_nodes if _holds_floats(each)],
        is_wall=is_learnt_layer,
    )


def _gives_integers(node: Node) -> bool:
    """A cast: comparisons give bool, and argmax and the like only compare."""
    value = node.meta.get("val")
    return (
        "_to_copy" in str(node.target)
        and isinstance(value, torch.Tensor)
        and not value.is_floating_point()
        and value.dtype is not torch.bool
    )


def _holds_floats(node: Node) -> bool:
    return any(value.is_floating_point() for value in output_values(node))


def find_loss(graph: Graph, rules: Rules) -> set[Node]:
    """The inside of the loss, and of its backward pass.

    Forward: what scalar results are computed from, back to the last layers. Backward: from the
    scalars' gradients on to those layers; the gradient that enters a layer is a stored tensor.
    """
    output = graph.output_node()
    scalars = [
        node
        for node in output.all_input_nodes
        if is_float(node) and node.meta["val"].ndim == 0 and not is_backward(node)
    ]
    inside = reachable(
        scalars, lambda node: node.all_input_nodes, is_wall=lambda node: is_layer(node, rules)
    )
    seeds = [node for node in graph.nodes if node.op == "placeholder" and is_backward(node)]
    loss_seeds = [node for node in seeds if node.meta["val"].ndim == 0]
    others = [node for node in seeds if node not in loss_seeds]
    layers = [node for node in rules if is_backward(node) and is_layer(node, rules)]
    behind_layers = reachable(
        [*layers, *others], lambda node: node.users, is_wall=lambda node: False
    )
    gradients = reachable(
        loss_seeds, lambda node: node.users, is_wall=lambda node: node in behind_layers
    )
    allowed = inside | gradients | {output}
    return {
        value
        for value in inside | gradients
        if is_float(value)
        and all(
            read.reader in allowed and not _is_trained_result(read.reader, value, output)
            for read in reads(value, rules)
            if is_backward(read.reader) == is_backward(value) or read.reader is output
        )
    }


def _is_trained_result(reader: Node, value: Node, output: Node) -> bool:
    """Whether the value leaves as the gradient of an input."""
    return reader is output and is_backward(value)
