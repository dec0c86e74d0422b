"""torch.compile's side of the backend: module -> ATen graphs -> register programs.

The forward and backward pass of a module are captured as one joint graph, marked with sites, cut
in two, and flattened. An op is never decomposed here: the graph holds what autograd recorded.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException, TorchRuntimeError
from torch._functorch.partitioners import default_partition
from torch.fx import GraphModule, Node

from fsdtrain.backend import BackendError
from fsdtrain_dojo.capture.checkpointing import settle_checkpointing
from fsdtrain_dojo.capture.program import Program, Store, build_program
from fsdtrain_dojo.capture.roles import mark_sites
from fsdtrain_dojo.capture.tracing import tracing_whole_ops
from fsdtrain_dojo.capture.user_line import user_line
from fsdtrain_dojo.recipe import Recipe
from fsdtrain_dojo.site import Site
from fsdtrain_dojo.sites import SiteTable

# Of one module: training and evaluation, and a few shapes each.
MAX_CAPTURES = 16
NOT_CAPTURED = (
    "the step was about to run in FP32, as PyTorch's own ops: torch.compile is switched off "
    "(TORCHDYNAMO_DISABLE, torch.compiler.set_stance), or a TorchDispatchMode such as a FLOP "
    "counter is active; backend dojo cannot emulate a step that is not captured"
)


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
                raise explain(error) from error
            except RuntimeError as error:
                if capture.num_runs == num_runs:
                    raise BackendError(NOT_CAPTURED) from error
                raise
            if capture.num_runs == num_runs:
                raise BackendError(NOT_CAPTURED)
            return results

        module._compiled_call_impl = call


def set_up_capture() -> None:
    """Settings of torch.compile for the whole process."""
    # Without it nn.LSTM is no graph; on the CPU it is captured as matrix and vector ops.
    torch._dynamo.config.allow_rnn = True
    # Those limits count all modules of a class together; `_Capture` counts those of one module.
    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 4096


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
        return trace_step(
            graph,
            examples,
            recipe=self.compiler.recipe,
            names=names,
            prefix=self.prefix,
            build_forward=self._build_training,
            build_backward=self._build_training,
            build_inference=self._build_inference,
        )

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


def trace_step(
    graph: GraphModule,
    examples: Sequence[Any],
    *,
    recipe: Recipe,
    names: Mapping[int, str],
    prefix: str,
    build_forward: Callable[[GraphModule], Program],
    build_backward: Callable[[GraphModule], Program],
    build_inference: Callable[[GraphModule], Program],
) -> Callable[..., Any]:
    """From torch.compile's graph to ATen graphs, marked with sites, and what is built of them.

    Args:
        graph: as torch.compile hands it to its backends.
        examples: its inputs.
        recipe: the formats.
        names: of the inputs that are trained weights, by number.
        prefix: of the names of sites.
        build_forward: of the first half of a step with gradients.
        build_backward: of its second half.
        build_inference: of a step without gradients.
    """

    def partition(joint: GraphModule, inputs: Any, **options: Any) -> Any:
        settle_checkpointing(joint.graph)
        mark_sites(joint.graph, recipe, _weights(joint, names), prefix=prefix)
        return default_partition(joint, inputs, **options)

    def infer(module: GraphModule, inputs: Any) -> Program:
        mark_sites(module.graph, recipe, _weights(module, names), prefix=f"eval.{prefix}")
        return build_inference(module)

    build = aot_autograd(
        fw_compiler=lambda module, inputs: build_forward(module),
        bw_compiler=lambda module, inputs: build_backward(module),
        inference_compiler=infer,
        partition_fn=partition,
        decompositions={},
    )
    with tracing_whole_ops():
        compiled: Callable[..., Any] = build(graph, examples)
    return compiled


def _weights(module: GraphModule, names: Mapping[int, str]) -> dict[Node, str]:
    """The graph's inputs that are trained weights."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    return {node: names[index] for index, node in enumerate(inputs) if index in names}


def refuse_autocast() -> None:
    """Raise a BackendError where autocast would change what is captured."""
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise BackendError(
            "autocast is on, but backend dojo does the number formats itself: remove "
            "precision=bf16-mixed or the autocast around the step, and choose a recipe, e.g. "
            "backend/recipe=bf16"
        )


def explain(error: TorchDynamoException) -> BackendError:
    """One sentence of the user's for what torch.compile says in forty lines."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, BackendError):
            return inner
        inner = getattr(inner, "inner_exception", None) or inner.__cause__
    text = str(error).strip()
    reason = text.partition("\n")[0]
    found = re.search(r"^ *Explanation: (.*)$", text, re.MULTILINE)
    explanation = found[1].strip() if found else reason
    if isinstance(error, BackendCompilerFailed):
        return BackendError(f"backend dojo could not compile the step: {reason}")
    if isinstance(error, TorchRuntimeError):
        return BackendError(f"the step fails{user_line(text)}: {explanation}")
    return BackendError(
        f"the step is not one static graph{user_line(text)}: {reason} ({explanation}); backend "
        "dojo needs fixed shapes and no branch on a tensor's values (use torch.where, drop the "
        "last incomplete batch)"
    )
