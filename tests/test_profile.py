"""`fsdtrain profile`: the files, whose time it is, and what of the command line it understands."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdtrain_cuda import CudaBackend
from fsdtrain_dojo import DojoBackend
from small_model import SMALL
from torch import nn

from fsdtrain.__main__ import COMMANDS, _as_overrides, main
from fsdtrain.backend import ModelledSubstitute
from fsdtrain.engine.profile_record import ProfileRecord, read_profile
from fsdtrain.engine.run_record import read_manifest, write_json
from fsdtrain.errors import UserError
from fsdtrain.hydra_app import compose_config
from fsdtrain.profile import _data_wait, _load, profile
from fsdtrain.settings import read_profile_settings
from fsdtrain.step_profile import PHASES, Assumption, HeatMap, OpProfile, StepProfile
from fsdtrain.torch_profile import profile_with_torch

pytestmark = pytest.mark.usefixtures("a_process_of_its_own")


def test_a_profile_is_written_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL, f"run_dir={tmp_path}", "trace=true"]
    assert main(["profile", *arguments, "--explain", "convolution_back"]) == 0
    record = read_profile(tmp_path)
    assert record.num_clips == 2
    assert record.profile.backend == read_manifest(tmp_path).backend == "cpu"
    assert record.profile.origin == "MEASURED"
    phases = {op.name: op.phase for op in record.profile.ops}
    assert phases["aten::convolution_backward"] == "backward"
    assert {op.phase for op in record.profile.ops} == set(PHASES)
    assert "convolution_backward" in (tmp_path / "profile.html").read_text()
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert "convolution_backward" in {event["name"] for event in trace["traceEvents"]}
    assert record.profile.timeline == (), "it is in the trace"
    printed = capsys.readouterr()
    for word in ("MEASURED", "share", "optimizer", "backend cpu gives no reasons"):
        assert word in printed.out


def test_dojos_time_is_modelled_and_has_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL, "backend=dojo", "backend.machine=d1_node", "trace=true"]
    assert main(["profile", *arguments, f"run_dir={tmp_path}", "--explain", "convolution"]) == 0
    profile = read_profile(tmp_path).profile
    assert profile.origin == "MODELLED"
    assert read_manifest(tmp_path).origin == "EMULATED", "of the values that training gives"
    assert "(d1_node)" in profile.device
    assert {op.phase for op in profile.ops} == set(PHASES)
    convolution = next(op for op in profile.ops if op.name.startswith("convolution_backward"))
    assert convolution.layer
    assert convolution.bound_by
    assert convolution.explanation
    printed = capsys.readouterr()
    for word in ("MODELLED", "limited by", "roof", convolution.explanation[0]):
        assert word in printed.out
    assert "MEASURED" not in printed.out
    assert "host" not in printed.err
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert {event["ph"] for event in trace["traceEvents"]} == {"M", "X", "C"}


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@NO_GPU
def test_without_a_gpu_the_first_line_says_that_a_model_takes_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read_profile_settings(compose_config("profile", ["run_dir=.", "backend=cuda"]))
    backend, warning = _load(settings)
    assert isinstance(backend, DojoBackend)
    assert backend.machine.name == "h100"
    printed = " ".join(capsys.readouterr().out.split())
    assert printed == warning
    assert re.match(r"Backend cuda is not available here: no GPU: .*MODELLED, not meas", printed)
    assert "NVIDIA H100" in printed


@NO_GPU
def test_a_profile_by_a_substitute_says_so_first_and_forever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = ModelledSubstitute(backend="cpu", options={}, machine="a machine", hint="A hint.")
    monkeypatch.setattr(CudaBackend, "modelled_substitute", lambda: stub)
    assert main(["profile", "backend=cuda", *SMALL, f"run_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.startswith("Backend cuda is not available here: no GPU")
    assert "of a machine, by backend cpu. A hint." in read_profile(tmp_path).profile.notes[0]
    assert "not available here" in (tmp_path / "profile.html").read_text()


@NO_GPU
@pytest.mark.parametrize("substitute", [None, "not installed"])
def test_without_a_substitute_a_backend_that_cannot_run_is_refused(
    substitute: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = ModelledSubstitute(backend="not installed", options={}, machine="", hint="")
    monkeypatch.setattr(CudaBackend, "modelled_substitute", lambda: substitute and stub)
    settings = read_profile_settings(compose_config("profile", ["run_dir=.", "backend=cuda"]))
    with pytest.raises(UserError, match="backend 'cuda' is not available: no GPU"):
        _load(settings)


def test_video_that_a_device_decodes_is_not_profiled(tmp_path: Path) -> None:
    options = ["experiment=smoke", "data.frames=h264", f"run_dir={tmp_path}"]
    settings = read_profile_settings(compose_config("profile", options))
    with pytest.raises(UserError, match="use data.frames=i420"):
        profile(settings, config_yaml="")


class Clock:
    """Each batch takes a second, and a step what it is said to take."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_batches = 0

    def perf_counter(self) -> float:
        return self.now_s

    def batches(self) -> Iterator[Any]:
        while True:
            self.num_batches += 1
            self.now_s += 1.0
            yield None


