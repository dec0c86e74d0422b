"""The norm of the gradients in metrics.csv is torch's own, before it clips them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdtrain_cpu import CpuBackend
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from fsdtrain.backend import Backend, TrainerParts, load_backend
from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.metrics_file import read_curves
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.step import TrainingStep
from fsdtrain.engine.trainer import build_trainer
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.report.curves import arrange_panels
from fsdtrain.settings import TrainingSettings

MakeTraining = Callable[..., TrainingSettings]
MakeBatch = Callable[..., ClipBatch]
MakeNetwork = Callable[..., HydraBev]
Fit = Callable[..., dict[int, float]]


class NormsOfCopies(Callback):
    """What torch's own clipping finds in every step, of copies."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        copies = [nn.Parameter(torch.empty_like(each)) for each in pl_module.parameters()]
        for copy, parameter in zip(copies, pl_module.parameters(), strict=True):
            copy.grad = None if parameter.grad is None else parameter.grad.clone()
        self.norms.append(float(nn.utils.clip_grad_norm_(copies, 1e9)))


class ScaledGradients(MixedPrecision):
    """Scales the loss as fp16-mixed does, and computes in float32: a CPU has few ops in fp16."""

    def autocast_context_manager(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


class ScalingBackend(CpuBackend):
    def trainer_parts(self) -> TrainerParts:
        plugin = ScaledGradients("16-mixed", "cpu")
        return replace(super().trainer_parts(), precision=None, plugins=(plugin,))


@pytest.fixture
def fit(make_network: MakeNetwork, make_batch: MakeBatch, tmp_path: Path) -> Fit:
    """`fit(training, backend, ...)` -> the logged norms by step."""

    def _fit(
        training: TrainingSettings,
        backend: Backend,
        *callbacks: Callback,
        fuses_optimizer: bool = False,
        num_batches: int = 10,
    ) -> dict[int, float]:
        step = TrainingStep(make_network())
        module = DrivingModule(step, training, fuses_optimizer=fuses_optimizer)
        backend.compile_step(step)
        trainer = build_trainer(training, backend, tmp_path, first_step=0)
        trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]  # Lightning's, untyped
        batches: Any = torch.utils.data.DataLoader(
            [make_batch(seed=seed) for seed in range(num_batches)],  # type: ignore[arg-type]
            batch_size=None,
        )
        trainer.fit(module, batches, batches)
        curve = read_curves(tmp_path / "metrics.csv")["train/gradient_norm"]
        return dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))

    return _fit


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning")
class TestGradientNorm:
    @pytest.mark.parametrize("backend", ["cpu", "dojo"])
    def test_is_of_logged_steps_and_before_clipping(
        self, fit: Fit, make_training: MakeTraining, backend: str
    ) -> None:
        expected = NormsOfCopies()
        training = make_training(max_steps=4, log_every_steps=2, gradient_clip_norm=1e-3)
        logged = fit(training, load_backend(backend, {}), expected, num_batches=4)
        assert logged == {step: pytest.approx(expected.norms[step]) for step in (1, 3)}
        assert min(expected.norms) > 1e-2  # far above what clipping leaves

    def test_is_of_all_accumulated_batches(self, fit: Fit, make_training: MakeTraining) -> None:
        expected = NormsOfCopies()
        training = make_training(max_steps=3, accumulate_batches=2)
        logged = fit(training, load_backend("cpu", {}), expected)
        assert logged == {step: pytest.approx(norm) for step, norm in enumerate(expected.norms)}

    @pytest.mark.parametrize("fuses_optimizer", [False, True])
    def test_is_without_the_scale_of_mixed_precision(
        self, fit: Fit, make_training: MakeTraining, fuses_optimizer: bool
    ) -> None:
        scaled = NormsOfCopies()
        training = make_training(max_steps=1, gradient_clip_norm=None)
        logged = fit(training, ScalingBackend(), scaled, fuses_optimizer=fuses_optimizer)
        assert scaled.norms[0] / logged[0] == pytest.approx(2**16 if fuses_optimizer else 1)
        plain = fit(training, load_backend("cpu", {}))
        assert logged[0] == pytest.approx(plain[0], rel=1e-5)

    def test_has_a_panel_of_its_own(
        self, fit: Fit, make_training: MakeTraining, tmp_path: Path
    ) -> None:
        fit(make_training(max_steps=2), load_backend("cpu", {}))
        panels = arrange_panels(read_curves(tmp_path / "metrics.csv"))
        (panel,) = [panel for panel in panels if panel.quantity == "gradient_norm"]
        assert panel.section == "Training"
        assert [series.role for series in panel.series] == ["train"]
