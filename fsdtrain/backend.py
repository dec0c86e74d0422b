"""The contract between fsdtrain and a hardware path, and how one is found and loaded.

A backend is a class behind an entry point of the group `fsdtrain.backends`; `fsdtrain_cpu` is the
one-page example. It is chosen by name, loaded once, logged, and fails loudly: there is no
fall-back. This module knows no backend by name, nor how a run is trained.

To write one: subclass `Backend`, add an entry point, and, if it has knobs, ship a folder with a
Hydra config group `backend/<name>.yaml` and name it in `config_path`. The contract tests in
tests/backends run over every installed backend.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fsdtrain.errors import UserError
from fsdtrain.ops.table import OpTable

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "fsdtrain.backends"
# What a stranger's module may raise while it is imported; none of it may stop the other backends.
IMPORT_ERRORS = (
    ImportError, AttributeError, SyntaxError, NameError, OSError, RuntimeError, ValueError,
    TypeError,
)  # fmt: skip

# MEASURED: a clock, or values, on real hardware. EMULATED: values computed with the target's number
# formats. MODELLED: time, traffic or energy from a machine model.
Origin = Literal["MEASURED", "EMULATED", "MODELLED"]


class BackendError(UserError):
    """A backend was given options that it does not have."""


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether a backend can run here; `detail` says with what, or why not and what to do."""

    is_available: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class TrainerParts:
    """What a backend gives to `lightning.Trainer`; Any where Lightning itself takes a union."""

    accelerator: Any
    strategy: Any = "auto"
    devices: int = 1
    precision: Any = None
    plugins: tuple[Any, ...] = ()
    is_deterministic: bool = False


@dataclass(frozen=True, kw_only=True)
class OpProfile:
    """One op of a step. None means that this backend cannot tell."""

    name: str
    shapes: str
    dtype: str
    num_calls: int
    time_s: float
    flops: int | None
    num_bytes: int | None
    bound_by: str | None


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """One training step (forward, loss, backward), op by op. All figures have one origin."""

    backend: str
    device: str
    origin: Origin
    step_time_s: float
    ops: tuple[OpProfile, ...]


# Bins of an exponent histogram; the first and the last also hold everything beyond them.
HISTOGRAM_MIN_EXPONENT = -64
HISTOGRAM_BINS = 96


