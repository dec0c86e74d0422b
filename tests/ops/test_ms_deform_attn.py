import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsdtrain.ops.ms_deform_attn import ms_deform_attn

Sizes = tuple[tuple[int, int], ...]


def random_call(
    seed: int, *, B: int, Q: int, H: int, P: int, C: int, level_sizes: Sizes
) -> tuple[Tensor, Tensor, Tensor]:
    """Locations reach a quarter of a map beyond its borders."""
    generator = torch.Generator().manual_seed(seed)
    S, L = sum(h * w for h, w in level_sizes), len(level_sizes)
    value = torch.randn(B, S, H, C, generator=generator, dtype=torch.float64)
    locations = torch.rand(B, Q, H, L, P, 2, generator=generator, dtype=torch.float64) * 1.5 - 0.25
    weights = torch.randn(B, Q, H, L, P, generator=generator, dtype=torch.float64)
    return value, locations, weights


def tent(distance: float) -> float:
    return max(0.0, 1.0 - abs(distance))


def attend_by_loops(
    value_BSHC: Tensor, locations_BQHLP2: Tensor, weights_BQHLP: Tensor, level_sizes: Sizes
) -> Tensor:
    """Every pixel counts with a tent of one pixel around its centre."""
    B, Q, H, L, P = weights_BQHLP.shape
    out = torch.zeros(B, Q, H, value_BSHC.shape[-1], dtype=torch.float64)
    for b, q, head, level, p in itertools.product(range(B), range(Q), range(H), range(L), range(P)):
        rows, columns = level_sizes[level]
        first = sum(h * w for h, w in level_sizes[:level])
        x, y = locations_BQHLP2[b, q, head, level, p].tolist()
        for row, column in itertools.product(range(rows), range(columns)):
            share = tent(y * rows - row - 0.5) * tent(x * columns - column - 0.5)
            pixel = value_BSHC[b, first + row * columns + column, head]
            out[b, q, head] += weights_BQHLP[b, q, head, level, p] * share * pixel
    return out.reshape(B, Q, -1)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    B=st.integers(1, 2),
    Q=st.integers(1, 4),
    H=st.integers(1, 3),
    P=st.integers(1, 3),
    C=st.integers(1, 5),
    level_sizes=st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3
    ).map(tuple),
)
def test_equals_a_loop_over_pixels(
    seed: int, B: int, Q: int, H: int, P: int, C: int, level_sizes: Sizes
) -> None:
    call = random_call(seed, B=B, Q=Q, H=H, P=P, C=C, level_sizes=level_sizes)

    expected = attend_by_loops(*call, level_sizes)

    torch.testing.assert_close(ms_deform_attn(*call, level_sizes), expected, atol=1e-12, rtol=0)
    in_float32 = ms_deform_attn(*(each.float() for each in call), level_sizes)
    torch.testing.assert_close(in_float32, expected.float(), atol=2e-4, rtol=0)


def test_a_location_at_a_pixels_centre_reads_that_pixel() -> None:
    level_sizes = ((2, 3), (4, 5))
    value = torch.randn(1, 26, 2, 3, dtype=torch.float64)
    weights = torch.zeros(1, 1, 2, 2, 1, dtype=torch.float64)
    locations = torch.full((1, 1, 2, 2, 1, 2), 0.5, dtype=torch.float64)
    weights[0, 0, 0, 1, 0] = 1.0
    locations[0, 0, 0, 1, 0] = torch.tensor([(3 + 0.5) / 5, (2 + 0.5) / 4])

    found = ms_deform_attn(value, locations, weights, level_sizes)

    pixel = value[0, 6 + 2 * 5 + 3, 0]
    expected = torch.cat([pixel, torch.zeros(3, dtype=torch.float64)])
    torch.testing.assert_close(found[0, 0], expected)


