"""Fixtures for all tests: small clips made by hand, no files."""

import functools
import gc
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from numpy.typing import NDArray

# Without a GPU, Triton's kernels are interpreted. Triton looks here when it is imported, which
# Lightning does below.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from fsdtrain.backend import HISTOGRAM_BINS, HISTOGRAM_MIN_EXPONENT, TensorNumerics
from fsdtrain.build import build_network
from fsdtrain.data.batch import ClipBatch, ClipWindow
from fsdtrain.data.collate import Sample, collate
from fsdtrain.data.geometry import (
    BevGrid,
    intrinsic_matrix,
    pose_from_matrix,
    pose_matrix,
    yaw_quaternion,
)
from fsdtrain.data.schema import (
    Box3d,
    CameraCalibration,
    Clip,
    ClipMeta,
    EgoState,
    EgoTrack,
    FrameTimes,
    Labels,
    Lane,
    Occupancy,
    Pose,
    Rig,
)
from fsdtrain.data.video import encode_h264
from fsdtrain.hydra_app import compose_config
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.ops.table import OpTable
from fsdtrain.settings import ModelSettings, TrainingSettings, read_settings

MakeClip = Callable[..., Clip]
MakeBatch = Callable[..., ClipBatch]
MakeNetwork = Callable[..., HydraBev]
MakeTraining = Callable[..., TrainingSettings]

# The smallest model that has every part: milliseconds a step.
GRID = BevGrid(x_min_m=-8.0, x_max_m=8.0, y_min_m=-8.0, y_max_m=8.0, cell_m=1.0)
IMAGE_SIZE = (16, 32)
PATH_STEPS = 4

# Camera x (right) is ego -y, camera y (down) is ego -z, camera z (forward) is ego x.
FORWARD_CAMERA = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
FRAME_NS = 100_000_000
START_NS = 1_700_000_000_000_000_000


def pytest_addoption(parser: pytest.Parser) -> None:
    """CI must not lose the tests of the pages because a browser is missing."""
    parser.addoption(
        "--require-browser", action="store_true", help="fail, not skip, where there is no Chromium"
    )


