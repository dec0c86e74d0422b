"""Captures a module's training step, forward and backward pass, as a list of ops.

The step is plain PyTorch's unless the caller's `mark` and `behaviour` say otherwise. Nothing is
computed: module, gradients and random numbers are left as they were.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from fsdtrain.step_graph.assemble import assemble_step
from fsdtrain.step_graph.behaviour import Behaviour
from fsdtrain.step_graph.dry_capture import (
    TracedFunction,
    leave_unmarked,
    trace_function,
    without_compiled_calls,
)
from fsdtrain.step_graph.graph import StepGraph
from fsdtrain.step_graph.trace import Mark


@dataclass(frozen=True, kw_only=True)
class TracedStep:
    """A training step that was traced, of which graphs with other marks can be made.

    Args:
        function: the step and its loss.
        module: with the tensors that it was traced with.
    """

    function: TracedFunction
    module: nn.Module

    def graph(
        self, *, mark: Mark = leave_unmarked, behaviour: Behaviour | None = None
    ) -> StepGraph:
        """The step as ops, on the weights that the module has now.

        Random ops draw what they would draw if the step were run now: the CPU's generator is read,
        and left as it is.

        Args:
            mark: what to do with the graph of the whole step before it is cut in two.
            behaviour: of its ops; None: PyTorch's.

        Raises:
            BackendError: the step trains nothing.
        """
        return assemble_step(self.function.cut(mark), self.module, behaviour)


def trace_step(
    step: nn.Module,
    batch: Any,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    to_device: Callable[[Tensor], Tensor] = lambda value: value,
    who: str = "a captured step",
) -> TracedStep:
    """Trace `step(batch).loss.backward()`, or `step(batch).backward()` of one that gives a loss.

    Args:
        step: in the mode that it trains in; compiled or not.
        batch: its input, of any structure.
        autocast: entered around the forward pass.
        to_device: brings a tensor to where the step is computed.
        who: wants the step, for error messages: "backend cpu".

    Raises:
        BackendError: the step is no static graph.
    """
    module = _on_device(step, to_device)
    on_device = _pytree.tree_map_only(Tensor, to_device, batch)
    names = {each: name for name, each in module.named_parameters()}

    # torch.compile does not look into PyTorch's own modules, nn.Sequential for one, unless they
    # are called from elsewhere.
    def run(batch: Any) -> Any:
        output = module._call_impl(batch)  # type: ignore[no-untyped-call]
        return loss_of(output), output

    with torch.enable_grad(), without_compiled_calls(module), autocast():
        function = trace_function(run, on_device, names=names, who=who)
    return TracedStep(function=function, module=module)


def loss_of(output: Any) -> Tensor:
    """The loss in what a step gives: its `loss`, or the output itself."""
    loss: Tensor = output if isinstance(output, Tensor) else output.loss
    return loss


def _on_device(step: nn.Module, to_device: Callable[[Tensor], Tensor]) -> nn.Module:
    """The module, or a copy where its tensors are to be elsewhere."""
    tensors = [*step.parameters(), *step.buffers()]
    if all(to_device(each[:0] if each.ndim else each).device == each.device for each in tensors):
        return step
    with without_compiled_calls(step):
        module = copy.deepcopy(step)
    for each in (*module.parameters(), *module.buffers()):
        each.data = to_device(each.data)
    return module
