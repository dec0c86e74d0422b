"""The Dojo backend: a training step with the number formats of an emulated Tesla D1.

Values are EMULATED: each stored tensor has been rounded as the machine would store it. The time
that training takes is the host's; the machine's is MODELLED, by `profile_step`.
"""

import platform
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree

from fsdtrain.backend import (
    Availability,
    Backend,
    BackendError,
    FormatLadders,
    TensorNumerics,
    Tolerance,
    TrainerParts,
)
from fsdtrain.step_graph.graph import StepGraph
from fsdtrain.step_profile import Origin, StepProfile

if TYPE_CHECKING:
    from fsdtrain_dojo.lowering.kernel import KernelGraph
    from fsdtrain_dojo.lowering.recorded import RecordedStep
    from fsdtrain_dojo.sites import SiteTable
    from fsdtrain_dojo.step_variants import DojoVariants

HOSTS = ("cpu", "cuda")


class DojoBackend(Backend):
    """Options: see configs/backend/dojo.yaml.

    Args:
        machine: the machine that `profile` models: the name of a preset, or a mapping with `name`
            and values for its constants, see `machine.catalog.read_machine`.
        recipe: {role: {format, rounding, bias}, amax_history, margin_bits}, see `recipe.Role`;
            None: what configs/backend/recipe/bf16.yaml says.
        precision: fp32, of what runs outside of the captured step; the formats are the recipe's.
        denormals: of the CFloat formats: gradual | literal | flush.
        uhp_has_specials: whether UHP's largest exponent means infinity and NaN.
        accumulate: fast | exact: whether matrix ops add in the library's order or in Dojo's.
        accumulator: fp32 | accumulator_21, the 21 bits of the patent, which need `exact`.
        k_tile: products that `exact` adds up before it adds across tiles, a multiple of 4.
        seed: of stochastic rounding.
        host: cpu | cuda: where the emulation runs; `exact` runs on the CPU.
        devices: processes; more than one trains with DDP over gloo, on CPUs.
        read_every_steps: how often the numerics of every tensor are measured; 0: never.
    """

    name: ClassVar[str] = "dojo"
    value_origin: ClassVar[Origin] = "EMULATED"
    # Of the default recipe, bf16: 8 significant bits.
    tolerance: ClassVar[Tolerance] = Tolerance(op_relative=1e-5, loss_relative_after_ten_steps=0.05)

    def __init__(
        self,
        *,
        machine: str | Mapping[str, Any] = "d1_tile",
        recipe: Mapping[str, Any] | None = None,
        precision: str = "fp32",
        denormals: str = "gradual",
        uhp_has_specials: bool = False,
        accumulate: str = "fast",
        accumulator: str = "fp32",
        k_tile: int = 256,
        seed: int = 0,
        host: str = "cpu",
        devices: int = 1,
        read_every_steps: int = 50,
    ) -> None:
        if precision != "fp32":
            raise BackendError(
                f"backend.precision={precision!r}: backend dojo does the number formats itself; "
                "leave it at fp32 and choose a recipe, e.g. backend/recipe=bf16"
            )
        if devices < 1:
            raise BackendError(f"backend.devices={devices}: must be at least 1")
        # They bring numba and torch's compiler, and importing a backend is cheap.
        from fsdtrain_dojo.accumulation import matrix_implementations
        from fsdtrain_dojo.capture.compiler import StepCompiler
        from fsdtrain_dojo.machine.catalog import read_machine
        from fsdtrain_dojo.optimizer import OptimizerCompiler
        from fsdtrain_dojo.recipe import bf16_options, read_recipe
        from fsdtrain_dojo.sites import SiteTable

        self.machine = read_machine(machine)
        self.recipe = read_recipe(
            bf16_options() if recipe is None else recipe,
            denormals=denormals,
            uhp_has_specials=uhp_has_specials,
        )
        implementations = matrix_implementations(
            accumulate, accumulator=accumulator, k_tile=k_tile, host=host
        )
        if host not in HOSTS or (host == "cuda" and not torch.cuda.is_available()):
            raise BackendError(
                f"backend.host={host!r}: must be {' or '.join(HOSTS)}, and cuda needs an NVIDIA GPU"
            )
        # What the public text leaves open, as this run reads it; the manifest and report show it.
        self.reading = (
            f"CFloat denormals {denormals}, UHP {'with' if uhp_has_specials else 'without'} "
            f"infinity and NaN, sums {accumulate} in {accumulator}"
        )
        if host == "cuda" and devices > 1:
            # The counts of all sites lie on the first GPU.
            raise BackendError(
                f"backend.devices={devices} with backend.host=cuda: the emulation runs on one GPU; "
                "set backend.devices=1, or backend.host=cpu for several processes"
            )
        self.seed = seed
        self._options = {
            "machine": machine,
            "recipe": recipe,
            "precision": precision,
            "denormals": denormals,
            "uhp_has_specials": uhp_has_specials,
            "accumulate": accumulate,
            "accumulator": accumulator,
            "k_tile": k_tile,
            "seed": seed,
            "host": host,
            "devices": devices,
            "read_every_steps": read_every_steps,
        }
        self.keeps_sums_whole = accumulate == "exact"
        self.host = host
        self.devices = devices
        self.table = SiteTable(
            self.recipe, seed=seed, device=torch.device(host), read_every_steps=read_every_steps
        )
        self.compiler = StepCompiler(self.recipe, self.table, implementations)
        self.optimizers = OptimizerCompiler(self.recipe, self.table, self.compiler.weight_names)
        # Of steps that were only captured, and of optimisers that work outside of training.
        self.weight_names: dict[nn.Parameter, str] = {}
        self._updates: WeakKeyDictionary[Optimizer, tuple[OptimizerCompiler, SiteTable]] = (
            WeakKeyDictionary()
        )

    @classmethod
    def availability(cls) -> Availability:
        return Availability(is_available=True, detail=f"{torch.get_num_threads()} threads")

    def device_name(self) -> str:
        host = (
            torch.cuda.get_device_name()
            if self.host == "cuda"
            else f"{platform.processor() or platform.machine()} CPU"
        )
        return f"Tesla D1 emulated on {host} ({self.reading})"

    def trainer_parts(self) -> TrainerParts:
        from fsdtrain_dojo.lightning_parts import ACCELERATORS, DojoPrecision, make_strategy

        return TrainerParts(
            accelerator=ACCELERATORS[self.host](),
            strategy=make_strategy(self.host, self.devices),
            devices=self.devices,
            plugins=(DojoPrecision(self.table, self.optimizers),),
            is_deterministic=True,
        )

    def compile_step(self, step: nn.Module) -> None:
        self.compiler.compile(step)

    def step_graph(self, step: nn.Module, batch: Any) -> StepGraph:
        """The first step of a training run; the run's own histories and counts are not touched."""
        from fsdtrain_dojo.capture.emulated_step import emulate_step, trace_emulated_step

        self.weight_names |= {each: name for name, each in step.named_parameters()}
        return emulate_step(
            trace_emulated_step(step, batch, to_device=self.to_device),
            recipe=self.recipe,
            seed=self.seed,
            implementations=self.compiler.implementations,
        )

    def update(self, optimizer: Optimizer) -> None:
        from fsdtrain_dojo.optimizer import OptimizerCompiler

        if optimizer not in self._updates:
            table = self._new_table()
            names = self.compiler.weight_names | self.weight_names
            self._updates[optimizer] = OptimizerCompiler(self.recipe, table, names), table
        compiler, table = self._updates[optimizer]
        table.begin_step()
        compiler.step(optimizer)

    def store(self, words: Mapping[str, object]) -> Callable[[Tensor], None]:
        from fsdtrain_dojo.capture.store_words import read_store

        return read_store(words, self.recipe)

    def wider_formats(self) -> FormatLadders:
        from fsdtrain_dojo.wider_formats import find_ladders

        return find_ladders(self._options)

    def _new_table(self) -> "SiteTable":
        from fsdtrain_dojo.sites import SiteTable

        return SiteTable(
            self.recipe, seed=self.seed, device=torch.device(self.host), read_every_steps=0
        )

    def to_device(self, value: Tensor) -> Tensor:
        return value.to(self.host)

    def read_numerics(self) -> tuple[TensorNumerics, ...]:
        return self.table.read()

    def step_variants(self, step: nn.Module, batch: Any, optimizer: Optimizer) -> "DojoVariants":
        from fsdtrain_dojo.step_variants import DojoVariants

        return DojoVariants(self, step, batch, optimizer)

    def profile_step(self, step: nn.Module, batch: Any, optimizer: Optimizer) -> StepProfile:
        """How this very step would run on the machine: MODELLED; nothing is computed.

        Raises:
            BackendError: the step is no static graph, or cannot run on this machine.
        """
        from fsdtrain_dojo.lowering.record_step import record_step
        from fsdtrain_dojo.modelled_profile import main_format, make_profile
        from fsdtrain_dojo.modelled_scale import model_scale
        from fsdtrain_dojo.sensitivity import find_sensitivities

        graph = self.kernels_of(record_step(step, batch, optimizer, recipe=self.recipe))
        modelled, scale = model_scale(
            graph, self.machine, batch_size=_num_samples(batch), matrix_format=main_format(graph)
        )
        return make_profile(
            modelled,
            backend=self.name,
            assumptions=find_sensitivities(modelled, self.machine),
            scale=scale,
        )

    def kernels_of(self, recorded: "RecordedStep") -> "KernelGraph":
        """The machine's kernels for a recorded step."""
        from fsdtrain_dojo.lowering.passes.expand_macros import expand_macros
        from fsdtrain_dojo.lowering.passes.keep_sums_whole import keep_sums_whole

        graph = expand_macros(recorded)
        return keep_sums_whole(graph) if self.keeps_sums_whole else graph


def _num_samples(batch: Any) -> int:
    """Of a batch: the length of the first dimension of its first tensor that has one."""
    leaves = _pytree.tree_leaves(batch)
    return next(each.shape[0] for each in leaves if isinstance(each, Tensor) and each.ndim)
