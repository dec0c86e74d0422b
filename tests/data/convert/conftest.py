"""Where the real recordings lie, and a DGP data set small enough to write by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsdtrain.data.geometry import invert_pose, quaternion_from_matrix, rotation_matrix
from fsdtrain.data.shard import find_shards, read_clip, read_index

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    """`shared_data(folder)` -> its path; skips the test where the recordings are not here."""

    def find(folder: str) -> Path:
        path = SHARED / folder
        if not path.is_dir():
            pytest.skip(f"real recordings are not at {path}")
        return path

    return find


@pytest.fixture(scope="session")
def read_all():
    """`read_all(folder)` -> every clip of the shards there."""

    def read(folder: Path):
        shards = find_shards(str(folder))
        return [read_clip(shard, entry) for shard in shards for entry in read_index(shard).clips]

    return read


def pose_json(matrix):
    w, x, y, z = quaternion_from_matrix(matrix[:3, :3])
    tx, ty, tz = matrix[:3, 3]
    return {
        "rotation": {"qw": w, "qx": x, "qy": y, "qz": z},
        "translation": {"x": tx, "y": ty, "z": tz},
    }


def rigid(quaternion, translation):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix(tuple(np.asarray(quaternion) / np.linalg.norm(quaternion)))
    matrix[:3, 3] = translation
    return matrix


class MiniDgp:
    """One scene: two cameras, a lidar mounted askew, three samples 0.1 s apart.

    The vehicle drives 1 m a sample, its cameras 20 ms behind the lidar; one box stands still, one
    moves 0.5 m a sample along world y, one is seen once. `documents` are the JSON files by path,
    to be damaged before `write`.
    """

    SCENE = "scene_00"
    PERIOD_S, LAG_S = 0.1, 0.02
    SIZE = (64, 48)
    GROUND_M = -0.3  # in the vehicle's frame
    CAMERA_TO_VEHICLE = {
        "CAMERA_02": rigid((0.5, -0.5, 0.5, -0.5), (1.5, 0.1, 1.2)),  # straight ahead
        "CAMERA_01": rigid((0.70, -0.68, 0.10, -0.12), (1.2, 0.5, 1.3)),  # half left
    }
    LIDAR_TO_VEHICLE = rigid((0.99, 0.01, -0.02, 0.05), (0.9, 0.0, 1.6))
    BOX_SIZE = (4.0, 2.0, 1.5)

    def __init__(self):
        self.points = np.zeros((2000, 4))
        rng = np.random.default_rng(3)
        self.points[:, :2] = rng.uniform(-15, 15, (2000, 2))
        self.points[:, 2] = self.GROUND_M + rng.normal(0, 0.01, 2000)
        self.documents = {
            "scene_dataset_v9.json": {
                "metadata": {"name": "mini"},
                "scene_splits": {"0": {"filenames": [f"{self.SCENE}/scene_a.json"]}},
            },
            f"{self.SCENE}/calibration/c.json": self._calibration(),
            f"{self.SCENE}/ontology/o.json": {
                "items": [{"id": 0, "name": "Person"}, {"id": 2, "name": "Bus/RV/Caravan"}]
            },
            f"{self.SCENE}/scene_a.json": {
                "name": "",
                "data": [datum for n in range(3) for datum in self._data(n)],
                "samples": [
                    {
                        "id": {"name": "", "timestamp": self.stamp(n, 0.0)},
                        "datum_keys": [f"{name}-{n}" for name in self._sensors()],
                        "calibration_key": "c",
                    }
                    for n in range(3)
                ],
                "ontologies": {"1": "o"},
            },
        }
        for n in range(3):
            self.documents[f"{self.SCENE}/boxes/{n}.json"] = {"annotations": self._boxes(n)}

    def scene(self):
        return self.documents[f"{self.SCENE}/scene_a.json"]

    def calibration(self):
        return self.documents[f"{self.SCENE}/calibration/c.json"]

    def write(self, folder: Path) -> Path:
        for name, document in self.documents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document))
        for n in range(3):
            for camera in self.CAMERA_TO_VEHICLE:
                path = folder / self.SCENE / f"{camera}-{n}.png"
                Image.new("RGB", self.SIZE, (40 * n, 80, 120)).save(path)
            lidar = np.linalg.inv(self.LIDAR_TO_VEHICLE)
            points = self.points.copy()
            points[:, :3] = points[:, :3] @ lidar[:3, :3].T + lidar[:3, 3]
            np.savez(folder / self.SCENE / f"LIDAR-{n}.npz", data=points)
        return folder

    @staticmethod
    def stamp(n, seconds):
        return f"2019-06-27T14:30:{25 + 0.1 * n + seconds:013.10f}"[:29] + "Z"

    @staticmethod
    def vehicle_to_world(seconds):
        """Along world y at 10 m/s, heading there."""
        return rigid((np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4)), (100.0, 10 * seconds, 5.0))

    @classmethod
    def box_to_world(cls, track, seconds):
        return {
            1: rigid((0.9, 0.0, 0.0, 0.1), (97.0, 20.0, 5.5)),
            2: rigid((0.7, 0.0, 0.0, 0.7), (103.0, 15.0 + 5 * seconds, 5.5)),
            3: rigid((1.0, 0.0, 0.0, 0.0), (110.0, 30.0, 5.5)),
        }[track]

    def _sensors(self):
        return ["LIDAR", *self.CAMERA_TO_VEHICLE]

    def _calibration(self):
        extrinsics = [self.LIDAR_TO_VEHICLE, *self.CAMERA_TO_VEHICLE.values()]
        lens = {"fx": 50.0, "fy": 55.0, "cx": 31.0, "cy": 23.0, "skew": 0.0}
        return {
            "names": self._sensors(),
            "intrinsics": [lens for _ in extrinsics],
            "extrinsics": [pose_json(matrix) for matrix in extrinsics],
        }

    def _data(self, n):
        now = n * self.PERIOD_S
        yield {
            "id": {"name": "LIDAR", "timestamp": self.stamp(n, 0.0)},
            "key": f"LIDAR-{n}",
            "datum": {
                "point_cloud": {
                    "filename": f"LIDAR-{n}.npz",
                    "point_format": ["X", "Y", "Z", "INTENSITY"],
                    "pose": pose_json(self.vehicle_to_world(now) @ self.LIDAR_TO_VEHICLE),
                    "annotations": {"1": f"boxes/{n}.json"},
                }
            },
        }
        for name, camera_to_vehicle in self.CAMERA_TO_VEHICLE.items():
            pose = self.vehicle_to_world(now + self.LAG_S) @ camera_to_vehicle
            yield {
                "id": {"name": name, "timestamp": self.stamp(n, self.LAG_S)},
                "key": f"{name}-{n}",
                "datum": {
                    "image": {
                        "filename": f"{name}-{n}.png",
                        "width": self.SIZE[0],
                        "height": self.SIZE[1],
                        "pose": pose_json(pose),
                    }
                },
            }

    def _boxes(self, n):
        now = n * self.PERIOD_S
        lidar_to_world = self.vehicle_to_world(now) @ self.LIDAR_TO_VEHICLE
        length, width, height = self.BOX_SIZE
        return [
            {
                "class_id": 0 if track == 3 else 2,
                "instance_id": track,
                "box": {
                    "length": length,
                    "width": width,
                    "height": height,
                    "occlusion": 0,
                    "pose": pose_json(invert_pose(lidar_to_world) @ self.box_to_world(track, now)),
                },
            }
            for track in ((1, 2, 3) if n == 1 else (1, 2))
        ]


@pytest.fixture
def mini_dgp():
    return MiniDgp()
