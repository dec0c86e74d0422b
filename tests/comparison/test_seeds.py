"""The runner of seeds: what it trains, skips, goes on with and refuses; and that no bit changes."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from fsdtrain.comparison.record import Side
from fsdtrain.comparison.seeds import Prepare, run_seeds, train_and_compare
from fsdtrain.data.schema import Clip
from fsdtrain.data.shard import write_shards
from fsdtrain.engine.run_record import Results, read_results
from fsdtrain.errors import UserError
from fsdtrain.fit import fit
from fsdtrain.hydra_app import compose_config
from fsdtrain.settings import Settings, read_settings
from tests.comparison.run_folders import write_run

# A model that trains in a second.
SMALL = (
    "experiment=smoke", "training.max_steps=4", "training.validate_every_steps=2", "data=shards",
    "data.batch_size=1", "model.image_size=[16,32]", "model.num_frames=2",
    "model.network.stage_channels=[8,8]", "model.network.stage_blocks=[1,1]",
    "model.network.lift_channels=8", "model.network.encoder_channels=[8,8]",
    "model.network.encoder_blocks=[1,1]", "num_report_clips=0",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_walk_over() -> None:
    """Garbage is collected around every run, also among what tests before these have imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def in_an_empty_folder(a_process_of_its_own: None) -> None:
    """Commands of this file may set up the process."""


@pytest.fixture(scope="module")
def data(make_clip: Callable[..., Clip], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name a few clips."""
    folder = tmp_path_factory.mktemp("shards")
    for split, num_clips in (("train", 3), ("val", 1)):
        clips = [
            make_clip(
                clip_id=f"{split}-{number}", seed=number + 9 * (split == "val"), size=(32, 64)
            )
            for number in range(num_clips)
        ]
        write_shards(clips, folder / split, prefix=split, clips_per_shard=4)
    return [f"data.train={folder / 'train'}", f"data.val={folder / 'val'}"]


def configs(data: Sequence[str] = (), **overrides: tuple[str, ...]) -> Prepare:
    """`configs(a=("backend=cpu",), b=("backend=dojo",))` -> as the recipe prepares each run."""
    found = data or ("data.train=nowhere", "data.val=nowhere")

    def prepare(side: Side, seed: int, run_dir: Path) -> tuple[Settings, str]:
        given = [*SMALL, *found, *overrides.get(side, ()), f"seed={seed}", f"run_dir={run_dir}"]
        config = compose_config("fit", given)
        return read_settings(config), OmegaConf.to_yaml(config, resolve=True)

    return prepare


class FakeTraining:
    """Notes what it is asked for, and leaves a run folder with the configuration it was given."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, settings: Settings, *, config_yaml: str) -> Results:
        folder = settings.run_dir
        self.asked.append(("/".join(folder.parts[-2:]), settings.resume))
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "highest"
        os.environ["PL_GLOBAL_SEED"] = "7"
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        if folder.exists():
            assert settings.resume == "last" or not (folder / "manifest.json").exists()
            shutil.rmtree(folder)
        write_run(folder, seed=settings.seed)
        (folder / "config.yaml").write_text(config_yaml)
        return read_results(folder)


def test_seeds_alternate_between_the_sides(tmp_path: Path) -> None:
    train = FakeTraining()
    trained = run_seeds(configs(), train, seeds=[3, 1], folder=tmp_path)
    names = ["a/seed_3", "b/seed_3", "a/seed_1", "b/seed_1"]
    assert train.asked == [(name, None) for name in names]
    assert trained.a == (tmp_path / "a" / "seed_3", tmp_path / "a" / "seed_1")
    assert trained.num_trained == 4
    assert trained.training_s > 0


def test_complete_runs_are_not_trained_again(tmp_path: Path) -> None:
    run_seeds(configs(), FakeTraining(), seeds=[0], folder=tmp_path)
    train = FakeTraining()
    trained = run_seeds(configs(), train, seeds=[0, 1], folder=tmp_path)
    assert [name for name, _ in train.asked] == ["a/seed_1", "b/seed_1"]
    assert len(trained.b) == 2
    assert trained.num_trained == 2


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_an_interrupted_run_goes_on(tmp_path: Path, has_checkpoint: bool) -> None:
    run_seeds(configs(), FakeTraining(), seeds=[0], folder=tmp_path)
    run = tmp_path / "b" / "seed_0"
    (run / "results.json").unlink()
    if has_checkpoint:
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    train = FakeTraining()
    run_seeds(configs(), train, seeds=[0], folder=tmp_path)
    assert train.asked == [("b/seed_0", "last" if has_checkpoint else None)]


def test_a_folder_of_another_comparison_is_refused(tmp_path: Path) -> None:
    run_seeds(configs(), FakeTraining(), seeds=[0], folder=tmp_path)
    other = configs(b=("training.learning_rate=1e-9",))
    with pytest.raises(UserError, match=r"another configuration \(training.learning_rate\)"):
        run_seeds(other, FakeTraining(), seeds=[0], folder=tmp_path)


def test_several_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="side b: backend.devices=2.*trains in one process"):
        run_seeds(configs(b=("backend.devices=2",)), FakeTraining(), seeds=[0], folder=tmp_path)


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_are_given_once_each(tmp_path: Path, seeds: list[int]) -> None:
    with pytest.raises(UserError, match="at least one seed, and each once"):
        run_seeds(configs(), FakeTraining(), seeds=seeds, folder=tmp_path)


