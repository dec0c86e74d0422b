"""The raw twin computes what the model does; its bench says what was measured and what was not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench_cuda import NOT_MEASURED, RAW, Row, as_markdown, make_row
from raw_hydra_bev import RawHydraBev

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.models.hydra_bev import HydraBev


@pytest.mark.parametrize("seed", range(3))
def test_the_twin_has_the_losses_and_gradients_of_the_model(
    seed: int, make_network: Callable[..., HydraBev], make_batch: Callable[..., ClipBatch]
) -> None:
    batch = make_batch(seed=seed, num_clips=2, num_frames=3, num_cameras=4)
    # Three cameras look the same way: one more than count.
    poses = batch.camera_to_ego_BN44[:, [0, 0, 0, 1]]
    batch = batch._replace(camera_to_ego_BN44=poses)
    starts_afresh = torch.tensor([[0, seed == 1, 0], [0, 0, 0]]).bool()
    batch = batch._replace(reset_BT=batch.reset_BT | starts_afresh)
    step = TrainingStep(make_network(seed=seed)).double()
    twin = RawHydraBev(step)
    assert twin.network.backbone.stem[0].weight.is_contiguous()
    batch = batch._replace(
        **{name: value.double() for name, value in batch._asdict().items() if is_float(value)}
    )
    expected = step(batch)
    loss, losses = twin(batch)
    assert losses.keys() == expected.losses.keys()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected.losses[name].item(), rel=1e-5), name
    expected.loss.backward()
    loss.backward()
    wanted = dict(step.named_parameters())
    for name, parameter in twin.named_parameters():
        gradient, other = parameter.grad, wanted[name].grad
        assert gradient is not None
        assert other is not None
        scale = other.abs().max().item()
        assert (gradient - other).abs().max().item() <= 1e-4 * scale + 1e-9, name


def is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def test_ratios_are_of_neighbouring_blocks() -> None:
    # The machine gets three times slower from block to block: no ratio changes.
    times = {
        "raw fp32": [8.0, 24.0, 72.0],
        "raw bf16": [4.0, 12.0, 36.0],
        "fsdtrain bf16": [2.0, 6.0, 18.0],
    }
    row = make_row("tiny", "fsdtrain bf16", times, 1.5, None)
    assert row.step_ms == pytest.approx(6e3)
    assert row.ratios == {"raw fp32": (4.0, 4.0, 4.0), "raw bf16": (2.0, 2.0, 2.0)}
    assert row.remark == "MEASURED"
    raw = make_row("tiny", "raw bf16", times, None, None)
    assert raw.ratios is not None
    assert set(raw.ratios) == {"raw fp32"}


def test_a_table_says_what_is_missing() -> None:
    record = {"device": "d", "batch_size": 1, "cameras": 8, "torch": "2", "triton": "3"}
    measured = Row(
        size="tiny", variant="x", step_ms=2.0, quartiles_ms=(1.5, 2.5), peak_gib=1.25,
        ratios={RAW[1]: (2.5, 2.4, 2.6)}, remark="MEASURED",
    )  # fmt: skip
    rows = [
        measured, Row(size="base", variant="y"),
        make_row("base", "z", {}, None, "out of memory"),
    ]  # fmt: skip
    lines = as_markdown(record, rows).splitlines()[-3:]
    assert lines == [
        "| tiny | x | 2.00 (1.50-2.50) ms | 1.25 GiB |  | 2.50 (2.40-2.60) | MEASURED |",
        f"| base | y | {' | '.join([NOT_MEASURED] * 5)} |",
        "| base | z |  |  |  |  | out of memory |",
    ]
