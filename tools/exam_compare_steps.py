"""The training steps that tools/exam_compare.py examines: hydra-bev tiny on all sides."""

import tempfile
from typing import Any

from lightning import seed_everything
from omegaconf import OmegaConf

from fsdtrain.backend import load_backend
from fsdtrain.build import build_datamodule, build_network, find_data
from fsdtrain.data.assignment import Share
from fsdtrain.engine.step import TrainingStep
from fsdtrain.hydra_app import compose_config
from fsdtrain.ops.table import OpTable
from fsdtrain.settings import read_settings
from fsdtrain.step_graph.graph import StepGraph

# What a side may be: backend, options, recipe.
PAIRS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "cpu": ("cpu", {}, None),
    "cpu_bf16": ("cpu", {"precision": "bf16-mixed"}, None),
    "dojo": ("dojo", {}, "bf16"),
    "dojo_cfp8": ("dojo", {}, "cfp8"),
    "dojo_cfp8_stochastic": ("dojo", {}, "cfp8_stochastic"),
}


def hydra_bev(seed: int) -> tuple[TrainingStep, Any]:
    """hydra-bev tiny and the first batch of the synthetic fleet."""
    folder = tempfile.mkdtemp()
    settings = read_settings(compose_config("fit", [f"run_dir={folder}", "data.num_workers=0"]))
    seed_everything(seed, verbose=False)
    network = build_network(settings.model, OpTable())
    datamodule = build_datamodule(settings, network, *find_data(settings.data))
    loader = datamodule.loader("train", Share(batch_size=settings.data.batch_size))
    return TrainingStep(network), next(iter(loader))


def side_graph(pair: str, step: TrainingStep, batch: Any) -> StepGraph:
    """The step as a side computes it."""
    name, options, recipe = PAIRS[pair]
    if recipe is not None:
        overrides = ["run_dir=.", "backend=dojo", f"backend/recipe={recipe}"]
        composed = compose_config("fit", overrides).backend.recipe
        options = {**options, "recipe": OmegaConf.to_container(composed, resolve=True)}
    return load_backend(name, options).step_graph(step, batch)
