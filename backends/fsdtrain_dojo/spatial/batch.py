"""A kernel's computation for many nodes at once.

Nodes whose local tensors have the same shapes are stacked and computed as one by `torch.func.vmap`,
which keeps them apart; where what they compute hangs on where they are, `per_node` parts them. What
vmap cannot do is found out before, from what one node calls, and then computed node by node.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fsdtrain_dojo.lowering.kernel import Block, Kernel
from fsdtrain_dojo.spatial.boxes import Ints
from fsdtrain_dojo.spatial.per_node import Batch, Divided, PerNode
from fsdtrain_dojo.spatial.together import Together
from fsdtrain_dojo.spatial.watch import Calls, Ops

Made = list[tuple[Ints, list[Tensor]]]

_FEW = 2  # nodes that are as well computed one by one


def compute_nodes(
    kernel: Kernel, ranges: Ints, boxes: Sequence[Ints], tensors: Sequence[Tensor]
) -> Made:
    """What nodes make of local tensors of the same shapes.

    Args:
        kernel: what is computed.
        ranges: of every loop: [node, loop, (first, end)].
        boxes: of every read, then of every write: [node, dimension, (first, end)].
        tensors: of every read: [node, *shape].

    Returns:
        (numbers of nodes, their results as [node, *shape]) of those that were computed together.
    """
    if len(ranges) <= _FEW or not is_batchable(kernel, ranges, boxes, tensors):
        alone = [_compute_one(kernel, ranges, boxes, tensors, node) for node in range(len(ranges))]
        return [(np.arange(len(ranges)), list(map(torch.stack, zip(*alone, strict=True))))]
    done: Made = []
    waiting = [np.arange(len(ranges))]
    while waiting:
        nodes = waiting.pop()
        if len(nodes) == 1:
            made = _compute_one(kernel, ranges, boxes, tensors, int(nodes[0]))
            done.append((nodes, [each[None] for each in made]))
            continue
        some = [each[nodes] for each in tensors] if len(nodes) < len(ranges) else tensors
        found = _compute_together(kernel, ranges[nodes], [each[nodes] for each in boxes], some)
        if isinstance(found, Batch):
            waiting += [nodes[part] for part in found.parts]
        else:
            done.append((nodes, found))
    return done


def is_batchable(
    kernel: Kernel, ranges: Ints, boxes: Sequence[Ints], tensors: Sequence[Tensor]
) -> bool:
    """Whether vmap can do all that the first of these nodes does."""
    local = [each[0].clone() for each in tensors]
    ops = Ops(local)
    with ops, Calls(ops) as calls:
        kernel.compute(local, _plain_block(ranges, boxes, 0))
    return ops.have_rules and not calls.leave_torch


def _compute_one(
    kernel: Kernel, ranges: Ints, boxes: Sequence[Ints], tensors: Sequence[Tensor], node: int
) -> list[Tensor]:
    # A memory of its own: what is behind a tensor is the node's, too.
    return kernel.compute(
        [each[node].clone() for each in tensors], _plain_block(ranges, boxes, node)
    )


def _plain_block(ranges: Ints, boxes: Sequence[Ints], node: int) -> Block:
    return Block(
        ranges=tuple(map(tuple, ranges[node].tolist())),
        boxes=tuple(tuple(map(tuple, each[node].tolist())) for each in boxes),
    )


def _compute_together(
    kernel: Kernel, ranges: Ints, boxes: Sequence[Ints], tensors: Sequence[Tensor]
) -> list[Tensor] | Batch:
    """The results, or how the nodes have to be divided."""
    batches: list[Batch] = []

    def compute(node: Tensor, *local: Tensor) -> list[Tensor]:
        batch = Batch(node)
        batches.append(batch)
        # They stand for integers; see `per_node`.
        block: Any = Block(
            ranges=cast(Any, _per_node(ranges, batch)),
            boxes=tuple(cast(Any, _per_node(each, batch)) for each in boxes),
        )
        return kernel.compute(local, block)

    try:
        with Together():
            found: list[Tensor] = torch.func.vmap(compute)(torch.arange(len(ranges)), *tensors)
            return found
    except (Divided, TypeError):  # PyTorch makes the latter of what it meets while it reads numbers
        if not batches[0].parts:
            raise
        return batches[0]


def _per_node(boxes: Ints, batch: Batch) -> tuple[tuple[PerNode, PerNode], ...]:
    return tuple(
        (PerNode(boxes[:, dim, 0], batch), PerNode(boxes[:, dim, 1], batch))
        for dim in range(boxes.shape[1])
    )
