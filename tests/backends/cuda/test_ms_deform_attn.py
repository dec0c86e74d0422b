"""The kernels of ms_deform_attn, forward and backward, with atomics and deterministic."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
from fsdtrain_cuda.kernels import ms_deform_attn as kernels
from fsdtrain_cuda.kernels import (
    ms_deform_attn_backward,
    ms_deform_attn_scatter,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain.ops.ms_deform_attn import ms_deform_attn as reference

Sizes = tuple[tuple[int, int], ...]
TILED = (
    kernels.attend,
    ms_deform_attn_backward.differentiate,
    ms_deform_attn_scatter.sum_pieces,
    ms_deform_attn_scatter.sum_cells,
)
EIGHT_CAMERAS = ((3, 5),) * 8


@pytest.fixture(params=[False, True], ids=["atomics", "deterministic"])
def is_deterministic(request: pytest.FixtureRequest) -> Iterator[bool]:
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreting takes as long for a large tile as for a small one."""
    set_tile(monkeypatch, 1024)


def set_tile(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    for kernel in TILED:
        monkeypatch.setattr(kernel, "configs", [triton.Config({"TILE": tile}, num_warps=4)])


def random_call(
    device: str,
    *,
    seed: int = 0,
    B: int = 2,
    Q: int = 9,
    H: int = 2,
    P: int = 2,
    C: int = 5,
    level_sizes: Sizes = ((4, 6), (2, 3)),
    dtype: torch.dtype = torch.float32,
    zero_share: float = 0.3,
) -> tuple[Tensor, Tensor, Tensor]:
    """Locations reach a quarter of a map beyond its borders; weights and coordinates are exact."""
    generator = torch.Generator().manual_seed(seed)
    S, L = sum(h * w for h, w in level_sizes), len(level_sizes)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    value = torch.randn(B, S, H, C, generator=generator).to(dtype)
    locations = torch.rand(B, Q, H, L, P, 2, generator=generator).to(exact) * 1.5 - 0.25
    weights = torch.randn(B, Q, H, L, P, generator=generator).to(exact)
    is_zero = torch.rand(weights.shape, generator=generator) < zero_share
    weights = weights.masked_fill(is_zero, 0.0)
    return value.to(device), locations.to(device), weights.to(device)


def run(attend: Any, call: tuple[Tensor, ...], level_sizes: Sizes, seed: int = 1) -> list[Tensor]:
    """The result and the gradients of the three tensors."""
    learnt = [each.detach().requires_grad_() for each in call]
    out = attend(*learnt, level_sizes)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(out.shape, generator=generator).to(out)
    return [out.detach(), *torch.autograd.grad(out, learnt, cotangent)]


def check(call: tuple[Tensor, ...], level_sizes: Sizes) -> None:
    """At most twice the error of plain torch in the same dtype."""
    found = run(kernels.ms_deform_attn, call, level_sizes)
    plain = run(reference, call, level_sizes)
    exact = run(reference, tuple(each.cpu().double() for each in call), level_sizes)
    for name, ours, theirs, truth in zip(
        ("result", "value", "locations", "weights"), found, plain, exact, strict=True
    ):
        assert ours.dtype == theirs.dtype
        assert ours.shape == truth.shape
        error, allowed = ((each.cpu().double() - truth).abs().max() for each in (ours, theirs))
        floor = 4 * torch.finfo(theirs.dtype).eps * truth.abs().max()
        assert error <= 2 * allowed + floor, f"{name}: {error:.2e}, plain torch {allowed:.2e}"


SHAPES: dict[str, dict[str, Any]] = {
    "ragged": {"B": 2, "Q": 11, "H": 3, "P": 1, "C": 7, "level_sizes": ((5, 3), (1, 4), (7, 2))},
    "one of each": {"B": 1, "Q": 1, "H": 1, "P": 1, "C": 1, "level_sizes": ((1, 1),)},
    "wide heads": {"B": 1, "Q": 5, "H": 1, "P": 3, "C": 80, "level_sizes": ((3, 4),)},
    "cameras": {
        "B": 1, "Q": 6, "H": 2, "P": 1, "C": 8, "level_sizes": EIGHT_CAMERAS, "zero_share": 0.9,
    },
    "crowded": {"B": 1, "Q": 4000, "H": 1, "P": 1, "C": 2, "level_sizes": ((1, 1),)},
}  # fmt: skip


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_at_most_twice_the_error_of_torch(
    device: str, is_deterministic: bool, shape: dict[str, Any], dtype: torch.dtype
) -> None:
    level_sizes = shape.get("level_sizes", ((4, 6), (2, 3)))
    check(random_call(device, dtype=dtype, **shape), level_sizes)


@settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
@given(
    seed=st.integers(0, 2**16),
    B=st.integers(1, 2),
    Q=st.integers(1, 20),
    H=st.integers(1, 2),
    P=st.integers(1, 3),
    C=st.integers(1, 17),
    level_sizes=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=2
    ).map(tuple),
)
def test_any_shape(
    device: str,
    is_deterministic: bool,
    seed: int,
    B: int,
    Q: int,
    H: int,
    P: int,
    C: int,
    level_sizes: Sizes,
) -> None:
    call = random_call(device, seed=seed, B=B, Q=Q, H=H, P=P, C=C, level_sizes=level_sizes)
    check(call, level_sizes)


