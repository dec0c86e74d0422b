"""The lifts as choices of the config: each in the whole network, at every size."""

import copy
from collections.abc import Callable

import pytest
import torch

from fsdtrain.build import build_network
from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.hydra_app import compose_config
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.ops.table import OpTable
from fsdtrain.paths import config_dir
from fsdtrain.settings import read_settings

LIFTS = sorted(path.stem for path in (config_dir() / "model" / "lift").glob("*.yaml"))
SIZES = ("tiny", "small", "base")


def test_the_published_lifts_are_there() -> None:
    assert LIFTS == ["deformable", "depth_splat", "project_sample"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lift", LIFTS)
def test_a_lift_fits_every_size(size: str, lift: str) -> None:
    config = compose_config("fit", ["run_dir=.", f"model={size}", f"model.lift={lift}"])
    model = read_settings(config).model
    with torch.device("meta"):
        network = build_network(model, OpTable())
    channels = model.network["encoder_channels"][0]
    feats = torch.empty(1, 2, 3, model.network["lift_channels"], 4, 6, device="meta")
    intrinsics, poses = (torch.empty(1, 3, size, size, device="meta") for size in (3, 4))
    found = network.lift(feats, intrinsics, poses, tuple(model.image_size))
    assert found.shape == (1, 2, channels, *network.grid.shape)


@pytest.mark.parametrize("lift", LIFTS)
def test_one_graph_in_which_every_parameter_learns_as_in_eager(
    make_network: Callable[..., HydraBev], make_batch: Callable[..., ClipBatch], lift: str
) -> None:
    eager = TrainingStep(make_network(lift=lift))
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    batch = make_batch(num_clips=1)
    eager(batch).loss.backward()
    compiled(batch).loss.backward()
    parameters = dict(compiled.named_parameters())
    for name, parameter in eager.named_parameters():
        found = parameters[name].grad
        assert parameter.grad is not None, name
        assert found is not None, name
        torch.testing.assert_close(found, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)
        if name.startswith("network.lift."):
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("lift", LIFTS)
def test_cameras_may_stand_in_any_order(
    make_network: Callable[..., HydraBev], make_batch: Callable[..., ClipBatch], lift: str
) -> None:
    """Up to rounding: sums run in another order. Here no more cameras see a point than count."""
    network = make_network(lift=lift).eval()
    batch = make_batch(num_cameras=2)
    swapped = batch._replace(
        frames=batch.frames.flip(2),
        intrinsics_BN33=batch.intrinsics_BN33.flip(1),
        camera_to_ego_BN44=batch.camera_to_ego_BN44.flip(1),
    )
    with torch.no_grad():
        expected, found = network(batch), network(swapped)
    for name, outputs in expected.items():
        for key, value in outputs.items():
            torch.testing.assert_close(found[name][key], value, atol=1e-4, rtol=1e-4)
