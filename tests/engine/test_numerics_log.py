"""A backend that emulates number formats: what a run keeps of its readings, and its one warning."""

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fsdtrain.backend import (
    Availability,
    Backend,
    TensorNumerics,
    Tolerance,
    TrainerParts,
    load_backend,
)
from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.checkpoints import read_step
from fsdtrain.engine.numerics_log import NumericsLog, summarise_roles
from fsdtrain.engine.numerics_record import read_histograms, read_numerics
from fsdtrain.engine.trainer import build_trainer
from fsdtrain.settings import TrainingSettings
from fsdtrain.step_profile import StepProfile

Make = Callable[..., TensorNumerics]
Train = Callable[..., Any]
MakeTraining = Callable[..., TrainingSettings]

LOG = "fsdtrain.engine.numerics_log"


class ReadingBackend(Backend):
    """Plain PyTorch that says it emulates: after so many batches it gives a reading, once."""

    name = "reading"
    value_origin = "EMULATED"
    tolerance = Tolerance(op_relative=1e-6, loss_relative_after_ten_steps=1e-5)

    def __init__(self, readings: Mapping[int, Sequence[TensorNumerics]]) -> None:
        self.readings, self.num_batches = dict(readings), 0

    @classmethod
    def availability(cls) -> Availability:
        return Availability(is_available=True, detail="always")

    def device_name(self) -> str:
        return "a test"

    def trainer_parts(self) -> TrainerParts:
        return TrainerParts(accelerator="cpu", is_deterministic=True)

    def profile_step(self, step: Any, batch: Any, optimizer: Any) -> StepProfile:
        raise NotImplementedError

    def read_numerics(self) -> tuple[TensorNumerics, ...]:
        self.num_batches += 1
        return tuple(self.readings.pop(self.num_batches, ()))


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "numerics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("accumulate_batches", "steps"), [(1, [2, 5]), (2, [1, 2])])
def test_readings_go_to_the_run_folder_under_the_step_they_were_taken_in(
    train: Train,
    make_training: MakeTraining,
    make_tensor_numerics: Make,
    tmp_path: Path,
    accumulate_batches: int,
    steps: list[int],
) -> None:
    first = [make_tensor_numerics(layer="a"), make_tensor_numerics(role="weight", bias=None)]
    second = [make_tensor_numerics(layer="b", snr_db=17.0)]
    training = make_training(accumulate_batches=accumulate_batches, max_steps=6)
    train(training, tmp_path, backend=ReadingBackend({3: first, 6: second}))
    found = [(int(row["step"]), row["layer"], row["role"], row["bias"]) for row in rows(tmp_path)]
    assert found == [
        (steps[0], "a", "activation", "9"),
        (steps[0], "network.backbone.stem.0", "weight", ""),
        (steps[1], "b", "activation", "9"),
    ]
    assert {row["origin"] for row in rows(tmp_path)} == {"EMULATED"}
    assert read_histograms(tmp_path).step == steps[1]


def test_a_run_without_readings_leaves_no_file(
    train: Train, make_training: MakeTraining, tmp_path: Path
) -> None:
    train(make_training(max_steps=2), tmp_path, backend=ReadingBackend({}))
    assert not list(tmp_path.glob("numerics*"))


def test_only_emulated_values_are_asked_for(make_training: MakeTraining, tmp_path: Path) -> None:
    def callbacks(backend: Backend) -> list[type]:
        trainer = build_trainer(make_training(), backend, tmp_path, first_step=0)
        return [type(one) for one in trainer.callbacks]  # type: ignore[attr-defined]  # Lightning's

    assert NumericsLog in callbacks(ReadingBackend({}))
    assert NumericsLog not in callbacks(load_backend("cpu", {}))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning")