@pytest.mark.parametrize("tile", [4, 64])
def test_any_tile(
    device: str, is_deterministic: bool, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tile(monkeypatch, tile)
    check(random_call(device, B=1, Q=3, level_sizes=((3, 2),)), ((3, 2),))


def test_gradients_in_double_precision(device: str, is_deterministic: bool) -> None:
    level_sizes = ((2, 3), (1, 2))
    call = random_call(
        device, B=1, Q=2, H=2, P=1, C=2, level_sizes=level_sizes, dtype=torch.float64
    )
    assert torch.autograd.gradcheck(
        lambda *tensors: kernels.ms_deform_attn(*tensors, level_sizes),
        [each.requires_grad_() for each in call],
        fast_mode=True,
    )


def test_strided_tensors_are_read_as_they_lie(device: str, is_deterministic: bool) -> None:
    level_sizes = ((4, 6), (2, 3))
    value, locations, weights = random_call(device)
    call = (
        value.transpose(1, 3).contiguous().transpose(1, 3),
        locations.permute(5, 3, 1, 4, 0, 2).contiguous().permute(4, 2, 5, 1, 3, 0),
        weights[:1].expand_as(weights),
    )
    assert not any(each.is_contiguous() for each in call)
    check(call, level_sizes)


def test_mixed_dtypes(device: str, is_deterministic: bool) -> None:
    value, locations, weights = random_call(device, dtype=torch.float16)
    check((value, locations, weights.bfloat16()), ((4, 6), (2, 3)))
    check((value, locations.double(), weights), ((4, 6), (2, 3)))


@pytest.mark.parametrize("empty", ["B", "Q", "H", "P", "C"])
def test_empty_inputs(device: str, is_deterministic: bool, empty: str) -> None:
    sizes: dict[str, Any] = {"B": 2, "Q": 3, "H": 2, "P": 2, "C": 3} | {empty: 0}
    call = random_call(device, level_sizes=((2, 3),), **sizes)
    for found, expected in zip(
        run(kernels.ms_deform_attn, call, ((2, 3),)), run(reference, call, ((2, 3),)), strict=True
    ):
        assert found.shape == expected.shape
        assert not found.any()


@pytest.mark.parametrize("num_queries", [4, 9], ids=["some", "all"])
def test_a_sample_of_weight_0_is_not_read(
    device: str, is_deterministic: bool, num_queries: int
) -> None:
    value, locations, weights = random_call(device, zero_share=0.0)
    # The second map is full of NaN, to which the first queries give no weight.
    value[:, 4 * 6 :] = torch.nan
    weights[:, :num_queries, :, 1] = 0.0
    out, grad_value, grad_locations, _ = run(
        kernels.ms_deform_attn, (value, locations, weights), ((4, 6), (2, 3))
    )
    assert out[:, :num_queries].isfinite().all()
    assert out[:, num_queries:].isnan().any(-1).all()
    assert grad_value.isfinite().all()
    assert grad_value[:, 4 * 6 :].any() == (num_queries < 9)
    assert grad_locations[:, :, :, 0].isfinite().all()


@pytest.mark.parametrize("place", [torch.inf, -torch.inf, torch.nan, 1e30, -1e30])
def test_no_location_reads_beyond_the_maps(
    device: str, is_deterministic: bool, place: float
) -> None:
    value, locations, weights = random_call(device)
    locations[0, 0] = place
    out, *grads = run(kernels.ms_deform_attn, (value, locations, weights), ((4, 6), (2, 3)))
    assert not out[0, 0].any()
    assert not grads[1][0, 0].any()
    assert all(each.isfinite().all() for each in (out, *grads))


@pytest.mark.parametrize(
    ("B", "strides"),
    [(3, (2**30 + 16, 3, 3, 1)), (1, (0, 2**30 + 16, 3, 1))],
    ids=["clips", "places"],
)
def test_offsets_beyond_32_bits(device: str, B: int, strides: tuple[int, ...]) -> None:
    """Values far apart in one storage, of which only the parts in use are ever touched."""
    level_sizes = ((2, 2),)
    filled, locations, weights = random_call(
        device, B=B, Q=3, H=1, P=2, C=3, level_sizes=level_sizes, dtype=torch.float16
    )
    storage = torch.empty(3 * 2**30 + 64, dtype=torch.float16, device=device)
    value = storage.as_strided(filled.shape, strides).copy_(filled)
    expected = run(kernels.ms_deform_attn, (filled, locations, weights), level_sizes)
    for found, each in zip(
        run(kernels.ms_deform_attn, (value, locations, weights), level_sizes), expected, strict=True
    ):
        torch.testing.assert_close(found, each)


def test_ten_deterministic_runs_are_the_same_bits(device: str) -> None:
    torch.use_deterministic_algorithms(True)
    call = random_call(device, B=1, Q=50, H=1, C=4, level_sizes=((2, 2),))
    first = run(kernels.ms_deform_attn, call, ((2, 2),))
    for _ in range(9):
        for found, expected in zip(
            run(kernels.ms_deform_attn, call, ((2, 2),)), first, strict=True
        ):
            assert torch.equal(found, expected)
    torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="watches the interpreter")
