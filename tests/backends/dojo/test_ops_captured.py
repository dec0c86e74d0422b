"""Every op that a small expression reaches: captured, it gives eager's results and gradients.

The expressions of a group are one module, for capturing has a price of its own.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.backends.dojo import expressions_layers, expressions_math
from tests.backends.dojo.running import CFP8, IDENTITY, emulate, relative_error
from tests.backends.dojo.witness import formats_of

pytestmark = pytest.mark.filterwarnings("ignore:index_reduce.. is in beta:UserWarning")

GROUPS = {
    f"{module.__name__.rpartition('_')[2]}-{name.lower()}": group
    for module in (expressions_math, expressions_layers)
    for name, group in vars(module).items()
    if name.isupper() and isinstance(group, dict)
}
# What these give is meant to be used as a coordinate, which is not rounded.
COORDINATES = {"affine", "affine3"}


class Expressions(nn.Module):
    """All expressions of a group, each with operands of its own that have just been computed."""

    def __init__(self, group: dict[str, expressions_math.Expression]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.group = group
        self.operands = nn.ParameterDict(
            {
                f"{name} {number}": nn.Parameter(0.1 + 0.8 * torch.rand(shape, generator=generator))
                for name, (_, shapes) in group.items()
                for number, shape in enumerate(shapes)
            }
        )

    def forward(self, one: Tensor) -> dict[str, list[Tensor]]:
        results = {}
        for name, (function, shapes) in self.group.items():
            operands = [one * self.operands[f"{name} {number}"] for number in range(len(shapes))]
            result = function(*operands)
            results[name] = list(result) if isinstance(result, list | tuple) else [result]
        return results


def run(module: Expressions) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """Results and gradients by expression, of a loss that weights the elements unequally."""
    torch.manual_seed(3)
    module.zero_grad()
    results = module(torch.ones(()))
    losses = [
        (torch.linspace(0.5, 1.5, each.numel()).view(each.shape) * each).sum()
        for of in results.values()
        for each in of
        if each.requires_grad
    ]
    torch.stack(losses).sum().backward()
    gradients: dict[str, list[Tensor]] = {name: [] for name in module.group}
    for key, operand in module.operands.items():
        if operand.grad is not None:
            gradients[key.rpartition(" ")[0]].append(operand.grad.clone())
    return results, gradients


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", GROUPS)
def test_identity_recipe_gives_eagers_results(name: str) -> None:
    eager, captured = Expressions(GROUPS[name]), Expressions(GROUPS[name])
    emulate(captured, IDENTITY)
    with sdpa_kernel(SDPBackend.MATH):
        wanted = run(eager)
    found = run(captured)
    for what, tolerance in ((0, 1e-6), (1, 2e-6)):
        wrong = {
            expression: errors
            for expression, tensors in wanted[what].items()
            for errors in [list(map(relative_error, found[what][expression], tensors))]
            if len(tensors) != len(found[what][expression]) or not max(errors) <= tolerance
        }
        assert not wrong


@pytest.mark.parametrize("name", GROUPS)
def test_emulated_results_are_values_of_the_format(name: str) -> None:
    """Twice, for biases are looked up the first time and remembered the second."""
    module = Expressions(GROUPS[name])
    emulate(module, CFP8)
    for _ in range(2):
        results, gradients = run(module)
        unrounded = [
            expression
            for expression in GROUPS[name]
            if expression not in COORDINATES
            for each in [*results[expression], *gradients[expression]]
            # A scalar result would be a loss.
            if each.is_floating_point() and each.ndim > 0
            if "bf16" not in formats_of(each.detach().numpy())
        ]
        assert not unrounded
