"""`fsdtrain report build` and `serve`: what they write, print and refuse."""

from pathlib import Path

import pytest
from rich.console import Console
from sample_compare import make_compare_record, make_side_manifest
from sample_plan import make_plan_record
from sample_profile import make_profile
from sample_run import start_run, write_run

from fsdtrain.__main__ import main
from fsdtrain.engine.profile_record import ProfileRecord
from fsdtrain.engine.run_record import write_json
from fsdtrain.report import live_server
from fsdtrain.report_command import serve


def make_folder(kind: str, folder: Path) -> Path:
    folder.mkdir()
    if kind == "fit":
        return write_run(folder)
    if kind == "profile":
        record = ProfileRecord(num_clips=256, profile=make_profile())
        write_json(folder / "profile.json", record)
        write_json(folder / "manifest.json", make_side_manifest("dojo", "a tile", "MODELLED"))
    elif kind == "compare":
        write_json(folder / "compare.json", make_compare_record())
    else:
        write_json(folder / "plan.json", make_plan_record())
    return folder


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("fit", ["report.html"]),
        ("profile", ["profile.html"]),
        ("compare", ["compare.html", "compare.md", "compare.csv"]),
        ("plan", ["plan.html"]),
    ],
)
def test_build_writes_the_pages_of_each_kind(
    kind: str, names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(kind, tmp_path / "folder")
    assert main(["report", "build", str(folder)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / name) for name in names]
    assert all((folder / name).stat().st_size > 1000 for name in names)


def test_build_writes_the_page_of_a_run_that_was_interrupted(tmp_path: Path) -> None:
    assert main(["report", "build", str(start_run(tmp_path / "run"))]) == 0
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_build_refuses_what_is_no_folder_of_a_command(
    is_there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    if is_there:
        folder.mkdir()
    assert main(["report", "build", str(folder)]) == 2
    assert f"fsdtrain: {folder} " in capsys.readouterr().err


def test_serve_refuses_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["report", "serve", str(tmp_path / "file"), "--port", "0"]) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["compare", "plan"])
def test_serve_refuses_a_folder_that_does_not_grow(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(kind, tmp_path / "folder")
    assert main(["report", "serve", str(folder), "--port", "0"]) == 2
    assert "report build" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_refused(port: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["report", "serve", str(tmp_path), f"--port={port}"])
    assert stopped.value.code == 2


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_serve_prints_its_address_and_ends_with_ctrl_c(
    host: str, is_open: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(live_server.LiveServer, "serve_forever", interrupt)
    console = Console(record=True, width=500)
    assert serve(tmp_path / "run", host=host, port=0, console=console) == 0
    text = console.export_text()
    assert f"waiting for a run in {tmp_path / 'run'}" in text
    assert ("?token=" in text) == is_open
    assert ("not encrypted" in text) == is_open
    assert text.rstrip().endswith("ended")
