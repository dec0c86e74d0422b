"""DDAD, or any DGP scenes with cameras, lidar and 3D boxes, to fleetclip shards.

One scene is one clip, one sample one frame. What a reader of the result should know:

    ego frame   DGP's vehicle frame: x forward, y left, z up, origin at the rear axle; moved along
                its z onto the ground that the lidar sees around the vehicle
    reference   the moment and vehicle pose of the camera that looks most straight ahead, since
                cameras are what a model gets. Lidar stamps differ from it by tens of milliseconds
                and every datum has its own pose, so boxes go lidar -> world -> ego: what stands
                still then lies in the images where the annotators put it
    boxes       moved on by their own velocity from the lidar's moment to the reference;
                visibility is not known
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fsdtrain.data.convert.dgp import BoxAnnotation, find_scenes
from fsdtrain.data.convert.dgp_scene import (
    DgpScene,
    Frame,
    Picture,
    Sensor,
    Sweep,
    load_scene,
    read_points,
)
from fsdtrain.data.convert.kinematics import differentiate, track_ego, vector3
from fsdtrain.data.convert.pictures import clip_name, fit_camera, read_image
from fsdtrain.data.geometry import (
    Array,
    invert_pose,
    pose_from_matrix,
    quaternion_from_matrix,
)
from fsdtrain.data.schema import (
    Box3d,
    CameraCalibration,
    Clip,
    ClipMeta,
    FrameTimes,
    Labels,
    ObjectClass,
    Rig,
)
from fsdtrain.data.shard import write_shards
from fsdtrain.data.video import encode_h264
from fsdtrain.errors import DataError, UserError

logger = logging.getLogger(__name__)

CLASS_OF_NAME: dict[str, ObjectClass] = {
    "Person": "pedestrian",
    "Truck": "truck",
    "Car": "car",
    "Bus/RV/Caravan": "bus",
    "Motorcycle": "motorcycle",
    "Wheeled Slow": "other",
    "Train": "train",
    "Towed Object": "trailer",
    "Bicycle": "bicycle",
    "Trailer": "trailer",
}
SINGLE_FRAME_RATE_HZ = 10.0  # nominal rate of a clip of one frame

# The ground is looked for in this window around the vehicle, in metres.
GROUND_REACH_M = (15.0, 5.0)  # ahead and behind, to either side
GROUND_LEVEL_M = 1.0  # above and below the source's origin
GROUND_BIN_M = 0.05
MIN_GROUND_POINTS = 200


def convert_ddad(
    source: Path,
    out_dir: Path,
    *,
    split: str = "train",
    scenes: Sequence[str] | None = None,
    clip_frames: int | None = None,
    max_width: int | None = 960,
    clips_per_shard: int = 8,
    crf: int = 18,
) -> list[Path]:
    """Write the scenes of one DGP split as shards `ddad-<split>-*.tar`.

    Args:
        source: folder of the data set, or its JSON.
        out_dir: made if it is missing.
        split: "train", "val" or "test": which of DGP's splits to read, and the split's name.
        scenes: names of the scenes to convert (their folders); None converts all.
        clip_frames: samples of one clip, the rest of a scene that fills none is left out and
            logged; None makes every scene one clip.
        max_width: images are scaled down to this width in pixels, the calibration with them.
        clips_per_shard: clips in one shard.
        crf: x264's quality of the video; 18 is near to the source.

    Raises:
        UserError: the source is no DGP data set, or lacks the split or a scene.
        DataError: a file is missing or broken; names the file.
    """
    files = find_scenes(source, split=split, names=scenes)

    def clips() -> Iterator[Clip]:
        for path in files.values():
            logger.info("converting %s", path)
            yield from read_ddad_clips(
                path, split=split, clip_frames=clip_frames, max_width=max_width, crf=crf
            )

    return write_shards(clips(), out_dir, prefix=f"ddad-{split}", clips_per_shard=clips_per_shard)


def read_ddad_clips(
    path: Path, *, split: str, clip_frames: int | None, max_width: int | None, crf: int
) -> Iterator[Clip]:
    """One scene file, and all that it names, cut into clips."""
    scene = load_scene(path)
    num_frames = len(scene.frames)
    length = num_frames if clip_frames is None else clip_frames
    if not 1 <= length <= num_frames:
        raise UserError(f"clip_frames={length}: {path} has {num_frames} samples")
    if num_frames % length:
        logger.warning("%s: the last %d samples fill no clip", path, num_frames % length)
    reference = _straightest_camera(scene)
    pictures = [frame.pictures[reference] for frame in scene.frames]
    times_ns = [picture.time_ns for picture in pictures]
    vehicle_to_ego = np.eye(4)
    vehicle_to_ego[2, 3] = -_ground_height(scene)
    ego_to_world_T44 = np.stack(
        [picture.vehicle_to_world @ invert_pose(vehicle_to_ego) for picture in pictures]
    )
    rate_hz = SINGLE_FRAME_RATE_HZ
    if num_frames > 1:
        rate_hz = float(np.round(1e9 / np.median(np.diff(times_ns)), 2))
    boxes = _label_boxes(scene, times_ns, ego_to_world_T44)
    # The whole drive, so that a clip knows where the vehicle went after its last frame.
    ego = track_ego(times_ns, ego_to_world_T44)
    names = {name: name.lower() for name in scene.cameras}
    rig = Rig(
        cameras={
            names[name]: fit_camera(
                _calibration(name, sensor, scene.frames[0].pictures[name], vehicle_to_ego),
                max_width=max_width,
            )
            for name, sensor in scene.cameras.items()
        }
    )
    for first in range(0, num_frames - length + 1, length):
        part = slice(first, first + length)
        frames = scene.frames[part]
        suffix = "" if length == num_frames else f"-{first:06d}"
        yield Clip(
            meta=ClipMeta(
                clip_id=clip_name(f"ddad-{scene.name}{suffix}"),
                source="ddad",
                split=split,
                scene=scene.name,
                cameras=tuple(names.values()),
                num_frames=length,
                frame_rate_hz=rate_hz,
                has_ego_motion=num_frames > 1,
                annotations=() if boxes is None else ("boxes",),
            ),
            rig=rig,
            frames=FrameTimes(
                reference_ns=tuple(times_ns[part]),
                camera_ns={
                    lower: tuple(frame.pictures[name].time_ns for frame in frames)
                    for name, lower in names.items()
                },
            ),
            ego=ego,
            labels=Labels(boxes=None if boxes is None else boxes[part]),
            video={
                lower: _encode_camera(frames, name, rate_hz, max_width, crf)
                for name, lower in names.items()
            },
        )


def _straightest_camera(scene: DgpScene) -> str:
    """The camera whose optical axis is nearest to the vehicle's x axis; of equals the first."""
    return max(scene.cameras, key=lambda name: float(scene.cameras[name].sensor_to_vehicle[0, 2]))


