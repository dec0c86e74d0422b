"""Training through Lightning: reproducible, resumable bit for bit, and its parts by closed form."""

import csv
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fsdtrain.data.augment import Augmentation
from fsdtrain.data.batch import ClipBatch
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.data.schema import Clip
from fsdtrain.data.shard import write_shards
from fsdtrain.engine.checkpoints import read_step
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.step import TrainingStep
from fsdtrain.errors import UserError
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.settings import TrainingSettings

Train = Callable[..., tuple[Trainer, DrivingModule]]
MakeTraining = Callable[..., TrainingSettings]
MakeBatch = Callable[..., ClipBatch]
MakeNetwork = Callable[..., HydraBev]


class PowerCutError(RuntimeError):
    """Nothing in the trainer knows it."""


class CutPower(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            raise PowerCutError


class RecordWeights(Callback):
    """The trained (not the averaged) parameters after every optimiser step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > len(self.weights):
            parameters = pl_module.named_parameters()
            self.weights.append({name: value.detach().clone() for name, value in parameters})


class RecordGradients(Callback):
    """What the optimiser gets: accumulated and clipped."""

    def __init__(self) -> None:
        self.gradients: list[list[Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
            gradients = [parameter.grad for parameter in pl_module.parameters()]
            self.gradients.append([value.clone() for value in gradients if value is not None])

        # After the step: Lightning runs backward and clips inside of it.
        trainer.optimizers[0].register_step_post_hook(record)


def column(run_dir: Path, name: str) -> list[tuple[int, float]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        return [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    expected = second.state_dict()
    assert first.state_dict().keys() == expected.keys()
    for name, value in first.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_two_runs_of_one_seed_are_bit_identical(
    train: Train, make_training: MakeTraining, tmp_path: Path
) -> None:
    training = make_training(ema_decay=0.9)
    _, first = train(training, tmp_path / "first")
    _, second = train(training, tmp_path / "second")
    assert_same_state(first, second)
    contents = [(tmp_path / run / "metrics.csv").read_bytes() for run in ("first", "second")]
    assert contents[0] == contents[1]
    assert len(column(tmp_path / "first", "train/loss")) == 10


def test_the_seed_matters(
    train: Train, make_training: MakeTraining, make_network: MakeNetwork, tmp_path: Path
) -> None:
    train(make_training(), tmp_path / "first", network=make_network(seed=0))
    train(make_training(), tmp_path / "second", network=make_network(seed=1))
    first, second = (column(tmp_path / run, "train/loss") for run in ("first", "second"))
    assert first != second


@pytest.fixture(scope="module")
def shards(make_clip: Callable[..., Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for split, num_clips in (("train", 7), ("val", 2)):
        clips = [
            make_clip(clip_id=f"{split}-{n}", seed=n + 50 * (split == "val"), size=(32, 64))
            for n in range(num_clips)
        ]
        write_shards(clips, folder / split, prefix=split, clips_per_shard=4)
    return folder


@pytest.fixture
def make_datamodule(shards: Path, make_network: MakeNetwork) -> Callable[..., FleetDataModule]:
    heads: Any = make_network().heads.values()
    builders = [head.target_builder() for head in heads]
    return lambda **options: FleetDataModule(
        train=str(shards / "train"), val=str(shards / "val"), image_size=(16, 32), num_frames=2,
        batch_size=2, target_builders=builders, **options,
    )  # fmt: skip


def test_frames_as_stored_train_as_rgb_does(
    train: Train,
    make_training: MakeTraining,
    make_datamodule: Callable[..., FleetDataModule],
    tmp_path: Path,
) -> None:
    for frames in ("rgb", "i420"):
        datamodule = make_datamodule(frames=frames, augmentation=Augmentation())
        train(make_training(max_steps=6), tmp_path / frames, datamodule=datamodule)
    rgb, i420 = (dict(column(tmp_path / frames, "train/loss")) for frames in ("rgb", "i420"))
    assert i420 != rgb
    assert i420 == pytest.approx(rgb, rel=0.02)


# The best score starts anew with a new run folder; Lightning says so, and that an old one is used.
IN_A_NEW_FOLDER = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed:UserWarning:lightning.pytorch.callbacks.model_checkpoint"
)
IN_ITS_FOLDER = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists:UserWarning:lightning.pytorch.callbacks.model_checkpoint"
)


@IN_A_NEW_FOLDER
@IN_ITS_FOLDER
@pytest.mark.parametrize(
    ("cut_at", "accumulate_batches", "folder"), [(7, 1, "cut"), (7, 2, "new"), (10, 1, "new")]
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    train: Train,
    make_training: MakeTraining,
    make_datamodule: Callable[[], FleetDataModule],
    make_network: MakeNetwork,
    tmp_path: Path,
    cut_at: int,
    accumulate_batches: int,
    folder: str,
) -> None:
    """Three batches an epoch, a checkpoint every fourth step: in the middle of an epoch."""
    training = make_training(
        max_steps=11, validate_every_steps=4, ema_decay=0.8, accumulate_batches=accumulate_batches
    )
    whole_trainer, whole = train(training, tmp_path / "whole", datamodule=make_datamodule())
    with pytest.raises(PowerCutError):
        train(
            training,
            tmp_path / "cut",
            datamodule=make_datamodule(),
            callbacks=(CutPower(cut_at),),
        )
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    last_saved = read_step(checkpoint)
    assert 0 < last_saved < cut_at
    resumed_trainer, resumed = train(
        training,
        tmp_path / folder,
        datamodule=make_datamodule(),
        network=make_network(seed=5),  # so that nothing but the checkpoint can make them equal
        ckpt_path=checkpoint,
        first_step=last_saved,
    )
    assert_same_state(resumed, whole)
    first_step = 0 if folder == "cut" else last_saved
    for name in ("train/loss", "val/loss", "val/vehicle_iou_baseline_prior", "lr-AdamW/pg1"):
        assert column(tmp_path / folder, name) == [
            (step, value) for step, value in column(tmp_path / "whole", name) if step >= first_step
        ]
    for first, second in zip(whole_trainer.optimizers, resumed_trainer.optimizers, strict=True):
        states = zip(first.state.values(), second.state.values(), strict=True)
        for one, other in states:
            assert all(torch.equal(one[key], other[key]) for key in one)


@IN_ITS_FOLDER
@pytest.mark.parametrize("first_end", [4, 5, 6])
def test_a_finished_run_can_be_extended(
    train: Train,
    make_training: MakeTraining,
    make_datamodule: Callable[[], FleetDataModule],
    tmp_path: Path,
    first_end: int,
) -> None:
    """Three batches an epoch: the first run ends within an epoch, or with one; validated or not."""
    long = make_training(
        max_steps=10, validate_every_steps=2, schedule="constant", warmup_fraction=0, ema_decay=0.8
    )
    short = msgspec.structs.replace(long, max_steps=first_end)
    _, whole = train(long, tmp_path / "whole", datamodule=make_datamodule())
    train(short, tmp_path / "parts", datamodule=make_datamodule())
    checkpoint = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    _, extended = train(
        long,
        tmp_path / "parts",
        datamodule=make_datamodule(),
        ckpt_path=checkpoint,
        first_step=read_step(checkpoint),
    )
    assert_same_state(extended, whole)
    for name in ("train/loss", "val/loss"):
        assert column(tmp_path / "parts", name) == column(tmp_path / "whole", name)


@IN_A_NEW_FOLDER
def test_resuming_with_other_data_is_refused(
    train: Train,
    make_training: MakeTraining,
    make_datamodule: Callable[[], FleetDataModule],
    shards: Path,
    tmp_path: Path,
) -> None:
    training = make_training(validate_every_steps=2)
    with pytest.raises(PowerCutError):
        train(training, tmp_path / "cut", datamodule=make_datamodule(), callbacks=(CutPower(2),))
    other = make_datamodule()
    other._train = str(shards / "val")
    with pytest.raises(UserError, match="num_clips"):
        train(
            training,
            tmp_path / "resumed",
            datamodule=other,
            ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt",
        )


def test_the_average_is_the_closed_form(
    train: Train, make_training: MakeTraining, tmp_path: Path
) -> None:
    """ema_1 = w_1, ema_k = d ema_(k-1) + (1 - d) w_k, written out as one weighted sum."""
    decay, record = 0.7, RecordWeights()
    _, module = train(make_training(ema_decay=decay), tmp_path, callbacks=(record,))
    num = len(record.weights)
    shares = [decay ** (num - 1)] + [(1 - decay) * decay ** (num - k) for k in range(2, num + 1)]
    assert num == 10
    assert sum(shares) == pytest.approx(1.0)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, averaged in module.named_parameters():
        history = zip(shares, record.weights, strict=True)
        expected = sum(share * weights[name].double() for share, weights in history)
        torch.testing.assert_close(averaged.double(), expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(state[name], averaged)


def test_validation_sees_the_average_and_training_goes_on_from_the_weights(
    train: Train, make_training: MakeTraining, tmp_path: Path
) -> None:
    averaged, plain = RecordWeights(), RecordWeights()
    train(make_training(ema_decay=0.7), tmp_path / "averaged", callbacks=(averaged,))
    train(make_training(), tmp_path / "plain", callbacks=(plain,))
    for first, second in zip(averaged.weights, plain.weights, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    first_val, second_val = (column(tmp_path / run, "val/loss") for run in ("averaged", "plain"))
    assert first_val != second_val


def without_batch_norm(network: HydraBev) -> HydraBev:
    """Batch statistics differ between two small batches and a big one; nothing else does."""

    def replace(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
            else:
                replace(child)

    replace(network)
    vehicle: Any = network.heads["vehicle"]
    vehicle.dice_weight = 0.0  # a ratio of sums over the batch is no mean over its clips
    return network


def join(first: ClipBatch, second: ClipBatch) -> ClipBatch:
    def cat(name: str) -> Tensor:
        return torch.cat([getattr(first, name), getattr(second, name)])

    targets = {
        name: torch.cat([first.targets[name], second.targets[name]]) for name in first.targets
    }
    tensors = {name: cat(name) for name in ClipBatch._fields if name != "targets"}
    return ClipBatch(**tensors, targets=targets)


def test_accumulated_batches_equal_one_bigger_batch(
    train: Train,
    make_training: MakeTraining,
    make_network: MakeNetwork,
    make_batch: MakeBatch,
    tmp_path: Path,
) -> None:
    small = [make_batch(seed=seed) for seed in range(8)]
    big = [join(small[k], small[k + 1]) for k in range(0, 8, 2)]
    gradients = []
    for run, batches, accumulate in (("small", small, 2), ("big", big, 1)):
        record = RecordGradients()
        trainer, _ = train(
            # A clip norm that is reached, and a rate so small that the weights stay as they are.
            make_training(
                max_steps=4, validate_every_steps=2, accumulate_batches=accumulate,
                learning_rate=1e-30, gradient_clip_norm=0.01,
            ),
            tmp_path / run,
            batches=batches,
            network=without_batch_norm(make_network()),
            callbacks=(record,),
        )  # fmt: skip
        assert trainer.global_step == 4
        gradients.append(record.gradients)
        assert [step for step, _ in column(tmp_path / run, "val/loss")] == [1, 3]
    assert [len(steps) for steps in gradients] == [4, 4]
    for small_step, big_step in zip(*gradients, strict=True):
        norm = torch.stack([value.norm() for value in big_step]).norm()
        assert norm == pytest.approx(0.01, rel=1e-4)
        for one, other in zip(small_step, big_step, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


def test_stops_early_after_so_many_validations_without_improvement(
    train: Train, make_training: MakeTraining, tmp_path: Path
) -> None:
    training = make_training(
        max_steps=30, validate_every_steps=2, learning_rate=1e-30,
        monitor="val/vehicle_iou", monitor_mode="max", early_stop_patience=2,
    )  # fmt: skip
    trainer, _ = train(training, tmp_path)
    # The first validation is the best so far; two more without improvement.
    assert trainer.global_step == 6
    assert [value for _, value in column(tmp_path, "val/vehicle_iou")] == [0.0] * 3


@pytest.mark.parametrize(("max_steps", "validate_every"), [(3, 5), (7, 5), (10, 5), (10, 4)])
def test_the_last_checkpoint_is_of_the_last_step(
    train: Train,
    make_training: MakeTraining,
    tmp_path: Path,
    max_steps: int,
    validate_every: int,
) -> None:
    training = make_training(
        max_steps=max_steps, validate_every_steps=validate_every, ema_decay=0.5
    )
    _, module = train(training, tmp_path)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == max_steps
    for name, value in module.state_dict().items():
        assert torch.equal(last["state_dict"][name], value), name


def test_the_best_checkpoint_is_the_best_by_the_monitored_figure(
    train: Train, make_training: MakeTraining, tmp_path: Path
) -> None:
    train(make_training(validate_every_steps=1, monitor="val/loss"), tmp_path)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    step, _ = min(column(tmp_path, "val/loss"), key=lambda entry: entry[1])
    assert best["global_step"] == step + 1


def test_a_monitor_that_nothing_logs_is_one_sentence(
    train: Train, make_training: MakeTraining, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"training\.monitor.*val/vehicle_iou"):
        train(make_training(monitor="val/no_such_figure"), tmp_path)


def test_a_diverged_run_stops_with_one_sentence(
    train: Train, make_training: MakeTraining, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"diverged.*at step [0-9]+ \(.*training\.learning_rate"):
        train(make_training(learning_rate=1e30, log_every_steps=1), tmp_path)


def test_weights_decay_and_scales_and_biases_do_not(
    make_network: MakeNetwork, make_training: MakeTraining
) -> None:
    module = DrivingModule(TrainingStep(make_network()), make_training(weight_decay=0.3))
    optimizer = module.configure_optimizers()["optimizer"]
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert len(decays) == len(list(module.parameters()))
    for name, parameter in module.named_parameters():
        is_scale_or_bias = parameter.ndim == 1
        assert decays[id(parameter)] == (0.0 if is_scale_or_bias else 0.3), name


def test_a_disk_that_fills_up_in_training_is_an_error_and_leaves_whole_files(
    train: Train, make_training: MakeTraining, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            train(make_training(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert len(column(tmp_path, "train/loss")) >= 4
