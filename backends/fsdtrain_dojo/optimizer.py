"""The optimiser's step: captured as it is written, its results stored in the recipe's formats.

To the machine the update of a weight is one pass of the vector unit: it reads the gradient, the
master weight and the moments, and computes in FP32 registers. The new moments are rounded as they
are stored, and the new weight is computed from what was stored.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import TorchDynamoException
from torch.fx import GraphModule, Node
from torch.optim import Optimizer

from fsdtrain.backend import BackendError
from fsdtrain.step_graph.nodes import alias_of
from fsdtrain.step_graph.trace import explain, set_up_capture
from fsdtrain_dojo.capture.compiler import WHO
from fsdtrain_dojo.capture.program import Program, Store, build_program
from fsdtrain_dojo.capture.roles import SITES, check_values
from fsdtrain_dojo.op_rules import find_rule
from fsdtrain_dojo.recipe import Recipe, Role
from fsdtrain_dojo.site import Site
from fsdtrain_dojo.sites import SiteTable

# The names torch.optim's optimisers give to their moments.
_STATE_ROLES = {
    "exp_avg": Role.FIRST_MOMENT,
    "momentum_buffer": Role.FIRST_MOMENT,
    "grad_avg": Role.FIRST_MOMENT,
    "exp_avg_sq": Role.SECOND_MOMENT,
    "max_exp_avg_sq": Role.SECOND_MOMENT,
    "square_avg": Role.SECOND_MOMENT,
    "sum": Role.SECOND_MOMENT,
}

WRITE_BACK = torch.ops.aten.copy_.default


class OptimizerCompiler:
    """Compiles each optimiser at its first step.

    Args:
        recipe: the formats.
        table: of the run's sites.
        weight_names: of the weights that compiled modules train.
    """

    def __init__(
        self, recipe: Recipe, table: SiteTable, weight_names: Mapping[nn.Parameter, str]
    ) -> None:
        self.recipe = recipe
        self.table = table
        self.weight_names = weight_names
        self._compiled: dict[int, _CompiledOptimizer] = {}

    def step(self, optimizer: Optimizer) -> None:
        """What `optimizer.step()` does, in the recipe's formats.

        Args:
            optimizer: its gradients are there; rounded here once more, for clipping and the mean
                over ranks have moved them off the format's grid.

        Raises:
            BackendError: the optimiser cannot be captured, keeps a state of unknown meaning, or
                trains weights of a module that is not compiled.
        """
        if id(optimizer) not in self._compiled:
            self._compiled[id(optimizer)] = _CompiledOptimizer(self, optimizer)
        self._compiled[id(optimizer)].step()


class _CompiledOptimizer:
    def __init__(self, owner: OptimizerCompiler, optimizer: Optimizer) -> None:
        self.recipe, self.table = owner.recipe, owner.table
        self.optimizer = optimizer
        self.names = owner.weight_names
        check_owned(optimizer, self.names)
        self.gradient_stores: dict[nn.Parameter, Store] = {}
        set_up_capture()
        # A number would be a constant of the graph, and every new rate a new capture.
        self.rates = [torch.zeros(()) for _ in optimizer.param_groups]
        self.update = compile_update(optimizer, self._build)

    def step(self) -> None:
        """Round the gradients, update, store."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._gradient_store(parameter)(parameter.grad)
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate.fill_(group["lr"])
        try:
            # The capture goes past torch.optim's wrapper, which calls these.
            for before in self.optimizer._optimizer_step_pre_hooks.values():
                before(self.optimizer, (), {})
            with torch.no_grad():
                self.update()
        except TorchDynamoException as error:
            raise explain(error, WHO) from error
        finally:
            for group, number in zip(groups, rates, strict=True):
                group["lr"] = number
        for after in self.optimizer._optimizer_step_post_hooks.values():
            after(self.optimizer, (), {})
        # What torch.optim notes for the scheduler, which warns without it.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

    def _gradient_store(self, parameter: nn.Parameter) -> Store:
        if parameter not in self.gradient_stores:
            site = _site(self.recipe, self.names[parameter], "grad", Role.WEIGHT_GRADIENT)
            self.gradient_stores[parameter] = (
                _leave if site.rule.is_exact else self.table.add(site, is_training=True)
            )
        return self.gradient_stores[parameter]

    def _build(self, module: GraphModule, tensors: Mapping[Node, Tensor]) -> Program:
        sites = sites_of_states(self.optimizer, self.recipe, self.names)
        replaced = mark_states(module, tensors, sites)
        return build_program(
            module,
            lambda site: self.table.add(site, is_training=True),
            {WRITE_BACK: _write_back},
            replaced_inputs=replaced,
        )


