"""Pictures of a few validation clips with what the model made of them, for the report.

Which outputs can be drawn is decided by the heads' classes; a head that is not known here is left
out of the pictures.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from fsdtrain.data.assignment import Share
from fsdtrain.data.batch import ClipBatch
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.data.shard import read_clip
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.step import StepOutput
from fsdtrain.heads.ego_path import PATH, PATH_VALID, EgoPath
from fsdtrain.heads.vehicle_segmentation import COVER, VehicleSegmentation, vehicle_maps
from fsdtrain.metrics import constant_velocity
from fsdtrain.report.example_picture import ExampleClip, draw_example


def save_examples(
    module: DrivingModule, datamodule: FleetDataModule, folder: Path, *, num_clips: int
) -> list[Path]:
    """Write one PNG for each of the first `num_clips` validation clips."""
    folder.mkdir(exist_ok=True)
    written = []
    for number, example in enumerate(islice(predict_examples(module, datamodule), num_clips)):
        path = folder / f"clip_{number:02d}_{example.clip_id}.png"
        draw_example(example).save(path)
        written.append(path)
    return written


def predict_examples(module: DrivingModule, datamodule: FleetDataModule) -> Iterator[ExampleClip]:
    """The validation clips in order, each with the outputs of the model as it is."""
    catalog = datamodule.catalog("val")
    was_training = module.training
    module.eval()
    for batch in datamodule.loader("val", Share(batch_size=1)):
        on_device: ClipBatch = move_data_to_device(batch, module.device)
        with torch.no_grad():
            output: StepOutput = module.step(on_device)
        source = catalog.clips[int(batch.clip_index_B)]
        clip = read_clip(source.shard, source.entry, cameras=catalog.cameras)
        fields: dict[str, Any] = {}  # typed by ExampleClip
        for name, head in module.heads():
            if isinstance(head, VehicleSegmentation):
                fields |= _vehicle_fields(head, output.outputs[name], batch)
            elif isinstance(head, EgoPath):
                fields |= _path_fields(head, output.outputs[name], batch)
        yield ExampleClip(
            clip_id=clip.meta.clip_id,
            camera_names=catalog.cameras,
            images_NHWC=batch.frames_BTNCHW[0, -1].movedim(1, -1).numpy(),
            intrinsics_N33=batch.intrinsics_BN33[0].double().numpy(),
            camera_to_ego_N44=batch.camera_to_ego_BN44[0].double().numpy(),
            grid=module.step.network.grid,
            # A validation window ends with its clip.
            boxes=() if clip.labels.boxes is None else clip.labels.boxes[-1],
            **fields,
        )
    module.train(was_training)


def _vehicle_fields(
    head: VehicleSegmentation, outputs: dict[str, Tensor], batch: ClipBatch
) -> dict[str, Any]:
    truth_XY, _ = vehicle_maps(batch.targets[COVER][0, -1], head.min_visibility_percent)
    return {
        "vehicle_probability_XY": outputs["logits_BTXY"][0, -1].float().sigmoid().cpu().numpy(),
        "vehicle_truth_XY": truth_XY.numpy(),
    }


def _path_fields(head: EgoPath, outputs: dict[str, Tensor], batch: ClipBatch) -> dict[str, Any]:
    valid_S = batch.targets[PATH_VALID][0]
    seconds_S = head.step_s * torch.arange(1, head.num_steps + 1)
    return {
        "path_truth_S2": batch.targets[PATH][0][valid_S].double().numpy(),
        "path_prediction_KS2": outputs["path_BKS2"][0].double().cpu().numpy(),
        "path_mode_probability_K": outputs["mode_logits_BK"][0].double().softmax(0).cpu().numpy(),
        "path_constant_velocity_S2": constant_velocity(batch.speed_B, seconds_S)[0]
        .double()
        .numpy(),
    }
