"""`fit backend=dojo` from the command line: what the run folder holds, and what is refused."""

import csv
import subprocess
import sys
from pathlib import Path

import torch

from fsdtrain.engine.run_record import read_manifest, read_results

SMOKE = ("experiment=smoke", "training.max_steps=4", "training.validate_every_steps=2")


def fit(*overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fsdtrain", "fit", "backend=dojo", *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_is_recorded_as_emulated(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = fit(
        *SMOKE, "backend/recipe=cfp8_lean", "backend.read_every_steps=2", f"run_dir={run_dir}"
    )
    assert done.returncode == 0, done.stderr
    assert read_manifest(run_dir).backend == "dojo"
    assert {figure.origin for figure in read_results(run_dir).figures} == {"EMULATED"}
    with (run_dir / "numerics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows} == {"1", "3"}
    assert {row["origin"] for row in rows} == {"EMULATED"}
    formats = {(row["role"], row["format"], row["rounding"]) for row in rows}
    assert formats == {
        ("activation", "cfloat8_1_4_3", "nearest"),
        ("weight", "cfloat8_1_4_3", "nearest"),
        ("activation_gradient", "cfloat8_1_5_2", "nearest"),
        ("weight_gradient", "bf16", "nearest"),
        ("vector", "bf16", "nearest"),
        ("vector_gradient", "bf16", "nearest"),
        ("master_weight", "cfloat16_shp", "stochastic"),
        ("first_moment", "cfloat16_shp", "stochastic"),
        ("second_moment", "cfloat16_uhp", "nearest"),
    }
    # Each weight the model trains was stored as one, and named as the model names it.
    state = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["DojoPrecision"]["sites"]["step"] == 4
    names = {name.removeprefix("step.").rpartition(".")[0] for name in state["state_dict"]}
    assert {row["layer"] for row in rows if row["role"] == "weight"} <= names
    report = (run_dir / "report.html").read_text()
    for said in (
        "Number formats",
        "EMULATED",
        "CFloat denormals gradual, UHP without infinity and NaN, sums fast in fp32",
        "cfloat16_uhp",
    ):
        assert said in report


def test_wrong_options_are_one_sentence(tmp_path: Path) -> None:
    for override, complaint in (
        ("backend.recipe.weight.format=fp8", "backend.recipe.weight: format 'fp8' is not known"),
        ("backend.precision=bf16-mixed", "choose a recipe, e.g. backend/recipe=bf16"),
    ):
        done = fit(*SMOKE, f"run_dir={tmp_path / 'run'}", override)
        assert done.returncode == 2
        assert complaint in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
