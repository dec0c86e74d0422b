"""Makes what activation checkpointing computes a second time equal to the first time.

    drop, mask = aten.native_dropout(x, p)      mask: kept; drop: mask * x / (1 - p), each time
    aten.batch_norm(x, ..., running_mean)   =>  aten.batch_norm(x, ..., clone(running_mean)), kept

PyTorch would set the generator back and draw again, in an op that hides the real one; and it would
read running statistics that have moved on since. Works on the joint graph, before sites are marked.
"""

import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

aten = torch.ops.aten
_RECOMPUTED = (CheckpointPolicy.MUST_RECOMPUTE, CheckpointPolicy.PREFER_RECOMPUTE)
_BATCH_NORM = aten._native_batch_norm_legit_functional.default
_RUNNING_STATISTICS = (3, 4)  # positions


def settle_checkpointing(graph: Graph) -> None:
    """Rewrite the ops of checkpointed blocks that are not the same when run again, in place."""
    for node in list(graph.nodes):
        if node.meta.get("recompute") not in _RECOMPUTED:
            continue
        if node.target is aten.native_dropout.default:
            _keep_mask(node)
        elif node.target is _BATCH_NORM:
            _keep_running_statistics(node)
        elif (
            isinstance(node.target, torch._ops.OpOverload)
            and torch.Tag.nondeterministic_seeded in node.target.tags
        ):
            _keep(node)


def _keep_mask(dropout: Node) -> None:
    _keep(dropout)
    probability, is_training = dropout.args[1:3]
    dropped = [user for user in dropout.users if user.args[1] == 0]
    masks = [user for user in dropout.users if user.args[1] == 1]
    if not dropped or not is_training:
        return
    assert isinstance(probability, int | float)
    graph = dropout.graph
    with graph.inserting_after(dropout):
        mask = masks[0] if masks else graph.call_function(operator.getitem, (dropout, 1))
    mask.meta |= _kept(dropout) | {"val": dropout.meta["val"][1]}
    scale = 1 / (1 - probability) if probability < 1 else 0.0
    with graph.inserting_after(mask):
        again = graph.call_function(
            aten.native_dropout_backward.default, (dropout.args[0], mask, scale)
        )
    again.meta = {**dropped[0].meta, "recompute": CheckpointPolicy.MUST_RECOMPUTE}
    dropped[0].replace_all_uses_with(again)
    graph.erase_node(dropped[0])


def _keep_running_statistics(norm: Node) -> None:
    for position in _RUNNING_STATISTICS:
        statistics = norm.args[position]
        if not isinstance(statistics, Node):
            continue
        with norm.graph.inserting_before(norm):
            copy = norm.graph.call_function(aten.clone.default, (statistics,))
        copy.meta = _kept(norm) | {"val": statistics.meta["val"].clone()}
        norm.update_arg(position, copy)


def _keep(node: Node) -> None:
    for each in (node, *(user for user in node.users if user.target is operator.getitem)):
        each.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def _kept(node: Node) -> dict[str, Any]:
    return {
        "partitioner_tag": node.meta.get("partitioner_tag"),
        "recompute": CheckpointPolicy.MUST_SAVE,
    }
