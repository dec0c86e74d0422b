"""From a scene's number to a finished fleetclip: draw, render, encode, label.

`make_clip` is the whole way; it touches no disk. It imports neither torch nor webdataset, since a
worker process pays for each import.
"""

import math
from dataclasses import dataclass

import numpy as np

from fsdtrain.data.geometry import Array
from fsdtrain.data.schema import (
    Clip,
    ClipMeta,
    EgoState,
    EgoTrack,
    FrameTimes,
    Labels,
    Pose,
    Rig,
)
from fsdtrain.data.synthetic.labels import (
    label_boxes,
    label_lanes,
    label_occupancy,
    rounded,
)
from fsdtrain.data.synthetic.render import Renderer
from fsdtrain.data.synthetic.rig import draw_rig, ego_pose
from fsdtrain.data.synthetic.world import Scene, Split, draw_scene, scene_seed
from fsdtrain.data.video import encode_h264

_RIG_STREAM, _NOISE_STREAM = 10, 11  # beside the scene's own streams


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """What every clip of a fleet has in common."""

    seed: int
    num_cameras: int
    image_height: int
    image_width: int
    fov_deg: float
    rig_jitter: float
    num_frames: int
    frame_rate_hz: float
    samples: int  # rays per pixel and direction
    crf: int


def make_clip(spec: ClipSpec, split: Split, index: int) -> Clip:
    """The clip with this number; the same bytes for the same arguments, in any process."""
    scene = draw_scene(
        seed=spec.seed,
        split=split,
        index=index,
        num_frames=spec.num_frames,
        frame_rate_hz=spec.frame_rate_hz,
    )
    rig = draw_rig(
        np.random.default_rng(scene_seed(spec.seed, split, index, _RIG_STREAM)),
        num_cameras=spec.num_cameras,
        width=spec.image_width,
        height=spec.image_height,
        fov_deg=spec.fov_deg,
        jitter=spec.rig_jitter,
    )
    noise = np.random.default_rng(scene_seed(spec.seed, split, index, _NOISE_STREAM))
    renderer = Renderer(scene, samples=spec.samples)
    images: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]] = {
        camera.name: [] for camera in rig
    }
    boxes = []
    for moment in scene.frame_moments:
        frame = renderer.begin_frame(moment)
        for camera in rig:
            image = renderer.render(frame, camera.calibration, camera.sensor, noise)
            images[camera.name].append(image)
        boxes.append(label_boxes(scene, moment, frame.visible, frame.unoccluded))
    last = scene.frame_moments[-1]
    labels = Labels(
        boxes=tuple(boxes),
        lanes=label_lanes(scene, last),
        occupancy=label_occupancy(scene, last, spec.num_frames - 1, frame.solids),
    )
    times = tuple(scene.times_ns[moment] for moment in scene.frame_moments)
    name = f"synthetic-{spec.seed}-{split}-{index:06d}"
    return Clip(
        meta=ClipMeta(
            clip_id=name,
            source="synthetic",
            split=split,
            scene=name,
            cameras=tuple(images),
            num_frames=spec.num_frames,
            frame_rate_hz=spec.frame_rate_hz,
            has_ego_motion=True,
            annotations=("boxes", "lanes", "occupancy"),
        ),
        rig=Rig(cameras={camera.name: camera.calibration for camera in rig}),
        frames=FrameTimes(reference_ns=times, camera_ns=dict.fromkeys(images, times)),
        ego=_track_ego(scene),
        labels=labels,
        video={
            camera: encode_h264(frames, frame_rate_hz=spec.frame_rate_hz, crf=spec.crf)
            for camera, frames in images.items()
        },
    )


def _track_ego(scene: Scene) -> EgoTrack:
    times_s = np.array(scene.times_ns) / 1e9
    acceleration = np.gradient(scene.ego.velocity_K2, times_s, axis=0)
    yaw_rate = np.gradient(scene.ego.pose_K3[:, 2], times_s)
    states = []
    for moment, time_ns in enumerate(scene.times_ns):
        x, y, yaw = scene.ego.pose_K3[moment].tolist()
        pose = ego_pose(x, y, yaw)
        w, _, _, z = pose.rotation_wxyz
        center_x, center_y = rounded(x, y)
        speed_x, speed_y = rounded(*_into_axes(scene.ego.velocity_K2[moment], yaw))
        gain_x, gain_y = rounded(*_into_axes(acceleration[moment], yaw))
        states.append(
            EgoState(
                timestamp_ns=time_ns,
                ego_to_world=Pose(
                    rotation_wxyz=(round(w, 9), 0.0, 0.0, round(z, 9)),
                    translation_m=(center_x, center_y, 0.0),
                ),
                velocity_mps=(speed_x, speed_y, 0.0),
                acceleration_mps2=(gain_x, gain_y, 0.0),
                yaw_rate_radps=round(float(yaw_rate[moment]), 6),
            )
        )
    return EgoTrack(states=tuple(states))


def _into_axes(vector: Array, yaw: float) -> tuple[float, float]:
    cos, sin = math.cos(yaw), math.sin(yaw)
    x, y = vector.tolist()
    return cos * x + sin * y, cos * y - sin * x
