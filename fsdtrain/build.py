"""Settings -> the objects of a run. What `fit` and `validate` share; neither trains nor evaluates.

Each function takes plain settings and returns one object; classes that a config names by
`_target_` are built here and nowhere else.
"""

import hashlib
import logging
from functools import partial
from pathlib import Path
from typing import cast

from torch import nn

from fsdtrain.backend import Backend
from fsdtrain.data.augment import Augmentation
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.data.geometry import BevGrid
from fsdtrain.data.schema import encode_json
from fsdtrain.data.shard import find_shards, read_index
from fsdtrain.data.synthetic.fleet import FleetPaths, SyntheticFleet, cached_fleet, make_fleet
from fsdtrain.errors import UserError
from fsdtrain.heads.head import Head
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.models.lift import Lift
from fsdtrain.ops.table import OpTable
from fsdtrain.settings import DataSettings, ModelSettings, Settings, instantiate

logger = logging.getLogger(__name__)


def build_network(model: ModelSettings, ops: OpTable) -> HydraBev:
    """The network with its heads, calling ops through the backend's table."""
    grid = BevGrid(
        x_min_m=model.grid.x_min_m,
        x_max_m=model.grid.x_max_m,
        y_min_m=model.grid.y_min_m,
        y_max_m=model.grid.y_max_m,
        cell_m=model.grid.cell_m,
    )
    heads = {name: instantiate(options, Head, grid=grid) for name, options in model.heads.items()}
    return instantiate(
        model.network,
        HydraBev,
        grid=grid,
        image_size=model.image_size,
        heads=heads,
        make_lift=partial(
            instantiate,
            model.lift,
            Lift,  # type: ignore[type-abstract]  # what the config names is not
            grid=grid,
            ops=ops,
        ),
        ops=ops,
    )


def move_step(step: nn.Module, backend: Backend) -> None:
    """Put weights and buffers where the backend computes, in place; in training Lightning does."""
    for tensor in (*step.parameters(), *step.buffers()):
        tensor.data = backend.to_device(tensor.data)


def make_data(data: DataSettings, out_dir: Path | None) -> FleetPaths:
    """Render the synthetic fleet into `out_dir`, or, for None, once into the user's cache.

    Raises:
        UserError: data.fleet is not given, or does not describe a fleet.
    """
    if data.fleet is None:
        raise UserError("data.fleet is null: there is nothing to make; use data=synthetic")
    fleet = instantiate(data.fleet, SyntheticFleet)
    return cached_fleet(fleet) if out_dir is None else make_fleet(fleet, out_dir)


def find_data(data: DataSettings) -> tuple[str, str]:
    """(training shards, validation shards); makes the synthetic fleet if it is not there yet."""
    if data.source == "synthetic":
        paths = make_data(data, None)
        return str(paths.train), str(paths.val)
    assert data.train is not None, "settings have checked this"
    assert data.val is not None, "settings have checked this"
    return data.train, data.val


def build_datamodule(
    settings: Settings, network: HydraBev, train: str, val: str
) -> FleetDataModule:
    """The data module: windows at the network's resolution with the targets its heads need."""
    data = settings.data
    return FleetDataModule(
        train=train,
        val=val,
        cameras=data.cameras,
        frames=data.frames,
        image_size=settings.model.image_size,
        crop_top=data.crop_top,
        crop_bottom=data.crop_bottom,
        num_frames=settings.model.num_frames,
        frame_stride=data.frame_stride,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        max_bad_clips=data.max_bad_clips,
        augmentation=None
        if data.augmentation is None
        else instantiate(data.augmentation, Augmentation),
        target_builders=[
            head.target_builder() for head in cast("list[Head]", list(network.heads.values()))
        ],
        seed=settings.seed,
    )


def hash_data(*sources: str) -> str:
    """SHA-256 over the indices of all shards, which hold the checksum of every member."""
    digest = hashlib.sha256()
    for source in sources:
        for shard in find_shards(source):
            digest.update(encode_json(read_index(shard)))
    return digest.hexdigest()
