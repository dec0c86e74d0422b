"""Whole training runs through Lightning: resumed bit for bit, undisturbed by validation, on DDP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdtrain_dojo.backend import DojoBackend
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from fsdtrain.backend import BackendError

ROLES = ("activation", "activation_gradient", "weight_gradient", "vector", "vector_gradient")
# Everything that has a state: histories, and random bits keyed by the step.
NOISY_CFP8: dict[str, Any] = {
    **{role: {"format": "cfloat8_1_5_2", "rounding": "stochastic"} for role in ROLES},
    "weight": {"format": "cfloat8_1_4_3"},
    "master_weight": {"format": "cfloat16_shp", "rounding": "stochastic"},
    "first_moment": {"format": "bf16", "rounding": "stochastic"},
    "amax_history": 3,
}
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def deterministic_switch() -> Iterator[None]:
    """`Trainer(deterministic=True)` switches the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


class Step(nn.Module):
    """Convolution, norm, dropout, a block that is computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        # A bias before a norm has no gradient but rounding errors, and Adam makes steps of those.
        convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.first = nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU(), nn.Dropout(0.2))
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        x = self.first(images)
        x = x + checkpoint(self.block, x, use_reentrant=False)
        return nn.functional.cross_entropy(self.last(x.mean((2, 3))), classes)


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step = Step()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.step(*batch)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val", self.step(*batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.step.parameters(), lr=1e-2)


class SaveEpochs(Callback):
    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.run_dir / f"epoch{trainer.current_epoch + 1}.ckpt")


class Loader:
    """Batches by their number; Lightning would take a list for many loaders."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self.num_batches):
            generator = torch.Generator().manual_seed(number)
            images = torch.randn(4, 3, 8, 8, generator=generator)
            yield images, torch.randint(0, 4, (4,), generator=generator)


def fit(
    run_dir: Path,
    *,
    epochs: int,
    recipe: dict[str, Any],
    ckpt_path: Path | None = None,
    seed: int = 7,
    **options: Any,
) -> tuple[State, DojoBackend]:
    """Four batches an epoch, two of them summed to a step, clipped, averaged."""
    torch.manual_seed(seed)
    backend = DojoBackend(recipe=recipe, read_every_steps=0)
    module = Module()
    backend.compile_step(module.step)
    parts = backend.trainer_parts()
    average = get_ema_multi_avg_fn(0.5)  # type: ignore[no-untyped-call]
    trainer = Trainer(
        accelerator=parts.accelerator,
        strategy=parts.strategy,
        devices=parts.devices,
        plugins=list(parts.plugins),
        callbacks=[WeightAveraging(multi_avg_fn=average), SaveEpochs(run_dir)],
        max_epochs=epochs,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=run_dir,
        **{"limit_val_batches": 0, "num_sanity_val_steps": 0, **options},
    )
    trainer.fit(module, Loader(4), Loader(1), ckpt_path=ckpt_path, weights_only=True)
    return {name: value.clone() for name, value in module.state_dict().items()}, backend


def assert_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path, epochs=3, recipe=NOISY_CFP8)
    fit(tmp_path, epochs=1, recipe=NOISY_CFP8)
    # Another global seed: dropout goes on from the checkpoint's generator.
    resumed, backend = fit(
        tmp_path, epochs=3, recipe=NOISY_CFP8, ckpt_path=tmp_path / "epoch1.ckpt", seed=8
    )
    assert_equal(whole, resumed)
    assert backend.table.step == 12


def test_validation_changes_nothing(tmp_path: Path) -> None:
    # Without dropout in the way of the comparison: validation draws no random numbers.
    plain, _ = fit(tmp_path, epochs=2, recipe=NOISY_CFP8)
    validated, _ = fit(tmp_path, epochs=2, recipe=NOISY_CFP8, limit_val_batches=1)
    assert_equal(plain, validated)


def test_the_recipe_is_what_makes_the_difference(tmp_path: Path) -> None:
    runs = [
        fit(tmp_path, epochs=1, recipe=recipe)[0]
        for recipe in ({}, NOISY_CFP8, {"activation": {"format": "bf16"}})
    ]
    for number, one in enumerate(runs):
        for other in runs[number + 1 :]:
            assert not torch.equal(one["step.last.weight"], other["step.last.weight"])


def test_without_rounding_it_trains_as_eager_does(tmp_path: Path) -> None:
    found, _ = fit(tmp_path, epochs=2, recipe={})
    torch.manual_seed(7)
    module = Module()
    average = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer = torch.optim.AdamW(module.step.parameters(), lr=1e-2)
    num_steps = 0
    for number, batch in enumerate([*Loader(4), *Loader(4)]):
        (module.step(*batch) / 2).backward()
        if number % 2 == 1:
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            num_steps += 1
            for name, value in module.named_parameters():
                # The average starts with the first weights that were trained.
                share = 0.5 if num_steps > 1 else 0.0
                average[name] = share * average[name] + (1 - share) * value.detach()
    for name, value in average.items():
        difference = (found[name] - value).norm() / value.norm()
        # Adam divides by the gradient's size: rounding errors of tiny gradients are seen.
        assert difference < 1e-3, name


def test_a_recipe_of_another_history_cannot_resume(tmp_path: Path) -> None:
    fit(tmp_path, epochs=1, recipe=NOISY_CFP8)
    with pytest.raises(BackendError, match="holds 3 steps of magnitudes"):
        fit(
            tmp_path, epochs=2, recipe={**NOISY_CFP8, "amax_history": 5},
            ckpt_path=tmp_path / "epoch1.ckpt",
        )  # fmt: skip


def test_bf16_mixed_is_refused_with_the_remedy() -> None:
    backend = DojoBackend()
    module = Module()
    backend.compile_step(module.step)
    batch = next(iter(Loader(1)))
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(BackendError, match="autocast is on.*backend/recipe=bf16"),
    ):
        module.step(*batch)


def test_fewer_than_one_device_is_refused() -> None:
    with pytest.raises(BackendError, match="backend.devices=0: must be at least 1"):
        DojoBackend(devices=0)
