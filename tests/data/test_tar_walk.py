import io
import tarfile

import numpy as np
import pytest

from fsdtrain.data.tar_walk import walk_tar
from fsdtrain.errors import DataError


def write_tar(path, members, *, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return str(path)


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_what_tarfile_finds(tmp_path, seed):
    rng = np.random.default_rng([seed, 5])
    lengths = rng.choice([1, 5, 99, 100, 101, 180], size=6)
    members = [
        (f"{number}" + "n" * int(length), rng.bytes(int(rng.choice([0, 1, 511, 512, 513, 3000]))))
        for number, length in enumerate(lengths)
    ]
    path = write_tar(tmp_path / "a.tar", members)

    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]

    assert [(m.name, m.offset, m.size_bytes) for m in walk_tar(path)] == expected
    data = (tmp_path / "a.tar").read_bytes()
    assert [data[m.offset : m.offset + m.size_bytes] for m in walk_tar(path)] == [
        body for _, body in members
    ]


def test_an_empty_tar_has_no_members(tmp_path):
    assert list(walk_tar(write_tar(tmp_path / "a.tar", []))) == []


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_only_plain_files_are_taken(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("odd")
        info.type, info.linkname = kind, "/etc/hosts"
        tar.addfile(info)
    with pytest.raises(DataError, match="'odd' is not a plain file"):
        list(walk_tar(str(tmp_path / "a.tar")))


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"size": "5"}, "something else than a path"),
        ({"path": "a", "size": "-1"}, "something else than a path"),
        ({"comment": "x"}, "something else than a path"),
    ],
)
def test_pax_records_that_could_move_a_member_are_refused(tmp_path, headers, problem):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.pax_headers = headers
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(DataError, match=problem):
        list(walk_tar(str(tmp_path / "a.tar")))


def test_a_negative_size_is_refused(tmp_path):
    info = tarfile.TarInfo("a")
    info.size = -512
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(DataError, match="size is -512"):
        list(walk_tar(str(tmp_path / "a.tar")))


@pytest.mark.parametrize("cut", [-400, -1, 1, 511, 512, 1023])
def test_a_cut_end_is_reported_after_the_whole_members(tmp_path, cut):
    path = tmp_path / "a.tar"
    write_tar(path, [("a", b"x" * 100), ("b", b"y" * 100)])
    path.write_bytes(path.read_bytes()[: 4 * 512 + cut])
    members = walk_tar(str(path))
    assert next(members).name == "a"
    with pytest.raises(DataError, match="cut off"):
        list(members)
