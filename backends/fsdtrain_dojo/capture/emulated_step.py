"""The first training step as ops that round what they store, for comparisons op by op.

The same graphs as those of a compiled step, with the same sites. Nothing is registered: a store is
a function of the tensor alone, as in the first step of a run, when no site has a history.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node

from fsdtrain.step_graph.behaviour import Behaviour
from fsdtrain.step_graph.capture import TracedStep, trace_step
from fsdtrain.step_graph.graph import StepGraph
from fsdtrain_dojo.capture.compiler import WHO, refuse_autocast
from fsdtrain_dojo.capture.program import Implementations, find_matrix_op
from fsdtrain_dojo.capture.roles import SITES, STORED, mark_sites
from fsdtrain_dojo.capture.store_words import describe_store, read_store
from fsdtrain_dojo.formats import FP32
from fsdtrain_dojo.recipe import Recipe
from fsdtrain_dojo.site import Site


def trace_emulated_step(
    step: nn.Module, batch: Any, *, to_device: Callable[[Tensor], Tensor]
) -> TracedStep:
    """Trace `step(batch).loss.backward()`, for any recipe.

    Args:
        step: in the mode that it trains in.
        batch: its input.
        to_device: brings a tensor to where the emulation runs.

    Raises:
        BackendError: the step is no static graph of known ops.
    """
    refuse_autocast()
    return trace_step(step, batch, to_device=to_device, who=WHO)


def emulate_step(
    traced: TracedStep, *, recipe: Recipe, seed: int, implementations: Implementations
) -> StepGraph:
    """The step with the formats of a recipe.

    Args:
        traced: the step; left as it is.
        recipe: the formats.
        seed: of stochastic rounding.
        implementations: of ATen overloads that shall not run as PyTorch runs them.

    Raises:
        BackendError: an op, a dtype or a shape the machine does not have, or nothing is trained.
    """

    def mark(graph: Graph, weights: Mapping[Node, str]) -> None:
        mark_sites(graph, recipe, weights)

    def words(node: Node) -> dict[int, Mapping[str, object]]:
        sites: Mapping[int, Site] = node.meta.get(SITES, {})
        return {number: describe_store(site, seed) for number, site in sites.items()}

    behaviour = Behaviour(
        function=lambda node: find_matrix_op(node, implementations),
        stores=lambda node: {n: read_store(each, recipe) for n, each in words(node).items()},
        formats=_formats,
        words=words,
    )
    return traced.graph(mark=mark, behaviour=behaviour)


def _formats(node: Node) -> dict[int, str]:
    sites: Mapping[int, Site] = node.meta.get(STORED, {}) | node.meta.get(SITES, {})
    return {
        number: site.rule.format.name
        for number, site in sites.items()
        if site.rule.format is not FP32
    }
