"""What cannot be emulated is refused in one sentence that says what to do; nothing runs in FP32."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fsdtrain.backend import BackendError
from tests.backends.dojo.running import BF16, emulate

Function = Callable[[Tensor, Tensor], Tensor]


class Layer(nn.Module):
    """function(x, linear(x)) -> scalar."""

    def __init__(self, function: Function = lambda x, y: y.sum()) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.linear(x))


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def run(function: Function, x: Tensor | None = None) -> None:
    module = Layer(function)
    emulate(module, BF16)
    module(torch.rand(4, 4) if x is None else x)


def autocast_inside(x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (y @ x).float().sum()


def branch(x: Tensor, y: Tensor) -> Tensor:
    return y.sum() if y.mean() > 0 else y.abs().sum()


def break_graph(x: Tensor, y: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return y.sum()


@pytest.mark.parametrize(
    ("function", "problem", "remedy"),
    [
        (autocast_inside, "_to_copy gives bfloat16 of shape", "remove autocast"),
        (lambda x, y: y.half().float().sum(), "float16 of shape [4, 4]", r"casts (.half()"),
        (lambda x, y: y.double().sum(), "float64", ".double()"),
        (lambda x, y: torch.fft.fft(y).abs().sum(), "complex64 of shape [4, 4]", "complex"),
        (branch, "Data-dependent branching", "use torch.where"),
        (break_graph, "graph_break", "static graph"),
        (lambda x, y: y.sum() * x.sum().item(), "value becomes a Python number", "avoid .item()"),
        (lambda x, y: y.sum() * int(x.sum().item()), "Python number", "avoid .item()"),
        (lambda x, y: y[y > 0].sum(), "aten.index gives a tensor of shape", "boolean indexing"),
        (lambda x, y: y[x[:, 0].nonzero()[:, 0]].sum(), "aten.nonzero", "static shapes"),
        (lambda x, y: torch.linalg.inv(y).sum(), "with_effects", "torch.linalg.inv_ex(x).inverse"),
        (lambda x, y: torch.linalg.svd(y).S.sum(), "_linalg_svd (float32[4, 4])", "register_op"),
        (lambda x, y: (y @ torch.rand(5, 5)).sum(), "the step fails", "[4, 4] X [5, 5]"),
    ],
)  # fmt: skip
def test_op_that_cannot_be_captured(function: Function, problem: str, remedy: str) -> None:
    with pytest.raises(BackendError) as error:
        run(function)
    message = str(error.value)
    assert problem in message
    assert remedy in message
    assert "\n" not in message


def test_error_names_the_line_of_the_model() -> None:
    with pytest.raises(BackendError, match=r"\(test_bad_input.py:\d+\)"):
        run(branch)
    with pytest.raises(BackendError, match=r"aten._to_copy .*\(test_bad_input.py:\d+\)"):
        run(autocast_inside)


def test_autocast_around_the_step() -> None:
    module = Layer()
    emulate(module, BF16)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(BackendError, match=r"autocast is on.*remove precision=bf16-mixed"),
    ):
        module(torch.rand(4, 4))


def test_float64_model() -> None:
    module = Layer().double()
    emulate(module, BF16)
    with pytest.raises(BackendError, match=r"an input gives float64 of shape \[4, 4\]"):
        module(torch.rand(4, 4, dtype=torch.float64))


def test_dynamic_shape() -> None:
    x = torch.rand(4, 4)
    torch._dynamo.mark_dynamic(x, 0)
    with pytest.raises(BackendError, match="shape is marked as dynamic: .* needs static shapes"):
        run(lambda x, y: y.sum(), x)


def test_a_few_shapes_are_captured_and_many_are_refused() -> None:
    module = Layer()
    emulate(module, BF16)
    for size in (2, 3, 4):
        module(torch.rand(size, 4))
    for size in range(5, 18):
        module(torch.rand(size, 4))
    with pytest.raises(BackendError, match="pad or drop the last incomplete batch"):
        module(torch.rand(18, 4))


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.compiler.set_stance("force_eager"),
        lambda: torch._dynamo.config.patch(disable=True),
        lambda: FlopCounterMode(display=False),
    ],
    ids=["stance", "disabled", "dispatch_mode"],
)
def test_a_step_that_is_not_captured_is_not_run_silently(
    context: Callable[[], AbstractContextManager[object]],
) -> None:
    """torch.compile would run these in plain FP32, or complain of frames."""
    module, x = Layer(), torch.rand(4, 4)
    emulate(module, BF16)
    with context(), pytest.raises(BackendError, match="cannot take a step that is not captured"):
        module(x)