def test_a_resumed_run_goes_on_in_the_same_file(
    train: Train,
    make_training: MakeTraining,
    make_tensor_numerics: Make,
    make_batch: Callable[..., ClipBatch],
    tmp_path: Path,
) -> None:
    def reading(step: int) -> list[TensorNumerics]:
        return [make_tensor_numerics(amax=float(step))]

    epoch = [make_batch(seed=seed) for seed in range(4)]
    short, long = (make_training(max_steps=num, validate_every_steps=4) for num in (4, 8))
    backend = ReadingBackend({2: reading(1), 4: reading(3)})
    train(short, tmp_path, batches=epoch, backend=backend)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    # A reading that was taken after the checkpoint, before the power was cut.
    path = tmp_path / "numerics.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1].replace("3,", "5,", 1))
    train(
        long,
        tmp_path,
        batches=epoch,
        backend=ReadingBackend({2: reading(5), 4: reading(7)}),
        ckpt_path=checkpoint,
        first_step=read_step(checkpoint),
    )
    found = read_numerics(tmp_path)
    assert {step: [one.amax for one in of.values()] for step, of in found.items()} == {
        1: [1.0], 3: [3.0], 5: [5.0], 7: [7.0],
    }  # fmt: skip


def test_a_lasting_loss_is_said_once_with_the_worst_and_what_to_do(
    train: Train,
    make_training: MakeTraining,
    make_tensor_numerics: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reading = [
        make_tensor_numerics(layer="good"),
        make_tensor_numerics(layer="bad", saturated_share=0.02),
        make_tensor_numerics(layer="worst", role="activation_gradient", saturated_share=0.4),
    ]
    with caplog.at_level(logging.WARNING, logger=LOG):
        backend = ReadingBackend({2: reading, 4: reading, 6: reading, 8: reading})
        train(make_training(), tmp_path, backend=backend)
    (record,) = [record for record in caplog.records if record.name == LOG]
    message = record.getMessage()
    assert "step 3:" in message
    assert "activation gradient of worst (convolution) in cfloat8_1_4_3 with bias 9" in message
    assert "40 % saturated" in message
    assert "1 other tensor" in message
    assert "smaller exponent bias" in message
    assert str(tmp_path / "numerics.csv") in message


def test_a_range_that_catches_up_is_no_loss(
    train: Train,
    make_training: MakeTraining,
    make_tensor_numerics: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = make_tensor_numerics(layer="a", saturated_share=0.4)
    readings = {1: [lost], 3: [make_tensor_numerics(layer="a")], 5: [lost]}
    with caplog.at_level(logging.WARNING, logger=LOG):
        train(make_training(), tmp_path, backend=ReadingBackend(readings))
    assert caplog.records == []


def test_nan_is_said_at_once(
    train: Train,
    make_training: MakeTraining,
    make_tensor_numerics: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    readings = {9: [make_tensor_numerics(nan_share=0.001, snr_db=None)]}
    with caplog.at_level(logging.WARNING, logger=LOG):
        train(make_training(), tmp_path, backend=ReadingBackend(readings))
    (record,) = caplog.records
    assert "0.1 % NaN" in record.getMessage()
    assert "other" not in record.getMessage()


def test_tensorboard_gets_the_roles(
    train: Train, make_training: MakeTraining, make_tensor_numerics: Make, tmp_path: Path
) -> None:
    reading = [
        make_tensor_numerics(snr_db=snr, underflowed_share=snr / 100) for snr in (10, 20, 60)
    ]
    train(make_training(), tmp_path, backend=ReadingBackend({4: reading}))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (median,) = events.Scalars("numerics/activation/snr_db_median")
    assert (median.step, median.value) == (3, 20.0)
    assert events.Scalars("numerics/activation/underflowed_share_max")[0].value == pytest.approx(
        0.6
    )
    assert "numerics" not in (tmp_path / "metrics.csv").read_text()


def test_a_role_without_noise_has_no_ratio(make_tensor_numerics: Make) -> None:
    found = summarise_roles([make_tensor_numerics(role="master_weight", snr_db=None)])
    assert found == {
        "numerics/master_weight/saturated_share_max": 0.0,
        "numerics/master_weight/underflowed_share_max": 0.0,
    }
