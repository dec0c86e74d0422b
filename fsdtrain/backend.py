"""The contract between fsdtrain and a hardware path, and how one is found and loaded.

A backend is a class behind an entry point of the group `fsdtrain.backends`; `fsdtrain_cpu` is the
one-page example. It is chosen by name, loaded once, logged, and fails loudly: there is no
fall-back. This module knows no backend by name, nor how a run is trained.

To write one: subclass `Backend`, add an entry point, and, if it has knobs, ship a folder with a
Hydra config group `backend/<name>.yaml` and name it in `config_path`. The contract tests in
tests/backends run over every installed backend.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from fsdtrain.errors import BackendError as BackendError
from fsdtrain.errors import UserError
from fsdtrain.ops.table import OpTable
from fsdtrain.step_graph.graph import StepGraph
from fsdtrain.step_profile import Origin, StepProfile

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "fsdtrain.backends"
# What a stranger's module may raise while it is imported; none of it may stop the other backends.
IMPORT_ERRORS = (
    ImportError, AttributeError, SyntaxError, NameError, OSError, RuntimeError, ValueError,
    TypeError,
)  # fmt: skip


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
class ModelledSubstitute:
    """Who can model the machine of a backend that is not available here.

    Args:
        backend: the name of a backend, which need not be installed.
        options: of its constructor.
        machine: in words, "an NVIDIA H100".
        hint: how to ask for it, or for a similar machine, by name.
    """

    backend: str
    options: Mapping[str, object]
    machine: str
    hint: str


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


@dataclass(frozen=True, kw_only=True)
class FormatLadders:
    """The number formats that each role of a recipe may have.

    Args:
        formats: role -> formats in words that begin with the format's name, from that in use to
            the widest.
        options_at: options of the backend where each role is that many rungs above the one in use.
        known_name: of a recipe that is known to train, which others are measured by.
        known_options: options of the backend with that recipe.
    """

    formats: Mapping[str, Sequence[str]]
    options_at: Callable[[Mapping[str, int]], Mapping[str, object]]
    known_name: str
    known_options: Mapping[str, object]


class StepVariants(Protocol):
    """One training step under other options of its backend; to capture it once is enough."""

    def graph(self, options: Mapping[str, object]) -> StepGraph:
        """The step's ops, as `Backend.step_graph` gives them.

        Args:
            options: of the backend that captured it, with other number formats.
        """
        ...

    def time_s(self, options: Mapping[str, object]) -> float | None:
        """Seconds, MODELLED, that the step and the optimiser's update take; None: not modelled.

        Args:
            options: see `graph`.
        """
        ...


class Backend(ABC):
    """One hardware path. Importing it is cheap and needs no hardware; constructing it may."""

    name: ClassVar[str]
    value_origin: ClassVar[Origin]  # of the losses and weights a run on this backend gives
    tolerance: ClassVar[Tolerance]
    # Whether AdamW updates all weights in one kernel, which not every device has.
    fuses_optimizer: ClassVar[bool] = False
    # Folder or "pkg://package.folder" with a Hydra group backend/<name>.yaml; None: ships none.
    config_path: ClassVar[str | None] = None

    @classmethod
    @abstractmethod
    def availability(cls) -> Availability:
        """Look, do not touch: no device is initialised, nothing is raised."""

    @classmethod
    def modelled_substitute(cls) -> ModelledSubstitute | None:
        """What `profile` shows, and says so, where this backend is not available; None: nothing."""
        return None

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
    def profile_step(self, step: nn.Module, batch: Any, optimizer: Optimizer) -> StepProfile:
        """Profile `optimizer.zero_grad(); step(batch).loss.backward(); optimizer.step()`.

        Args:
            step: compiled, with its parameters where `to_device` puts them. It may be run, and so
                may the optimiser: the weights are of no further use.
            batch: what `step` takes, there as well.
            optimizer: of the parameters of `step`.
        """

    def step_graph(self, step: nn.Module, batch: Any) -> StepGraph:
        """`step(batch).loss.backward()` as ops, each as this backend computes it in training.

        Nothing is computed, and the step is left as it is. Backends that do not compute eagerly
        in `autocast` override it.

        Args:
            step: in the mode that it trains in; copied where its tensors are not on the device.
            batch: what `step` takes.

        Raises:
            BackendError: the step is no static graph, or trains nothing.
        """
        # It brings torch's compiler, and importing a backend is cheap.
        from fsdtrain.step_graph.capture import trace_step

        return trace_step(
            step,
            batch,
            autocast=self.autocast,
            to_device=self.to_device,
            who=f"backend {self.name}",
        ).graph()

    def autocast(self) -> AbstractContextManager[Any]:
        """What the forward pass runs in: its mixed precision, if it has any."""
        return nullcontext()

    def update(self, optimizer: Optimizer) -> None:
        """What training does for `optimizer.step()`; the gradients are there.

        Args:
            optimizer: of weights of a step that was compiled, or given to `step_graph`.
        """
        optimizer.step()

    def store(self, words: Mapping[str, object]) -> Callable[[Tensor], None]:
        """The function that rounds a tensor in place as `OpCall.stores` says.

        Raises:
            BackendError: this backend rounds nothing by itself.
        """
        raise BackendError(f"backend {self.name} stores what it computes as it is: {dict(words)}")

    def step_variants(
        self, step: nn.Module, batch: Any, optimizer: Optimizer
    ) -> StepVariants | None:
        """The step of `profile_step` in other number formats; None: there is nothing to choose.

        Args:
            step: in the mode that it trains in; left as it is.
            batch: what `step` takes.
            optimizer: of the step's weights; left as it is.
        """
        return None

    def read_numerics(self) -> tuple[TensorNumerics, ...]:
        """The newest reading, once; empty where there is none.

        The engine asks after every batch. A backend that emulates number formats measures every so
        many steps, as its options say; any other never does.
        """
        return ()

    def wider_formats(self) -> FormatLadders | None:
        """What the number formats in use may be replaced by; None: there is nothing to choose."""
        return None

    def read_memory(self) -> Mapping[str, int]:
        """The most that was held since the last call, in bytes by name; empty if it cannot tell."""
        return {}

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
