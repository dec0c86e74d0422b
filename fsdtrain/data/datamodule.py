"""The data of a run for Lightning: training and validation shards as loaders of ClipBatches.

Built of plain values. Rank and world size come from the trainer it is attached to, never from the
environment; without a trainer it is the only process.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from lightning import LightningDataModule

from fsdtrain.data.assignment import Share, Tail
from fsdtrain.data.augment import Augmentation
from fsdtrain.data.catalog import Catalog, open_catalog
from fsdtrain.data.device_loader import DeviceLoader, StreamCopy
from fsdtrain.data.device_video import check_decoding
from fsdtrain.data.loader import ClipLoader, Quarantine
from fsdtrain.data.shard import read_clip
from fsdtrain.data.stream import StreamPlan, clip_name
from fsdtrain.data.window import WindowShape, find_stored_size
from fsdtrain.errors import DataError, UserError
from fsdtrain.heads.head import TargetBuilder

logger = logging.getLogger(__name__)


class FleetDataModule(LightningDataModule):
    """Streams fleetclip shards.

    Training: shuffled by (seed, epoch), a random window of each clip, augmented. Validation: in the
    order of the shards, the last window of each clip; every clip counts once, and rows that only
    fill up the last batch have clip_index -1 and no labels.

    Args:
        train: folder, shard, pattern or URL of the training shards; None: there are none.
        val: the same for validation.
        image_size: rows and columns of the pictures.
        num_frames: T.
        frame_stride: stored frames from one frame of a window to the next.
        crop_top: share of the stored height to cut away above.
        crop_bottom: and below.
        cameras: which cameras, in which order; None takes those that all clips have.
        batch_size: clips a rank and step.
        num_workers: decoding processes a rank; 0 decodes in the training process.
        seed: of order, windows and augmentation.
        augmentation: None trains on the pictures as they are.
        target_builders: what makes `ClipBatch.targets`; must pickle.
        max_bad_clips: clips that may be skipped, logged and replaced, before DataError.
        train_tail: whether clips that do not fill an epoch's last step are dropped or padded.
        frames: rgb: decoded to pictures of `image_size`; i420: decoded to what is stored, resampled
            and coloured by the network, on its device; h264: not decoded by the workers at all,
            but by the NVIDIA GPU that the batch goes to. Of a bad clip, workers then find what can
            be found without decoding; a video that the GPU cannot decode ends the run.
    """

    def __init__(
        self,
        *,
        train: str | None,
        val: str | None,
        image_size: tuple[int, int],
        num_frames: int,
        frame_stride: int = 1,
        crop_top: float = 0.0,
        crop_bottom: float = 0.0,
        cameras: Sequence[str] | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        target_builders: Sequence[TargetBuilder] = (),
        max_bad_clips: int = 0,
        train_tail: Tail = "drop",
        frames: Literal["rgb", "i420", "h264"] = "rgb",
    ) -> None:
        super().__init__()
        if min(seed, num_workers, max_bad_clips) < 0:
            raise UserError(
                f"seed={seed}, num_workers={num_workers} and max_bad_clips={max_bad_clips} must "
                "not be negative"
            )
        self._train, self._val = train, val
        self._shape = WindowShape(
            num_frames=num_frames,
            image_size=image_size,
            frame_stride=frame_stride,
            crop_top=crop_top,
            crop_bottom=crop_bottom,
        )
        self._cameras = None if cameras is None else tuple(cameras)
        self._batch_size, self._num_workers, self._seed = batch_size, num_workers, seed
        self._augmentation = augmentation
        self._target_builders = tuple(target_builders)
        self._train_tail: Tail = train_tail
        self._frames = frames
        self._max_bad_clips = max_bad_clips
        self._quarantine = Quarantine(max_bad_clips)
        self._catalogs: dict[str, Catalog] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the shards' indices and check that they fit together; Lightning calls it."""
        if self._val is not None:
            self.catalog("val")
        if self._train is not None and stage in (None, "fit"):
            self.catalog("train")
        if len(self._catalogs) == 2:
            _warn_of_shared_scenes(self._catalogs["train"], self._catalogs["val"])

    def catalog(self, name: Literal["train", "val"]) -> Catalog:
        """The clips of a split, read once; `clip_index_B` of a batch counts in them."""
        if name not in self._catalogs:
            source = self._train if name == "train" else self._val
            if source is None:
                raise UserError(f"data.{name} is not given; set it to a folder or file of shards")
            self._catalogs[name] = open_catalog(
                source, cameras=self._cameras, min_frames=self._shape.num_stored_frames
            )
        return self._catalogs[name]

    @property
    def num_train_clips(self) -> int:
        """Clips in the training shards."""
        return len(self.catalog("train").clips)

    @property
    def num_val_clips(self) -> int:
        """Clips in the validation shards."""
        return len(self.catalog("val").clips)

    @property
    def num_skipped(self) -> int:
        """Different clips that this process has had to skip so far."""
        return len(self._quarantine)

    def train_dataloader(self) -> ClipLoader | DeviceLoader:
        """A resumable loader of this rank's training batches, on its GPU if it has one."""
        return self._on_device("train")

    def val_dataloader(self) -> ClipLoader | DeviceLoader:
        """A loader of this rank's validation batches, likewise; as many on every rank."""
        return self._on_device("val")

    def _on_device(self, name: Literal["train", "val"]) -> ClipLoader | DeviceLoader:
        device = None if self.trainer is None else self.trainer.strategy.root_device
        if self._frames == "h264":
            check_decoding(device)
        if device is None or device.type != "cuda":
            return self.loader(name, self._share())
        loader = self.loader(name, self._share(), pin_memory=True)
        return DeviceLoader(loader, StreamCopy(device))

    def loader(
        self, name: Literal["train", "val"], share: Share, *, pin_memory: bool = False
    ) -> ClipLoader:
        """The loader of one split for one process, whichever it is.

        `pin_memory` serves copies to a GPU that overlap with its work.
        """
        is_training = name == "train"
        catalog, shape = self.catalog(name), self._shape
        if self._frames != "rgb":
            is_encoded = self._frames == "h264"
            shape = replace(shape, stored_size=_stored_size(catalog), is_encoded=is_encoded)
        plan = StreamPlan(
            catalog=catalog,
            shape=shape,
            share=share,
            tail=self._train_tail if is_training else "pad",
            seed=self._seed,
            is_training=is_training,
            augmentation=self._augmentation if is_training else None,
            target_builders=self._target_builders,
            max_bad_clips=self._max_bad_clips,
        )
        return ClipLoader(
            plan,
            num_workers=self._num_workers,
            quarantine=self._quarantine,
            pin_memory=pin_memory,
        )

    def _share(self) -> Share:
        # What the strategy says of data parallelism, which is less than all ranks under tensor
        # parallelism; None from a strategy with one process.
        ranks = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        if ranks is None:
            return Share(batch_size=self._batch_size)
        return Share(
            rank=ranks["rank"], world_size=ranks["num_replicas"], batch_size=self._batch_size
        )


def _stored_size(catalog: Catalog) -> tuple[int, int]:
    """Of the first clip that can be read; the others have to agree."""
    for clip_index, located in enumerate(catalog.clips):
        try:
            clip = read_clip(located.shard, located.entry, cameras=catalog.cameras)
        except DataError as error:
            if clip_index + 1 == len(catalog.clips):
                raise DataError(f"{catalog.source}: none of its clips can be read") from error
        else:
            return find_stored_size(clip, where=clip_name(located))
    raise AssertionError("a catalog has clips")


def _warn_of_shared_scenes(train: Catalog, val: Catalog) -> None:
    shared = sorted(train.scenes & val.scenes)
    if shared:
        logger.warning(
            "%d scenes stand in the training and in the validation shards (%s, ...): the "
            "validation figures say how well the model fits, not how well it generalises",
            len(shared), shared[0],
        )  # fmt: skip