def test_a_training_that_fails_is_named(tmp_path: Path) -> None:
    def diverge(settings: Settings, *, config_yaml: str) -> Results:
        raise UserError("training diverged: the loss is not finite at step 0")

    with pytest.raises(UserError, match="^side a, seed 4: training diverged: .* at step 0$"):
        run_seeds(configs(), diverge, seeds=[4], folder=tmp_path)


def test_a_run_leaves_nothing_behind_in_the_process(tmp_path: Path) -> None:
    before = dict(os.environ)
    torch.set_float32_matmul_precision("high")  # of a backend that was compared before
    run_seeds(configs(), FakeTraining(), seeds=[0], folder=tmp_path)
    assert dict(os.environ) == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"


def weights(run: Path) -> dict[str, Tensor]:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    found: dict[str, Tensor] = checkpoint["state_dict"]
    return found


def assert_same_run(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    for name in ("metrics.csv", "results.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def fit_by_itself(run_dir: Path, *overrides: str) -> Path:
    command = [sys.executable, "-m", "fsdtrain", "fit", *SMALL, *overrides, f"run_dir={run_dir}"]
    subprocess.run(command, check=True, capture_output=True)
    return run_dir


def test_the_second_seed_is_that_of_a_process_of_its_own(tmp_path: Path, data: list[str]) -> None:
    found = train_and_compare(configs(data), fit, seeds=[0, 1], folder=tmp_path / "live")
    assert found.outcome == "open"
    assert found.share_outside == 0
    assert found.equivalence.difference == 0
    assert found.gradient_norm_ratio == 1
    assert found.overhead_share is not None
    assert 0 < found.overhead_share < 1
    last = tmp_path / "live" / "b" / "seed_1"
    assert_same_run(last, fit_by_itself(tmp_path / "alone", "seed=1", *data))
    first = weights(tmp_path / "live" / "a" / "seed_0")
    assert any(not torch.equal(value, first[name]) for name, value in weights(last).items())
    # As if the power had gone while the last figures were found.
    shutil.copytree(last, tmp_path / "whole")
    (last / "results.json").unlink()
    assert run_seeds(configs(data), fit, seeds=[0, 1], folder=tmp_path / "live").num_trained == 1
    assert_same_run(last, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["bf16", "cfp8_stochastic"])
def test_a_seed_on_an_emulated_side_is_that_of_a_process_of_its_own(
    tmp_path: Path, data: list[str], recipe: str
) -> None:
    dojo = ("backend=dojo", f"backend/recipe={recipe}")
    run_seeds(configs(data, b=dojo), fit, seeds=[0, 1], folder=tmp_path / "live")
    for side, overrides in (("a", ()), ("b", dojo)):
        alone = fit_by_itself(tmp_path / side, "seed=1", *data, *overrides)
        assert_same_run(tmp_path / "live" / side / "seed_1", alone)