def pytest_collection_finish() -> None:
    """Collecting garbage walks over all that is alive; modules and tests are, to the end."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not the user's; one for all tests, for processes are started to make a synthetic fleet."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def a_process_of_its_own(
    tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Commands set up logging, sys.argv and Hydra for a process that ends with them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        handler.close()
    root.handlers, root.level = handlers, level
    GlobalHydra.instance().clear()
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def make_clip() -> MakeClip:
    """`make_clip(clip_id="clip-0", seed=0, num_frames=5, size=(48, 64), ...)` -> a valid Clip.

    Two cameras ("front", "rear") of moving random texture, an ego on a circle at 10 m/s whose track
    reaches 2 s past the last frame, two boxes a frame, one lane, a small occupancy grid.
    """
    return _make_clip


@pytest.fixture(scope="session")
def make_network() -> MakeNetwork:
    """`make_network(seed=0, ops=OpTable(), lift="project_sample")`: a few thousand parameters."""
    return _make_network


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """`make_batch(seed=0, num_clips=2, num_frames=2, num_cameras=2)` -> for that network.

    Pictures, vehicles and paths are random; calibration and motion are plausible. Every cell and
    waypoint is valid.
    """
    return _make_batch


@pytest.fixture(scope="session")
def make_training() -> MakeTraining:
    """`make_training(max_steps=10, ...)` -> TrainingSettings, EMA off."""
    return _make_training


def _make_tensor_numerics(**changes: object) -> TensorNumerics:
    histogram = [0] * HISTOGRAM_BINS
    histogram[-3 - HISTOGRAM_MIN_EXPONENT] = 1000
    fields: dict[str, Any] = {
        "layer": "network.backbone.stem.0", "op": "convolution", "role": "activation",
        "format": "cfloat8_1_4_3", "rounding": "nearest", "bias": 9, "num_elements": 1000,
        "saturated_share": 0.0, "underflowed_share": 0.0, "nan_share": 0.0, "amax": 0.25,
        "snr_db": 31.5, "exponent_histogram": tuple(histogram),
        "representable_exponents": (-11, 6),
    }  # fmt: skip
    return TensorNumerics(**fields | changes)


@pytest.fixture(scope="session")
def make_tensor_numerics() -> Callable[..., TensorNumerics]:
    """`make_tensor_numerics(role="weight", ...)` -> a tensor in range; every field has a value."""
    return _make_tensor_numerics


@functools.cache
def _smallest_model(lift: str) -> ModelSettings:
    config = compose_config(
        "fit",
        [
            "run_dir=.", f"model.lift={lift}", f"model.image_size={list(IMAGE_SIZE)}",
            *(f"model.grid.{name}={getattr(GRID, name)}" for name in GRID.__dataclass_fields__),
            "model.network.stage_channels=[8,8]", "model.network.stage_blocks=[1,1]",
            "model.network.lift_channels=8", "model.pillars.heights_m=[0.2,1.6]",
            "model.network.encoder_channels=[8,8]", "model.network.encoder_blocks=[1,1]",
            f"model.heads.path.num_steps={PATH_STEPS}", "model.heads.path.report_s=1.0",
            "model.heads.path.channels=4", "model.heads.path.hidden=8",
        ],
    )  # fmt: skip
    return read_settings(config).model


def _make_network(
    *, seed: int = 0, ops: OpTable | None = None, lift: str = "project_sample"
) -> HydraBev:
    torch.manual_seed(seed)
    return build_network(_smallest_model(lift), OpTable() if ops is None else ops)


def _make_batch(
    *, seed: int = 0, num_clips: int = 2, num_frames: int = 2, num_cameras: int = 2
) -> ClipBatch:
    rng = np.random.default_rng([seed, 77])
    heads: Any = _make_network().heads.values()
    builders = [head.target_builder() for head in heads]
    samples = []
    for clip in range(num_clips):
        window = _window(rng, num_frames, num_cameras)
        targets = {name: value for build in builders for name, value in build(window).items()}
        samples.append(Sample(window=window, targets=targets, clip_index=clip))
    return collate(samples)


def _window(rng: np.random.Generator, num_frames: int, num_cameras: int) -> ClipWindow:
    """An ego on an arc that leaves the grid in front within the two seconds it is predicted."""
    rig = [_camera(IMAGE_SIZE, number, rng) for number in range(num_cameras)]
    speed, curvature = rng.uniform(6.0, 12.0), rng.uniform(-0.03, 0.03)

    def drive(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        yaw = curvature * speed * seconds
        poses = np.tile(np.eye(4), (len(seconds), 1, 1))
        poses[:, 0, 0] = poses[:, 1, 1] = np.cos(yaw)
        poses[:, 1, 0], poses[:, 0, 1] = np.sin(yaw), -np.sin(yaw)
        poses[:, 0, 3] = np.sin(yaw) / curvature
        poses[:, 1, 3] = (1 - np.cos(yaw)) / curvature
        return poses

    seconds = np.linspace(0.0, 0.1 * (num_frames - 1), num_frames)
    future = np.linspace(0.1, 2.4, 24)
    car = msgspec.structs.replace(
        _boxes(rng, 1)[0][0],
        center_m=(rng.uniform(-6, 6), rng.uniform(-6, 6), 0.8),
        visibility=None,
    )
    return ClipWindow(
        clip_id="noise",
        frames=rng.integers(0, 256, (num_frames, num_cameras, *IMAGE_SIZE, 3), np.uint8),
        intrinsics_N33=np.stack([intrinsic_matrix(camera) for camera in rig]),
        camera_to_ego_N44=np.stack([pose_matrix(camera.camera_to_ego) for camera in rig]),
        timestamps_s_T=seconds,
        ego_to_world_T44=drive(seconds),
        speed_mps=speed,
        yaw_rate_radps=curvature * speed,
        future_s_F=future,
        future_ego_to_world_F44=drive(seconds[-1] + future),
        boxes=((car,),) * num_frames,
        lanes=None,
        occupancy=None,
    )


def _make_training(**changes: Any) -> TrainingSettings:  # Any: fields of whatever type
    settings = TrainingSettings(
        max_steps=10, learning_rate=3e-3, weight_decay=1e-2, schedule="one_cycle",
        warmup_fraction=0.2, gradient_clip_norm=1.0, accumulate_batches=1, ema_decay=None,
        validate_every_steps=5, log_every_steps=1, monitor="val/loss", monitor_mode="min",
        early_stop_patience=None,
    )  # fmt: skip
    return msgspec.structs.replace(settings, **changes)


def _make_clip(
    *,
    clip_id: str = "clip-0",
    seed: int = 0,
    num_frames: int = 5,
    size: tuple[int, int] = (48, 64),
    cameras: tuple[str, ...] = ("front", "rear"),
    future_states: int = 20,
    has_ego_motion: bool = True,
    annotations: tuple[str, ...] = ("boxes", "lanes", "occupancy"),
    **changes: Any,  # Any: fields of Clip to replace, whatever their types
) -> Clip:
    rng = np.random.default_rng([seed, *clip_id.encode()])
    reference_ns = tuple(START_NS + FRAME_NS * frame for frame in range(num_frames))
    states = tuple(
        _ego_state(frame * FRAME_NS * 1e-9, START_NS + FRAME_NS * frame)
        for frame in range(num_frames + future_states)
    )
    clip = Clip(
        meta=ClipMeta(
            clip_id=clip_id,
            source="test",
            split="train",
            scene=f"scene-{seed}",
            cameras=cameras,
            num_frames=num_frames,
            frame_rate_hz=10.0,
            has_ego_motion=has_ego_motion,
            annotations=annotations,  # type: ignore[arg-type]  # checked by validate_clip
        ),
        rig=Rig(cameras={name: _camera(size, i, rng) for i, name in enumerate(cameras)}),
        frames=FrameTimes(
            reference_ns=reference_ns, camera_ns=dict.fromkeys(cameras, reference_ns)
        ),
        ego=EgoTrack(states=states),
        labels=Labels(
            boxes=_boxes(rng, num_frames) if "boxes" in annotations else None,
            lanes=_lanes() if "lanes" in annotations else None,
            occupancy=_occupancy(num_frames) if "occupancy" in annotations else None,
        ),
        video={
            name: encode_h264(_texture(rng, num_frames, size), frame_rate_hz=10.0)
            for name in cameras
        },
    )
    return msgspec.structs.replace(clip, **changes)


def _camera(size: tuple[int, int], number: int, rng: np.random.Generator) -> CameraCalibration:
    height, width = size
    turn = np.eye(4)
    angle = np.pi * number + rng.normal(0.0, 0.05)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose = np.eye(4)
    pose[:3, :3] = turn[:3, :3] @ FORWARD_CAMERA
    pose[:3, 3] = (1.5 - 2.0 * number, rng.normal(0.0, 0.1), 1.6)
    return CameraCalibration(
        model="pinhole",
        fx=0.8 * width + rng.normal(),
        fy=0.8 * width + rng.normal(),
        cx=width / 2 + rng.normal(),
        cy=height / 2 + rng.normal(),
        camera_to_ego=pose_from_matrix(pose),
        width=width,
        height=height,
    )


def _ego_state(seconds: float, timestamp_ns: int) -> EgoState:
    speed, yaw_rate = 10.0, 0.2
    yaw = yaw_rate * seconds
    radius = speed / yaw_rate
    return EgoState(
        timestamp_ns=timestamp_ns,
        ego_to_world=Pose(
            rotation_wxyz=yaw_quaternion(yaw),
            translation_m=(radius * math.sin(yaw), radius * (1 - math.cos(yaw)), 0.0),
        ),
        velocity_mps=(speed, 0.0, 0.0),
        acceleration_mps2=(0.0, speed * yaw_rate, 0.0),
        yaw_rate_radps=yaw_rate,
    )


def _boxes(rng: np.random.Generator, num_frames: int) -> tuple[tuple[Box3d, ...], ...]:
    start, yaw = rng.uniform(5, 20), rng.uniform(-3, 3)
    return tuple(
        (
            Box3d(
                category="car",
                track_id="a",
                center_m=(start + frame, 3.0, 0.8),
                size_m=(4.5, 1.9, 1.6),
                rotation_wxyz=yaw_quaternion(yaw),
                velocity_mps=(1.0, 0.5, 0.0),
                visibility=0.75,
            ),
            Box3d(
                category="pedestrian",
                track_id="b",
                center_m=(8.0, -4.0, 0.9),
                size_m=(0.6, 0.6, 1.8),
                rotation_wxyz=yaw_quaternion(0.0),
            ),
        )
        for frame in range(num_frames)
    )


def _lanes() -> tuple[Lane, ...]:
    return (Lane(kind="divider", points_m=tuple((float(x), 1.8, 0.0) for x in range(0, 30, 5))),)


def _occupancy(num_frames: int) -> Occupancy:
    return Occupancy(
        frame_index=num_frames - 1,
        classes=("vehicle",),
        min_corner_m=(0.0, -2.0, 0.0),
        voxel_size_m=0.5,
        shape=(4, 8, 2),
        runs=((0, 32), (1, 16), (-1, 16)),
    )


def _texture(
    rng: np.random.Generator, num_frames: int, size: tuple[int, int]
) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    height, width = size
    cells = rng.integers(0, 255, ((height + num_frames) // 4 + 2, (width + num_frames) // 4 + 2, 3))
    wide = cells.repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
    return [wide[frame : frame + height, frame : frame + width] for frame in range(num_frames)]
