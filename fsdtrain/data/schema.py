"""The fleetclip v1 format: what one clip of fleet driving is, on disk and in memory.

This module owns the format's types and their validation; it knows nothing of tar files
(`shard.py`), of video decoding (`video.py`) or of tensors.

A shard is a plain tar that any WebDataset reader opens. One sample is one clip, key = clip id:

    <clip>.meta.json          ClipMeta: schema version, source, scene, cameras, what is annotated
    <clip>.rig.json           Rig: the calibration of every camera
    <clip>.frames.json        FrameTimes: a timestamp for every frame of every camera
    <clip>.ego.json           EgoTrack: poses and kinematics; may reach beyond the last frame
    <clip>.labels.json        Labels: boxes, lanes, occupancy; null where unknown
    <clip>.<camera>.h264      Annex B H.264, one closed GOP (starts with SPS, PPS, IDR), no B-frames

Beside `name.tar` lies `name.tar.index.json` (ShardIndex): offset, size and CRC-32 of every member,
and the counts. The index is written last: a tar without one was not finished.

Units are SI: metres, seconds, radians; timestamps are integer nanoseconds. Frames of reference,
axes and handedness are written down in `geometry.py`. Rotations are unit quaternions (w, x, y, z).
Everything is JSON or H.264: nothing is ever unpickled.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import msgspec

from fsdtrain.errors import DataError

SCHEMA_NAME = "fleetclip"
SCHEMA_VERSION = 1
MAX_MEMBER_BYTES = 256 * 2**20  # an untrusted shard may not ask for more memory than this
MAX_FRAMES = 10_000
QUATERNION_TOLERANCE = 1e-3

# A dot would end the WebDataset key, a slash would leave the folder.
CLIP_ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,128}")
CAMERA_NAME_PATTERN = re.compile(r"[a-z0-9_]{1,64}")

ObjectClass = Literal[
    "car", "truck", "bus", "trailer", "motorcycle", "bicycle", "pedestrian", "train", "other"
]
VEHICLE_CLASSES: frozenset[str] = frozenset(
    {"car", "truck", "bus", "trailer", "motorcycle", "bicycle"}
)
LaneKind = Literal["divider", "boundary", "centerline"]
CameraModel = Literal["pinhole", "opencv", "opencv_fisheye"]

Vector3 = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict base: keyword-only, immutable, unknown fields are errors."""


class Pose(Struct, frozen=True, kw_only=True):
    """A rigid transform child -> parent: p_parent = R(rotation_wxyz) p_child + translation_m."""

    rotation_wxyz: Quaternion
    translation_m: Vector3


class CameraCalibration(Struct, frozen=True, kw_only=True):
    """One camera: projection, distortion, mounting and image size.

    `distortion` holds nothing for "pinhole", OpenCV's (k1, k2, p1, p2, k3) for "opencv" and
    (k1, k2, k3, k4) for "opencv_fisheye". Pixel (0, 0) has its centre at (0.5, 0.5).
    """

    model: CameraModel
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    camera_to_ego: Pose
    width: int
    height: int


class Rig(Struct, frozen=True, kw_only=True):
    """All cameras of one vehicle by name."""

    cameras: dict[str, CameraCalibration]


class ClipMeta(Struct, frozen=True, kw_only=True):
    """What the clip is and what a reader may expect in it.

    `frame_rate_hz` is nominal; `FrameTimes` holds the truth. `source` names where the clip came
    from ("synthetic", "ddad", "video", "kitti_odometry"); `scene` groups clips of one drive: no
    scene may stand in two splits.
    """

    schema: Literal["fleetclip"] = "fleetclip"
    version: int = SCHEMA_VERSION
    clip_id: str
    source: str
    split: str
    scene: str
    cameras: tuple[str, ...]
    num_frames: int
    frame_rate_hz: float
    # True where ego_to_world was measured; a converted dash-cam video has none.
    has_ego_motion: bool
    annotations: tuple[Literal["boxes", "lanes", "occupancy"], ...] = ()


class FrameTimes(Struct, frozen=True, kw_only=True):
    """`reference_ns[t]`: when frame t's labels hold; `camera_ns[name][t]`: each shutter."""

    reference_ns: tuple[int, ...]
    camera_ns: dict[str, tuple[int, ...]]


