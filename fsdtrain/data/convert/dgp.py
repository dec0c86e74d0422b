"""Read the JSON of a DGP data set (Toyota Research's format, that DDAD is published in).

Knows the files and their fields, nothing of fleetclip. The format is foreign: unknown fields are
ignored, but a field that is read has to have the right type.

Source: TRI-ML/dgp, dgp/proto/*.proto; every datum's pose is datum -> world, an extrinsic is
datum -> vehicle, both as unit quaternion and translation.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from fsdtrain.data.geometry import Array, rotation_matrix
from fsdtrain.data.schema import QUATERNION_TOLERANCE
from fsdtrain.errors import DataError, UserError

# The keys of `scene_splits` and of a datum's `annotations` (dgp/proto/dataset.proto,
# annotations.proto).
SPLIT_KEYS = {"train": "0", "val": "1", "test": "2"}
BOXES_3D = "1"

_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_INT64_NS = 2**63 - 1  # in the year 2262


class DgpStruct(msgspec.Struct, frozen=True, kw_only=True):
    """Lenient base: fields that are not named here are ignored."""


class DgpRotation(DgpStruct, frozen=True, kw_only=True):
    """A quaternion."""

    qw: float
    qx: float
    qy: float
    qz: float


class DgpTranslation(DgpStruct, frozen=True, kw_only=True):
    """In metres."""

    x: float
    y: float
    z: float


class DgpPose(DgpStruct, frozen=True, kw_only=True):
    """A rigid transform child -> parent."""

    rotation: DgpRotation
    translation: DgpTranslation

    def matrix(self, *, where: str) -> Array:
        """[4, 4]; DataError naming `where` unless it is a finite rotation and translation."""
        turn, shift = self.rotation, self.translation
        rotation_wxyz = (turn.qw, turn.qx, turn.qy, turn.qz)
        translation_m = (shift.x, shift.y, shift.z)
        norm = float(np.linalg.norm(rotation_wxyz))
        if not (abs(norm - 1) <= QUATERNION_TOLERANCE and np.isfinite(translation_m).all()):
            raise DataError(
                f"{where}: pose {rotation_wxyz} {translation_m} is not a rigid transform"
            )
        matrix = np.eye(4)
        matrix[:3, :3] = rotation_matrix(rotation_wxyz)
        matrix[:3, 3] = translation_m
        return matrix


class DatumId(DgpStruct, frozen=True, kw_only=True):
    """Which sensor, and when."""

    name: str
    timestamp: str


class ImageDatum(DgpStruct, frozen=True, kw_only=True):
    """One camera image."""

    filename: str
    width: int
    height: int
    pose: DgpPose
    annotations: dict[str, str] = {}


class PointCloudDatum(DgpStruct, frozen=True, kw_only=True):
    """One lidar sweep; `point_format` names the columns."""

    filename: str
    pose: DgpPose
    point_format: tuple[str, ...] = ("X", "Y", "Z")
    annotations: dict[str, str] = {}


class DatumValue(DgpStruct, frozen=True, kw_only=True):
    """One of them is there; other kinds of datum are not read."""

    image: ImageDatum | None = None
    point_cloud: PointCloudDatum | None = None


class Datum(DgpStruct, frozen=True, kw_only=True):
    """One measurement of one sensor."""

    id: DatumId
    key: str
    datum: DatumValue


class Sample(DgpStruct, frozen=True, kw_only=True):
    """What all sensors measured at about one moment."""

    id: DatumId
    datum_keys: tuple[str, ...]
    calibration_key: str


class Scene(DgpStruct, frozen=True, kw_only=True):
    """One drive."""

    data: tuple[Datum, ...]
    samples: tuple[Sample, ...]
    ontologies: dict[str, str] = {}


class SceneFiles(DgpStruct, frozen=True, kw_only=True):
    """Paths of scene files."""

    filenames: tuple[str, ...]


class SceneDataset(DgpStruct, frozen=True, kw_only=True):
    """The file at the top of a data set."""

    scene_splits: dict[str, SceneFiles]


class Intrinsics(DgpStruct, frozen=True, kw_only=True):
    """A camera matrix; pixel centres at whole numbers. Zero distortion stands for rectified."""

    fx: float
    fy: float
    cx: float
    cy: float
    skew: float = 0.0
    fov: float = 0.0  # nonzero marks DGP's own wide-angle model
    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0
    k5: float = 0.0
    k6: float = 0.0
    p1: float = 0.0
    p2: float = 0.0


class SensorCalibration(DgpStruct, frozen=True, kw_only=True):
    """Intrinsics and extrinsics of every sensor, in the order of `names`."""

    names: tuple[str, ...]
    intrinsics: tuple[Intrinsics, ...]
    extrinsics: tuple[DgpPose, ...]


class OntologyItem(DgpStruct, frozen=True, kw_only=True):
    """What a class id means."""

    id: int
    name: str


class Ontology(DgpStruct, frozen=True, kw_only=True):
    """All classes."""

    items: tuple[OntologyItem, ...]


class Cuboid(DgpStruct, frozen=True, kw_only=True):
    """A box: x along the length, y along the width, z up, origin at the centre; in metres."""

    length: float
    width: float
    height: float
    pose: DgpPose


class BoxAnnotation(DgpStruct, frozen=True, kw_only=True):
    """One object in the frame of the datum that it annotates."""

    class_id: int
    instance_id: int
    box: Cuboid


class BoxAnnotations(DgpStruct, frozen=True, kw_only=True):
    """All objects of one datum."""

    annotations: tuple[BoxAnnotation, ...]


DgpType = TypeVar("DgpType", bound=DgpStruct)


def read_dgp(path: Path, kind: type[DgpType]) -> DgpType:
    """Parse one file; DataError naming the file, and the field where one is wrong."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not a DGP {kind.__name__}: {error}") from error


