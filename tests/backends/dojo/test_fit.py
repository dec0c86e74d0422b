"""`fit backend=dojo` from the command line: what the run folder holds, and what is refused."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_model import SMALL

from fsdtrain.__main__ import main
from fsdtrain.engine.run_record import read_manifest, read_results

pytestmark = pytest.mark.usefixtures("a_process_of_its_own")

SMOKE = (*SMALL, "training.max_steps=4", "training.validate_every_steps=2")


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def fit(*overrides: str) -> int:
    return main(["fit", "backend=dojo", *SMOKE, *overrides])


def test_a_run_is_recorded_as_emulated(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    code = fit("backend/recipe=cfp8_lean", "backend.read_every_steps=2", f"run_dir={run_dir}")
    assert code == 0
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


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("backend.recipe.weight.format=fp8", "backend.recipe.weight: format 'fp8' is not known"),
        ("backend.precision=bf16-mixed", "choose a recipe, e.g. backend/recipe=bf16"),
    ],
)
def test_wrong_options_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, complaint: str
) -> None:
    assert fit(f"run_dir={tmp_path / 'run'}", override) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert len(said.strip().splitlines()) == 1
