"""Hydra's DictConfig -> frozen structs, once, at the door; and the checks across fields.

Beyond this module no DictConfig exists. It does not know the command line, nor what a model or a
backend does with its own options: those are validated by the class that takes them.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import msgspec
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsdtrain.errors import UserError

Class = TypeVar("Class")
SettingsType = TypeVar("SettingsType", bound="RunSettings")


def _require(is_right: bool, field: str, value: object, allowed: str) -> None:
    if not is_right:
        raise ValueError(f"{field}={value}: must be {allowed}")


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


class PillarSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The places above a cell that look into the cameras; for the lifts that ask for them."""

    heights_m: list[float]  # z of the voxel layers
    max_views: int  # how many cameras at most count for one voxel

    def __post_init__(self) -> None:
        heights, views = self.heights_m, self.max_views
        _require(bool(heights), "model.pillars.heights_m", heights, "at least one height")
        _require(views >= 1, "model.pillars.max_views", views, "at least 1")


class DataSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which clips, and how they become batches."""

    # "synthetic" makes (or reuses) a fleet; "shards" reads fleetclip shards.
    source: Literal["synthetic", "shards"]
    train: str | None  # folder, shard or pattern; for "shards" only
    val: str | None
    fleet: dict[str, Any] | None  # parameters of the synthetic fleet
    cameras: tuple[str, ...] | None  # None: all cameras of the clips
    # Resampled by the workers, or by the network on its device, which decodes h264, too.
    frames: Literal["rgb", "i420", "h264"]
    frame_stride: int
    crop_top: float  # share of the image's height cut away above (sky) ...
    crop_bottom: float  # ... and below (bonnet)
    batch_size: int  # clips a process and step
    num_workers: int
    max_bad_clips: int  # corrupt clips that are skipped, counted and logged before giving up
    augmentation: dict[str, Any] | None

    def __post_init__(self) -> None:
        for name, minimum in (
            ("frame_stride", 1), ("batch_size", 1), ("num_workers", 0), ("max_bad_clips", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            _require(value >= minimum, f"data.{name}", value, f"at least {minimum}")
        for name in ("crop_top", "crop_bottom"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"data.{name}", value, "at least 0, below 1")
        if not self.crop_top + self.crop_bottom < 1:
            raise ValueError("data.crop_top and data.crop_bottom together must leave some image")
        _require(self.cameras != (), "data.cameras", "[]", "names of cameras, or null for all")


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
        for name in ("max_steps", "accumulate_batches", "validate_every_steps", "log_every_steps"):
            value = getattr(self, name)
            _require(value >= 1, f"training.{name}", value, "at least 1")
        rate, decay, share = self.learning_rate, self.weight_decay, self.warmup_fraction
        clip, average, patience = self.gradient_clip_norm, self.ema_decay, self.early_stop_patience
        _require(0 < rate < float("inf"), "training.learning_rate", rate, "positive")
        _require(decay >= 0, "training.weight_decay", decay, "at least 0")
        _require(0 <= share < 1, "training.warmup_fraction", share, "at least 0, below 1")
        _require(clip is None or clip > 0, "training.gradient_clip_norm", clip, "positive, or null")
        _require(
            average is None or 0 < average < 1,
            "training.ema_decay",
            average,
            "between 0 and 1, or null",
        )
        _require(
            patience is None or patience >= 1,
            "training.early_stop_patience",
            patience,
            "at least 1, or null",
        )


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the data plane must know of the model, and the model's own options."""

    image_size: tuple[int, int]  # rows, columns
    num_frames: int
    grid: GridSettings
    pillars: PillarSettings
    lift: dict[str, Any]  # _target_ and its options
    network: dict[str, Any]  # likewise
    heads: dict[str, dict[str, Any]]  # name -> _target_ and its options

    def __post_init__(self) -> None:
        size = list(self.image_size)
        _require(min(size) >= 1, "model.image_size", size, "[rows, columns] of at least 1")
        _require(self.num_frames >= 1, "model.num_frames", self.num_frames, "at least 1")
        _require(bool(self.heads), "model.heads", "{}", "at least one head")


class RunSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is trained, on what: everything but the backend."""

    seed: int
    run_dir: Path
    data: DataSettings
    model: ModelSettings
    training: TrainingSettings
    ckpt_path: Path | None
    resume: Literal["last"] | None
    num_report_clips: int

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", self.seed, "at least 0, below 2**32")
        clips = self.num_report_clips
        _require(clips >= 0, "num_report_clips", clips, "at least 0")
        if self.data.source == "shards" and not (self.data.train and self.data.val):
            raise ValueError(
                "data=shards needs data.train=<folder or shard> and data.val=<folder or shard>"
            )
        if self.data.source == "synthetic" and self.data.fleet is None:
            raise ValueError("data.source=synthetic needs data.fleet")
        if self.ckpt_path is not None and self.resume is not None:
            raise ValueError("give either ckpt_path=<file> or resume=last, not both")


class Settings(RunSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `fit` and `validate` need."""

    backend: dict[str, Any]  # name, and the options of that backend

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backend.get("name"), str):
            raise ValueError("backend.name is missing: choose one with backend=<name>")

    @property
    def backend_options(self) -> dict[str, Any]:
        """What the backend's constructor takes: its Hydra group without the name."""
        return {key: value for key, value in self.backend.items() if key != "name"}


class ProfileSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `profile` needs beside them."""

    explain: str | None
    page: bool
    trace: bool


class CompareSettings(RunSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `compare` needs: two backends, or two folders of finished runs."""

    a: dict[str, Any]  # name, and the options of that backend
    b: dict[str, Any]
    a_dir: Path | None
    b_dir: Path | None
    numerics: bool
    performance: bool
    num_seeds: int
    metric: str | None
    margin: float | None
    target_loss: float | None
    bisect: bool
    repro: str | None
    tune: bool
    allow: tuple[str, ...]
    page: bool
    trace: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.a_dir is None) != (self.b_dir is None):
            raise ValueError(
                "one of a and b is a folder of runs and the other a backend: give two of a kind"
            )
        _require(self.num_seeds >= 0, "num_seeds", self.num_seeds, "at least 0")
        _require(self.margin is None or self.margin > 0, "margin", self.margin, "positive, or null")
        if self.resume is not None:
            raise ValueError("resume: a comparison goes on by itself where its run_dir holds one")
        asks = self.numerics or self.performance or self.num_seeds or self.tune
        if self.a_dir is None and not asks:
            raise ValueError(
                "nothing to compare: numerics=false, performance=false, num_seeds=0 and no --tune"
            )
        if not self.numerics and (self.bisect or self.repro is not None):
            raise ValueError("--bisect and --repro look into the numerics: leave numerics=true")


class PlanSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `plan` needs beside them; `check_question` checks what is asked."""

    fleets: tuple[str, ...]
    mixed: tuple[str, str] | None
    profiles: dict[str, Path] | None
    figures: dict[str, dict[str, float]] | None
    num_samples: int
    num_epochs: float
    target_days: float | None
    budget: float | None
    currency: str
    max_global_batch: int | None
    max_devices: int
    press: bool
    page: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.fleets), "fleets", "[]", "at least one fleet")
        _require(self.max_devices >= 1, "max_devices", self.max_devices, "at least 1")


def read_settings(config: DictConfig) -> Settings:
    """Resolve and convert; UserError names the field, the value and what is allowed."""
    return _read(config, Settings)


def read_profile_settings(config: DictConfig) -> ProfileSettings:
    """As `read_settings`, with the knobs of `profile`."""
    return _read(config, ProfileSettings)


def read_compare_settings(config: DictConfig) -> CompareSettings:
    """As `read_settings`, for two backends."""
    return _read(config, CompareSettings)


def read_plan_settings(config: DictConfig) -> PlanSettings:
    """As `read_settings`, with the knobs of `plan`."""
    return _read(config, PlanSettings)


def _read(config: DictConfig, kind: type[SettingsType]) -> SettingsType:
    try:
        missing = OmegaConf.missing_keys(config)
        plain = None if missing else OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {str(error).splitlines()[0]}") from error
    if missing:
        raise UserError(f"a value is needed for {', '.join(sorted(missing))}")
    try:
        return msgspec.convert(plain, kind, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        # A check of our own names the field itself; msgspec adds where it stands to its own.
        raise UserError(f"configuration: {error.__cause__ or error}") from error


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
    found = _find_class(target)
    if not issubclass(found, kind):
        raise UserError(f"_target_={target} is not a {kind.__module__}.{kind.__name__}")
    try:
        inspect.signature(found).bind(**arguments, **given)
    except TypeError as error:
        raise UserError(f"{target}: {error}; it takes {inspect.signature(found)}") from error
    plain = {name: _convert(found, name, value) for name, value in arguments.items()}
    try:
        return found(**plain, **given)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{target}: {error}") from error


def _find_class(target: str) -> type:
    module, _, name = target.rpartition(".")
    if not (module and all(part.isidentifier() for part in target.split("."))):
        raise UserError(f"_target_={target}: no such class; write package.module.Class")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"_target_={target}: no such class ({error})") from error
    if not isinstance(found, type):
        raise UserError(f"_target_={target} is not a class")
    return found


def _convert(found: type, name: str, value: object) -> object:
    """An option as its annotation says it is; one that is not annotated stays as it is."""
    annotation = get_type_hints(found.__init__).get(name, Any)  # type: ignore[misc]  # of a class
    try:
        return msgspec.convert(value, annotation)
    except msgspec.ValidationError as error:
        raise UserError(
            f"{found.__module__}.{found.__qualname__}: {name}={value!r}: {error}"
        ) from error
