"""One DGP scene with every reference followed: frames in time order, poses as matrices.

Knows the DGP layout (`dgp.py`), nothing of fleetclip.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from fsdtrain.data.convert.dgp import (
    BOXES_3D,
    BoxAnnotation,
    BoxAnnotations,
    Datum,
    Intrinsics,
    Ontology,
    Sample,
    Scene,
    SensorCalibration,
    parse_timestamp_ns,
    read_dgp,
)
from fsdtrain.data.geometry import Array, invert_pose, transform_points
from fsdtrain.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """How one sensor is mounted; `intrinsics` mean nothing for a lidar."""

    intrinsics: Intrinsics
    sensor_to_vehicle: Array


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One camera image of one frame."""

    path: Path
    time_ns: int
    size: tuple[int, int]  # width, height
    vehicle_to_world: Array


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One lidar sweep of one frame; `boxes` are in the lidar's frame, None if not annotated."""

    path: Path
    time_ns: int
    point_format: tuple[str, ...]
    lidar_to_world: Array
    lidar_to_vehicle: Array
    boxes: tuple[BoxAnnotation, ...] | None


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One DGP sample: an image of every camera of the scene, and the lidar if there is one."""

    pictures: dict[str, Picture]
    sweep: Sweep | None


@dataclass(frozen=True, kw_only=True)
class DgpScene:
    """One drive. `cameras` are those with an image in every frame, in the order of their names."""

    name: str
    cameras: dict[str, Sensor]
    frames: tuple[Frame, ...]
    class_names: dict[int, str]  # empty without an ontology of 3D boxes


def load_scene(path: Path) -> DgpScene:
    """Follow a scene file to its calibration, ontology and annotations; images stay unread.

    Raises:
        DataError: a file is missing or broken, the scene is empty, refers to what is not there, or
            changes its calibration on the way.
    """
    scene = read_dgp(path, Scene)
    folder = path.parent
    if not scene.samples:
        raise DataError(f"{path}: has no samples")
    sensors = _read_sensors(folder, scene.samples)
    data = {datum.key: datum for datum in scene.data}
    frames = []
    for sample in scene.samples:
        missing = [key for key in sample.datum_keys if key not in data]
        if missing:
            raise DataError(f"{path}: sample {sample.id.timestamp} names no datum {missing[0]}")
        frames.append(_read_frame(folder, [data[key] for key in sample.datum_keys], sensors))
    cameras = sorted(set.intersection(*(set(frame.pictures) for frame in frames)))
    if not cameras:
        raise DataError(f"{path}: no camera has an image in every sample")
    key = scene.ontologies.get(BOXES_3D)
    ontology = read_dgp(folder / "ontology" / f"{key}.json", Ontology).items if key else ()
    return DgpScene(
        name=folder.name,
        cameras={name: sensors[name] for name in cameras},
        frames=tuple(frames),
        class_names={item.id: item.name for item in ontology},
    )


def _read_sensors(folder: Path, samples: tuple[Sample, ...]) -> dict[str, Sensor]:
    keys = {sample.calibration_key for sample in samples}
    if len(keys) != 1:
        raise DataError(f"{folder}: has {len(keys)} calibrations, a clip holds one")
    path = folder / "calibration" / f"{keys.pop()}.json"
    table = read_dgp(path, SensorCalibration)
    if not len(table.names) == len(table.intrinsics) == len(table.extrinsics):
        raise DataError(
            f"{path}: {len(table.names)} names, {len(table.intrinsics)} intrinsics and "
            f"{len(table.extrinsics)} extrinsics must be as many"
        )
    return {
        name: Sensor(
            intrinsics=intrinsics,
            sensor_to_vehicle=extrinsics.matrix(where=f"{path}: extrinsics of {name}"),
        )
        for name, intrinsics, extrinsics in zip(
            table.names, table.intrinsics, table.extrinsics, strict=True
        )
    }


def _read_frame(folder: Path, data: list[Datum], sensors: dict[str, Sensor]) -> Frame:
    pictures: dict[str, Picture] = {}
    sweep = None
    for datum in data:
        name = datum.id.name
        where = f"{folder}: datum {datum.key} of {name}"
        if name not in sensors:
            raise DataError(f"{where}: the calibration has no sensor {name}")
        time_ns = parse_timestamp_ns(datum.id.timestamp, where=where)
        sensor_to_vehicle = sensors[name].sensor_to_vehicle
        if datum.datum.image is not None:
            image = datum.datum.image
            pictures[name] = Picture(
                path=folder / image.filename,
                time_ns=time_ns,
                size=(image.width, image.height),
                vehicle_to_world=image.pose.matrix(where=where) @ invert_pose(sensor_to_vehicle),
            )
        elif datum.datum.point_cloud is not None:
            cloud = datum.datum.point_cloud
            boxes = cloud.annotations.get(BOXES_3D)
            sweep = Sweep(
                path=folder / cloud.filename,
                time_ns=time_ns,
                point_format=cloud.point_format,
                lidar_to_world=cloud.pose.matrix(where=where),
                lidar_to_vehicle=sensor_to_vehicle,
                boxes=read_dgp(folder / boxes, BoxAnnotations).annotations if boxes else None,
            )
    return Frame(pictures=pictures, sweep=sweep)


def read_points(sweep: Sweep) -> Array:
    """[P, 3] points of a sweep in the vehicle's frame; DataError if the file is unfit."""
    try:
        columns = [sweep.point_format.index(axis) for axis in ("X", "Y", "Z")]
        with sweep.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            table = np.asarray(archive[archive.files[0]], dtype=np.float64)
            points = table[:, columns]
    except (OSError, ValueError, IndexError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(f"{sweep.path}: is not a lidar sweep: {error}") from error
    return transform_points(sweep.lidar_to_vehicle, points)
