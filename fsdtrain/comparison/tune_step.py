"""`compare --tune` on a training step: gradients of its captures, times of the backend's model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fsdtrain.backend import Backend, load_backend
from fsdtrain.comparison.record import TunedRecipe
from fsdtrain.comparison.tune import MAX_CAPTURES, gradient_snr_db, tune
from fsdtrain.step_graph.graph import StepGraph, run_freely


def tune_step(
    backend: Backend,
    step: nn.Module,
    batch: Any,
    *,
    reference: StepGraph,
    make_optimizer: Callable[[nn.Module], Optimizer],
    margin_snr_db: float | None = None,
    max_captures: int = MAX_CAPTURES,
) -> TunedRecipe:
    """See `tune`.

    Args:
        backend: with the recipe to start from.
        step: in the mode that it trains in; its weights are left as they are.
        batch: what `step` takes.
        reference: the same step without formats.
        make_optimizer: of the step's weights, for the model's update.
        margin_snr_db: see `tune`.
        max_captures: see `tune`.

    Raises:
        UserError: see `tune`.
    """
    expected = _gradients(reference)

    def measure(chosen: Backend) -> float:
        return gradient_snr_db(expected, _gradients(chosen.step_graph(step, batch)))

    def step_time(chosen: Backend) -> float | None:
        return chosen.model_step_time(step, batch, make_optimizer(step))

    return tune(
        backend,
        load=lambda options: load_backend(backend.name, options),
        measure=measure,
        step_time=step_time,
        margin_snr_db=margin_snr_db,
        max_captures=max_captures,
    )


def _gradients(graph: StepGraph) -> dict[str, Tensor]:
    values = run_freely(graph)
    return {weight: values[name] for weight, name in graph.gradients.items()}