def test_no_atomics_where_torch_is_deterministic(
    is_deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    calls: list[int] = []
    original = InterpreterBuilder.create_atomic_rmw

    def count(self: Any, *args: Any) -> Any:
        calls.append(1)
        return original(self, *args)

    monkeypatch.setattr(InterpreterBuilder, "create_atomic_rmw", count)
    run(kernels.ms_deform_attn, random_call("cpu"), ((4, 6), (2, 3)))
    assert bool(calls) != is_deterministic


def test_opcheck(device: str, is_deterministic: bool) -> None:
    call = random_call(device, B=1, Q=3, H=1, P=1, C=2, level_sizes=((2, 2),))
    tensors = [each.requires_grad_() for each in call]
    torch.library.opcheck(torch.ops.fsdtrain.ms_deform_attn.default, (*tensors, [2, 2]))
    grad = torch.randn(1, 3, 2, device=device)
    torch.library.opcheck(
        torch.ops.fsdtrain.ms_deform_attn_backward.default,
        (grad, *(each.detach() for each in call), [2, 2]),
    )


def test_compiled_as_one_node_with_the_same_numbers(device: str) -> None:
    call = random_call(device)
    targets: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph

    sizes = ((4, 6), (2, 3))
    torch._dynamo.reset()
    torch.compile(kernels.ms_deform_attn, fullgraph=True, backend=keep)(*call, sizes)
    assert targets == ["fsdtrain.ms_deform_attn"]
    compiled = torch.compile(kernels.ms_deform_attn, fullgraph=True, backend="aot_eager")
    for found, expected in zip(
        run(compiled, call, sizes), run(kernels.ms_deform_attn, call, sizes), strict=True
    ):
        torch.testing.assert_close(found, expected)
    torch._dynamo.reset()


def test_autocast_leaves_the_arguments_alone(device: str) -> None:
    call = random_call(device)
    with torch.autocast(device, torch.bfloat16):
        out = kernels.ms_deform_attn(*call, ((4, 6), (2, 3)))
    assert out.dtype == torch.float32
    assert torch.equal(out, kernels.ms_deform_attn(*call, ((4, 6), (2, 3))))


BAD_CALLS: dict[str, tuple[dict[int, Any], str]] = {
    "integer values": ({0: torch.zeros(2, 30, 2, 5, dtype=torch.int32)}, "value.*int32"),
    "locations in half precision": (
        {1: torch.zeros(2, 9, 2, 2, 2, 2, dtype=torch.bfloat16)}, "locations.*bfloat16",
    ),
    "three coordinates": ({1: torch.zeros(2, 9, 2, 2, 2, 3)}, r"locations.*\(2, 9, 2, 2, 2, 2\)"),
    "another number of queries": ({1: torch.zeros(2, 8, 2, 2, 2, 2)}, "locations"),
    "another number of heads": ({2: torch.zeros(2, 9, 3, 2, 2)}, "weights"),
    "values without heads": ({0: torch.zeros(2, 30, 10)}, "4 dimensions"),
    "a map too few": ({3: ((4, 6),)}, "weights"),
    "maps of another size": ({3: ((4, 6), (2, 4))}, "30 places"),
    "a map without rows": ({3: ((0, 6), (5, 6))}, r"\(0, 6\)"),
    "devices": ({0: torch.zeros(2, 30, 2, 5, device="meta")}, "one device.*meta"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD_CALLS.values(), ids=list(BAD_CALLS))
def test_bad_input_is_refused(device: str, changes: dict[int, Any], message: str) -> None:
    arguments = [*random_call(device), ((4, 6), (2, 3))]
    for index, change in changes.items():
        is_placed = isinstance(change, Tensor) and change.device.type == "cpu"
        arguments[index] = change.to(device) if is_placed else change
    with pytest.raises(BackendError, match=message):
        kernels.ms_deform_attn(*arguments)


def test_bytes_for_the_bench() -> None:
    value, locations, weights = random_call("cpu", zero_share=0.0)  # B2 Q9 H2 L2 P2 C5 S30
    assert kernels.min_bytes(value, locations, weights) == 4 * (600 + 288 + 144 + 180)
    assert kernels.min_bytes_backward(value, locations, weights) == 4 * (2 * 1032 + 180)
    weights[0] = 0.0
    assert kernels.gather_bytes(value, weights) == 72 * 4 * 5 * 4


@pytest.mark.slow
def test_spatial_cross_attention_of_a_real_size(
    device: str, is_deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One camera, 1000 queries, 8 heads of 32 channels, 8 points in each of 4 levels."""
    set_tile(monkeypatch, 2**15)
    level_sizes = ((64, 112), (32, 56), (16, 28), (8, 14))
    shape = {"B": 1, "Q": 1000, "H": 8, "P": 8, "C": 32, "level_sizes": level_sizes}
    check(random_call(device, dtype=torch.bfloat16, **shape), level_sizes)
