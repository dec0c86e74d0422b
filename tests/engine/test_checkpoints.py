"""Checkpoints are untrusted files: none of these may run code, and each gives one sentence."""

import collections
import os
import pickle
import random
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fsdtrain.engine.checkpoint_io import WholeCheckpointIO
from fsdtrain.engine.checkpoints import check_checkpoint, find_last_checkpoint, load_weights
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.step import TrainingStep
from fsdtrain.errors import UserError
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.settings import TrainingSettings

MakeModule = Callable[..., DrivingModule]


@pytest.fixture
def make_module(
    make_network: Callable[..., HydraBev], make_training: Callable[..., TrainingSettings]
) -> MakeModule:
    return lambda **options: DrivingModule(TrainingStep(make_network(**options)), make_training())


@pytest.fixture(scope="module")
def checkpoint(
    make_network: Callable[..., HydraBev],
    make_training: Callable[..., TrainingSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """One as Lightning writes it, as far as loading weights goes."""
    module = DrivingModule(TrainingStep(make_network(seed=1)), make_training())
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    torch.save(content, path)
    return path


class Bomb:
    """Unpickling this creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def assert_refused(path: Path, match: str = "loaded safely") -> None:
    with pytest.raises(UserError, match=match) as caught:
        check_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_come_back(make_module: MakeModule, checkpoint: Path) -> None:
    module, original = make_module(seed=2), make_module(seed=1)
    load_weights(module, checkpoint)
    for name, value in original.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=0)


def test_the_bomb_of_these_tests_goes_off_where_nobody_looks(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["whole", "state_dict", "weight", "extra"])
def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, place: str, is_zip: bool) -> None:
    bomb = Bomb(tmp_path / "marker")
    contents: dict[str, Any] = {
        "whole": bomb,
        "state_dict": {"state_dict": bomb},
        "weight": {"state_dict": {"step.weight": bomb}},
        "extra": {"state_dict": {}, "hyper_parameters": bomb},
    }
    path = tmp_path / "bomb.ckpt"
    torch.save(contents[place], path, _use_new_zipfile_serialization=is_zip)
    assert_refused(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_does_not_go_off(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "bomb.ckpt"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "marker"), protocol=protocol))
    assert_refused(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, checkpoint: Path, share: float) -> None:
    content = checkpoint.read_bytes()
    path = tmp_path / "short.ckpt"
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(path)


@pytest.mark.parametrize("seed", range(30))
def test_noise_is_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "noise.ckpt"
    noise = torch.randint(256, (200,), generator=torch.Generator().manual_seed(seed))
    # Every other one begins as a pickle does.
    prefix = b"\x80\x02" if seed % 2 else b""
    path.write_bytes(prefix + bytes(noise.to(torch.uint8).tolist()))
    assert_refused(path)


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "archive.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "hello")
    assert_refused(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path)
    assert_refused(tmp_path / "nowhere.ckpt", "does not exist")


@pytest.mark.parametrize("content", [{}, [1, 2], {"model": {}}, torch.zeros(3)])
def test_another_programs_file_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    assert_refused(path, "state_dict")


def test_another_models_checkpoint_is_refused(
    make_module: MakeModule, checkpoint: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    renamed = {f"other.{name}": value for name, value in content["state_dict"].items()}
    reshaped = {name: value.flatten()[:1] for name, value in content["state_dict"].items()}
    for number, state_dict in enumerate((renamed, reshaped, {})):
        path = tmp_path / f"{number}.ckpt"
        torch.save({**content, "state_dict": state_dict}, path)
        with pytest.raises(UserError, match=r"does not fit this model: .*model=") as caught:
            load_weights(make_module(), path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "state_dict", [3, [1], {"step": "text"}, collections.OrderedDict(step=None)]
)
def test_weights_that_are_no_tensors_are_refused(
    make_module: MakeModule, checkpoint: Path, tmp_path: Path, state_dict: object
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    path = tmp_path / "odd.ckpt"
    torch.save({**content, "state_dict": state_dict}, path)
    with pytest.raises(UserError):
        load_weights(make_module(), path)


@pytest.mark.parametrize(
    "priors", [None, {}, {"vehicle": {}}, {"vehicle": {"num_positive_XY": torch.zeros(2, 2)}}, 3]
)
def test_priors_that_do_not_fit_are_refused(
    make_module: MakeModule, checkpoint: Path, tmp_path: Path, priors: object
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    path = tmp_path / "odd.ckpt"
    torch.save({**content, "priors": priors}, path)
    with pytest.raises(UserError, match="priors"):
        load_weights(make_module(), path)


def test_a_checkpoint_without_priors_is_refused(
    make_module: MakeModule, checkpoint: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    del content["priors"]
    path = tmp_path / "foreign.ckpt"
    torch.save(content, path)
    with pytest.raises(UserError, match="priors"):
        load_weights(make_module(), path)


def test_last_is_the_runs_own_before_any_siblings(tmp_path: Path) -> None:
    def make(run: str, age_s: int) -> Path:
        path = tmp_path / run / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        os.utime(path, (1e9 - age_s, 1e9 - age_s))
        return path

    own_run = tmp_path / "own"
    with pytest.raises(UserError, match="resume=last"):
        find_last_checkpoint(own_run)
    older, newer = make("b-older", 20), make("a-newer", 10)
    assert find_last_checkpoint(own_run) == newer
    newer.unlink()
    assert find_last_checkpoint(own_run) == older
    own = make("own", 30)
    assert find_last_checkpoint(own_run) == own


# What torch says of a broken index before it gives up on it.
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning:torch")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_flipped_bytes_are_refused_or_change_numbers_only(checkpoint: Path, tmp_path: Path) -> None:
    """The index of the tensors is rewritten with a right checksum, as a forger would."""
    rng = random.Random(0)
    with zipfile.ZipFile(checkpoint) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (index_name,) = (name for name in members if name.endswith("data.pkl"))
    num_refused = 0
    for number in range(100):
        index = bytearray(members[index_name])
        index[rng.randrange(len(index))] = rng.randrange(256)
        path = tmp_path / f"{number}.ckpt"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, bytes(index) if name == index_name else content)
        try:
            check_checkpoint(path)
        except UserError:
            num_refused += 1
    assert num_refused > 20


def test_a_disk_that_fills_up_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"state_dict": {"step": torch.zeros(100)}}, path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond this: the write fails in the middle, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            WholeCheckpointIO().save_checkpoint({"state_dict": {"step": torch.zeros(99_999)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["last.ckpt"]
    check_checkpoint(path)