class EgoState(Struct, frozen=True, kw_only=True):
    """The vehicle at one moment. Velocity and acceleration are over ground, in ego axes."""

    timestamp_ns: int
    ego_to_world: Pose
    velocity_mps: Vector3
    acceleration_mps2: Vector3
    yaw_rate_radps: float


class EgoTrack(Struct, frozen=True, kw_only=True):
    """Ego states in time order; cover every reference time and may reach past the last one."""

    states: tuple[EgoState, ...]


class Box3d(Struct, frozen=True, kw_only=True):
    """An oriented box in the ego frame of its own frame's reference time.

    `size_m` is (length, width, height) along the box's own x, y, z; `center_m` is its centre.
    `visibility` is visible pixels over unoccluded pixels, summed over cameras (0..1).
    """

    category: ObjectClass
    track_id: str
    center_m: Vector3
    size_m: Vector3
    rotation_wxyz: Quaternion
    velocity_mps: Vector3 | None = None
    visibility: float | None = None


class Lane(Struct, frozen=True, kw_only=True):
    """A polyline in the ego frame of the last frame's reference time."""

    kind: LaneKind
    points_m: tuple[Vector3, ...]


class Occupancy(Struct, frozen=True, kw_only=True):
    """A voxel grid of class indices in the ego frame of frame `frame_index`.

    `runs` is (value, length) run-length code over the C-ordered grid [x, y, z]; value 0 is free,
    value i > 0 is `classes[i - 1]`, value -1 is unknown (never observed).
    """

    frame_index: int
    classes: tuple[str, ...]
    min_corner_m: Vector3
    voxel_size_m: float
    shape: tuple[int, int, int]
    runs: tuple[tuple[int, int], ...]


class Labels(Struct, frozen=True, kw_only=True):
    """`boxes[t]` are the boxes of frame t. None means not annotated; empty means nothing there."""

    schema: Literal["fleetclip-labels"] = "fleetclip-labels"
    version: int = 1
    boxes: tuple[tuple[Box3d, ...], ...] | None = None
    lanes: tuple[Lane, ...] | None = None
    occupancy: Occupancy | None = None


class Clip(Struct, frozen=True, kw_only=True):
    """One whole clip in memory; `video[camera]` is an Annex B H.264 stream."""

    meta: ClipMeta
    rig: Rig
    frames: FrameTimes
    ego: EgoTrack
    labels: Labels
    video: dict[str, bytes]


class IndexMember(Struct, frozen=True, kw_only=True):
    """Where one member's bytes lie in the tar, and their CRC-32 (zlib)."""

    name: str
    offset: int
    size_bytes: int
    crc32: int


class IndexClip(Struct, frozen=True, kw_only=True):
    """One clip's members; `num_frames` and `cameras` must agree with its meta."""

    clip_id: str
    scene: str
    num_frames: int
    cameras: tuple[str, ...]
    members: tuple[IndexMember, ...]


class ShardIndex(Struct, frozen=True, kw_only=True):
    """The sidecar of one shard. `num_frames` counts frames of all clips and all cameras."""

    schema: Literal["fleetclip-index"] = "fleetclip-index"
    version: int = SCHEMA_VERSION
    shard: str
    size_bytes: int
    num_clips: int
    num_frames: int
    clips: tuple[IndexClip, ...]


StructType = TypeVar("StructType", bound=Struct)


