"""The door: a user's mistake is one line on stderr and exit code 2, never a traceback.

Most commands run in this process, in an empty folder.
"""

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_model import SMALL

from fsdtrain.__main__ import COMMANDS, main
from fsdtrain.data.schema import Clip
from fsdtrain.data.shard import write_shards
from fsdtrain.engine.checkpoints import read_step
from fsdtrain.engine.run_record import read_manifest, read_results
from fsdtrain.errors import UserError

Capture = pytest.CaptureFixture[str]
LOGGED = re.compile(r"\d\d:\d\d:\d\d INFO ")


pytestmark = pytest.mark.usefixtures("a_process_of_its_own")


def refused(capsys: Capture, *arguments: str) -> str:
    """Exit code 2 and one line beside the log, which is returned."""
    try:
        code = main(list(arguments))
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    assert code == 2
    lines = [line for line in captured.err.splitlines() if not LOGGED.match(line)]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("fsdtrain: ")
    assert "Traceback" not in captured.out + captured.err
    return lines[0]


def printed(capsys: Capture, *arguments: str) -> str:
    """Exit code 0; what stands on stdout is returned."""
    try:
        code = main(list(arguments))
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    assert code == 0
    return capsys.readouterr().out


# --- help ------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["--help", "-h", "help"])
def test_help_names_every_command(capsys: Capture, argument: str) -> None:
    text = printed(capsys, argument)
    for name, command in COMMANDS.items():
        assert name in text
        assert command.help in text


def test_no_command_prints_the_help_and_fails(capsys: Capture) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(capsys: Capture, command: str) -> None:
    text = printed(capsys, command, "--help")
    assert f"fsdtrain {command}" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("command", ["make", "convert", "inspect", "verify"])
def test_every_data_command_has_help(capsys: Capture, command: str) -> None:
    assert f"fsdtrain data {command}" in printed(capsys, "data", command, "--help")


def test_help_of_fit_names_the_groups_and_the_knobs(capsys: Capture) -> None:
    text = printed(capsys, "fit", "--help")
    for line in ("backend: cpu, cuda, dojo", "data: shards, synthetic", "model: base, small, tiny"):
        assert line in text
    assert "learning_rate:" in text


def test_the_composed_configuration_can_be_printed(capsys: Capture) -> None:
    text = printed(capsys, "fit", "--cfg", "job", "training.max_steps=7", "backend=cuda")
    assert "max_steps: 7" in text
    assert "name: cuda" in text
    assert "\nhydra:" not in text


def test_one_package_of_the_configuration_can_be_printed(capsys: Capture) -> None:
    text = printed(capsys, "fit", "--cfg", "job", "--package", "training", "--resolve")
    assert "schedule: one_cycle" in text
    assert "batch_size" not in text


# --- wrong input -----------------------------------------------------------------------------


