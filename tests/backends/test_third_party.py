"""A stranger's backend: a distribution of its own, installed beside fsdtrain, trains ten steps.

It brings an entry point, an op, and a Hydra group with a knob. Nothing of the core knows it.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fsdtrain.data.schema import Clip
from fsdtrain.data.shard import write_shards

ROOT = Path(__file__).resolve().parents[2]

FILES = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fsdtrain-acme"
version = "1.2.3"

[project.entry-points."fsdtrain.backends"]
acme = "fsdtrain_acme:AcmeBackend"
acme-folder = "fsdtrain_acme:FolderBackend"
acme-broken = "fsdtrain_acme.no_such_module:Backend"

[tool.hatch.build.targets.wheel]
packages = ["fsdtrain_acme"]
""",
    "fsdtrain_acme/configs/backend/acme.yaml": """
name: acme
call_log: null # a file that gets a line for every call of the op
""",
    "fsdtrain_acme/more_configs/backend/acme-folder.yaml": """
name: acme-folder
colour: green
""",
    "fsdtrain_acme/__init__.py": '''
"""Computes on the CPU, camera by camera."""

from pathlib import Path

import torch
from torch.nn import functional as F

from fsdtrain.backend import Availability, Backend, Tolerance, TrainerParts
from fsdtrain.ops.project_sample import project
from fsdtrain.ops.table import OpTable
from fsdtrain.torch_profile import profile_with_torch


class AcmeBackend(Backend):
    name = "acme"
    value_origin = "EMULATED"
    tolerance = Tolerance(op_relative=2e-5, loss_relative_after_ten_steps=1e-4)
    config_path = "pkg://fsdtrain_acme.configs"

    def __init__(self, *, call_log=None):
        self.call_log = call_log

    @classmethod
    def availability(cls):
        return Availability(is_available=True, detail="one anvil")

    def device_name(self):
        return "ACME anvil"

    def trainer_parts(self):
        return TrainerParts(accelerator="cpu", precision="32-true", is_deterministic=True)

    def op_table(self):
        return OpTable(project_sample=self.project_sample)

    def project_sample(
        self, feats_BTNChw, points_ZXY3, intrinsics_BN33, camera_to_ego_BN44, image_size, max_views
    ):
        if self.call_log is not None:
            with Path(self.call_log).open("a") as file:
                file.write("project_sample\\n")
        B, T, N, C, h, w = feats_BTNChw.shape
        Z, X, Y, _ = points_ZXY3.shape
        u, v, seen = project(points_ZXY3, intrinsics_BN33, camera_to_ego_BN44, image_size)
        counts = seen & (seen.cumsum(1) <= max_views)
        total = 0.0
        for camera in range(N):
            column = (u[:, camera] * w).clamp(0.5, w - 0.5) * (2 / w) - 1
            row = (v[:, camera] * h).clamp(0.5, h - 0.5) * (2 / h) - 1
            sampled = F.grid_sample(
                feats_BTNChw[:, :, camera].flatten(1, 2).to(column.dtype),
                torch.stack([column, row], -1).view(B, Z * X, Y, 2),
                align_corners=False,
            ).view(B, T, C, Z, X, Y)
            total = total + torch.where(counts[:, camera, None, None], sampled, 0.0)
        number = counts.sum(1).clamp(min=1)
        return (total / number[:, None, None]).to(feats_BTNChw.dtype)

    def profile_step(self, step, batch, optimizer):
        return profile_with_torch(
            step, batch, optimizer, backend=self.name, device=self.device_name(), dtype="float32"
        )


class FolderBackend(AcmeBackend):
    name = "acme-folder"
    config_path = str(Path(__file__).parent / "more_configs")

    def __init__(self, *, colour):
        super().__init__()
''',
}


@dataclass(frozen=True)
class Installation:
    """Where pip put it; `run` is a shell in which it is installed."""

    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        paths = [str(self.folder / "site"), os.environ.get("PYTHONPATH", "")]
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "COLUMNS": "200",
            },
        )

    def refused(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 2, done.stderr
        lines = [line for line in done.stderr.splitlines() if " INFO " not in line]
        assert len(lines) == 1, done.stderr
        return lines[0]


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("acme")
    for name, content in FILES.items():
        path = folder / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.lstrip("\n"))
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-index", "--no-deps", "--no-build-isolation"),
        *("--target", str(folder / "site"), str(folder / "source")),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Installation(folder)


@pytest.fixture(scope="module")
def shards(make_clip: Callable[..., Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for split, seeds in (("train", range(4)), ("val", range(10, 12))):
        clips = [make_clip(clip_id=f"{split}-{n}", seed=n, size=(48, 96)) for n in seeds]
        write_shards(clips, folder / split, prefix=split, clips_per_shard=4)
    return folder


def test_it_is_listed_with_its_distribution(acme: Installation) -> None:
    done = acme.run("fsdtrain", "backends")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.count("│") > 3}
    for word in ("fsdtrain-acme 1.2.3", "yes", "one anvil"):
        assert word in lines["acme"]
    for word in ("fsdtrain-acme 1.2.3", "no", "cannot be used", "no_such_module"):
        assert word in lines["acme-broken"]
    assert "yes" in lines["cpu"]


def test_its_groups_stand_beside_ours(acme: Installation) -> None:
    done = acme.run("fsdtrain", "fit", "--help")
    assert "backend: acme, acme-folder, cpu, cuda, dojo" in done.stdout
    done = acme.run("fsdtrain", "fit", "--cfg", "job", "backend=acme-folder", "backend.colour=red")
    assert "name: acme-folder" in done.stdout, done.stderr
    assert "colour: red" in done.stdout


def test_it_trains_ten_steps_with_its_own_op(acme: Installation, shards: Path) -> None:
    done = acme.run(
        "fsdtrain", "fit", "backend=acme", "experiment=smoke", "training.max_steps=10",
        "backend.call_log=calls.txt", "run_dir=run",
        "data=shards", f"data.train={shards / 'train'}", f"data.val={shards / 'val'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run_dir = acme.folder / "run"
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["backend"] == "acme"
    assert manifest["device"] == "ACME anvil"
    assert manifest["origin"] == "EMULATED"
    with (run_dir / "metrics.csv").open(newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 10
    assert len(set(losses)) == 10
    # Ten steps forward, and every validation clip a few times.
    assert len((acme.folder / "calls.txt").read_text().split()) > 10
    figures = json.loads((run_dir / "results.json").read_text())["figures"]
    assert {figure["origin"] for figure in figures} == {"EMULATED"}
    report = (run_dir / "report.html").read_text()
    assert "ACME anvil" in report
    assert "EMULATED" in report


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backend=acme", "backend.knob=1"], ["backend.knob"]),
        pytest.param(
            ["backend=acme", "+backend.knob=1"], ["'acme'", "knob"], marks=pytest.mark.slow
        ),
    ],
)
def test_a_wrong_knob_is_one_line(
    acme: Installation, overrides: list[str], words: list[str]
) -> None:
    line = acme.refused("fsdtrain", "fit", *overrides)
    assert all(word in line for word in words), line


@pytest.mark.slow
def test_the_contract_suite_runs_over_it(acme: Installation) -> None:
    tests = [
        str(ROOT / "tests" / "backends" / f"test_{name}.py")
        for name in ("contract", "contract_ops")
    ]
    done = acme.run(
        "pytest",
        "-q",
        "--rootdir",
        str(ROOT),
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "no:cacheprovider",
        "-k",
        "acme and not folder and not broken",
        *tests,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    num_passed = int(done.stdout.rsplit(" passed", 1)[0].split()[-1])
    assert num_passed > 50
