"""The run folder: round trips, and disks that are full, read-only or lie."""

import os
import subprocess
from pathlib import Path

import pytest

from fsdtrain.engine.run_record import (
    Figure,
    Results,
    git_state,
    make_manifest,
    prepare_run_folder,
    read_manifest,
    read_results,
    write_json,
)
from fsdtrain.errors import UserError


def make_results(value: float = 0.5) -> Results:
    figure = Figure(
        name="vehicle_iou",
        value=value,
        unit="IoU",
        better="higher",
        origin="MEASURED",
        description="by hand",
        baselines={"prior": 0.1},
    )
    return Results(split="val", num_clips=3, num_skipped_clips=1, figures=(figure,))


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", make_results())
    assert read_results(tmp_path) == make_results()


def test_manifest_comes_back_and_says_what_ran(tmp_path: Path) -> None:
    manifest = make_manifest(
        command="fsdtrain fit",
        started_at="2026-01-01T00:00:00+00:00",
        seed=7,
        backend="cpu",
        device="a CPU",
        origin="MEASURED",
        config_yaml="seed: 7\n",
        data_sha256="0" * 64,
    )
    write_json(tmp_path / "manifest.json", manifest)
    assert read_manifest(tmp_path) == manifest
    digest = subprocess.run(
        ["sha256sum"], input=b"seed: 7\n", capture_output=True, check=True
    ).stdout.decode()
    assert manifest.config_sha256 == digest.split()[0]
    assert manifest.packages["torch"].startswith("2.")


def test_git_state_follows_the_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert git_state(tmp_path) == (None, None)
    git("init", "--quiet")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    assert git_state(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == (git("rev-parse", "HEAD"), True)


def test_a_full_disk_keeps_the_old_file_and_names_the_path(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, make_results(0.25))
    # Every write to /dev/full fails with "No space left on device".
    (tmp_path / "results.json.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"results\.json: No space left on device"):
        write_json(path, make_results(0.75))
    assert read_results(tmp_path).figures[0].value == 0.25
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_failing_rename_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match="Input/output error"):
        write_json(tmp_path / "results.json", make_results())
    assert os.listdir(tmp_path) == []


def test_run_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = prepare_run_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert os.listdir(folder) == []
    assert prepare_run_folder(folder) == folder


def test_run_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to the run folder .*run_dir="):
        prepare_run_folder(tmp_path / "file" / "run")


def test_run_folder_on_a_full_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".write-probe").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        prepare_run_folder(tmp_path)


def test_run_folder_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The superuser may write anywhere, so the system's answer is given by hand.
    def refuse(self: Path, data: bytes) -> int:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        prepare_run_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "results.json"),
        (b'{"schema": "fsdtrain-results"', "results.json"),
        (b'{"schema": "something-else"}', "results.json"),
        (b'{"schema": "fsdtrain-results", "version": 1, "split": "val"}', "num_clips"),
    ],
)
def test_what_is_no_results_file_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_results_of_a_later_version_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", make_results())
    text = (tmp_path / "results.json").read_text()
    (tmp_path / "results.json").write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(UserError, match="version"):
        read_results(tmp_path)
