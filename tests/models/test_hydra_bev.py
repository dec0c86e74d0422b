from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.ops.project_sample import project_sample
from fsdtrain.ops.table import OpTable
from fsdtrain.ops.warp_bev import warp_bev
from fsdtrain.settings import ModelSettings

MakeBatch = Callable[..., ClipBatch]
MakeNetwork = Callable[..., HydraBev]


@pytest.mark.parametrize(
    ("name", "num_cameras", "min_millions", "max_millions"),
    [("tiny", 6, 0.1, 0.6), ("small", 6, 13, 17), ("base", 8, 42, 48)],
)
def test_presets_have_their_size_and_shapes(
    name: str,
    num_cameras: int,
    min_millions: float,
    max_millions: float,
    load_preset: Callable[[str], tuple[ModelSettings, HydraBev]],
    make_batch: MakeBatch,
) -> None:
    settings, network = load_preset(name)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert min_millions < millions < max_millions

    grid = settings.grid
    bev_shape = (
        round((grid.x_max_m - grid.x_min_m) / grid.cell_m),
        round((grid.y_max_m - grid.y_min_m) / grid.cell_m),
    )
    batch = make_batch(
        num_clips=2,
        num_frames=settings.num_frames,
        num_cameras=num_cameras,
        image_size=settings.image_size,
        bev_shape=bev_shape,
        device="meta",
    )
    outputs = network(batch)

    assert outputs["vehicle"]["logits_BTXY"].shape == (2, settings.num_frames, *bev_shape)
    num_modes = settings.heads["path"]["num_modes"]
    assert outputs["path"]["path_BKS2"].shape == (2, num_modes, 6, 2)
    assert outputs["path"]["mode_logits_BK"].shape == (2, num_modes)


def test_base_is_the_size_the_accelerator_work_is_planned_for(
    load_preset: Callable[[str], tuple[ModelSettings, HydraBev]],
) -> None:
    settings, _ = load_preset("base")
    assert settings.image_size == (448, 800)
    assert settings.num_frames == 4
    assert settings.grid.cell_m == 0.5
    assert settings.grid.x_max_m - settings.grid.x_min_m == 100.0


def test_every_parameter_learns(make_network: MakeNetwork, make_batch: MakeBatch) -> None:
    network = make_network()
    # A block that starts as the identity holds back its first gradients: one step opens it.
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(total_loss(network, make_batch()))
        optimizer.step()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def total_loss(network: HydraBev, batch: ClipBatch) -> Tensor:
    return TrainingStep(network)(batch).loss  # type: ignore[no-any-return]  # Module.__call__


def test_only_the_last_frame_may_be_encoded(
    make_network: MakeNetwork, make_batch: MakeBatch
) -> None:
    every, last = make_network().eval(), make_network(encode_all_frames=False).eval()
    batch = make_batch(num_frames=3)
    logits, logits_of_last = (net(batch)["vehicle"]["logits_BTXY"] for net in (every, last))
    assert logits_of_last.shape[1] == 1
    torch.testing.assert_close(logits_of_last[:, -1], logits[:, -1])


def test_memory_remembers_until_it_is_reset(
    make_network: MakeNetwork, make_batch: MakeBatch
) -> None:
    network = make_network().eval()

    def last_logits(batch: ClipBatch) -> Tensor:
        logits: Tensor = network(batch)["vehicle"]["logits_BTXY"][:, -1]
        return logits

    batch = make_batch()
    frames = batch.frames.clone()
    frames[:, 0] = 255 - frames[:, 0]
    changed = batch._replace(frames=frames)
    assert not torch.allclose(last_logits(batch), last_logits(changed))

    reset = torch.ones_like(batch.reset_BT)
    torch.testing.assert_close(
        last_logits(batch._replace(reset_BT=reset)), last_logits(changed._replace(reset_BT=reset))
    )
    single = batch._replace(
        frames=batch.frames[:, 1:],
        previous_to_current_BT44=batch.previous_to_current_BT44[:, 1:],
        frame_interval_s_BT=batch.frame_interval_s_BT[:, 1:],
        reset_BT=reset[:, 1:],
    )
    torch.testing.assert_close(last_logits(batch._replace(reset_BT=reset)), last_logits(single))


def test_without_memory_frames_are_alone(make_network: MakeNetwork, make_batch: MakeBatch) -> None:
    network = make_network(has_memory=False).eval()
    batch = make_batch()
    turned = batch._replace(frames=batch.frames.flip(1))
    torch.testing.assert_close(
        network(batch)["vehicle"]["logits_BTXY"],
        network(turned)["vehicle"]["logits_BTXY"].flip(1),
    )


def test_ops_come_from_the_table(make_network: MakeNetwork, make_batch: MakeBatch) -> None:
    calls = []

    def counted_sample(*arguments: object) -> Tensor:
        calls.append("project_sample")
        return project_sample(*arguments)  # type: ignore[arg-type]

    def counted_warp(*arguments: object) -> Tensor:
        calls.append("warp_bev")
        return warp_bev(*arguments)  # type: ignore[arg-type]

    ops = OpTable(project_sample=counted_sample, warp_bev=counted_warp)
    make_network(ops=ops)(make_batch(num_frames=3))
    assert calls == ["project_sample", "warp_bev", "warp_bev"]


def test_a_new_head_needs_nothing_but_its_name(
    make_network: MakeNetwork, make_batch: MakeBatch
) -> None:
    class Brightness(nn.Module):
        def forward(self, bev_BTCXY: Tensor, batch: ClipBatch) -> dict[str, Tensor]:
            return {"mean_B": bev_BTCXY.mean((1, 2, 3, 4))}

    network = make_network()
    network.heads["brightness"] = Brightness()
    assert network(make_batch())["brightness"]["mean_B"].shape == (2,)


def test_image_size_must_fit_the_stride(make_network: MakeNetwork) -> None:
    with pytest.raises(ValueError, match=r"image_size=\(16, 32\) must be multiples of 32"):
        make_network(stem_stride=4, stage_channels=[4, 4, 4, 4], stage_blocks=[1, 1, 1, 1])
