"""accumulate=exact in a compiled step: every matrix op but geometry, and how far from fast."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fsdtrain_dojo.accumulation import matrix_implementations
from fsdtrain_dojo.backend import DojoBackend
from fsdtrain_dojo.capture.compiler import StepCompiler
from torch import Tensor, nn

from fsdtrain.backend import BackendError


class Sampler(nn.Module):
    """Features of a convolution, sampled where a batched product of coordinates says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, images: Tensor, rotations: Tensor, classes: Tensor) -> Tensor:
        features = torch.relu(self.first(images))
        line = torch.linspace(-0.9, 0.9, 6)
        places = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(1, -1, 2)
        grid = torch.bmm(places.expand(len(images), -1, -1), rotations).unflatten(1, (6, 6))
        sampled = nn.functional.grid_sample(features, grid, align_corners=False)
        return nn.functional.cross_entropy(self.last(sampled.mean((2, 3))), classes)


def make_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    angles = torch.rand(4, generator=generator)
    rotations = torch.stack(
        [torch.stack([angles.cos(), -angles.sin()], -1),
         torch.stack([angles.sin(), angles.cos()], -1)], -2
    )  # fmt: skip
    images = torch.randn(4, 3, 8, 8, generator=generator)
    return images, rotations, torch.randint(0, 5, (4,), generator=generator)


def train_once(accumulate: str, accumulator: str) -> tuple[Tensor, list[Tensor], Counter[str]]:
    calls: Counter[str] = Counter()
    backend = DojoBackend(accumulate=accumulate, accumulator=accumulator, k_tile=16)

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return call(*args, **kwargs)

        return run

    implementations = {
        overload: counted(str(overload), call)
        for overload, call in backend.compiler.implementations.items()
    }
    model = Sampler()
    StepCompiler(backend.recipe, backend.table, implementations).compile(model)
    loss = model(*make_inputs())
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return loss.detach(), [each for each in gradients if each is not None], calls


@pytest.mark.parametrize(("accumulator", "tolerance"), [("fp32", 0.01), ("accumulator_21", 0.02)])
def test_every_matrix_op_but_geometry_adds_in_dojos_order(
    accumulator: str, tolerance: float
) -> None:
    loss, gradients, _ = train_once("fast", "fp32")
    exact_loss, exact_gradients, calls = train_once("exact", accumulator)
    # The linear layer: once forward, twice backward. The product of coordinates is not here.
    assert calls == {
        "aten.convolution.default": 1,
        "aten.convolution_backward.default": 1,
        "aten.addmm.default": 1,
        "aten.mm.default": 2,
    }
    assert exact_loss.item() == pytest.approx(loss.item(), rel=tolerance)
    for one, other in zip(exact_gradients, gradients, strict=True):
        # Sums that differ in the last bit of FP32 may be rounded to neighbouring BF16 values.
        assert (one - other).norm() <= tolerance * other.norm()
    differs = [not one.equal(other) for one, other in zip(exact_gradients, gradients, strict=True)]
    assert any(differs) or accumulator == "fp32"


def test_a_matrix_op_without_exact_sums_is_refused() -> None:
    backend = DojoBackend(accumulate="exact")
    model = nn.Bilinear(3, 4, 1)
    backend.compile_step(model)
    with pytest.raises(BackendError, match="aten._trilinear is not built with exact sums"):
        model(torch.randn(2, 3), torch.randn(2, 4))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"accumulate": "slow"}, "backend.accumulate='slow': must be fast or exact"),
        ({"accumulator": "fp16"}, "backend.accumulator='fp16': must be fp32 or accumulator_21"),
        ({"accumulator": "accumulator_21"}, "needs backend.accumulate=exact"),
        ({"accumulate": "exact", "host": "cuda"}, "set backend.host=cpu"),
        ({"accumulate": "exact", "k_tile": 6}, "K-tile of 6 steps"),
    ],
)
def test_wrong_options(options: dict[str, Any], complaint: str) -> None:
    given = {"accumulate": "fast", "accumulator": "fp32", "k_tile": 16, "host": "cpu", **options}
    with pytest.raises(BackendError) as caught:
        matrix_implementations(given.pop("accumulate"), **given)
    assert complaint in str(caught.value)