def test_constant_maps_give_the_sum_of_the_weights() -> None:
    level_sizes = ((6, 6), (4, 4))
    value, locations, weights = random_call(1, B=2, Q=5, H=3, P=4, C=2, level_sizes=level_sizes)
    inside = 0.25 + 0.5 * (locations + 0.25) / 1.5

    found = ms_deform_attn(torch.ones_like(value), inside, weights, level_sizes)

    expected = weights.sum((3, 4)).repeat_interleave(2, dim=-1)
    torch.testing.assert_close(found, expected)


def test_linear_functions_are_reproduced() -> None:
    h, w = 7, 9
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    ramp = (3 * x / w - 2 * y / h + 1).double().reshape(1, h * w, 1, 1)
    places = 0.1 + 0.8 * torch.rand(1, 50, 1, 1, 1, 2, dtype=torch.float64)

    found = ms_deform_attn(ramp, places, torch.ones_like(places[..., 0]), ((h, w),))

    expected = 3 * places[..., 0] - 2 * places[..., 1] + 1
    torch.testing.assert_close(found.flatten(), expected.flatten())


@pytest.mark.parametrize("place", [(-0.3, 0.5), (1.3, 0.5), (0.5, -0.3), (0.5, 1.3), (9.0, -9.0)])
def test_outside_is_zero_and_sends_no_gradient(place: tuple[float, float]) -> None:
    value = torch.randn(1, 4, 1, 3, requires_grad=True)
    locations = torch.tensor(place).view(1, 1, 1, 1, 1, 2).requires_grad_()
    weights = torch.ones(1, 1, 1, 1, 1, requires_grad=True)

    found = ms_deform_attn(value, locations, weights, ((2, 2),))
    found.sum().backward()

    for each in (found, value.grad, locations.grad, weights.grad):
        assert each is not None
        assert not each.any()


def test_at_the_border_half_a_pixel_fades_out() -> None:
    value = torch.full((1, 4, 1, 1), 8.0)
    edge, corner = torch.tensor([0.0, 0.5]), torch.tensor([0.0, 1.0])
    locations = torch.stack([edge, corner]).view(1, 2, 1, 1, 1, 2)

    found = ms_deform_attn(value, locations, torch.ones(1, 2, 1, 1, 1), ((2, 2),))

    torch.testing.assert_close(found.flatten(), torch.tensor([4.0, 2.0]))


def test_gradients_in_double_precision() -> None:
    level_sizes = ((3, 4), (2, 1))
    call = random_call(2, B=2, Q=3, H=2, P=2, C=3, level_sizes=level_sizes)
    assert torch.autograd.gradcheck(
        lambda *tensors: ms_deform_attn(*tensors, level_sizes),
        [each.requires_grad_() for each in call],
    )


def test_low_precision_values_keep_exact_coordinates() -> None:
    # A ramp over the columns: the sample tells at which column it was taken.
    ramp = (torch.arange(64.0) + 0.5).view(1, 64, 1, 1)
    places = torch.rand(1, 40, 1, 1, 1, 2)
    places[..., 1] = 0.5

    found = ms_deform_attn(ramp.bfloat16(), places, torch.ones(1, 40, 1, 1, 1), ((1, 64),))

    assert found.dtype == torch.bfloat16
    expected = 64 * places[0, :, 0, 0, 0, 0]
    inside = (expected > 0.5) & (expected < 63.5)  # nearer to the border it fades out
    error = (found.float().flatten() / expected - 1).abs()
    assert error[inside].max() <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("empty", ["B", "Q", "H", "P", "C"])
def test_empty_inputs(empty: str) -> None:
    size = {"B": 2, "Q": 3, "H": 2, "P": 2, "C": 3} | {empty: 0}
    call = random_call(0, **size, level_sizes=((2, 3),))
    found = ms_deform_attn(*call, ((2, 3),))
    assert found.shape == (size["B"], size["Q"], size["H"] * size["C"])
    assert not found.any()
