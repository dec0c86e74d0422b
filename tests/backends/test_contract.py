"""The contract, whole steps: training, compiling and profiling on every backend that runs here.

A training run is compared with a loop written out here in plain PyTorch, which knows neither
Lightning nor the backend.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils import _pytree

from fsdtrain.backend import HISTOGRAM_BINS, Backend, installed_backends
from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.numerics_record import read_histograms, read_numerics
from fsdtrain.engine.step import TrainingStep
from fsdtrain.engine.trainer import build_evaluator, build_trainer
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.settings import TrainingSettings
from fsdtrain.step_graph.graph import run_freely
from fsdtrain.step_profile import PHASES, StepProfile

NUM_STEPS = 10


class RecordLosses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))


@dataclasses.dataclass(frozen=True)
class Batches:
    """A loader of batches that are there already; a list, Lightning would take for many loaders."""

    batches: Sequence[ClipBatch]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ClipBatch]:
        return iter(self.batches)


def train_plainly(step: TrainingStep, batches: Sequence[ClipBatch]) -> list[float]:
    """Ten steps of what `settings()` below says, in float32 on the CPU."""
    parameters = list(step.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.02},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    )
    losses = []
    step.train()
    for number, batch in enumerate(batches):
        # Up in two steps, then down a straight line to a thousandth at the last of ten.
        share = (number + 1) / 2 if number < 2 else 1 - 0.999 * (number - 2) / 7
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * share
        output = step(batch)
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
        losses.append(output.loss.item())
    return losses


def settings(make_training: Callable[..., TrainingSettings]) -> TrainingSettings:
    return make_training(
        max_steps=NUM_STEPS, learning_rate=4e-3, weight_decay=0.02, schedule="one_cycle",
        warmup_fraction=0.2, gradient_clip_norm=0.1, validate_every_steps=5,
    )  # fmt: skip


@pytest.mark.parametrize("lift", ["project_sample", "depth_splat", "deformable"])
def test_ten_steps_train_as_a_plain_loop_does(
    backend: Backend,
    lift: str,
    make_network: Callable[..., HydraBev],
    make_batch: Callable[..., ClipBatch],
    make_training: Callable[..., TrainingSettings],
    tmp_path: Path,
) -> None:
    reference = make_network(seed=3, lift=lift)
    network = make_network(seed=4, lift=lift, ops=backend.op_table())
    network.load_state_dict(reference.state_dict())
    start = copy.deepcopy(reference.state_dict())
    batches = [make_batch(seed=seed) for seed in range(NUM_STEPS)]
    expected = train_plainly(TrainingStep(reference), batches)

    step, record = TrainingStep(network), RecordLosses()
    module = DrivingModule(step, settings(make_training))
    backend.compile_step(step)
    trainer = build_trainer(settings(make_training), backend, tmp_path, first_step=0)
    trainer.callbacks.append(record)  # type: ignore[attr-defined]  # Lightning's, untyped
    trainer.fit(module, Batches(batches), Batches([make_batch(seed=99)]))

    assert trainer.global_step == len(record.losses) == NUM_STEPS
    tolerance = backend.tolerance.loss_relative_after_ten_steps
    for found, wanted in zip(record.losses, expected, strict=True):
        assert found == pytest.approx(wanted, rel=tolerance)
    # Not only the losses: the two have gone the same way, and far.
    moved = _distance(reference.state_dict(), start)
    apart = _distance(reference.state_dict(), network.state_dict())
    assert apart <= max(0.02, 100 * tolerance) * moved
    # And it is a training run: another schedule would have been seen.
    assert len({round(loss, 4) for loss in expected}) == NUM_STEPS
    assert backend.read_numerics() == (), "every reading is given once"
    assert_readings_are_sound(backend, tmp_path)


def assert_readings_are_sound(backend: Backend, run_dir: Path) -> None:
    if not (run_dir / "numerics.csv").exists():
        return
    assert backend.value_origin == "EMULATED"
    for reading in read_numerics(run_dir).values():
        for tensor in reading.values():
            shares = (tensor.saturated_share, tensor.underflowed_share, tensor.nan_share)
            assert all(0 <= share <= 1 for share in shares)
            assert tensor.num_elements > 0
            assert math.isfinite(tensor.amax)
            assert tensor.snr_db is None or math.isfinite(tensor.snr_db)
            assert tensor.rounding in ("nearest", "stochastic")
            lowest, highest = tensor.representable_exponents
            assert lowest < highest
    for tensor in read_histograms(run_dir).tensors:
        assert len(tensor.exponent_histogram) == HISTOGRAM_BINS
        assert sum(tensor.exponent_histogram) <= tensor.num_elements


def _distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    squares = [
        (first[name].cpu().double() - second[name].cpu().double()).square().sum()
        for name in first
        if first[name].is_floating_point()
    ]
    return torch.stack(squares).sum().sqrt().item()


def test_compiling_keeps_the_names_of_the_weights(
    backend: Backend, make_network: Callable[..., HydraBev], make_batch: Callable[..., ClipBatch]
) -> None:
    network = make_network(ops=backend.op_table())
    step = TrainingStep(network)
    names = list(step.state_dict())
    backend.compile_step(step)
    assert list(step.state_dict()) == names
    assert [name for name, _ in step.named_parameters()] == [
        f"network.{name}" for name, _ in network.named_parameters()
    ]


def test_lightning_takes_the_parts(
    backend: Backend, make_training: Callable[..., TrainingSettings], tmp_path: Path
) -> None:
    parts = backend.trainer_parts()
    trainer = build_trainer(make_training(), backend, tmp_path, first_step=0)
    evaluator = build_evaluator(backend, tmp_path)
    assert trainer.num_devices == evaluator.num_devices == parts.devices


def test_a_step_can_be_profiled(
    backend: Backend, make_network: Callable[..., HydraBev], make_batch: Callable[..., ClipBatch]
) -> None:
    step = TrainingStep(make_network(ops=backend.op_table()))
    on_device: Any = _pytree.tree_map(backend.to_device, make_batch())
    for parameter in (*step.parameters(), *step.buffers()):
        parameter.data = backend.to_device(parameter.data)
    backend.compile_step(step)
    optimizer = torch.optim.AdamW(step.parameters())
    profile = backend.profile_step(step, on_device, optimizer)
    assert isinstance(profile, StepProfile)
    assert profile.backend == backend.name
    # A model of a machine names that machine; a clock, what it ran on.
    assert profile.device == backend.device_name() or profile.origin == "MODELLED"
    assert profile.device
    assert profile.origin in ("MEASURED", "EMULATED", "MODELLED")
    assert profile.step_time_s > 0
    assert profile.ops
    for op in profile.ops:
        assert op.name
        assert op.num_calls >= 1
        assert op.time_s >= 0
        assert op.flops is None or op.flops >= 0
        assert op.num_bytes is None or op.num_bytes >= 0
        assert op.phase in (None, *PHASES)
        assert op.utilisation is None or 0 <= op.utilisation <= 1
        assert op.roofline_s is None or 0 <= op.roofline_s <= op.alone * (1 + 1e-9)
    assert sum(op.time_s for op in profile.ops) > 0
    times = [op.time_s for op in profile.ops]
    assert times == sorted(times, reverse=True)
    assert {op.phase for op in profile.ops} - {None} in (set(), set(PHASES))
    for event in profile.timeline:
        assert event.start_s <= event.end_s
    # Plain numbers throughout: NumPy's cannot be written.
    packed = msgspec.json.encode(profile)
    assert msgspec.json.decode(packed, type=StepProfile) == profile


def test_a_step_as_ops_has_the_loss_and_gradients_of_training(
    backend: Backend, make_network: Callable[..., HydraBev], make_batch: Callable[..., ClipBatch]
) -> None:
    """Bit for bit where ops run in the order in which they are captured: off the GPU."""
    step = TrainingStep(make_network(ops=backend.op_table()))
    graph = backend.step_graph(step, make_batch())
    values = run_freely(graph)
    on_device: Any = _pytree.tree_map(backend.to_device, make_batch())
    for tensor in (*step.parameters(), *step.buffers()):
        tensor.data = backend.to_device(tensor.data)
    backend.compile_step(step)
    with backend.autocast():
        loss = step(on_device).loss
    loss.backward()
    assert values[graph.loss].item() == pytest.approx(loss.item(), rel=1e-6)
    is_equal = loss.device.type == "cpu"
    gradients = {name: w.grad for name, w in step.named_parameters() if w.grad is not None}
    assert gradients.keys() == graph.gradients.keys() == set(graph.weights)
    for name, gradient in gradients.items():
        found = values[graph.gradients[name]]
        if is_equal:
            assert torch.equal(found, gradient), name
        else:
            torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4, msg=name)
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-2)
    before = [weight.detach().clone() for weight in step.parameters()]
    backend.update(optimizer)
    moved = zip(step.parameters(), before, strict=True)
    assert any(not torch.equal(weight, old) for weight, old in moved)


def test_says_what_it_is(backend: Backend) -> None:
    assert installed_backends()[backend.name].backend_class is type(backend)
    assert backend.device_name()
    assert backend.value_origin in ("MEASURED", "EMULATED")
    assert backend.tolerance.op_relative > 0
    assert backend.tolerance.loss_relative_after_ten_steps > 0
