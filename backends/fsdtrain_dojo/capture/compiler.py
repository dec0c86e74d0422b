"""torch.compile's side of the backend: module -> ATen graphs -> register programs.

The forward and backward pass of a module are captured as one joint graph, marked with sites, cut
in two, and flattened.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.fx import Graph, GraphModule, Node

from fsdtrain.backend import BackendError
from fsdtrain.step_graph.trace import Mark, compile_graph, explain, not_captured, set_up_capture
from fsdtrain_dojo.capture.program import Program, Store, build_program
from fsdtrain_dojo.capture.roles import mark_sites
from fsdtrain_dojo.recipe import Recipe
from fsdtrain_dojo.site import Site
from fsdtrain_dojo.sites import SiteTable

# Of one module: training and evaluation, and a few shapes each.
MAX_CAPTURES = 16
WHO = "backend dojo"  # in error messages


class StepCompiler:
    """Compiles modules so that they run with the formats of a recipe.

    Args:
        recipe: the formats.
        table: of the sites of all compiled modules.
        implementations: of ATen overloads that shall not run as PyTorch runs them.
    """

    def __init__(
        self,
        recipe: Recipe,
        table: SiteTable,
        implementations: Mapping[Any, Callable[..., Any]],
    ) -> None:
        self.recipe = recipe
        self.table = table
        self.implementations = implementations
        self.weight_names: dict[nn.Parameter, str] = {}  # of all compiled modules
        self._num_modules = 0

    def compile(self, module: nn.Module) -> None:
        """Compile `module` in place; names of weights stay as they are."""
        set_up_capture()
        # Names of sites are unique in a run: those of a second module get a number.
        prefix = f"module{self._num_modules}." if self._num_modules else ""
        self._num_modules += 1
        for name, parameter in module.named_parameters():
            self.weight_names[parameter] = prefix + name
        capture = _Capture(self, prefix)

        def run(*args: Any, **kwargs: Any) -> Any:
            return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

        # torch.compile does not look into PyTorch's own modules, nn.Sequential for one, unless
        # they are called from elsewhere.
        is_torchs_own = type(module).__module__.startswith("torch.nn.")
        compiled = torch.compile(
            run if is_torchs_own else module._call_impl,
            backend=capture,
            fullgraph=True,
            dynamic=False,
        )

        def call(*args: Any, **kwargs: Any) -> Any:
            refuse_autocast()
            if torch.is_grad_enabled() and module.training:
                self.table.begin_step()
            num_runs = capture.num_runs
            try:
                results = compiled(*args, **kwargs)
            except TorchDynamoException as error:
                raise explain(error, WHO) from error
            except RuntimeError as error:
                if capture.num_runs == num_runs:
                    raise not_captured(WHO) from error
                raise
            if capture.num_runs == num_runs:
                raise not_captured(WHO)
            return results

        module._compiled_call_impl = call


class _Capture:
    """What torch.compile calls with every graph of one module."""

    def __init__(self, compiler: StepCompiler, prefix: str) -> None:
        self.compiler = compiler
        self.prefix = prefix
        self.num_captures = 0
        self.num_runs = 0  # of programs

    def __call__(self, graph: GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        self.num_captures += 1
        if self.num_captures > MAX_CAPTURES:
            raise BackendError(
                f"the step was captured {MAX_CAPTURES} times, each time for other shapes or values "
                "of its inputs: backend dojo needs fixed shapes; pad or drop the last incomplete "
                "batch, and give numbers that change as tensors"
            )
        names = {
            index: self.compiler.weight_names.get(example, f"parameter_{index}")
            for index, example in enumerate(examples)
            if isinstance(example, nn.Parameter)
        }
        return compile_graph(
            graph,
            examples,
            names=names,
            mark=self._mark(self.prefix),
            mark_inference=self._mark(f"eval.{self.prefix}"),
            build_forward=self._build_training,
            build_backward=self._build_training,
            build_inference=self._build_inference,
        )

    def _mark(self, prefix: str) -> Mark:
        def mark(graph: Graph, weights: Mapping[Node, str]) -> None:
            mark_sites(graph, self.compiler.recipe, weights, prefix=prefix)

        return mark

    def _build_training(self, module: GraphModule) -> Program:
        return self._build(module, lambda site: self.compiler.table.add(site, is_training=True))

    def _build_inference(self, module: GraphModule) -> Program:
        return self._build(module, lambda site: self.compiler.table.add(site, is_training=False))

    def _build(self, module: GraphModule, store_for: Callable[[Site], Store]) -> Program:
        program = build_program(module, store_for, self.compiler.implementations)

        def run(inputs: list[Any]) -> list[Any]:
            self.num_runs += 1
            return program(inputs)

        run._boxed_call = True  # type: ignore[attr-defined]  # AOTAutograd looks for it
        return run


def refuse_autocast() -> None:
    """Raise a BackendError where autocast would change what is captured."""
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise BackendError(
            "autocast is on, but backend dojo does the number formats itself: remove "
            "precision=bf16-mixed or the autocast around the step, and choose a recipe, e.g. "
            "backend/recipe=bf16"
        )