def compile_update(
    optimizer: Optimizer, build: Callable[[GraphModule, Mapping[Node, Tensor]], Program]
) -> Callable[[], None]:
    """`optimizer.step` past its wrappers, as one graph.

    Args:
        optimizer: its gradients are there when the result is first called.
        build: from a graph of ATen ops, and the tensors that are its inputs, to what is run.
    """

    def capture(graph: GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        states = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}

        def build_update(module: GraphModule, inputs: Any) -> Program:
            tensors = {}
            for node in module.graph.find_nodes(op="placeholder"):
                place = node.meta["desc"]
                is_state = hasattr(place, "target")
                tensors[node] = states[place.target] if is_state else examples[place.idx]
            return build(module, tensors)

        trace = aot_autograd(
            fw_compiler=_refuse_gradients,
            inference_compiler=build_update,
            decompositions={},
            keep_inference_input_mutations=True,
        )
        compiled: Callable[..., Any] = trace(graph, examples)
        return compiled

    # torch.optim wraps its steps so that torch.compile leaves the graph there.
    update = inspect.unwrap(type(optimizer).step).__get__(optimizer)
    compiled: Callable[[], None] = torch.compile(
        update, backend=capture, fullgraph=True, dynamic=False
    )
    return compiled


def mark_states(
    module: GraphModule, tensors: Mapping[Node, Tensor], sites: Mapping[int, Site]
) -> list[Node]:
    """Mark in a captured update what is stored; the inputs that it writes back to.

    Marks of another recipe are replaced.

    Raises:
        BackendError: an op without a rule, or a dtype the machine does not have.
    """
    for node in module.graph.nodes:
        check_values(node)
        if node.op == "call_function":
            find_rule(node)
    replaced = []
    for write in module.graph.find_nodes(op="call_function", target=WRITE_BACK):
        target, value = write.args[:2]
        assert isinstance(target, Node)
        assert isinstance(value, Node)
        replaced.append(target)
        site = sites.get(id(tensors[target]))
        if site is not None:
            _original(value).meta[SITES] = {} if site.rule.is_exact else {0: site}
    return replaced


def sites_of_states(
    optimizer: Optimizer, recipe: Recipe, names: Mapping[nn.Parameter, str]
) -> dict[int, Site]:
    """By the id of a weight or a moment: its site.

    Raises:
        BackendError: the optimiser keeps a state of unknown meaning.
    """
    sites = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            sites[id(parameter)] = _site(recipe, name, "weight", Role.MASTER_WEIGHT)
            for state, tensor in optimizer.state[parameter].items():
                if not isinstance(tensor, Tensor) or tensor.ndim == 0:
                    continue  # a counter
                if state not in _STATE_ROLES:
                    raise BackendError(
                        f"{type(optimizer).__name__} keeps {state!r} for every weight, of "
                        "which backend dojo does not know whether it is a first or a second "
                        f"moment; known are {', '.join(_STATE_ROLES)}"
                    )
                sites[id(tensor)] = _site(recipe, name, state, _STATE_ROLES[state])
    return sites


def check_owned(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> None:
    """Refuse an optimiser that trains weights without a name.

    Raises:
        BackendError: there is such a weight.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                raise BackendError(
                    f"the optimiser trains a weight of shape {list(parameter.shape)} that "
                    "belongs to no compiled module, so its gradient was not emulated: put all "
                    "of the model into the module that compile_step is given"
                )


def _site(recipe: Recipe, name: str, state: str, role: Role) -> Site:
    layer, _, tensor = name.rpartition(".")
    return Site(
        name=f"optimizer.{name}.{state}",
        layer=layer,
        op=tensor if state in ("grad", "weight") else f"{tensor}.{state}",
        role=role,
        rule=recipe.rule(role),
        is_rank_share=False,  # gradients are the mean over the ranks by now
    )


def _original(value: Node) -> Node:
    source = alias_of(value)
    return value if source is None else _original(source)


def _write_back(target: Tensor, value: Tensor) -> Tensor:
    """Copy unless the value was computed in the target's own memory."""
    return target if target.data_ptr() == value.data_ptr() else target.copy_(value)


def _leave(tensor: Tensor) -> None:
    """The store of a site that is FP32."""


def _refuse_gradients(module: GraphModule, inputs: Any) -> Program:
    raise BackendError("backend dojo cannot capture an optimiser that is differentiated through")
