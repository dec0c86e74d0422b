"""torch.compile's side of the backend: module -> ATen graphs -> register programs.

The forward and backward pass of a module are captured as one joint graph, marked with sites, cut
in two, and flattened. An op is never decomposed here: the graph holds what autograd recorded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from functorch.compile import default_partition
from torch import nn
from torch._C import DispatchKey
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch.fx import GraphModule, Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from fsdtrain.backend import BackendError
from fsdtrain_dojo.capture.program import Program, Store, build_program
from fsdtrain_dojo.capture.roles import mark_sites
from fsdtrain_dojo.recipe import Recipe
from fsdtrain_dojo.site import Site
from fsdtrain_dojo.sites import SiteTable

aten = torch.ops.aten

# PyTorch replaces these by a dozen smaller ops while it traces, which is slower and has other
# numbers than the op itself: interpolation weights are no stored tensors.
_KEPT_WHOLE = [
    overload
    for packet in (
        aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d,
        aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d,
        aten.upsample_bicubic2d,
    )
    for overload in (packet.default, packet.vec)
]  # fmt: skip


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

    def compile(self, module: nn.Module) -> None:
        """Compile `module` in place; names of weights stay as they are."""
        # Without it nn.LSTM is no graph; on the CPU it is captured as matrix and vector ops.
        torch._dynamo.config.allow_rnn = True
        capture = _Capture(self, {id(p): name for name, p in module.named_parameters()})
        module.compile(backend=capture, fullgraph=True, dynamic=False)
        compiled = module._compiled_call_impl
        assert compiled is not None

        def call(*args: Any, **kwargs: Any) -> Any:
            _refuse_autocast()
            if torch.is_grad_enabled() and module.training:
                self.table.begin_step()
            try:
                return compiled(*args, **kwargs)
            except TorchDynamoException as error:
                raise explain(error) from error

        module._compiled_call_impl = call


class _Capture:
    """What torch.compile calls with every graph of one module."""

    def __init__(self, compiler: StepCompiler, weight_names: Mapping[int, str]) -> None:
        self.compiler = compiler
        self.weight_names = weight_names  # by id of the parameter

    def __call__(self, graph: GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        names = {
            index: self.weight_names.get(id(example), f"parameter_{index}")
            for index, example in enumerate(examples)
            if isinstance(example, nn.Parameter)
        }
        build = aot_autograd(
            fw_compiler=self._build_training,
            bw_compiler=self._build_training,
            inference_compiler=lambda module, inputs: self._build_inference(module, names),
            partition_fn=lambda joint, inputs, **options: self._partition(
                joint, inputs, names, options
            ),
            decompositions={},
        )
        # Under flash attention the backward pass of the CPU gets the wrong tensor, silently.
        with sdpa_kernel(SDPBackend.MATH), _kept_whole():
            compiled: Callable[..., Any] = build(graph, examples)
        return compiled

    def _partition(
        self, joint: GraphModule, inputs: Any, names: Mapping[int, str], options: dict[str, Any]
    ) -> Any:
        mark_sites(joint.graph, self.compiler.recipe, _weights(joint, names))
        return default_partition(joint, inputs, **options)

    def _build_training(self, module: GraphModule, inputs: Any) -> Program:
        return self._build(module, lambda site: self.compiler.table.add(site, is_training=True))

    def _build_inference(self, module: GraphModule, names: Mapping[int, str]) -> Program:
        mark_sites(module.graph, self.compiler.recipe, _weights(module, names), prefix="eval.")
        return self._build(module, lambda site: self.compiler.table.add(site, is_training=False))

    def _build(self, module: GraphModule, store_for: Callable[[Site], Store]) -> Program:
        return build_program(module, store_for, self.compiler.implementations)


def _weights(module: GraphModule, names: Mapping[int, str]) -> dict[Node, str]:
    """The graph's inputs that are trained weights."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    return {node: names[index] for index, node in enumerate(inputs) if index in names}


@contextmanager
def _kept_whole() -> Iterator[None]:
    """While tracing, take away the Python decompositions of `_KEPT_WHOLE`."""
    keys = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)
    removed = [
        (overload, key, overload.py_kernels.pop(key))
        for overload in _KEPT_WHOLE
        for key in keys
        if key in overload.py_kernels
    ]
    for overload, _, _ in removed:
        overload._dispatch_cache.clear()
    try:
        yield
    finally:
        for overload, key, kernel in removed:
            overload.py_kernels[key] = kernel
            overload._dispatch_cache.clear()


def _refuse_autocast() -> None:
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
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, BackendCompilerFailed):
        return BackendError(f"backend dojo could not compile the step: {reason}")
    return BackendError(
        f"the step is not one static graph: {reason}; backend dojo needs fixed shapes and no "
        "branch on a tensor's values (use torch.where, drop the last incomplete batch)"
    )