def _calibration(
    name: str, sensor: Sensor, picture: Picture, vehicle_to_ego: Array
) -> CameraCalibration:
    k = sensor.intrinsics
    if any((k.skew, k.fov, k.k1, k.k2, k.k3, k.k4, k.k5, k.k6, k.p1, k.p2)):
        raise DataError(
            f"{picture.path}: the calibration of {name} has skew or distortion; only rectified "
            "images are converted"
        )
    width, height = picture.size
    return CameraCalibration(
        model="pinhole",
        fx=k.fx,
        fy=k.fy,
        # DGP's pixel centres are whole numbers, those of fleetclip end in a half.
        cx=k.cx + 0.5,
        cy=k.cy + 0.5,
        camera_to_ego=pose_from_matrix(vehicle_to_ego @ sensor.sensor_to_vehicle),
        width=width,
        height=height,
    )


def _encode_camera(
    frames: Sequence[Frame], name: str, rate_hz: float, max_width: int | None, crf: int
) -> bytes:
    size = frames[0].pictures[name].size
    pictures = (
        read_image(frame.pictures[name].path, size=size, max_width=max_width) for frame in frames
    )
    return encode_h264(pictures, frame_rate_hz=rate_hz, crf=crf)


def _ground_height(scene: DgpScene) -> float:
    """Height of the ground in the vehicle's frame: where most lidar points near it lie.

    The median over the frames; 0 (the source's origin stays) where no frame shows enough ground.
    """
    heights = []
    for frame in scene.frames:
        if frame.sweep is None:
            continue
        points = read_points(frame.sweep)
        reach_x, reach_y = GROUND_REACH_M
        is_near = (np.abs(points[:, 0]) < reach_x) & (np.abs(points[:, 1]) < reach_y)
        levels = points[is_near & (np.abs(points[:, 2]) < GROUND_LEVEL_M), 2]
        if len(levels) < MIN_GROUND_POINTS:
            continue
        num_bins = round(2 * GROUND_LEVEL_M / GROUND_BIN_M)
        counts, edges = np.histogram(levels, num_bins, (-GROUND_LEVEL_M, GROUND_LEVEL_M))
        peak = edges[np.argmax(counts)] + GROUND_BIN_M / 2
        heights.append(float(np.median(levels[np.abs(levels - peak) < 2 * GROUND_BIN_M])))
    if not heights:
        logger.warning("scene %s: no lidar ground; the origin stays the source's", scene.name)
        return 0.0
    height_m = float(np.median(heights))
    logger.info("scene %s: ground at z = %+.2f m in the source's frame", scene.name, height_m)
    return height_m