@pytest.mark.parametrize(
    ("num_workers", "step_s", "wait_s", "num_batches"),
    [(2, 0.25, 0.75, 4 + 3), (2, 1.5, 0.0, 4 + 3), (0, 0.25, 1.0, 3)],
)
def test_a_step_waits_for_what_the_loader_lacks(
    num_workers: int,
    step_s: float,
    wait_s: float,
    num_batches: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("fsdtrain.profile.time", clock)
    assert _data_wait(clock.batches(), num_workers, step_s) == pytest.approx(wait_s)
    assert clock.num_batches == num_batches, "for three seconds, and what was ready before"


class Regression(nn.Module):
    """Two layers and a loss, with products that can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32, bias=False), nn.Linear(32, 8, bias=False)

    def forward(self, batch: torch.Tensor) -> "Regression":
        self.loss = self.second(self.first(batch)).square().mean()
        return self


def test_a_clocked_profile_tells_the_phases_and_the_work() -> None:
    step = Regression()
    optimizer = torch.optim.AdamW(step.parameters())
    before = step.first.weight.detach().clone()
    found = profile_with_torch(
        step, torch.rand(4, 16), optimizer, backend="b", device="d", dtype="fp32"
    )
    assert not torch.equal(step.first.weight, before), "the optimiser has stepped"
    # Forward two products, backward two of the second layer and one of the first: its input has
    # no gradient.
    assert found.flops == 2 * 4 * (2 * 16 * 32 + 3 * 32 * 8)
    products = {(op.shapes, op.phase): op for op in found.ops if op.name == "aten::mm"}
    assert products["4x16, 16x32", "forward"].flops == 2 * 4 * 16 * 32
    assert products["32x4, 4x16", "backward"].flops == 2 * 4 * 16 * 32
    layers = {(op.shapes, op.layer) for op in found.ops if op.name == "aten::mm"}
    assert layers == {
        ("4x16, 16x32", "first"), ("32x4, 4x16", "first"), ("4x32, 32x8", "second"),
        ("8x4, 4x32", "second"), ("4x8, 8x32", "second"),
    }  # fmt: skip
    assert not step.first._forward_hooks, "nothing is left behind"
    firsts = [
        min(op.start_s for op in found.ops if op.phase == phase and op.start_s is not None)
        for phase in PHASES
    ]
    assert firsts == sorted(firsts)
    # Two matrices are read and one is written, four bytes a number.
    assert products["4x16, 16x32", "forward"].num_bytes == 4 * (4 * 16 + 16 * 32 + 4 * 32)
    assert products["32x4, 4x16", "backward"].num_bytes == 4 * (32 * 4 + 4 * 16 + 32 * 16)
    assert found.timeline
    ends = [0.0]
    for event in found.timeline:
        assert event.resource == "CPU thread 1"
        assert ends[-1] <= event.start_s <= event.end_s, "one after the other"
        ends.append(event.end_s)


def test_what_stands_for_the_optimisers_step_is_called() -> None:
    step = Regression()
    calls: list[int] = []
    profile_with_torch(
        step,
        torch.rand(4, 16),
        torch.optim.SGD(step.parameters(), lr=1.0),
        backend="b",
        device="d",
        dtype="fp32",
        is_eager=False,
        update=lambda: calls.append(1),
    )
    assert len(calls) == 5  # two to warm up, one by the clock, two under the profiler


def test_bf16_is_profiled_as_it_trains(tmp_path: Path) -> None:
    arguments = [
        *SMALL,
        "backend.precision=bf16-mixed",
        "page=false",
        f"run_dir={tmp_path}",
    ]
    assert main(["profile", *arguments]) == 0
    assert not (tmp_path / "trace.json").exists(), "only on demand"
    assert not (tmp_path / "profile.html").exists()
    ops = read_profile(tmp_path).profile.ops
    assert any(op.name == "aten::to" or op.name == "aten::_to_copy" for op in ops)
    assert {op.dtype for op in ops} == {"bf16-mixed"}


def make_record() -> ProfileRecord:
    op = OpProfile(
        name="conv1.dw", shapes="2x3, 3x4", dtype="bf16", num_calls=1, time_s=1e-3, flops=24,
        num_bytes=72, bound_by="HBM", phase="backward", layer="conv1", bytes_by_level={"HBM": 72.0},
        explanation=("output-stationary: 3 us, weight-stationary: 5 us",),
    )  # fmt: skip
    profile = StepProfile(
        backend="b",
        device="d",
        origin="MODELLED",
        step_time_s=1e-3,
        ops=(op,),
        sram_over_time=((0.0, 10.0), (1e-3, 0.0)),
        heat_maps=(HeatMap(title="compute", unit="share", rows=((0.5, None),)),),
        assumptions=(
            Assumption(
                name="die_crossing_ns", value=100, unit="ns", source="a talk", confidence="assumed",
                low=50, high=200, step_time_at_low_s=9e-4, step_time_at_high_s=1.2e-3,
            ),
        ),
    )  # fmt: skip
    return ProfileRecord(num_clips=1, profile=profile)


def test_the_record_can_be_read_again(tmp_path: Path) -> None:
    record = make_record()
    write_json(tmp_path / "profile.json", record)
    assert read_profile(tmp_path) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"version": 1},
            "of version 1, and this fsdtrain reads 'fsdtrain-profile' of version 2: profile",
        ),
        (
            {"schema": "another"},
            "is 'another' of version 2, and this fsdtrain reads 'fsdtrain-profile'",
        ),
        ({"profile": {}}, "missing required field `backend`"),
    ],
)
def test_another_record_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "profile.json"
    write_json(path, make_record())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_profile(tmp_path)


def test_a_folder_without_a_profile_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="profile.json does not exist"):
        read_profile(tmp_path)


@pytest.mark.parametrize(
    "value", ["conv1", "a.b/c-d_1", "null", "True", "nan", "1", "1e3", "a 'b'\\c, [d]=1", "", "-x"]
)
def test_an_option_is_an_override_whatever_it_holds(value: str) -> None:
    for arguments in (["--explain", value], [f"--explain={value}"]):
        overrides = _as_overrides(["seed=1", *arguments, "trace=true"], COMMANDS["profile"])
        assert (overrides[0], overrides[2]) == ("seed=1", "trace=true")
        config = compose_config("profile", ["run_dir=.", *overrides])
        assert read_profile_settings(config).explain == value


def test_a_plain_option_is_noted_as_one_would_type_it() -> None:
    assert _as_overrides(["--explain", "backbone.stem.0"], COMMANDS["profile"]) == [
        "explain=backbone.stem.0"
    ]


def test_an_option_of_another_command_stays_hydras() -> None:
    assert _as_overrides(["--explain", "x", "--cfg", "job"], COMMANDS["fit"]) == [
        "--explain",
        "x",
        "--cfg",
        "job",
    ]


def test_a_flag_is_an_override_of_its_command_alone() -> None:
    given = ["--bisect", "--repro", "conv 1", "--tune"]
    found = ["bisect=true", "repro='conv 1'", "tune=true"]
    assert _as_overrides(given, COMMANDS["compare"]) == found
    assert _as_overrides(["--bisect"], COMMANDS["fit"]) == ["--bisect"]


def test_an_option_without_its_value_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--explain"]) == 2
    assert "--explain needs a value" in capsys.readouterr().err
