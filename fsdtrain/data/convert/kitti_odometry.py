"""A KITTI odometry sequence to clips of one camera with ego motion.

    ego frame   x forward, y left, z up along the axes of the camera, which is taken as level; the
                origin lies on the ground straight below the camera, 1.65 m (KITTI's mounting
                height), not below the rear axle: the source gives no way there
    world       the ego frame of the sequence's first frame
    time        times.txt where the sequence has one, 10 Hz otherwise

Source: A. Geiger et al., the odometry benchmark's devkit: a pose is camera 0 -> camera 0 of the
first frame, P is the projection of camera-0 coordinates into a rectified image.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fsdtrain.data.convert.kinematics import track_ego
from fsdtrain.data.convert.pictures import (
    clip_name,
    fit_camera,
    level_camera_to_ego,
    read_image,
)
from fsdtrain.data.geometry import Array, invert_pose, pose_from_matrix
from fsdtrain.data.schema import (
    CameraCalibration,
    Clip,
    ClipMeta,
    EgoState,
    EgoTrack,
    FrameTimes,
    Labels,
    Rig,
)
from fsdtrain.data.shard import write_shards
from fsdtrain.data.video import encode_h264
from fsdtrain.errors import DataError, UserError

CAMERA = "front"
CAMERA_HEIGHT_M = 1.65
FRAME_RATE_HZ = 10.0
FUTURE_S = 6.0  # how far a clip's ego track reaches beyond its last frame

# Folders of images, and the line of calib.txt that belongs to each, in the order they are tried.
IMAGE_FOLDERS = {"image_2": 2, "image_0": 0, "image_l": 0}
ROTATION_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class _Sequence:
    """One drive: as many images, poses and times."""

    name: str
    images: tuple[Path, ...]
    times_ns: tuple[int, ...]
    camera: CameraCalibration
    ego_to_world_T44: Array


def convert_kitti_odometry(
    source: Path,
    out_dir: Path,
    *,
    split: str = "train",
    clip_frames: int = 10,
    max_width: int | None = None,
    clips_per_shard: int = 64,
    crf: int = 18,
) -> list[Path]:
    """Cut one sequence into clips and write them as shards `kitti-<split>-*.tar`.

    The sequence is one scene; the last clip is shorter where the length is no multiple. A clip's
    ego track reaches up to FUTURE_S beyond its last frame.

    Args:
        source: the sequence's folder, with calib.txt, images in image_2, image_0 or image_l, and
            poses in poses.txt or in ../../poses/<sequence>.txt.
        out_dir: made if it is missing.
        split: name of the split that the clips are marked with.
        clip_frames: length of a clip.
        max_width: images are scaled down to this width in pixels, the calibration with them; an
            odd size loses its last row or column.
        clips_per_shard: clips in one shard.
        crf: x264's quality of the video.

    Raises:
        UserError: the folder is no sequence, or an argument is out of range.
        DataError: a file is missing or broken; names the file.
    """
    if clip_frames < 1:
        raise UserError(f"clip_frames is {clip_frames}, must be at least 1")
    drive = _read_sequence(source)
    states = track_ego(drive.times_ns, drive.ego_to_world_T44).states
    camera = fit_camera(drive.camera, max_width=max_width)

    def clips() -> Iterator[Clip]:
        for first in range(0, len(drive.images), clip_frames):
            last = min(first + clip_frames, len(drive.images)) - 1
            end_ns = drive.times_ns[last] + round(FUTURE_S * 1e9)
            size = (drive.camera.width, drive.camera.height)
            pictures = (
                read_image(path, size=size, max_width=max_width)
                for path in drive.images[first : last + 1]
            )
            yield _clip(
                drive,
                first,
                camera,
                split,
                encode_h264(pictures, frame_rate_hz=FRAME_RATE_HZ, crf=crf),
                [state for state in states[first:] if state.timestamp_ns <= end_ns],
                drive.times_ns[first : last + 1],
            )

    return write_shards(clips(), out_dir, prefix=f"kitti-{split}", clips_per_shard=clips_per_shard)


def _clip(
    drive: _Sequence,
    first: int,
    camera: CameraCalibration,
    split: str,
    video: bytes,
    states: Sequence[EgoState],
    times_ns: tuple[int, ...],
) -> Clip:
    return Clip(
        meta=ClipMeta(
            clip_id=f"kitti-{clip_name(drive.name)}-{first:06d}",
            source="kitti_odometry",
            split=split,
            scene=drive.name,
            cameras=(CAMERA,),
            num_frames=len(times_ns),
            frame_rate_hz=FRAME_RATE_HZ,
            has_ego_motion=True,
        ),
        rig=Rig(cameras={CAMERA: camera}),
        frames=FrameTimes(reference_ns=times_ns, camera_ns={CAMERA: times_ns}),
        ego=EgoTrack(states=tuple(states)),
        labels=Labels(),
        video={CAMERA: video},
    )


def _read_sequence(source: Path) -> _Sequence:
    folders = [name for name in IMAGE_FOLDERS if (source / name).is_dir()]
    if not folders:
        raise UserError(
            f"{source} is no KITTI odometry sequence: it has none of the folders "
            f"{', '.join(IMAGE_FOLDERS)}"
        )
    folder = folders[0]
    images = tuple(sorted((source / folder).glob("*.png")))
    if not images:
        raise DataError(f"{source / folder}: has no *.png")
    poses_path = source / "poses.txt"
    if not poses_path.exists():
        poses_path = source.parent.parent / "poses" / f"{source.name}.txt"
    poses = _read_poses(poses_path)
    times_ns = _read_times(source / "times.txt", len(poses))
    if not len(images) == len(poses) == len(times_ns):
        raise DataError(
            f"{source}: {len(images)} images, {len(poses)} poses in {poses_path.name} and "
            f"{len(times_ns)} times must be as many"
        )
    projection = _read_projection(source / "calib.txt", IMAGE_FOLDERS[folder])
    try:
        with Image.open(images[0]) as image:
            width, height = image.size
    except OSError as error:
        raise DataError(f"{images[0]}: cannot be read: {error}") from error
    camera_0_to_ego = level_camera_to_ego(CAMERA_HEIGHT_M)
    return _Sequence(
        name=source.resolve().name,
        images=images,
        times_ns=times_ns,
        camera=_camera(projection, camera_0_to_ego, width, height),
        ego_to_world_T44=camera_0_to_ego @ poses @ invert_pose(camera_0_to_ego),
    )


def _camera(
    projection_34: Array, camera_0_to_ego: Array, width: int, height: int
) -> CameraCalibration:
    """From P = K [I | t], which takes camera-0 coordinates to this camera's pixels."""
    camera_to_camera_0 = np.eye(4)
    camera_to_camera_0[:3, 3] = -np.linalg.solve(projection_34[:, :3], projection_34[:, 3])
    return CameraCalibration(
        model="pinhole",
        fx=float(projection_34[0, 0]),
        fy=float(projection_34[1, 1]),
        # KITTI's pixel centres are whole numbers, those of fleetclip end in a half.
        cx=float(projection_34[0, 2]) + 0.5,
        cy=float(projection_34[1, 2]) + 0.5,
        camera_to_ego=pose_from_matrix(camera_0_to_ego @ camera_to_camera_0),
        width=width,
        height=height,
    )