@dataclass(frozen=True, kw_only=True)
class TensorNumerics:
    """What one emulated number format did to one tensor of the step since the last reading.

    Shares are of `num_elements`, and every float is finite. Readings list their tensors in the same
    order, which tells those of one layer, op and role apart.
    """

    layer: str  # module path in the step, "network.backbone.stem.0"; "" if unknown
    op: str  # "convolution", "add", ...
    # activation, weight, vector, their _gradient, master_weight, first_moment, second_moment
    role: str
    format: str  # "cfloat8_1_4_3"
    rounding: str  # "nearest" or "stochastic"
    bias: int | None  # the exponent bias in use; None: the format has a fixed one
    num_elements: int
    saturated_share: float  # had to be clamped to the largest value
    underflowed_share: float  # were not zero and became zero
    nan_share: float
    amax: float  # largest finite magnitude before rounding
    # Signal over rounding noise against FP32 in dB: 10 log10(sum x^2 / sum (x - rounded x)^2).
    snr_db: float | None  # None: no noise, or no signal
    # Elements with floor(log2 |x|) = HISTOGRAM_MIN_EXPONENT + index, before rounding; no zeros.
    exponent_histogram: tuple[int, ...]
    # Exponents of the smallest denormal and of the largest value of the format at this bias.
    representable_exponents: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far this backend may stand from the FP32 reference, relative to the largest value."""

    op_relative: float
    loss_relative_after_ten_steps: float


class Backend(ABC):
    """One hardware path. Importing it is cheap and needs no hardware; constructing it may."""

    name: ClassVar[str]
    value_origin: ClassVar[Origin]  # of the losses and weights a run on this backend gives
    tolerance: ClassVar[Tolerance]
    # Folder or "pkg://package.folder" with a Hydra group backend/<name>.yaml; None: ships none.
    config_path: ClassVar[str | None] = None

    @classmethod
    @abstractmethod
    def availability(cls) -> Availability:
        """Look, do not touch: no device is initialised, nothing is raised."""

    @abstractmethod
    def device_name(self) -> str:
        """The device in words, for the log and the manifest."""

    @abstractmethod
    def trainer_parts(self) -> TrainerParts:
        """Accelerator, strategy, precision and plugins for Lightning."""

    def op_table(self) -> OpTable:
        """Implementations of `fsdtrain.ops`; the plain-PyTorch references unless overridden."""
        return OpTable()

    def compile_step(self, step: nn.Module) -> None:  # noqa: B027 - eager is a valid choice
        """Compile `step` in place (`step.compile(...)` keeps state_dict keys); default: eager."""

    @abstractmethod
    def profile_step(self, step: nn.Module, batch: Any) -> StepProfile:
        """Profile `step(batch).loss.backward()` after a warm-up."""

    def read_numerics(self) -> tuple[TensorNumerics, ...]:
        """The newest reading, once; empty where there is none.

        The engine asks after every batch. A backend that emulates number formats measures every so
        many steps, as its options say; any other never does.
        """
        return ()

    def to_device(self, value: Tensor) -> Tensor:
        """Bring a tensor to where this backend computes; for tests and profiles."""
        return value


@dataclass(frozen=True, kw_only=True)
class InstalledBackend:
    """One entry point: its class, or the reason why it could not be imported."""

    name: str
    distribution: str
    backend_class: type[Backend] | None
    availability: Availability
    config_path: str | None = field(default=None)


def installed_backends() -> dict[str, InstalledBackend]:
    """All backends by name, sorted; a broken one is listed with its error, not raised."""
    found = {point.name: _inspect(point) for point in entry_points(group=ENTRY_POINT_GROUP)}
    return dict(sorted(found.items()))


def load_backend(name: str, options: Mapping[str, object]) -> Backend:
    """Construct the backend `name` with the options of its Hydra group.

    Raises:
        UserError: unknown name, broken package, backend not available here, or wrong options.
    """
    installed = installed_backends()
    if name not in installed:
        raise UserError(
            f"backend {name!r} is not installed; installed are {', '.join(installed) or 'none'}"
        )
    entry = installed[name]
    if entry.backend_class is None or not entry.availability.is_available:
        raise UserError(f"backend {name!r} is not available: {entry.availability.detail}")
    try:
        backend = entry.backend_class(**options)
    except TypeError as error:
        raise UserError(f"backend {name!r} does not take these options: {error}") from error
    logger.info("backend %s (%s): %s", name, entry.distribution, entry.availability.detail)
    return backend


def _inspect(point: EntryPoint) -> InstalledBackend:
    distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
    try:
        backend_class = point.load()
        if not (isinstance(backend_class, type) and issubclass(backend_class, Backend)):
            raise TypeError("it is no subclass of fsdtrain.backend.Backend")
        availability = backend_class.availability()
    except IMPORT_ERRORS as error:
        first_line = str(error).partition("\n")[0]
        why = f"{point.value} cannot be used: {type(error).__name__}: {first_line}"
        return InstalledBackend(
            name=point.name,
            distribution=distribution,
            backend_class=None,
            availability=Availability(is_available=False, detail=why),
        )
    return InstalledBackend(
        name=point.name,
        distribution=distribution,
        backend_class=backend_class,
        availability=availability,
        config_path=backend_class.config_path,
    )


def profile_with_torch(
    step_once: Callable[[], None], *, dtype: str, on_cuda: bool
) -> tuple[float, tuple[OpProfile, ...]]:
    """Profile with torch.profiler, for backends that run ATen ops; the slowest op comes first.

    Args:
        step_once: runs one step and waits until the device has finished it.
        dtype: what the ops compute in, as the profile shall name it.
        on_cuda: time the GPU's kernels rather than the CPU's ops.

    Returns:
        (seconds of one step without the profiler, the ops).
    """
    step_once()  # warm-up: libraries choose and cache their kernels
    started = time.perf_counter()
    step_once()
    step_time_s = time.perf_counter() - started
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    with profile(activities=activities, record_shapes=True, with_flops=True) as recorded:
        step_once()
    ops = [
        OpProfile(
            name=event.key,
            shapes=_describe_shapes(event.input_shapes),
            dtype=dtype,
            num_calls=event.count,
            time_s=(event.self_device_time_total if on_cuda else event.self_cpu_time_total) / 1e6,
            flops=event.flops or None,
            num_bytes=None,
            bound_by=None,
        )
        for event in recorded.key_averages(group_by_input_shape=True)
        if event.key.startswith("aten::")
    ]
    return step_time_s, tuple(sorted(ops, key=lambda op: -op.time_s))


def _describe_shapes(shapes: Sequence[Sequence[int]]) -> str:
    """4x24x48x48, 24x24x3x3: the tensors among an op's arguments."""
    return ", ".join("x".join(map(str, shape)) for shape in shapes if shape)
