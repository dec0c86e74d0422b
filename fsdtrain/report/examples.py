"""Pictures of a few validation clips with what the model makes of them, for the report.

It runs the model and gathers labels and outputs; `example_picture.py` draws them.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fsdtrain.data.batch import ClipBatch, ClipWindow
from fsdtrain.data.collate import Sample, collate
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.data.geometry import BevGrid
from fsdtrain.data.pictures import last_pictures
from fsdtrain.data.stream import StreamPlan, load_window
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.step import StepOutput
from fsdtrain.errors import DataError, UserError
from fsdtrain.heads.ego_path import PATH, PATH_VALID, EgoPath
from fsdtrain.heads.head import Head
from fsdtrain.heads.vehicle_segmentation import COVER, UNKNOWN, VehicleSegmentation, vehicle_maps
from fsdtrain.metrics import constant_velocity
from fsdtrain.report.example_picture import ExampleClip, draw_example

logger = logging.getLogger(__name__)

# What is drawn of the ground where no head has a grid of its own.
VIEWED_GRID = BevGrid(x_min_m=-20.0, x_max_m=40.0, y_min_m=-30.0, y_max_m=30.0, cell_m=0.5)


def draw_examples(
    module: DrivingModule, datamodule: FleetDataModule, folder: Path, *, num_clips: int
) -> list[Path]:
    """Write `folder`/<clip id>.png for clips spread evenly over the validation set.

    A clip that cannot be read is left out and logged; validation has counted it.

    Raises:
        UserError: the folder cannot be written to.
    """
    plan = _decoded(datamodule.val_dataloader().plan)
    num_available = len(plan.catalog.clips)
    chosen = np.linspace(0, num_available - 1, min(num_clips, num_available)).round().astype(int)
    samples = [sample for index in chosen if (sample := _load_sample(plan, int(index))) is not None]
    paths = []
    for first in range(0, len(samples), plan.share.batch_size):
        part = samples[first : first + plan.share.batch_size]
        for example in predict_examples(module, part, plan):
            paths.append(_write_picture(example, folder))
    return paths


def _decoded(plan: StreamPlan) -> StreamPlan:
    """Pictures to look at are decoded here, whatever decodes those to learn from."""
    return replace(plan, shape=replace(plan.shape, is_encoded=False))


def _load_sample(plan: StreamPlan, clip_index: int) -> Sample | None:
    try:
        # Validation windows are not random; the generator is for training.
        window = load_window(plan, clip_index, np.random.default_rng(0))
    except DataError as error:
        logger.warning("no picture of a clip that cannot be read: %s", error)
        return None
    targets: dict[str, Any] = {}  # arrays of any type, as the heads build them
    for build in plan.target_builders:
        targets.update(build(window))
    return Sample(window=window, targets=targets, clip_index=clip_index)


def predict_examples(
    module: DrivingModule, samples: list[Sample], plan: StreamPlan
) -> list[ExampleClip]:
    """Run the model on at most one batch of samples and gather what there is to draw."""
    # A batch of another size would be compiled anew.
    filling = [samples[-1]] * (plan.share.batch_size - len(samples))
    batch: ClipBatch = tree_map(
        lambda tensor: tensor.to(module.device), collate([*samples, *filling])
    )
    was_training = module.training
    module.eval()
    with torch.no_grad():
        output: StepOutput = module.step(batch)
    module.train(was_training)
    return [
        _example(sample.window, row, plan.catalog.cameras, module.heads(), output.outputs, batch)
        for row, sample in enumerate(samples)
    ]


def _example(
    window: ClipWindow,
    row: int,
    camera_names: tuple[str, ...],
    heads: list[tuple[str, Head]],
    outputs: Mapping[str, Mapping[str, Tensor]],
    batch: ClipBatch,
) -> ExampleClip:
    known: dict[str, Any] = {"grid": VIEWED_GRID}  # fields of ExampleClip, of several types
    for name, head in heads:
        if isinstance(head, VehicleSegmentation):
            known |= _vehicle_fields(head, outputs[name], batch, row)
        elif isinstance(head, EgoPath):
            known |= _path_fields(head, outputs[name], batch, row)
    return ExampleClip(
        clip_id=window.clip_id,
        camera_names=camera_names,
        images_NHWC=last_pictures(window),
        intrinsics_N33=window.intrinsics_N33,
        camera_to_ego_N44=window.camera_to_ego_N44,
        boxes=() if window.boxes is None else window.boxes[-1],
        **known,
    )


def _vehicle_fields(
    head: VehicleSegmentation, outputs: Mapping[str, Tensor], batch: ClipBatch, row: int
) -> dict[str, Any]:
    cover_XY = batch.targets[COVER][row, -1]
    is_vehicle_XY, _ = vehicle_maps(cover_XY, head.min_visibility_percent)
    is_labelled = bool((cover_XY != UNKNOWN).any())
    return {
        "grid": head.grid,
        "vehicle_probability_XY": _numpy(outputs["logits_BTXY"][row, -1].float().sigmoid()),
        "vehicle_truth_XY": _numpy(is_vehicle_XY) if is_labelled else None,
    }


def _path_fields(
    head: EgoPath, outputs: Mapping[str, Tensor], batch: ClipBatch, row: int
) -> dict[str, Any]:
    speed_B = batch.speed_B[row : row + 1]
    seconds_S = head.step_s * torch.arange(1, head.num_steps + 1, device=speed_B.device)
    truth_S2 = batch.targets[PATH][row][batch.targets[PATH_VALID][row]]
    return {
        "path_truth_S2": _numpy(truth_S2.double()) if len(truth_S2) else None,
        "path_prediction_KS2": _numpy(outputs["path_BKS2"][row].double()),
        "path_mode_probability_K": _numpy(outputs["mode_logits_BK"][row].double().softmax(0)),
        "path_constant_velocity_S2": _numpy(constant_velocity(speed_B, seconds_S)[0].double()),
    }


def _numpy(tensor: Tensor) -> Any:  # an array of the tensor's type
    return tensor.detach().cpu().numpy()


def _write_picture(example: ExampleClip, folder: Path) -> Path:
    path = folder / f"{example.clip_id}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw_example(example).save(path, "PNG")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return path
