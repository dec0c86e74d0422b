import math
from typing import Any

import numpy as np
import pytest
import torch
from fsdtrain_dojo.arithmetic.round_to import round_to
from fsdtrain_dojo.arithmetic.rounding import Count
from fsdtrain_dojo.formats import find_format
from torch import Tensor

from fsdtrain.backend import BackendError


def all_values(name: str, bias: int) -> list[float]:
    """Every finite value of a format, from the definition of its codes, ascending."""
    format = find_format(name)
    values = {float(format.value(code, bias)) for code in range(1 << format.num_bits)}
    return sorted(value for value in values if math.isfinite(value))


@pytest.mark.parametrize(("name", "bias"), [("cfloat8_1_4_3", 7), ("cfloat8_1_5_2", 20)])
def test_rounds_to_a_nearest_value_and_counts(name: str, bias: int) -> None:
    values = np.array(all_values(name, bias))
    exponents = torch.linspace(-24.0, 24.0, 999) + 7 - bias
    x = torch.exp2(exponents) * torch.where(torch.arange(999) % 2 == 0, 1.0, -1.0)
    x[5] = math.nan
    rounded, counts = round_to(x, name, bias=bias)

    known = np.delete(x.double().numpy(), 5)
    distance = np.abs(values[None, :] - known[:, None]).min(1)
    np.testing.assert_array_equal(np.abs(np.delete(rounded.double().numpy(), 5) - known), distance)
    assert counts[Count.ELEMENTS] == 999
    assert counts[Count.NAN] == 1
    assert counts[Count.UNDERFLOWED] == int((np.delete(rounded.numpy(), 5) == 0).sum())
    is_beyond = np.abs(known) >= values[-1] + (values[-1] - values[-2]) / 2
    assert counts[Count.SATURATED] == int(is_beyond.sum())
    assert counts[Count.AMAX_BITS] == np.abs(known).max().astype(np.float32).view(np.int32)


def test_stochastic_depends_on_the_key_only() -> None:
    x = torch.full((4000,), 1.04)
    first, _ = round_to(x, "cfloat8_1_4_3", rounding="stochastic", key=(1, 2))
    again, _ = round_to(x, "cfloat8_1_4_3", rounding="stochastic", key=(1, 2))
    other, _ = round_to(x, "cfloat8_1_4_3", rounding="stochastic", key=(1, 3))
    rest, _ = round_to(
        x[1000:], "cfloat8_1_4_3", rounding="stochastic", key=(1, 2), first_element=1000
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[1000:], rest)
    assert set(first.tolist()) == {1.0, 1.125}
    # Standard deviation of the mean: 0.125 sqrt(0.32 * 0.68 / 4000) = 0.0009.
    assert abs(first.mean().item() - 1.04) < 0.005


def test_denormals_are_chosen() -> None:
    x = torch.tensor([2.0**-8])
    assert round_to(x, "cfloat8_1_4_3", bias=7)[0].item() == 2.0**-8
    assert round_to(x, "cfloat8_1_4_3", bias=7, denormals="flush")[0].item() == 0


def test_any_layout_and_the_input_stays() -> None:
    x = torch.randn(2, 3, 4, 5)
    expected, _ = round_to(x, "cfloat8_1_4_3")
    turned = x.contiguous(memory_format=torch.channels_last)
    for layout in (turned, x.repeat_interleave(2, -1)[..., ::2], x.transpose(0, 2).clone()):
        before = layout.clone()
        rounded, _ = round_to(layout, "cfloat8_1_4_3")
        assert torch.equal(layout, before)
        assert rounded.shape == layout.shape
        if layout.shape == x.shape:
            assert torch.equal(rounded, expected)
    assert round_to(turned, "cfloat8_1_4_3")[0].stride() == turned.stride()
    assert round_to(x[:1].expand(2, 3, 4, 5), "cfloat8_1_4_3")[0].is_contiguous()
    assert round_to(torch.empty(0, 3), "cfloat8_1_4_3")[1].tolist() == [0, 0, 0, 0, 0]


def test_the_gradient_goes_straight_through() -> None:
    x = torch.tensor([0.3, 1e9, math.pi], requires_grad=True)
    rounded, counts = round_to(x, "cfloat8_1_5_2")
    assert not counts.requires_grad
    rounded.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_registered_as_pytorch_asks() -> None:
    x = torch.randn(3, 5)
    options = ("cfloat8_1_4_3", "stochastic", 7, "gradual", 5, 6, 0)
    for layout in (x, x.t(), x[:, ::2]):
        torch.library.opcheck(
            torch.ops.fsdtrain.round_to.default,
            (layout.detach().requires_grad_(), *options),
            # Not gradcheck: the gradient is that of the identity.
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def test_compiles_as_one_node() -> None:
    nodes: list[Any] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        nodes.extend(node for node in graph.graph.nodes if node.op == "call_function")
        return graph

    def step(x: Tensor) -> Tensor:
        return round_to(x, "cfloat8_1_4_3")[0]

    x = torch.randn(7)
    compiled = torch.compile(step, fullgraph=True, backend=count)
    assert torch.equal(compiled(x), step(x))
    names = [str(node.target) for node in nodes if "getitem" not in str(node.target)]
    assert names == ["fsdtrain.round_to"]


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(2, dtype=torch.bfloat16), {}, r"not torch.bfloat16 of shape \(2,\)"),
        (torch.zeros(2, device="meta"), {}, "on meta"),
        (torch.zeros(2), {"format": "fp7"}, "fp7"),
        (torch.zeros(2), {"rounding": "up"}, "allowed are nearest, stochastic"),
        (torch.zeros(2), {"denormals": "none"}, "allowed are gradual, literal, flush"),
        (torch.zeros(2), {"bias": 1000}, "1000"),
    ],
)
def test_bad_input_is_refused(x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        round_to(x, **{"format": "cfloat8_1_4_3", **options})