def _read_projection(path: Path, number: int) -> Array:
    """[3, 4] of one camera: the line "P<number>: ...", or line `number` of bare numbers."""
    lines = _read_lines(path)
    labelled = [line for line in lines if line.startswith(f"P{number}:")]
    bare = [line for line in lines if not re.match(r"[A-Za-z]", line)]
    if labelled:
        text = labelled[0].partition(":")[2]
    elif number < len(bare):
        text = bare[number]
    else:
        raise DataError(f"{path}: has no projection of camera {number}")
    matrix = _numbers(text, 12, where=f"{path}: P{number}").reshape(3, 4)
    is_upright = matrix[0, 1] == matrix[1, 0] == matrix[2, 0] == matrix[2, 1] == 0
    if not (is_upright and matrix[2, 2] == 1 and matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise DataError(f"{path}: P{number} is not the projection of a rectified camera")
    return matrix


def _read_poses(path: Path) -> Array:
    """[T, 4, 4], camera 0 -> camera 0 of the first frame."""
    lines = _read_lines(path)
    poses = np.tile(np.eye(4), (len(lines), 1, 1))
    for number, line in enumerate(lines):
        where = f"{path}: line {number + 1}"
        poses[number, :3] = _numbers(line, 12, where=where).reshape(3, 4)
        rotation = poses[number, :3, :3]
        error = np.abs(rotation @ rotation.T - np.eye(3)).max()
        if error > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
            raise DataError(f"{where}: is not a rotation and a translation")
    return poses


def _read_times(path: Path, num_poses: int) -> tuple[int, ...]:
    if not path.exists():
        return tuple(round(number * 1e9 / FRAME_RATE_HZ) for number in range(num_poses))
    lines = _read_lines(path)
    return tuple(
        round(float(_numbers(line, 1, where=f"{path}: line {number + 1}")[0]) * 1e9)
        for number, line in enumerate(lines)
    )


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text") from error
    return [line for line in text.splitlines() if line.strip()]


def _numbers(text: str, count: int, *, where: str) -> Array:
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    if len(values) != count or not np.isfinite(values).all():
        raise DataError(f"{where}: must be {count} finite numbers, has {len(values)}")
    return values