def test_an_unknown_command_is_named_beside_the_known(capsys: Capture) -> None:
    line = refused(capsys, "fti")
    assert "'fti'" in line
    assert all(name in line for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["training.max_stps=3"], ["max_stps"]),
        (["no_such_knob=3"], ["no_such_knob"]),
        (["backend=tpu"], ["backend/tpu", "cpu cuda dojo"]),
        (["model=huge"], ["model/huge", "tiny"]),
        (["no_group=tiny"], ["no_group"]),
        (["+no_group@model=tiny"], ["no_group"]),
        (["training.max_steps"], ["training.max_steps"]),
        (["training.max_steps="], ["training.max_steps"]),
        (["training.max_steps=abc"], ["training.max_steps"]),
        (["training.max_steps=-3"], ["training.max_steps=-3", "at least 1"]),
        (["training.schedule=linear"], ["training.schedule"]),
        (["training=3"], ["Config group override", "int"]),
        (["seed=1", "seed=[1"], ["seed=[1"]),
        (["data=shards"], ["data.train", "data.val"]),
        (["data=shards", "data.train=/nowhere"], ["data.val"]),
        (["model.image_size=[1]"], ["model.image_size"]),
        (["ckpt_path=a", "resume=last"], ["ckpt_path", "resume"]),
        (["run_dir=${no.such.node}"], ["no.such.node"]),
        (["run_dir=${no_resolver:3}"], ["no_resolver"]),
        (["--cfg", "job", "--multirun"], ["--multirun"]),
        (["--config-dir", "/nowhere"], ["/nowhere"]),
        (["--config-name", "nothing"], ["nothing"]),
        (["hydra/launcher=cloud"], ["cloud"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_override_is_one_line(
    capsys: Capture, arguments: list[str], words: list[str]
) -> None:
    line = refused(capsys, "fit", *arguments)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["backend.precision=fp8"], ["backend.precision='fp8'", "bf16-mixed, fp32"]),
        (["backend.devices=0"], ["backend.devices=0", "at least 1"]),
        (["backend.devices=two"], ["cpu"]),
        (["+backend.knob=1"], ["cpu", "knob"]),
        (["backend=dojo", "backend.denormals=ieee"], ["backend.denormals='ieee'", "gradual"]),
        (["backend.name=tpu"], ["'tpu' is not installed", "cpu"]),
        (["ckpt_path=nowhere.ckpt"], ["nowhere.ckpt", "does not exist"]),
        (["resume=last"], ["resume=last", "last.ckpt"]),
        (["data=shards", "data.train=/nowhere", "data.val=/nowhere"], ["/nowhere"]),
        (["data.fleet.num_train_scenes=0"], ["num_train_scenes"]),
        (["data.fleet._target_=os.system"], ["os.system"]),
        (["+data.fleet.colour=red"], ["colour"]),
        (["run_dir=file/run"], ["file/run", "run_dir="]),
        (["hydra.run.dir=file/run"], ["file/run"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_fit_cannot_do_is_one_line(
    capsys: Capture, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    line = refused(capsys, "fit", "experiment=smoke", *arguments)
    assert all(word in line for word in words), line


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_cuda_without_a_gpu_is_one_line(capsys: Capture) -> None:
    assert "'cuda' is not available: " in refused(capsys, "fit", "backend=cuda")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x80\x02not a checkpoint"])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_what_is_no_checkpoint_is_one_line(
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    content: bytes,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "broken.ckpt").write_bytes(content)
    line = refused(capsys, command, "ckpt_path=broken.ckpt")
    assert "broken.ckpt is not a checkpoint that can be loaded safely" in line
    assert not (tmp_path / "cache").exists(), "no data were made first"


def test_a_disk_that_fills_up_in_training_is_one_line(
    capsys: Capture, make_clip: Callable[..., Clip], tmp_path: Path
) -> None:
    for split, seed in (("train", 0), ("val", 1)):
        clip = make_clip(clip_id=split, seed=seed, size=(48, 96))
        write_shards([clip], tmp_path / split, prefix=split, clips_per_shard=1)
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.ckpt.partial").symlink_to("/dev/full")
    line = refused(
        capsys, "fit", "experiment=smoke", "training.max_steps=2", "data.batch_size=1",
        "data=shards", "data.train=train", "data.val=val", "run_dir=run",
    )  # fmt: skip
    assert "No space left on device" in line
    assert list(checkpoints.iterdir()) == []


def test_validate_wants_a_checkpoint(capsys: Capture) -> None:
    assert "ckpt_path=" in refused(capsys, "validate")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "nowhere.tar"], ["nowhere.tar"]),
        (["verify", "nowhere"], ["nowhere"]),
        (["make", "data.fleet.num_train_scenes=0"], ["num_train_scenes"]),
        (["make", "data.fleet.no_such=1"], ["no_such"]),
        (["make", "data=shards"], ["data.train"]),
        (["make", "data=3"], ["Config group override"]),
        (["make", "--out", "file/fleet"], ["file"]),
        (["convert", "ddad", "--src", "nowhere", "--out", "o"], ["nowhere"]),
        (["convert", "video", "--src", "nowhere.mp4", "--out", "o"], ["nowhere.mp4"]),
        (["convert", "kitti-odometry", "--src", "nowhere", "--out", "o"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_data_cannot_do_is_one_line(
    capsys: Capture, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    line = refused(capsys, "data", *arguments)
    assert all(word in line for word in words), line


def test_pictures_that_cannot_be_written_are_one_line(
    capsys: Capture, make_clip: Callable[..., Clip], tmp_path: Path
) -> None:
    (shard,) = write_shards([make_clip()], tmp_path / "shards", prefix="a", clips_per_shard=1)
    (tmp_path / "file").write_text("not a folder")
    assert "file/x" in refused(capsys, "data", "inspect", str(shard), "--out", "file/x")
    (tmp_path / "clip-0.png").symlink_to("/dev/full")
    assert "No space left" in refused(capsys, "data", "inspect", str(shard))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["data"], "command"),
        (["data", "destroy"], "destroy"),
        (["data", "convert"], "source"),
        (["data", "convert", "ddad"], "--src"),
        (["data", "inspect", "a.tar", "--max-clips", "many"], "--max-clips"),
        (["backends", "--all"], "--all"),
        (["doctor", "--all"], "--all"),
        (["fit", "--all"], "--all"),
    ],
    ids=lambda value: " ".join(value),
)
def test_arguments_that_do_not_exist_end_in_one_sentence(
    capsys: Capture, arguments: list[str], word: str
) -> None:
    """argparse puts the usage before it."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("usage: fsdtrain")
    assert word in error.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "training.max_steps=-3", "--debug"],
        ["--debug", "fit", "training.max_steps=-3"],
        ["validate", "--debug"],
        ["data", "verify", "nowhere", "--debug"],
        ["fti", "--debug"],
    ],
    ids=lambda value: " ".join(value),
)
def test_debug_shows_the_traceback(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        main(arguments)


def test_debug_shows_hydras_traceback() -> None:
    from hydra.errors import HydraException

    with pytest.raises(HydraException):
        main(["fit", "no_such_knob=3", "--debug"])


# --- backends and doctor ---------------------------------------------------------------------


def test_backends_lists_what_is_installed_and_why_one_cannot_run(capsys: Capture) -> None:
    text = printed(capsys, "backends")
    assert "cpu" in text
    assert "dojo" in text
    assert "yes" in text
    if not torch.cuda.is_available():
        assert "GPU" in text, "why cuda cannot run here"


def test_doctor_is_content_with_this_machine(capsys: Capture) -> None:
    text = printed(capsys, "doctor")
    assert f"{torch.__version__}" in text
    assert "!!" not in text


def test_doctor_fails_with_a_remedy_where_a_store_cannot_be_reached(
    capsys: Capture, tmp_path: Path
) -> None:
    assert main(["doctor", str(tmp_path / "nowhere")]) == 1
    text = capsys.readouterr().out
    assert "!!" in text
    assert "not reachable" in text
    assert "check the path" in " ".join(text.split())


# --- a process of its own --------------------------------------------------------------------


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fsdtrain", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("arguments", [["fit", "backend=tpu"], ["fti"]])
def test_the_process_says_one_line_and_exits_with_two(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == ""


def test_debug_reaches_the_process() -> None:
    done = run("fit", "no_such_knob=3", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "no_such_knob" in done.stderr.splitlines()[-1] + done.stderr.splitlines()[-2]


def test_the_installed_command_is_the_module() -> None:
    command = Path(sys.executable).parent / "fsdtrain"
    done = subprocess.run([str(command), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == run("--help").stdout


# --- shell completion ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fsdtrain ", {name for name in COMMANDS if " " not in name}),
        ("fsdtrain f", {"fit"}),
        ("fsdtrain d", {"data", "doctor"}),
        ("fsdtrain x", set()),
        ("fsdtrain fit backend=", {"backend=cpu", "backend=cuda", "backend=dojo"}),
        ("fsdtrain fit seed=1 backend=c", {"backend=cpu", "backend=cuda"}),
        ("fsdtrain fit experiment=sm", {"experiment=smoke"}),
        ("fsdtrain fit training.max_", {"training.max_steps="}),
        ("fsdtrain validate num_", {"num_report_clips="}),
        ("fsdtrain data ", set()),
        ("fsdtrain nothing ", set()),
    ],
)
def test_completes_commands_and_overrides(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, line: str, expected: set[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert set(printed(capsys, "-sc", "query=bash").split()) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_this_command(
    capsys: Capture, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/fsdtrain", "-sc", f"install={shell}"])
    script = printed(capsys, "-sc", f"install={shell}")
    assert "fsdtrain" in script
    assert "fsdtrain-fit" not in script


COMPLETE_IN_BASH = """
eval "$(fsdtrain -sc install=bash)"
COMP_LINE="$1"; COMP_POINT=${#1}; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
$(complete -p fsdtrain | sed 's/.*-F \\([^ ]*\\) .*/\\1/') fsdtrain
echo "${COMPREPLY[@]}"
"""


def test_bash_completes() -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", COMPLETE_IN_BASH, "bash", "fsdtrain fit backend=cu"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert done.stdout.strip() == "backend=cuda", done.stderr


# --- whole runs ------------------------------------------------------------------------------


SMOKE = (*SMALL, "training.max_steps=4", "training.validate_every_steps=2")


def figures(run_dir: Path) -> dict[str, float]:
    return {figure.name: figure.value for figure in read_results(run_dir).figures}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "dojo"])
def test_two_ranks_train_as_one_run(backend: str, tmp_path: Path) -> None:
    """DDP over gloo: the second rank is started from the command line that the first was given."""
    done = run(
        "fit", *SMOKE, f"backend={backend}", "backend.devices=2", "data.batch_size=1",
        f"run_dir={tmp_path / 'run'}", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("report: ") == 1, "only rank 0 speaks"
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    # Four training clips, two a step on two ranks: the second step ends the first epoch.
    assert last["epoch"] == 1
    results = read_results(tmp_path / "run")
    assert results.num_clips == 2
    assert all(math.isfinite(figure.value) for figure in results.figures)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "dojo"])
def test_frames_may_stay_as_they_are_stored(capsys: Capture, tmp_path: Path, backend: str) -> None:
    printed(capsys, "fit", *SMOKE, f"backend={backend}", "data.frames=i420", f"run_dir={tmp_path}")
    results = read_results(tmp_path)
    assert all(math.isfinite(figure.value) for figure in results.figures)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1


@pytest.mark.slow
def test_multirun_trains_once_for_each_value(capsys: Capture, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    printed(capsys, "fit", "--multirun", *SMOKE, "seed=0,1", f"hydra.sweep.dir={sweep}")
    for number in (0, 1):
        assert read_manifest(sweep / str(number)).seed == number
        assert (sweep / str(number) / "report.html").exists()
    first, second = ((sweep / str(number) / "metrics.csv").read_bytes() for number in (0, 1))
    assert first != second


def test_a_run_can_be_repeated_evaluated_and_resumed(capsys: Capture, tmp_path: Path) -> None:
    once, twice, again = (tmp_path / name for name in ("once", "twice", "again"))
    printed(capsys, "fit", *SMOKE, f"run_dir={once}")
    printed(capsys, "fit", *SMOKE, f"run_dir={twice}")
    assert (once / "metrics.csv").read_bytes() == (twice / "metrics.csv").read_bytes()
    assert figures(once) == figures(twice)
    manifest = read_manifest(once)
    assert manifest.command == shlex.join(["fsdtrain", "fit", *SMOKE, f"run_dir={once}"])
    assert manifest.data_sha256 == read_manifest(twice).data_sha256

    checkpoint = once / "checkpoints" / "last.ckpt"
    printed(capsys, "validate", *SMALL, f"ckpt_path={checkpoint}", f"run_dir={again}")
    assert figures(again) == figures(once)

    line = refused(capsys, "fit", *SMOKE, f"run_dir={once}")
    assert "resume=last" in line
    printed(capsys, "fit", *SMOKE, "training.max_steps=6", f"run_dir={once}", "resume=last")
    assert read_step(checkpoint) == 6
    rows = (once / "metrics.csv").read_text().splitlines()
    assert len(rows) > len((twice / "metrics.csv").read_text().splitlines())

    line = refused(
        capsys,
        "fit",
        *SMOKE,
        "model.pillars.max_views=1",
        "model.heads.path.hidden=3",
        f"ckpt_path={checkpoint}",
    )
    assert "does not fit this model" in line