def find_scenes(source: Path, *, split: str, names: Sequence[str] | None) -> dict[str, Path]:
    """The scene files of one DGP split by scene name, which is the scene's folder.

    Args:
        source: the data set's JSON, or the folder with its scene_dataset*.json or ddad.json.
        split: "train", "val" or "test".
        names: keep these scenes; None keeps all.

    Raises:
        UserError: no data set there, or it has not got the split or a scene.
    """
    path = _dataset_file(source)
    dataset = read_dgp(path, SceneDataset)
    key = SPLIT_KEYS.get(split)
    if key is None or key not in dataset.scene_splits:
        known = [name for name, key in SPLIT_KEYS.items() if key in dataset.scene_splits]
        raise UserError(f"{path} has no split {split!r}; it has {', '.join(known) or 'none'}")
    files = [path.parent / name for name in dataset.scene_splits[key].filenames]
    scenes = {file.parent.name: file for file in files}
    if names is None:
        return scenes
    missing = sorted(set(names) - set(scenes))
    if missing:
        raise UserError(
            f"{path}, split {split!r}, has no scene {', '.join(missing)}; "
            f"it has {', '.join(sorted(scenes))}"
        )
    return {name: scenes[name] for name in scenes if name in names}


def _dataset_file(source: Path) -> Path:
    if source.is_file():
        return source
    found = sorted([*source.glob("scene_dataset*.json"), *source.glob("ddad.json")])
    if len(found) != 1:
        raise UserError(
            f"{source} holds {len(found)} files scene_dataset*.json or ddad.json, must be one; "
            "give the folder of a DGP data set or the path of its JSON"
        )
    return found[0]


def parse_timestamp_ns(text: str, *, where: str) -> int:
    """Nanoseconds since 1970, exactly.

    DDAD's clocks count steps of 100 ns that were published as if they were microseconds, so that
    2019 reads as 2464 and 10 Hz as 1 Hz. (That the steps are 100 ns is seen from the dates and from
    the traffic, which would crawl at 5 km/h otherwise.) No true time lies behind 2262, where
    nanoseconds leave 64 bits: such a stamp is divided by ten.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise DataError(f"{where}: timestamp {text!r} is not like 2019-06-27T14:30:25.002790Z")
    seconds, fraction = match.groups()
    try:
        moment = datetime.fromisoformat(seconds + "+00:00")
    except ValueError as error:
        raise DataError(f"{where}: timestamp {text!r}: {error}") from error
    whole_s = (moment - _EPOCH) // timedelta(seconds=1)
    stamp_ns = whole_s * 10**9 + int((fraction or "0").ljust(9, "0"))
    return stamp_ns // 10 if stamp_ns > _LAST_INT64_NS else stamp_ns
