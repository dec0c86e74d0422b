"""The table of sites: biases from magnitudes, histories, keys, checkpoints."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from fsdtrain_dojo.arithmetic.rounding import Rounding
from fsdtrain_dojo.formats import (
    BF16,
    CFLOAT8_1_4_3,
    CFLOAT8_1_5_2,
    CFLOAT16_SHP,
    CFLOAT16_UHP,
    Format,
)
from fsdtrain_dojo.recipe import BiasRule, Recipe, Role, Rule
from fsdtrain_dojo.site import Site
from fsdtrain_dojo.sites import SiteTable, choose_biases
from torch import Tensor

from fsdtrain.backend import BackendError


def site(
    name: str = "a",
    number_format: Format = CFLOAT8_1_4_3,
    bias: BiasRule = "delayed",
    role: Role = Role.ACTIVATION,
    rounding: Rounding = Rounding.NEAREST,
) -> Site:
    rule = Rule(format=number_format, bias=bias, rounding=rounding)
    return Site(name=name, layer="net", op="relu", role=role, rule=rule, is_rank_share=False)


def table(*, history: int = 4, margin: int = 0, seed: int = 0, read: int = 0) -> SiteTable:
    recipe = Recipe(amax_history=history, margin_bits=margin)
    return SiteTable(recipe, seed=seed, device=torch.device("cpu"), read_every_steps=read)


@pytest.mark.parametrize("number_format", [CFLOAT8_1_4_3, CFLOAT8_1_5_2, CFLOAT16_SHP])
@pytest.mark.parametrize("margin", [0, 2])
def test_a_chosen_bias_holds_the_largest_value_and_no_larger_one_would(
    number_format: Format, margin: int
) -> None:
    rng = np.random.default_rng(margin)
    random = (rng.uniform(1, 2, 500) * 2.0 ** rng.integers(-70, 40, 500)).astype(np.float32)
    # And the edges: exactly the largest value of a bias, and the next float above it.
    edges = np.array([number_format.max_finite(b) for b in range(64)], np.float32)
    values = np.concatenate([random, edges, np.nextafter(edges, np.float32(np.inf))])
    for value, bias in zip(
        values, choose_biases([number_format] * len(values), values, margin), strict=True
    ):
        holding = [
            b
            for b in range(64)
            if Fraction(number_format.max_finite(b)) >= Fraction(float(value)) * 2**margin
        ]
        assert bias == max(holding, default=0)


def test_no_signal_and_fixed_formats_take_the_default_bias() -> None:
    formats = [CFLOAT8_1_4_3, CFLOAT16_UHP, BF16]
    assert choose_biases(formats, np.zeros(3, np.float32), 0).tolist() == [7, 31, 127]
    assert choose_biases([BF16], np.array([3.0], np.float32), 0).tolist() == [127]


def test_the_first_tensor_of_a_site_is_looked_at_and_later_ones_follow_history() -> None:
    sites = table(history=2)
    store = sites.add(site(), is_training=True)
    seen = []
    for amax in (1.0, 100.0, 100.0, 1.0, 1.0, 1.0):
        sites.begin_step()
        tensor = torch.tensor([amax])
        store(tensor)
        seen.append(tensor.item())
    # 1.875 is the largest value of the bias that 1.0 asks for; 100 rounds to 96 or 104 (tie: even).
    assert seen == [1.0, 1.875, 96.0, 1.0, 1.0, 1.0]
    # Two steps after the last 100 the grid is fine again.
    sites.begin_step()
    tensor = torch.tensor([2.0**-9])
    store(tensor)
    assert tensor.item() == 2.0**-9


def test_a_bias_stays_within_a_step_and_sites_of_one_name_are_one() -> None:
    sites = table()
    first, second = (sites.add(site(), is_training=True) for _ in range(2))
    assert len(sites.sites) == 1
    sites.begin_step()
    small, large = torch.tensor([1.0]), torch.tensor([64.0])
    first(small)
    second(large)
    assert large.item() == 1.875


@pytest.mark.parametrize("bias", ["current", 3])
def test_current_and_given_biases(bias: BiasRule) -> None:
    sites = table()
    store = sites.add(site(bias=bias), is_training=True)
    for amax in (1.0, 4096.0, 2.0**14):
        sites.begin_step()
        tensor = torch.tensor([amax])
        store(tensor)
        assert tensor.item() == min(amax, 7680.0 if bias == 3 else float("inf"))


def test_outside_of_training_nothing_is_remembered() -> None:
    sites = table()
    store = sites.add(site(), is_training=False)
    for amax in (1.0, 4096.0):
        tensor = torch.tensor([amax])
        store(tensor)
        assert tensor.item() == amax
    assert sites.sites == []
    assert sites.state_dict()["sites"] == []


def noisy(sites: SiteTable, name: str, role: Role, values: Tensor) -> Tensor:
    store = sites.add(
        site(name=name, role=role, rounding=Rounding.STOCHASTIC, bias=7), is_training=True
    )
    rounded = values.clone()
    store(rounded)
    return rounded


def test_random_bits_follow_seed_step_and_site_and_nothing_else() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))

    def run(*, seed: int = 0, step: int = 1, name: str = "a", before: int = 0) -> Tensor:
        sites = table(seed=seed)
        for number in range(before):
            sites.add(site(name=f"other{number}"), is_training=True)
        for _ in range(step):
            sites.begin_step()
        return noisy(sites, name, Role.ACTIVATION, values)

    assert torch.equal(run(), run(before=5))
    for other in (run(seed=1), run(step=2), run(name="b")):
        assert not torch.equal(run(), other)


def test_resuming_goes_on_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(64, generator=generator) * 2.0**n for n in range(8)]

    def train(sites: SiteTable, part: list[Tensor]) -> list[Tensor]:
        store = sites.add(site(rounding=Rounding.STOCHASTIC), is_training=True)
        rounded = []
        for batch in part:
            sites.begin_step()
            rounded.append(batch.clone())
            store(rounded[-1])
        return rounded

    whole = train(table(), batches)
    first = table()
    head = train(first, batches[:4])
    saved = first.state_dict()
    assert head[-1].equal(whole[3])
    second = table()
    second.load_state_dict(saved)
    tail = train(second, batches[4:])
    assert all(a.equal(b) for a, b in zip(head + tail, whole, strict=True))
    # Saving, too, changes nothing.
    assert all(a.equal(b) for a, b in zip(train(first, batches[4:]), tail, strict=True))


def test_a_checkpoint_of_another_history_is_refused() -> None:
    with pytest.raises(BackendError, match="holds 4 steps of magnitudes, but .*amax_history=8"):
        table(history=8).load_state_dict(table(history=4).state_dict())


def test_a_reading_tells_what_was_lost() -> None:
    sites = table(read=2)
    store = sites.add(site(bias=7), is_training=True)
    values = torch.tensor([1000.0, 480.0, 1.0, 1.05, 2.0**-11, 0.0, -3.0, float("nan")])
    for step in (1, 2):
        sites.begin_step()
        store(values.clone())
        reading = sites.read()
        assert len(reading) == (step == 2)
    (found,) = reading
    assert sites.read() == ()
    assert (found.layer, found.op, found.role) == ("net", "relu", "activation")
    assert (found.format, found.rounding, found.bias) == ("cfloat8_1_4_3", "nearest", 7)
    assert found.num_elements == 16
    assert found.saturated_share == found.nan_share == found.underflowed_share == 1 / 8
    assert found.amax == 1000.0
    # Smallest denormal 2^-9, largest number 1.875 * 2^8.
    assert found.representable_exponents == (-9, 8)
    lost = 520.0**2 + (1.05 - 1.0) ** 2 + 2.0**-22
    kept = 1000.0**2 + 480.0**2 + 1 + 1.05**2 + 2.0**-22 + 9
    assert found.snr_db == pytest.approx(10 * np.log10(kept / lost), rel=1e-6)
    exponents = {9: 1, 8: 1, 0: 2, -11: 1, 1: 1}
    assert {
        index - 64: count for index, count in enumerate(found.exponent_histogram) if count
    } == exponents
