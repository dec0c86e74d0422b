import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import lightning
import msgspec
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fsdtrain.data.assignment import Share, epoch_order
from fsdtrain.data.augment import Augmentation
from fsdtrain.data.batch import ClipBatch
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.data.geometry import invert_pose, pose_matrix
from fsdtrain.data.schema import ShardIndex, decode_json
from fsdtrain.data.shard import INDEX_SUFFIX, read_index, write_shards
from fsdtrain.data.stream import Tickets, batch_pipeline
from fsdtrain.data.window import WindowShape, cut_window
from fsdtrain.errors import DataError, UserError

NUM_CLIPS = 11


@pytest.fixture(scope="module")
def clips(make_clip):
    return [make_clip(clip_id=f"clip-{n}", seed=n, num_frames=4) for n in range(NUM_CLIPS)]


@pytest.fixture(scope="module")
def shards(clips, tmp_path_factory):
    """Read only; tests that break shards copy them."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(clips, folder, prefix="s", clips_per_shard=4)
    return folder


@pytest.fixture
def broken(shards, tmp_path):
    """A copy, and a function that flips a byte in one clip's front video."""
    folder = tmp_path / "broken"
    shutil.copytree(shards, folder)

    def flip(clip_index: int) -> None:
        path = folder / f"s-{clip_index // 4:06d}.tar"
        (member,) = (
            member
            for member in read_index(str(path)).clips[clip_index % 4].members
            if member.name.endswith("front.h264")
        )
        data = bytearray(path.read_bytes())
        data[member.offset + member.size_bytes // 2] ^= 0x5A
        path.write_bytes(data)

    return folder, flip


def last_position(window) -> dict[str, np.ndarray]:
    """A target builder: a label that shows which clip it came from, and whether it is known."""
    is_known = window.boxes is not None
    return {
        "box": np.array(window.boxes[-1][0].center_m if is_known else [0.0] * 3, np.float32),
        "known": np.array(is_known),
        "future": np.array(len(window.future_s_F)),
    }


def make_module(source, **changes) -> FleetDataModule:
    options = {
        "train": str(source),
        "val": str(source),
        "image_size": (24, 32),
        "num_frames": 2,
        "batch_size": 3,
        "seed": 5,
        "target_builders": (last_position,),
    }
    return FleetDataModule(**(options | changes))


def indices(batches) -> list[list[int]]:
    return [batch.clip_index_B.tolist() for batch in batches]


def children() -> set[str]:
    """Process ids of this process's children."""
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return set(file.read().split())


def read_epochs(loader, num_epochs: int) -> None:
    for _ in range(num_epochs):
        for _ in loader:
            pass


def assert_equal_batches(first: ClipBatch, second: ClipBatch) -> None:
    for name, value in first._asdict().items():
        other = getattr(second, name)
        if name == "targets":
            assert value.keys() == other.keys()
            assert all(torch.equal(value[key], other[key]) for key in value)
        else:
            assert torch.equal(value, other), name


def test_a_batch_holds_what_its_fields_promise(shards, clips):
    (batch, *_) = make_module(shards, num_frames=3).val_dataloader()
    expected = {
        "frames": ((3, 3, 2, 3, 24, 32), torch.uint8),
        "intrinsics_BN33": ((3, 2, 3, 3), torch.float32),
        "camera_to_ego_BN44": ((3, 2, 4, 4), torch.float32),
        "previous_to_current_BT44": ((3, 3, 4, 4), torch.float32),
        "frame_interval_s_BT": ((3, 3), torch.float32),
        "reset_BT": ((3, 3), torch.bool),
        "speed_B": ((3,), torch.float32),
        "yaw_rate_B": ((3,), torch.float32),
        "clip_index_B": ((3,), torch.int64),
    }
    for name, (shape, dtype) in expected.items():
        assert (tuple(getattr(batch, name).shape), getattr(batch, name).dtype) == (shape, dtype)
    shape = WindowShape(num_frames=3, image_size=(24, 32))
    for row in range(3):
        window = cut_window(clips[row], shape, where="w")
        frames = torch.from_numpy(window.frames).permute(0, 1, 4, 2, 3)
        assert torch.equal(batch.frames[row], frames)
        poses = [pose_matrix(state.ego_to_world) for state in clips[row].ego.states[1:4]]
        for t in (1, 2):
            np.testing.assert_allclose(
                batch.previous_to_current_BT44[row, t],
                invert_pose(poses[t]) @ poses[t - 1],
                atol=1e-6,
            )
        np.testing.assert_allclose(batch.frame_interval_s_BT[row], [0.0, 0.1, 0.1], atol=1e-7)
        np.testing.assert_allclose(
            batch.targets["box"][row], clips[row].labels.boxes[-1][0].center_m, rtol=1e-6
        )
    assert torch.equal(batch.previous_to_current_BT44[:, 0], torch.eye(4).expand(3, 4, 4))
    assert batch.reset_BT.tolist() == [[True, False, False]] * 3
    assert batch.speed_B.tolist() == pytest.approx([10.0] * 3)
    assert batch.yaw_rate_B.tolist() == pytest.approx([0.2] * 3)


def test_validation_counts_every_clip_once_and_padding_never(shards):
    for world_size in (1, 2, 3):
        module = make_module(shards, batch_size=2)
        seen, lengths = [], set()
        for rank in range(world_size):
            loader = module.loader("val", Share(rank=rank, world_size=world_size, batch_size=2))
            batches = list(loader)
            lengths.add(len(batches))
            assert len(loader) == len(batches)
            for batch in batches:
                assert batch.frames.shape[0] == 2  # shapes never change
                is_padding = batch.clip_index_B < 0
                assert torch.equal(batch.targets["known"], ~is_padding)
                assert torch.equal(batch.targets["future"] == 0, is_padding)
                seen += batch.clip_index_B[~is_padding].tolist()
        assert sorted(seen) == list(range(NUM_CLIPS))
        assert len(lengths) == 1


def test_training_order_is_the_assignment_and_epochs_differ(shards):
    loader = make_module(shards).train_dataloader()
    assert len(loader) == 3
    for epoch in range(3):
        order = epoch_order(NUM_CLIPS, seed=5, epoch=epoch, shuffle=True)
        assert indices(loader) == order[:9].reshape(3, 3).tolist()
    padded = make_module(shards, train_tail="pad").train_dataloader()
    order = epoch_order(NUM_CLIPS, seed=5, epoch=0, shuffle=True)
    assert indices(padded) == [*order[:9].reshape(3, 3).tolist(), [*order[9:], order[0]]]


def test_ranks_share_the_steps_of_one_process(shards):
    module = make_module(shards)
    alone = list(module.loader("train", Share(batch_size=4)))
    ranks = [
        list(module.loader("train", Share(rank=rank, world_size=2, batch_size=2)))
        for rank in range(2)
    ]
    for step, whole in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert torch.equal(whole.clip_index_B, torch.cat([part.clip_index_B for part in parts]))
        assert torch.equal(whole.frames, torch.cat([part.frames for part in parts]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_change_nothing(shards, num_workers):
    """Order, augmentation and pixels, over two epochs of workers that stay alive."""
    options = {"augmentation": Augmentation(), "num_frames": 3}
    alone = make_module(shards, **options).train_dataloader()
    shared = make_module(shards, num_workers=num_workers, **options).train_dataloader()
    for _ in range(2):
        pairs = list(zip(alone, shared, strict=True))
        assert len(pairs) == 3
        for first, second in pairs:
            assert_equal_batches(first, second)


def test_augmentation_differs_between_epochs_and_seeds_and_repeats(shards):
    def pictures(seed: int, epochs: int = 1) -> list[torch.Tensor]:
        loader = make_module(shards, seed=seed, augmentation=Augmentation()).train_dataloader()
        batches = [batch for _ in range(epochs) for batch in loader]
        rows = [
            (index, row)
            for b in batches
            for index, row in zip(b.clip_index_B.tolist(), b.frames, strict=True)
        ]
        return [row for index, row in rows if index == rows[0][0]]

    twice = pictures(1, epochs=4)
    assert len(twice) > 1
    assert not torch.equal(twice[0], twice[1])
    assert torch.equal(twice[0], pictures(1)[0])


@pytest.mark.parametrize(
    ("num_workers", "num_taken"), [(0, 0), (0, 1), (0, 4), (0, 5), (0, 10), (2, 0), (2, 7)]
)
def test_training_goes_on_where_the_state_was_taken(shards, num_workers, num_taken):
    options = {"augmentation": Augmentation(), "num_workers": num_workers, "batch_size": 2}
    loader = make_module(shards, **options).train_dataloader()
    whole = [batch for _ in range(3) for batch in loader]
    assert len(whole) == 15
    stopped = make_module(shards, **options).train_dataloader()
    taken: list[ClipBatch] = []
    while len(taken) < num_taken:
        for batch in stopped:
            taken.append(batch)
            if len(taken) == num_taken:
                break
    state = pickle.loads(pickle.dumps(stopped.state_dict()))
    resumed = make_module(shards, **options).train_dataloader()
    resumed.load_state_dict(state)
    rest = [batch for _ in range(4) for batch in resumed][: 15 - num_taken]
    for first, second in zip(whole, taken + rest, strict=True):
        assert_equal_batches(first, second)


def test_training_goes_on_at_another_world_size(shards):
    module = make_module(shards)
    first = module.loader("train", Share(batch_size=4))
    iterator = iter(first)
    next(iterator)
    expected = next(iter(iterator)).clip_index_B.tolist()
    first = module.loader("train", Share(batch_size=4))
    next(iter(first))
    parts = []
    for rank in range(2):
        loader = module.loader("train", Share(rank=rank, world_size=2, batch_size=2))
        loader.load_state_dict(first.state_dict())
        parts += next(iter(loader)).clip_index_B.tolist()
    assert parts == expected
    with pytest.raises(UserError, match="data.batch_size times the number of ranks"):
        module.loader("train", Share(batch_size=3)).load_state_dict(first.state_dict())
    with pytest.raises(UserError, match="seed=5 of the training data, this run has 6"):
        make_module(shards, seed=6).train_dataloader().load_state_dict(first.state_dict())


class Recorder(lightning.LightningModule):
    """Trains one number and remembers which clips it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch: ClipBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.clip_index_B.tolist())
        return self.weight * batch.frames.float().mean()

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        self.validated += batch.clip_index_B.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(shards, folder, *, max_steps: int, ckpt_path=None) -> Recorder:
    module = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        max_epochs=-1,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=ModelCheckpoint(
            dirpath=folder,
            save_last=True,
            every_n_train_steps=1,
            save_top_k=0,
            enable_version_counter=False,
        ),
    )
    data = make_module(shards, augmentation=Augmentation())
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8])
def test_lightning_resumes_at_any_step_without_a_warning(shards, tmp_path, steps):
    """Three batches an epoch, validation every four: checkpoints within, on and beside the ends."""
    whole = fit(shards, tmp_path / "whole", max_steps=11)
    assert sorted(set(whole.validated)) == list(range(-1, NUM_CLIPS))
    first = fit(shards, tmp_path / "part", max_steps=steps)
    rest = fit(shards, tmp_path / "part", max_steps=11, ckpt_path=tmp_path / "part" / "last.ckpt")
    assert first.seen + rest.seen == whole.seen
    assert rest.weight == whole.weight


def test_rank_and_world_size_come_from_the_trainer(shards):
    class Trainer:
        distributed_sampler_kwargs = {"num_replicas": 3, "rank": 2}
        strategy = SimpleNamespace(root_device=torch.device("cpu"))

    module = make_module(shards, batch_size=2)
    module.trainer = Trainer()
    order = epoch_order(NUM_CLIPS, seed=5, epoch=0, shuffle=True)
    assert indices(module.train_dataloader()) == [order[4:6].tolist()]


# Bad clips


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_clips_are_replaced_counted_and_logged(broken, caplog, num_workers):
    folder, flip = broken
    order = epoch_order(NUM_CLIPS, seed=5, epoch=0, shuffle=True).tolist()
    first, second = order[1], order[2]
    flip(first)
    flip(second)
    module = make_module(folder, max_bad_clips=2, num_workers=num_workers)
    with caplog.at_level(logging.WARNING, "fsdtrain.data"):
        seen = indices(module.train_dataloader())
    # Both places take the next good clip of the order.
    assert seen[0] == [order[0], order[3], order[3]]
    assert seen[1:] == [order[3:6], order[6:9]]
    assert module.num_skipped == 2
    lines = [r.getMessage() for r in caplog.records if "skipping" in r.getMessage()]
    assert len(lines) == 2
    for line, clip_index in zip(lines, (first, second), strict=True):
        assert f"s-{clip_index // 4:06d}.tar" in line
        assert f"clip-{clip_index}.front.h264: checksum" in line


@pytest.mark.parametrize("num_workers", [0, 1])
def test_exceeding_the_budget_stops_the_run(broken, num_workers):
    folder, flip = broken
    for clip_index in (2, 7, 9):
        flip(clip_index)
    loader = make_module(folder, max_bad_clips=2, num_workers=num_workers).train_dataloader()
    with pytest.raises(DataError, match="3 bad clips, data.max_bad_clips allows 2") as error:
        read_epochs(loader, 5)
    for clip_index in (2, 7, 9):
        assert f"clip-{clip_index}.front.h264" in str(error.value)
    assert "Traceback" not in str(error.value)
    with pytest.raises(DataError, match="1 bad clips, data.max_bad_clips allows 0"):
        list(make_module(folder, num_workers=num_workers).train_dataloader())


def test_nothing_readable_is_an_error_whatever_the_budget(broken):
    folder, flip = broken
    for clip_index in range(NUM_CLIPS):
        flip(clip_index)
    with pytest.raises(DataError, match="none of its clips can be read"):
        list(make_module(folder, max_bad_clips=50).train_dataloader())


def test_a_bad_clip_leaves_the_others_as_they_are(shards, broken):
    """A failed neighbour must not change anyone's window or augmentation."""
    folder, flip = broken
    options = {"augmentation": Augmentation(), "max_bad_clips": 1}
    good = list(make_module(shards, **options).train_dataloader())
    flip(good[1].clip_index_B[0].item())
    for before, after in zip(good, make_module(folder, **options).train_dataloader(), strict=True):
        same = before.clip_index_B == after.clip_index_B
        assert same.sum() >= 2
        assert torch.equal(before.frames[same], after.frames[same])


def test_in_validation_a_bad_clip_is_left_out_not_replaced(broken):
    folder, flip = broken
    flip(4)
    module = make_module(folder, max_bad_clips=1)
    batches = list(module.val_dataloader())
    assert indices(batches) == [[0, 1, 2], [3, -1, 5], [6, 7, 8], [9, 10, -1]]
    known = [batch.targets["known"].tolist() for batch in batches]
    assert known[1] == [True, False, True]
    assert module.num_skipped == 1


def test_a_shard_that_shrinks_while_it_is_read_is_not_a_short_epoch(broken):
    folder, _ = broken
    loader = make_module(folder, max_bad_clips=1).train_dataloader()
    with open(folder / "s-000001.tar", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match="bad clips"):
        read_epochs(loader, 3)


def test_a_video_of_another_length_is_caught_though_its_checksum_fits(clips, make_clip, tmp_path):
    longer = make_clip(clip_id="odd", num_frames=6)
    odd = msgspec.structs.replace(clips[0], video=clips[0].video | {"rear": longer.video["rear"]})
    write_shards([odd, *clips[1:3]], tmp_path, prefix="s", clips_per_shard=3)
    with pytest.raises(DataError, match=r"clip 'clip-0': video.rear: holds 6 frames"):
        list(make_module(tmp_path).val_dataloader())


# Sources that cannot work are refused before the first step


def test_no_shards_and_no_source(tmp_path):
    with pytest.raises(UserError, match="no shards"):
        make_module(tmp_path).setup("fit")
    with pytest.raises(UserError, match="data.train is not given"):
        make_module(tmp_path, train=None).train_dataloader()


def test_too_few_clips_for_a_step(shards):
    with pytest.raises(UserError, match="11 clips do not fill one step of 12"):
        len(make_module(shards, batch_size=12).train_dataloader())
    assert len(make_module(shards, batch_size=12).val_dataloader()) == 1
    assert len(make_module(shards, batch_size=12, train_tail="pad").train_dataloader()) == 1


def test_clips_shorter_than_the_window(shards):
    with pytest.raises(UserError, match="11 of 11 clips are shorter than a window of 5 frames"):
        make_module(shards, num_frames=3, frame_stride=2).setup("fit")


def test_cameras_are_chosen_by_name_and_order(shards, clips, make_clip, tmp_path):
    (batch, *_) = make_module(shards, cameras=["rear"]).val_dataloader()
    assert batch.frames.shape[2] == 1
    (both, *_) = make_module(shards, cameras=["rear", "front"]).val_dataloader()
    (plain, *_) = make_module(shards).val_dataloader()
    assert torch.equal(both.frames, plain.frames.flip(2))
    assert torch.equal(both.camera_to_ego_BN44, plain.camera_to_ego_BN44.flip(1))
    with pytest.raises(UserError, match="lacks camera side; it has front, rear"):
        make_module(shards, cameras=["front", "side"]).setup("fit")
    three = make_clip(clip_id="three", cameras=("front", "rear", "side"))
    write_shards([clips[0], three], tmp_path, prefix="s", clips_per_shard=2)
    with pytest.raises(UserError, match="choose data.cameras among those all clips have: front"):
        make_module(tmp_path).setup("fit")
    assert len(make_module(tmp_path, cameras=["front", "rear"], batch_size=2).train_dataloader())


def test_an_id_in_two_shards_is_refused(clips, tmp_path):
    write_shards(clips[:2], tmp_path, prefix="a", clips_per_shard=2)
    write_shards(clips[1:3], tmp_path, prefix="b", clips_per_shard=2)
    with pytest.raises(DataError, match=r"b-000000\.tar: clip 'clip-1': clip_id: stands in .*a-0"):
        make_module(tmp_path).setup("fit")


def test_scenes_in_both_splits_are_reported(shards, caplog):
    with caplog.at_level(logging.WARNING, "fsdtrain.data"):
        make_module(shards).setup("fit")
    assert "11 scenes stand in the training and in the validation shards" in caplog.text


@pytest.mark.parametrize(
    "changes", [{"seed": -1}, {"num_workers": -1}, {"batch_size": 0}, {"image_size": (0, 3)}]
)
def test_impossible_options_are_refused(shards, changes):
    with pytest.raises(UserError):
        len(make_module(shards, **changes).train_dataloader())


def test_the_global_random_state_is_left_alone(shards):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(make_module(shards, num_workers=1, augmentation=Augmentation()).train_dataloader())
    assert torch.equal(torch.rand(3), expected)


def test_workers_end_with_their_loader(shards):
    before = children()
    loader = make_module(shards, num_workers=2).train_dataloader()
    list(loader)
    assert len(children() - before) == 2
    del loader
    # A child of an earlier test may end meanwhile.
    assert not children() - before


def test_the_index_is_what_decides_not_the_file_names(shards):
    (first, *_) = sorted(shards.glob("*.tar"))
    index = decode_json(
        (shards / (first.name + INDEX_SUFFIX)).read_bytes(), ShardIndex, where="index"
    )
    module = make_module(shards)
    assert module.num_train_clips == module.num_val_clips == NUM_CLIPS
    assert [clip.entry for clip in module.catalog("train").clips[:4]] == list(index.clips)


def test_the_pipeline_pickles_for_workers_that_are_not_forked(shards):
    plan = make_module(shards, augmentation=Augmentation()).train_dataloader().plan
    pipeline = batch_pipeline(plan, Tickets(plan))
    again = pickle.loads(pickle.dumps(pipeline))
    for first, second in zip(pipeline, again, strict=True):
        assert_equal_batches(first.batch, second.batch)


KILL_A_WORKER = """
import os, signal, sys
from fsdtrain.data.datamodule import FleetDataModule

module = FleetDataModule(
    train=sys.argv[1], val=sys.argv[1], image_size=(24, 32), num_frames=2, num_workers=1
)
iterator = iter(module.train_dataloader())
next(iterator)
with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
    for child in file.read().split():
        os.kill(int(child), signal.SIGKILL)
list(iterator)
"""


def test_a_killed_worker_is_an_error_not_a_hang(shards):
    # In a process of its own: torch raises wherever the program is when the signal arrives.
    command = [sys.executable, "-c", KILL_A_WORKER, str(shards)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    # It says which of the two it noticed first: the signal, or that the worker is gone.
    said = "RuntimeError: DataLoader worker .*(killed by|exited unexpectedly)"
    assert re.search(said, done.stderr), done.stderr
