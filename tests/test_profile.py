"""`fsdtrain profile`: the file, the table, and whose time it is."""

from pathlib import Path

import pytest

from fsdtrain.__main__ import main
from fsdtrain.backend import OpProfile, StepProfile
from fsdtrain.engine.run_record import read_manifest
from fsdtrain.errors import UserError
from fsdtrain.profile import ProfileRecord, profile_table, read_profile


@pytest.mark.parametrize("backend", ["cpu", "dojo"])
def test_a_profile_is_written_and_printed(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["experiment=smoke", f"backend={backend}", f"run_dir={tmp_path}"]
    assert main(["profile", *arguments]) == 0
    record = read_profile(tmp_path)
    assert record.num_clips == 2
    assert record.profile.backend == read_manifest(tmp_path).backend == backend
    assert record.profile.origin == "MEASURED"
    names = [op.name for op in record.profile.ops]
    assert "aten::convolution_backward" in names
    printed = capsys.readouterr()
    assert "MEASURED" in printed.out
    assert "share" in printed.out
    assert ("not the emulated machine's" in printed.err) == (backend == "dojo")


def make_op(name: str, time_s: float, flops: int | None = None) -> OpProfile:
    return OpProfile(
        name=name, shapes="2x3, 3x4", dtype="fp32", num_calls=1, time_s=time_s, flops=flops,
        num_bytes=None, bound_by=None,
    )  # fmt: skip


def test_the_table_leaves_out_what_the_backend_cannot_tell() -> None:
    def headings(*ops: OpProfile) -> list[object]:
        found = StepProfile(backend="b", device="d", origin="MODELLED", step_time_s=2.0, ops=ops)
        return [
            column.header
            for column in profile_table(ProfileRecord(num_clips=1, profile=found)).columns
        ]

    assert headings(make_op("aten::mm", 1.0)) == ["op", "shapes", "type", "calls", "ms", "share"]
    assert "GFLOP/s" in headings(make_op("aten::mm", 1.0, flops=24), make_op("aten::relu", 1.0))
    assert headings(make_op("aten::mm", 0.0, flops=24)) == ["op", "shapes", "type", "calls", "ms"]


def test_a_folder_without_a_profile_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="profile.json does not exist"):
        read_profile(tmp_path)
