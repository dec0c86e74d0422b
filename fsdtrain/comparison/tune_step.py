"""`compare --tune` on a training step: gradients of its variants, times of the backend's model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fsdtrain.backend import Backend
from fsdtrain.comparison.record import TunedRecipe
from fsdtrain.comparison.tune import Options, find_formats, gradient_snr_db, tune
from fsdtrain.errors import UserError
from fsdtrain.step_graph.graph import StepGraph, run_freely


def tune_step(
    backend: Backend,
    step: nn.Module,
    batch: Any,
    *,
    reference: StepGraph,
    make_optimizer: Callable[[nn.Module], Optimizer],
    margin_snr_db: float | None = None,
) -> TunedRecipe:
    """See `tune`.

    Args:
        backend: with the recipe to start from.
        step: in the mode that it trains in; its weights are left as they are.
        batch: what `step` takes.
        reference: the same step without formats.
        make_optimizer: of the step's weights, for the model's update.
        margin_snr_db: see `tune`.

    Raises:
        UserError: the backend has no formats to choose from; or see `tune`.
    """
    ladders = find_formats(backend)
    variants = backend.step_variants(step, batch, make_optimizer(step))
    if variants is None:
        raise UserError(f"tune: backend {backend.name} cannot run a step in other number formats")
    expected = _gradients(reference)

    def measure(options: Options) -> float:
        return gradient_snr_db(expected, _gradients(variants.graph(options)))

    return tune(
        ladders,
        measure=measure,
        step_time=variants.time_s,
        origin=backend.value_origin,
        margin_snr_db=margin_snr_db,
    )


def _gradients(graph: StepGraph) -> dict[str, Tensor]:
    values = run_freely(graph)
    return {weight: values[name] for weight, name in graph.gradients.items()}