def _label_boxes(
    scene: DgpScene, times_ns: Sequence[int], ego_to_world_T44: Array
) -> tuple[tuple[Box3d, ...], ...] | None:
    """Every frame's boxes in its ego frame at `times_ns`; None unless all frames are annotated."""
    sweeps = [frame.sweep for frame in scene.frames if frame.sweep is not None]
    if len(sweeps) < len(scene.frames) or any(sweep.boxes is None for sweep in sweeps):
        return None
    velocities = _track_velocities(sweeps)
    labels = []
    for number, (sweep, time_ns) in enumerate(zip(sweeps, times_ns, strict=True)):
        world_to_ego = invert_pose(ego_to_world_T44[number])
        boxes = []
        for annotation in sweep.boxes or ():
            box_to_world = _box_to_world(sweep, annotation)
            velocity = velocities.get((annotation.instance_id, number))
            if velocity is not None:
                box_to_world[:3, 3] += velocity * (time_ns - sweep.time_ns) / 1e9
            box_to_ego = world_to_ego @ box_to_world
            size = annotation.box
            boxes.append(
                Box3d(
                    category=_category(scene, annotation),
                    track_id=str(annotation.instance_id),
                    center_m=vector3(box_to_ego[:3, 3]),
                    size_m=(size.length, size.width, size.height),
                    rotation_wxyz=quaternion_from_matrix(box_to_ego[:3, :3]),
                    velocity_mps=(
                        None if velocity is None else vector3(world_to_ego[:3, :3] @ velocity)
                    ),
                )
            )
        labels.append(tuple(boxes))
    return tuple(labels)


def _box_to_world(sweep: Sweep, annotation: BoxAnnotation) -> Array:
    where = f"{sweep.path}: box {annotation.instance_id}"
    return sweep.lidar_to_world @ annotation.box.pose.matrix(where=where)


def _track_velocities(sweeps: Sequence[Sweep]) -> dict[tuple[int, int], Array]:
    """World velocity [3] by (instance id, frame number); a track seen once has none."""
    tracks: dict[int, list[tuple[int, Array]]] = {}
    for number, sweep in enumerate(sweeps):
        for annotation in sweep.boxes or ():
            position = _box_to_world(sweep, annotation)[:3, 3]
            tracks.setdefault(annotation.instance_id, []).append((number, position))
    velocities: dict[tuple[int, int], Array] = {}
    for instance_id, track in tracks.items():
        if len(track) < 2:
            continue
        times_ns = [sweeps[number].time_ns for number, _ in track]
        speeds = differentiate(times_ns, np.stack([position for _, position in track]))
        velocities |= {
            (instance_id, number): speed for (number, _), speed in zip(track, speeds, strict=True)
        }
    return velocities


def _category(scene: DgpScene, annotation: BoxAnnotation) -> ObjectClass:
    name = scene.class_names.get(annotation.class_id)
    if name is None:
        raise DataError(
            f"scene {scene.name}: class id {annotation.class_id} of box {annotation.instance_id} "
            "is not in the scene's ontology"
        )
    return CLASS_OF_NAME.get(name, "other")
