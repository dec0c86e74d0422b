"""One batch ahead: what is sent when, what the state says meanwhile, and the GPU's own part."""

from typing import Any

import lightning
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from fsdtrain.data.assignment import Share
from fsdtrain.data.batch import ClipBatch
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.data.device_loader import DeviceLoader, StreamCopy
from fsdtrain.data.loader import ClipLoader
from fsdtrain.data.shard import write_shards
from fsdtrain.errors import UserError


def on_gpu(test):
    has_none = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(has_none, reason="there is no GPU")(test))


@pytest.fixture(scope="module")
def shards(make_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    clips = [make_clip(clip_id=f"c{n}", seed=n, num_frames=3) for n in range(10)]
    write_shards(clips, folder, prefix="s", clips_per_shard=4)
    return folder


def make_module(source, **changes) -> FleetDataModule:
    options = {
        "train": str(source), "val": str(source), "image_size": (16, 32), "num_frames": 2,
        "batch_size": 2, "seed": 3,
    }  # fmt: skip
    return FleetDataModule(**(options | changes))


def plain_loader(source, **changes) -> ClipLoader:
    return make_module(source, **changes).loader("train", Share(batch_size=2))


class Diary:
    """Stands for the way to a device: notes what happens to which batch."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, tuple[int, ...]]] = []

    def note(self, what: str, batch: ClipBatch) -> ClipBatch:
        self.entries.append((what, tuple(batch.clip_index_B.tolist())))
        return batch

    def send(self, batch: ClipBatch) -> Any:
        return ["sent", self.note("send", batch)]

    def receive(self, sent: Any) -> ClipBatch:
        assert sent[0] == "sent"
        return self.note("receive", sent[1])


def clips_of(batches) -> list[tuple[int, ...]]:
    return [tuple(batch.clip_index_B.tolist()) for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_hands_out_every_batch_in_order_epoch_after_epoch(shards, num_workers):
    plain = plain_loader(shards, num_workers=num_workers)
    ahead = DeviceLoader(plain_loader(shards, num_workers=num_workers), Diary())
    assert len(ahead) == len(plain) == 5
    epochs = [clips_of(plain) for _ in range(3)]
    assert [clips_of(ahead) for _ in range(3)] == epochs
    assert epochs[0] != epochs[1]


def test_the_next_batch_is_on_its_way_before_this_one_is_used(shards):
    diary = Diary()
    for batch in DeviceLoader(plain_loader(shards), diary):
        diary.note("use", batch)
    order = clips_of(plain_loader(shards))
    expected = [("send", order[0])]
    for now, following in zip(order, [*order[1:], None], strict=True):
        expected += [("send", following)] if following else []
        expected += [("receive", now), ("use", now)]
    assert diary.entries == expected


@pytest.mark.parametrize("num_taken", range(6))
def test_the_state_counts_what_was_handed_out_not_what_is_on_its_way(shards, num_taken):
    """Resumed from it, the rest comes, whatever the loader has fetched ahead."""
    epochs = [clips_of(loader) for loader in [plain_loader(shards)] for _ in range(2)]
    loader = DeviceLoader(plain_loader(shards), Diary())
    batches = iter(loader)
    taken = clips_of(next(batches) for _ in range(num_taken))
    state = loader.state_dict()
    assert state["num_samples"] == 2 * num_taken

    for resumed in (plain_loader(shards), DeviceLoader(plain_loader(shards), Diary())):
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        rest = clips_of(resumed)
        assert taken + rest == epochs[0] if num_taken < 5 else rest == epochs[1]


def test_an_epoch_that_is_left_is_over_as_without_it(shards):
    plain, ahead = plain_loader(shards), DeviceLoader(plain_loader(shards), Diary())
    found = []
    for loader in (plain, ahead):
        next(iter(loader))
        found.append(clips_of(loader))
    assert found[0] == found[1]


def test_a_wrong_state_is_refused(shards):
    loader = DeviceLoader(plain_loader(shards), Diary())
    with pytest.raises(UserError, match="seed=4"):
        loader.load_state_dict(loader.state_dict() | {"seed": 4})


def test_without_a_gpu_the_loader_is_left_alone(shards):
    module = make_module(shards)
    assert isinstance(module.train_dataloader(), ClipLoader)
    module.trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False
    )
    assert isinstance(module.train_dataloader(), ClipLoader)
    assert isinstance(module.val_dataloader(), ClipLoader)


@on_gpu
@pytest.mark.parametrize("frames", ["rgb", "i420"])
def test_batches_come_pinned_and_are_copied_whole(shards, frames):
    module = make_module(shards, frames=frames, num_workers=1)
    expected = list(module.loader("train", Share(batch_size=2)))
    for batch in module.loader("train", Share(batch_size=2), pin_memory=True):
        assert all(tensor.is_pinned() for tensor in tree_leaves(batch))

    module.trainer = lightning.Trainer(
        accelerator="cuda", devices=1, logger=False, enable_checkpointing=False
    )
    loader = module.train_dataloader()
    assert isinstance(loader, DeviceLoader)
    for found, batch in zip(loader, expected, strict=True):
        assert all(tensor.is_cuda for tensor in tree_leaves(found))
        tree_map(lambda one, other: torch.testing.assert_close(one.cpu(), other), found, batch)


@on_gpu
def test_a_copy_neither_waits_for_the_device_nor_is_used_too_early(make_batch):
    device = torch.device("cuda", torch.cuda.current_device())
    copy = StreamCopy(device)
    batch = tree_map(lambda tensor: tensor.pin_memory(), make_batch())
    torch.cuda._sleep(1_000_000_000)  # half a second
    copied, done = sent = copy.send(batch)
    done.synchronize()
    assert not torch.cuda.current_stream().query(), "the device is still busy"
    assert torch.equal(copied.frames.cpu(), batch.frames)

    with torch.cuda.stream(copy._stream):
        torch.cuda._sleep(100_000_000)
    sent = copy.send(batch)
    received = copy.receive(sent)
    total = received.frames.long().sum()  # queued behind the copy
    assert total.item() == batch.frames.long().sum().item()
