"""A real step, lowered and scheduled, as the scale model sees it."""

from functools import cache

import pytest
import torch
from fsdtrain_dojo.lowering.kernel import Phase
from fsdtrain_dojo.lowering.passes.expand_macros import expand_macros
from fsdtrain_dojo.lowering.record_step import record_step
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.modelling import ModelledStep, model_step
from fsdtrain_dojo.recipe import bf16_options, read_recipe
from fsdtrain_dojo.scale.plan import plan_scale
from fsdtrain_dojo.scale.replica import ReplicaTime
from fsdtrain_dojo.scale.slices import slice_machine
from fsdtrain_dojo.scale.time_replica import time_replica
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.backends.dojo.scale.stubs import small_tile

BATCH, TILE = 12, small_tile(1, 2)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 31), nn.Linear(31, 7)
    )  # fmt: skip


def loss(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return F.silu(model(images)).square().mean()


@cache
def step_on(machine_name: str) -> ModelledStep:
    model = build()
    recorded = record_step(
        model,
        torch.randn(BATCH, 3, 10, 10),
        torch.optim.AdamW(model.parameters()),
        recipe=read_recipe(bf16_options()),
        run=loss,
    )
    machines = {"tile": TILE, "die": slice_machine(TILE, "die"), "gpu": read_machine("h100")}
    machine = machines[machine_name]
    return model_step(expand_macros(recorded), machine)


def timed(modelled: ModelledStep) -> ReplicaTime:
    return time_replica(
        modelled.program,
        modelled.time,
        batch_size=BATCH,
        op_start_s=modelled.machine.op_start_s,
    )


def test_every_gradient_is_there_before_the_optimiser():
    modelled = step_on("die")
    found = timed(modelled)
    sizes = sorted(each.numel() for each in build().parameters())
    assert sorted(each.num_bytes for each in found.gradients) in (
        [2 * each for each in sizes],
        [4 * each for each in sizes],
    )
    updates = [
        each.start_s
        for step, each in zip(modelled.program.steps, modelled.time.steps, strict=True)
        if step.kernel.phase is Phase.OPTIMIZER
    ]
    assert found.optimizer_start_s == min(updates)
    ready = [each.ready_s for each in found.gradients]
    assert len(set(ready)) > 1
    assert 0 < min(ready) <= max(ready) <= found.optimizer_start_s < found.seconds


def test_gradients_lie_in_the_nodes_of_a_mesh_and_outside_those_of_a_switch():
    assert not timed(step_on("die")).gradients_outside
    assert timed(step_on("gpu")).gradients_outside


def test_work_is_that_of_the_step():
    found = timed(step_on("die"))
    model = build()
    with FlopCounterMode(display=False) as counter:
        loss(model, torch.randn(BATCH, 3, 10, 10)).backward()
    assert found.matmul_flops == counter.get_total_flops()
    assert found.seconds == step_on("die").time.seconds
    # images, and scalars such as the learning rate
    assert found.input_bytes - 4 * BATCH * 300 in range(17)
    assert 0 < found.fixed_s <= found.optimizer_start_s
    # the widest cut is behind the convolution: 8 channels of 5 x 5, at most in float32 and twice
    assert BATCH * 200 * 2 <= max(found.cut_bytes) <= BATCH * 200 * 8


def test_two_dies_of_a_tile_as_replicas_or_as_one():
    def time_on(machine):
        return timed(step_on(machine.name.rpartition("/")[2]))

    plan = plan_scale(TILE, time_on, peak_format="bf16")
    by_level = {each.placement.level: each for each in plan.placed}
    assert by_level["tile"].placement.num_replicas == 1
    assert by_level["tile"].summing.exposed_s == 0
    assert by_level["die"].placement.num_replicas == 2
    assert by_level["die"].step_s >= timed(step_on("die")).seconds
    assert plan.strong is None or plan.strong.replica.batch_size * 2 == BATCH


def test_what_has_no_optimiser_ends_with_its_gradients():
    model = build()
    recorded = record_step(
        model, torch.randn(BATCH, 3, 10, 10), recipe=read_recipe(bf16_options()), run=loss
    )
    machine = slice_machine(TILE, "die")
    found = timed(model_step(expand_macros(recorded), machine))
    assert found.optimizer_start_s == pytest.approx(found.seconds)