def decode_json(data: bytes, kind: type[StructType], *, where: str) -> StructType:
    """Parse strictly typed JSON; any mismatch is a DataError that names `where` and the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: {error}") from error


def encode_json(value: Struct) -> bytes:
    """The JSON of a struct, in field order, one line."""
    return msgspec.json.encode(value)


def validate_clip(clip: Clip, *, where: str) -> Clip:
    """Check everything that types cannot say; raise DataError naming `where` and the field."""

    def fail(field: str, problem: str) -> None:
        raise DataError(f"{where}: {field}: {problem}")

    meta = clip.meta
    if meta.version != SCHEMA_VERSION:
        fail("meta.version", f"is {meta.version}, this reader knows {SCHEMA_VERSION}")
    if clip.labels.version != 1:
        fail("labels.version", f"is {clip.labels.version}, this reader knows 1")
    if not CLIP_ID_PATTERN.fullmatch(meta.clip_id):
        fail("meta.clip_id", f"{meta.clip_id!r} is not letters, digits, '_' and '-'")
    if not 1 <= meta.num_frames <= MAX_FRAMES:
        fail("meta.num_frames", f"is {meta.num_frames}, must be 1..{MAX_FRAMES}")
    if not (math.isfinite(meta.frame_rate_hz) and meta.frame_rate_hz > 0):
        fail("meta.frame_rate_hz", f"is {meta.frame_rate_hz}, must be positive")
    if not meta.cameras or len(set(meta.cameras)) != len(meta.cameras):
        fail("meta.cameras", f"{meta.cameras} is empty or repeats a name")
    for name in meta.cameras:
        if not CAMERA_NAME_PATTERN.fullmatch(name):
            fail("meta.cameras", f"{name!r} is not lower-case letters, digits and '_'")
    _check_same_cameras(meta.cameras, "rig.cameras", clip.rig.cameras, fail)
    _check_same_cameras(meta.cameras, "frames.camera_ns", clip.frames.camera_ns, fail)
    _check_same_cameras(meta.cameras, "video", clip.video, fail)
    for name, camera in clip.rig.cameras.items():
        _check_camera(camera, f"rig.cameras.{name}", fail)
    _check_times(clip, fail)
    _check_ego(clip, fail)
    _check_labels(clip, fail)
    return clip


Fail = Callable[[str, str], None]


def _check_same_cameras(
    expected: tuple[str, ...], field: str, found: Mapping[str, object], fail: Fail
) -> None:
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    if missing:
        fail(field, f"lacks camera {', '.join(missing)}, which meta.cameras names")
    if extra:
        fail(field, f"has camera {', '.join(extra)}, which meta.cameras does not name")


def _check_finite(values: tuple[float, ...], field: str, fail: Fail) -> None:
    # A sum is finite only if every value is; looking at it first saves a loop on every clip read.
    if not math.isfinite(sum(values)) and not all(map(math.isfinite, values)):
        fail(field, f"{values} is not finite")


def _check_pose(pose: Pose, field: str, fail: Fail) -> None:
    _check_finite(pose.translation_m, f"{field}.translation_m", fail)
    _check_rotation(pose.rotation_wxyz, f"{field}.rotation_wxyz", fail)


def _check_rotation(rotation_wxyz: Quaternion, field: str, fail: Fail) -> None:
    _check_finite(rotation_wxyz, field, fail)
    norm = math.hypot(*rotation_wxyz)
    if abs(norm - 1.0) > QUATERNION_TOLERANCE:
        fail(field, f"has norm {norm:.6g}, must be a unit quaternion")


NUM_DISTORTION: dict[str, int] = {"pinhole": 0, "opencv": 5, "opencv_fisheye": 4}


def _check_camera(camera: CameraCalibration, field: str, fail: Fail) -> None:
    _check_finite((camera.fx, camera.fy, camera.cx, camera.cy), f"{field}.fx/fy/cx/cy", fail)
    _check_finite(camera.distortion, f"{field}.distortion", fail)
    if camera.fx <= 0 or camera.fy <= 0:
        fail(f"{field}.fx/fy", f"({camera.fx}, {camera.fy}) must be positive")
    if not (2 <= camera.width <= 16384 and 2 <= camera.height <= 16384):
        fail(f"{field}.width/height", f"{camera.width}x{camera.height} must be 2..16384")
    expected = NUM_DISTORTION[camera.model]
    if len(camera.distortion) != expected:
        fail(
            f"{field}.distortion",
            f"has {len(camera.distortion)} values, model {camera.model!r} needs {expected}",
        )
    _check_pose(camera.camera_to_ego, f"{field}.camera_to_ego", fail)


def _check_times(clip: Clip, fail: Fail) -> None:
    num_frames = clip.meta.num_frames
    series = {"frames.reference_ns": clip.frames.reference_ns}
    series |= {f"frames.camera_ns.{name}": ns for name, ns in clip.frames.camera_ns.items()}
    for field, times in series.items():
        if len(times) != num_frames:
            fail(field, f"has {len(times)} frames, meta.num_frames is {num_frames}")
        if any(later <= earlier for earlier, later in zip(times, times[1:], strict=False)):
            fail(field, "does not increase strictly")


def _check_ego(clip: Clip, fail: Fail) -> None:
    states = clip.ego.states
    if not states:
        fail("ego.states", "is empty")
    for number, state in enumerate(states):
        field = f"ego.states[{number}]"
        _check_pose(state.ego_to_world, f"{field}.ego_to_world", fail)
        _check_finite(state.velocity_mps, f"{field}.velocity_mps", fail)
        _check_finite(state.acceleration_mps2, f"{field}.acceleration_mps2", fail)
        _check_finite((state.yaw_rate_radps,), f"{field}.yaw_rate_radps", fail)
    times = [state.timestamp_ns for state in states]
    if any(later <= earlier for earlier, later in zip(times, times[1:], strict=False)):
        fail("ego.states", "timestamps do not increase strictly")
    first, last = clip.frames.reference_ns[0], clip.frames.reference_ns[-1]
    if times[0] > first or times[-1] < last:
        fail("ego.states", f"cover {times[0]}..{times[-1]} ns, the frames need {first}..{last} ns")


def _check_labels(clip: Clip, fail: Fail) -> None:
    labels = clip.labels
    known = {"boxes": labels.boxes, "lanes": labels.lanes, "occupancy": labels.occupancy}
    for name, value in known.items():
        if (value is not None) != (name in clip.meta.annotations):
            state = "present" if value is not None else "missing"
            fail(f"labels.{name}", f"is {state}, meta.annotations says {clip.meta.annotations}")
    if labels.boxes is not None and len(labels.boxes) != clip.meta.num_frames:
        fail(
            "labels.boxes",
            f"has {len(labels.boxes)} frames, meta.num_frames is {clip.meta.num_frames}",
        )
    for frame, boxes in enumerate(labels.boxes or ()):
        for number, box in enumerate(boxes):
            _check_box(box, f"labels.boxes[{frame}][{number}]", fail)
    for number, lane in enumerate(labels.lanes or ()):
        for point in lane.points_m:
            _check_finite(point, f"labels.lanes[{number}].points_m", fail)
    if labels.occupancy is not None:
        _check_occupancy(labels.occupancy, clip.meta.num_frames, fail)


def _check_box(box: Box3d, field: str, fail: Fail) -> None:
    _check_finite(box.center_m, f"{field}.center_m", fail)
    _check_finite(box.size_m, f"{field}.size_m", fail)
    if min(box.size_m) <= 0:
        fail(f"{field}.size_m", f"{box.size_m} must be positive")
    _check_rotation(box.rotation_wxyz, f"{field}.rotation_wxyz", fail)
    if box.velocity_mps is not None:
        _check_finite(box.velocity_mps, f"{field}.velocity_mps", fail)
    if box.visibility is not None and not 0.0 <= box.visibility <= 1.0:
        fail(f"{field}.visibility", f"is {box.visibility}, must be 0..1")


def _check_occupancy(occupancy: Occupancy, num_frames: int, fail: Fail) -> None:
    if not 0 <= occupancy.frame_index < num_frames:
        fail("labels.occupancy.frame_index", f"is {occupancy.frame_index}, clip has {num_frames}")
    _check_finite(occupancy.min_corner_m, "labels.occupancy.min_corner_m", fail)
    if not (math.isfinite(occupancy.voxel_size_m) and occupancy.voxel_size_m > 0):
        fail("labels.occupancy.voxel_size_m", f"is {occupancy.voxel_size_m}, must be positive")
    if min(occupancy.shape) < 1 or math.prod(occupancy.shape) > 2**28:
        fail("labels.occupancy.shape", f"{occupancy.shape} must be positive, at most 2^28 voxels")
    if any(length < 1 for _, length in occupancy.runs):
        fail("labels.occupancy.runs", "has a run shorter than one voxel")
    covered = sum(length for _, length in occupancy.runs)
    if covered != math.prod(occupancy.shape):
        fail(
            "labels.occupancy.runs",
            f"cover {covered} voxels, the shape has {math.prod(occupancy.shape)}",
        )
    highest = len(occupancy.classes)
    if any(not -1 <= value <= highest for value, _ in occupancy.runs):
        fail("labels.occupancy.runs", f"hold a value outside -1..{highest}")
