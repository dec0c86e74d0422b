"""Random numbers inside a checkpointed block are drawn once: eager's step, bit for bit."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fsdtrain.step_graph.capture import trace_step
from fsdtrain.step_graph.graph import run_freely

Function = Callable[[Tensor], Tensor]


class Checkpointed(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = nn.Linear(4, 8), nn.Linear(8, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        def block(x: Tensor) -> Tensor:
            return self.function(self.before(x))

        return self.after(checkpoint(block, x, use_reentrant=False)).square().mean()


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "function",
    [
        lambda y: F.dropout(F.dropout(y, 0.3).tanh(), 0.5).sigmoid(),
        lambda y: F.dropout(y, 0.3, inplace=True).tanh(),
        lambda y: F.dropout1d(y[None], 0.5)[0].tanh(),
        lambda y: F.alpha_dropout(y, 0.3, training=True).tanh(),
        lambda y: y * torch.rand_like(y).sigmoid(),
        lambda y: (y * torch.bernoulli(torch.full_like(y, 0.5))).tanh(),
        lambda y: F.dropout(y, 1.0),
        lambda y: F.dropout(y, 0.0),
    ],
    ids=["twice", "in_place", "channels", "alpha", "rand_like", "bernoulli", "all", "none"],
)
def test_random_numbers_are_drawn_once(function: Function) -> None:
    x, module = torch.randn(5, 4), Checkpointed(function)
    torch.manual_seed(5)
    graph = trace_step(module, x).graph()
    found = run_freely(graph)
    torch.manual_seed(5)
    loss = module(x)
    loss.backward()
    assert torch.equal(found[graph.loss], loss.detach())
    for name, weight in module.named_parameters():
        assert torch.equal(found[graph.gradients[name]], weight.grad), name
