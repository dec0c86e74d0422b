"""Hydra's DictConfig -> frozen structs, once, at the door; and the checks across fields.

Beyond this module no DictConfig exists. It does not know the command line, nor what a model or a
backend does with its own options: those are validated by the class that takes them.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from fsdtrain.errors import UserError

Class = TypeVar("Class")


class GridSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The BEV rectangle in ego metres; see `fsdtrain/data/geometry.py`."""

    x_min_m: float
    x_max_m: float
    y_min_m: float
    y_max_m: float
    cell_m: float

    def __post_init__(self) -> None:
        for low, high, axis in (
            (self.x_min_m, self.x_max_m, "x"),
            (self.y_min_m, self.y_max_m, "y"),
        ):
            cells = (high - low) / self.cell_m if self.cell_m > 0 else 0.0
            if cells < 1 or abs(cells - round(cells)) > 1e-6:
                raise ValueError(
                    f"model.grid: {axis} from {low} to {high} m is not a positive whole number "
                    f"of cells of {self.cell_m} m"
                )


class DataSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which clips, and how they become batches."""

    # "synthetic" makes (or reuses) a fleet; "shards" reads fleetclip shards.
    source: Literal["synthetic", "shards"]
    train: str | None  # folder, shard or pattern; for "shards" only
    val: str | None
    fleet: dict[str, Any] | None  # parameters of the synthetic fleet
    cameras: tuple[str, ...] | None  # None: all cameras of the clips
    frame_stride: int
    crop_top: float  # share of the image's height cut away above (sky) ...
    crop_bottom: float  # ... and below (bonnet)
    batch_size: int  # clips a process and step
    num_workers: int
    max_bad_clips: int  # corrupt clips that are skipped, counted and logged before giving up
    augmentation: dict[str, Any] | None


class TrainingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Optimiser, schedule and what happens around the steps."""

    max_steps: int
    learning_rate: float
    weight_decay: float
    schedule: Literal["one_cycle", "cosine", "constant"]
    warmup_fraction: float
    gradient_clip_norm: float | None
    accumulate_batches: int
    ema_decay: float | None
    validate_every_steps: int
    log_every_steps: int
    monitor: str
    monitor_mode: Literal["min", "max"]
    early_stop_patience: int | None  # validations without improvement

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"training.max_steps={self.max_steps}: must be at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"training.learning_rate={self.learning_rate}: must be positive")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(
                f"training.warmup_fraction={self.warmup_fraction}: must be at least 0, below 1"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(
                f"training.ema_decay={self.ema_decay}: must lie between 0 and 1, or null"
            )


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the data plane must know of the model, and the model's own options."""

    image_size: tuple[int, int]  # rows, columns
    num_frames: int
    grid: GridSettings
    network: dict[str, Any]  # _target_ and its options
    heads: dict[str, dict[str, Any]]  # name -> _target_ and its options


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `fit` and `validate` need."""

    seed: int
    run_dir: Path
    backend: dict[str, Any]  # name, and the options of that backend
    data: DataSettings
    model: ModelSettings
    training: TrainingSettings
    ckpt_path: Path | None
    resume: Literal["last"] | None
    num_report_clips: int

    def __post_init__(self) -> None:
        if self.data.source == "shards" and not (self.data.train and self.data.val):
            raise ValueError(
                "data=shards needs data.train=<folder or shard> and data.val=<folder or shard>"
            )
        if self.data.source == "synthetic" and self.data.fleet is None:
            raise ValueError("data.source=synthetic needs data.fleet")
        if self.ckpt_path is not None and self.resume is not None:
            raise ValueError("give either ckpt_path=<file> or resume=last, not both")
        if "name" not in self.backend:
            raise ValueError("backend.name is missing: choose one with backend=<name>")

    @property
    def backend_options(self) -> dict[str, Any]:
        """What the backend's constructor takes: its Hydra group without the name."""
        return {key: value for key, value in self.backend.items() if key != "name"}


def read_settings(config: DictConfig) -> Settings:
    """Resolve and convert; UserError names the field, the value and what is allowed."""
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise UserError(f"a value is needed for {', '.join(sorted(missing))}")
    plain = OmegaConf.to_container(config, resolve=True)
    try:
        return msgspec.convert(plain, Settings, dec_hook=_decode_path)
    except (msgspec.ValidationError, ValueError) as error:
        raise UserError(f"configuration: {error}") from error


def _decode_path(kind: type, value: object) -> Path:
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    raise ValueError(f"expected a path, got {value!r}")


def instantiate(options: Mapping[str, Any], kind: type[Class], **given: object) -> Class:
    """Build the class named by `_target_`, which must be a subclass of `kind`.

    A config may come from a stranger: nothing but such a class is ever called.

    Raises:
        UserError: no such class, not a `kind`, or options that it does not take.
    """
    arguments = dict(options)
    target = arguments.pop("_target_", None)
    if not isinstance(target, str):
        raise UserError(f"_target_ is missing in {dict(options)}: name a {kind.__name__} class")
    try:
        found = get_class(target)
    except (ImportError, ValueError, AttributeError) as error:
        raise UserError(f"_target_={target}: no such class ({error})") from error
    if not issubclass(found, kind):
        raise UserError(f"_target_={target} is not a {kind.__module__}.{kind.__name__}")
    try:
        inspect.signature(found).bind(**arguments, **given)
    except TypeError as error:
        raise UserError(f"{target}: {error}; it takes {inspect.signature(found)}") from error
    return found(**arguments, **given)
