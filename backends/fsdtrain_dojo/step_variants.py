"""One training step under many recipes: captured once, marked and lowered for each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from fsdtrain.step_graph.graph import StepGraph
from fsdtrain_dojo.capture.emulated_step import emulate_step, trace_emulated_step
from fsdtrain_dojo.lowering.record_step import StepRecorder
from fsdtrain_dojo.modelling import model_step
from fsdtrain_dojo.recipe import Recipe, read_recipe

if TYPE_CHECKING:
    from fsdtrain_dojo.backend import DojoBackend


class DojoVariants:
    """A step on this backend under other recipes.

    Args:
        backend: the machine, and all options but the recipe.
        step: in the mode that it trains in; left as it is.
        batch: what `step` takes.
        optimizer: of the step's weights; left as it is.

    Raises:
        BackendError: the step is no static graph of known ops.
    """

    def __init__(
        self, backend: "DojoBackend", step: nn.Module, batch: Any, optimizer: Optimizer
    ) -> None:
        self.backend = backend
        self._traced = trace_emulated_step(step, batch, to_device=backend.to_device)
        self._recorder = StepRecorder(step, batch, optimizer)

    def graph(self, options: Mapping[str, object]) -> StepGraph:
        """See `fsdtrain.backend.StepVariants`."""
        return emulate_step(
            self._traced,
            recipe=_recipe(options),
            seed=self.backend.seed,
            implementations=self.backend.compiler.implementations,
        )

    def time_s(self, options: Mapping[str, object]) -> float:
        """See `fsdtrain.backend.StepVariants`."""
        kernels = self.backend.kernels_of(self._recorder.record(_recipe(options)))
        return model_step(kernels, self.backend.machine).time.seconds


def _recipe(options: Mapping[str, Any]) -> Recipe:
    return read_recipe(
        options["recipe"],
        denormals=options["denormals"],
        uhp_has_specials=options["uhp_has_specials"],
    )
