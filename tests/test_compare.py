"""The recipe of `compare` from the command line: verdicts, files, exit codes, refusals."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from fsdtrain_cpu.backend import CpuBackend
from fsdtrain_dojo.backend import DojoBackend
from omegaconf import OmegaConf
from small_model import SMALL
from torch import nn

from fsdtrain.__main__ import main
from fsdtrain.backend import Backend
from fsdtrain.compare import _as_fit
from fsdtrain.comparison.record import CompareRecord, read_comparison
from fsdtrain.errors import UserError
from fsdtrain.hydra_app import compose_config
from fsdtrain.settings import read_settings
from fsdtrain.step_graph.graph import StepGraph
from tests.comparison import faults

pytestmark = pytest.mark.usefixtures("a_process_of_its_own")

Capture = pytest.CaptureFixture[str]


def compared(tmp_path: Path, *arguments: str, code: int) -> CompareRecord:
    assert main(["compare", *SMALL, f"run_dir={tmp_path}", *arguments]) == code
    record = read_comparison(tmp_path)
    assert record.verdict.exit_code == code
    return record


def test_a_backend_is_the_same_as_itself_in_every_bit(tmp_path: Path, capsys: Capture) -> None:
    record = compared(tmp_path, "a=cpu", "b=cpu", code=0)
    assert record.numerics is not None
    assert record.numerics.first_divergence is None
    kinds = {row.kind for row in record.numerics.tensors}
    assert kinds == {"forward", "backward", "gradient", "update", "loss"}
    assert all(row.between.is_bitwise_equal for row in record.numerics.tensors)
    assert record.config_differences == ()
    assert record.performance is not None
    assert record.performance.a.origin == record.performance.b.origin == "MEASURED"
    printed = capsys.readouterr().out
    assert "The same" in printed
    for name in ("compare.md", "compare.csv", "compare.html", "trace.json"):
        assert (tmp_path / name).stat().st_size > 1000
    rows = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    assert len(rows) == len(record.numerics.tensors)
    processes = {
        event["args"]["name"]
        for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        if event["name"] == "process_name"
    }
    assert {name[:2] for name in processes} == {"a:", "b:"}


def test_dojo_is_within_its_formats_and_measured_is_told_from_modelled(tmp_path: Path) -> None:
    record = compared(tmp_path, "b.recipe=cfp8", "b.machine=d1_die", "page=false", code=0)
    assert (record.a_name, record.b_name) == ("cpu", "dojo (machine=d1_die, recipe=cfp8)")
    assert record.numerics is not None
    formats = {row.b_stored.format for row in record.numerics.tensors}
    assert "cfloat8_1_4_3" in formats
    cosines = [
        1.0 if row.between.is_bitwise_equal else row.between.cosine
        for row in record.numerics.tensors
        if (row.kind, row.mode) == ("gradient", "free_running")
    ]
    median = statistics.median(cosine for cosine in cosines if cosine is not None)
    assert 0.1 < median < 1
    sentence = record.verdict.sentence
    assert sentence.startswith("The same: numerics: All ")
    assert (
        f"errors that add up over the step leave b's gradients a median cosine of {median:.4g} "
        in sentence
    )
    assert "whether that trains the same only trainings (num_seeds=5) tell" in sentence
    assert record.performance is not None
    step = next(row for row in record.performance.totals if row.name == "step time")
    assert (step.a_origin, step.b_origin) == ("MEASURED", "MODELLED")
    assert "measured against modelled" in step.ratio_note
    assert {each.field for each in record.config_differences} >= {"backend.name", "backend.recipe"}
    assert all(each.is_allowed for each in record.config_differences)
    assert not (tmp_path / "compare.html").exists()


@pytest.mark.parametrize(
    ("backend", "side"),
    [pytest.param(CpuBackend, "a", marks=pytest.mark.slow), (DojoBackend, "b")],
)
def test_a_backend_that_keeps_a_weight_from_its_capture_reads_a_stale_one(
    backend: type[Backend], side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = "network.backbone.stem.0.weight"
    whole = backend.step_graph

    def with_its_own_copy(self: Backend, step: nn.Module, batch: Any) -> StepGraph:
        graph = whole(self, step, batch)
        op = next(op for op in graph.ops if weight in op.inputs)
        number = op.inputs.index(weight)
        return faults.with_op(graph, faults.reading(op, number, graph.tensors[weight]))

    monkeypatch.setattr(backend, "step_graph", with_its_own_copy)
    arguments = ("a=cpu", "b=dojo", "performance=false", "page=false")
    sentence = compared(tmp_path, *arguments, code=1).verdict.sentence
    assert sentence.startswith(f"Different: numerics: {side}: network.backbone.stem.0 convolution")
    assert f"the value of {weight} of the step before (stale weight)" in sentence


def test_bisect_and_repro_from_the_command_line(tmp_path: Path) -> None:
    arguments = ("a=cpu", "b=cpu", "b.precision=bf16-mixed", "performance=false")
    record = compared(tmp_path, *arguments, "--bisect", "--repro", "convolution", code=0)
    assert record.b_name == "cpu (precision=bf16-mixed)"
    assert record.bisected is not None
    assert record.bisected.sentence
    assert (tmp_path / "repro" / "repro.py").exists()


def test_trainings_of_few_seeds_give_no_verdict(tmp_path: Path) -> None:
    arguments = ("a=cpu", "b=cpu", "numerics=false", "performance=false", "training.max_steps=4")
    record = compared(
        tmp_path, *arguments, "training.validate_every_steps=4", "num_seeds=1", code=2
    )
    assert record.training is not None
    assert record.training.outcome == "open"
    assert "one seed: no verdict" in record.verdict.sentence
    assert (tmp_path / "a" / "seed_0" / "results.json").exists()

    again = tmp_path / "again"
    sides = (f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", f"run_dir={again}")
    assert main(["compare", *sides]) == 2
    found = read_comparison(again)
    assert found.training is not None
    assert found.training.equivalence == record.training.equivalence
    assert found.a_manifest.seed == 0


def test_a_side_is_configured_as_fit_would_be(tmp_path: Path) -> None:
    config = compose_config("compare", ["run_dir=.", "a=dojo", "a.recipe=cfp8_stochastic"])
    settings, config_yaml = _as_fit(config, "a", 5, tmp_path)
    fit = compose_config(
        "fit", [f"run_dir={tmp_path}", "backend=dojo", "backend.recipe=cfp8_stochastic", "seed=5"]
    )
    assert settings == read_settings(fit)
    assert settings.backend["seed"] == 5, "of stochastic rounding, from the run's"
    assert OmegaConf.create(config_yaml) == OmegaConf.create(OmegaConf.to_yaml(fit, resolve=True))


def refused(capsys: Capture, tmp_path: Path, *arguments: str) -> str:
    assert main(["compare", *SMALL, f"run_dir={tmp_path / 'out'}", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fsdtrain:")]
    assert len(lines) == 1
    assert not (tmp_path / "out" / "compare.json").exists()
    return lines[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_backend_that_cannot_run_is_not_comparable(capsys: Capture, tmp_path: Path) -> None:
    assert "backend 'cuda' is not available: no GPU" in refused(capsys, tmp_path, "a=cuda")


def test_what_cannot_be_compared_is_one_sentence(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    sides = [f"{side}={tmp_path / 'empty'}" for side in "ab"]
    assert "holds no run" in refused(capsys, tmp_path, *sides)
    assert "h264" in refused(capsys, tmp_path, "data.frames=h264")
    nan = refused(
        capsys,
        tmp_path,
        "a=cpu",
        "b=cpu",
        "performance=false",
        "model.heads.vehicle.loss_weight=nan",
    )
    assert "nan" in nan.lower()


def test_another_version_of_the_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_bytes(
        msgspec.json.encode({"schema": "fsdtrain-compare", "version": 99})
    )
    with pytest.raises(UserError, match="version 99"):
        read_comparison(tmp_path)
