"""What an independent witness of a running step says: no op is lost, none reads unrounded numbers.

And that the witness is worth something: it notices every single tensor that is not rounded.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from fsdtrain_dojo.formats import CFLOAT8_1_4_3, CFLOAT8_1_5_2
from fsdtrain_dojo.site import Site
from fsdtrain_dojo.sites import SiteTable, Store
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.models.hydra_bev import HydraBev
from tests.backends.dojo.model_cases import CASES, build_model, each_case, make_inputs
from tests.backends.dojo.oracle import Trace, watch
from tests.backends.dojo.running import BF16, CFP8, emulate, run_step
from tests.backends.dojo.witness import cfloat_biases, formats_of

# Eager's names for what is captured under another: what each op of the graph runs as.
EAGER_OPS = {
    "_native_batch_norm_legit_functional": ("native_batch_norm",),
    "native_dropout": ("bernoulli", "div", "mul"),
    "native_dropout_backward": ("mul",),
}
RECIPES = pytest.mark.parametrize(
    "recipe",
    [pytest.param(BF16, id="bf16", marks=pytest.mark.slow), pytest.param(CFP8, id="cfp8")],
)


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def watch_emulated(module: nn.Module, inputs: Any, recipe: Mapping[str, Any]) -> Trace:
    """The second step: the first one captures."""
    run_step(module, inputs)
    return watch(module, inputs, {role: rule["format"] for role, rule in recipe.items()})


@pytest.mark.parametrize(("format", "bits"), [(CFLOAT8_1_4_3, (4, 3)), (CFLOAT8_1_5_2, (5, 2))])
def test_witness_knows_the_formats(format: Any, bits: tuple[int, int]) -> None:
    """All values of a format at a bias fit; none between two of them does, nor one beyond."""
    for bias in (0, 5, 30, 63):
        values = sorted({float(format.value(code, bias)) for code in range(256)})
        exact = np.array(values, np.float32)
        assert set(cfloat_biases(exact, *bits)) == {bias}
        assert format.name in formats_of(exact)
        for extra in (
            1.5 * values[-1],
            0.5 * (values[-1] + values[-2]),
            0.5 * min(map(abs, values[:127])),
        ):
            assert not cfloat_biases(np.append(exact, np.float32(extra)), *bits)
    assert "bf16" not in formats_of(np.array([1 + 2**-8], np.float32))
    assert "bf16" in formats_of(np.array([1 + 2**-7, 3e38 * 0, 2**-126], np.float32))


@each_case("resnet", "vit", "convnext", "lstm", "gpt", "unet_index_add")
def test_no_op_is_lost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ops of the emulated step are those of eager's, but for a table of names."""
    formats = {role: rule["format"] for role, rule in BF16.items()}
    eager = build_model(CASES[name])
    with sdpa_kernel(SDPBackend.MATH), monkeypatch.context() as patch:
        # oneDNN has one op for a whole LSTM layer.
        patch.setattr(torch.backends.mkldnn, "enabled", name != "lstm")
        wanted = watch(eager, make_inputs(), formats).op_counts()
    emulated = build_model(CASES[name])
    emulate(emulated, BF16)
    found: Counter[str] = Counter()
    for op, count in watch_emulated(emulated, make_inputs(), BF16).op_counts().items():
        for each in EAGER_OPS.get(op, (op,)):
            found[each] += count
    assert found == wanted


@RECIPES
@each_case("resnet", "vit", "convnext", "lstm", "gpt", "unet_index_add")
def test_nothing_is_read_unrounded(name: str, recipe: dict[str, Any]) -> None:
    model = build_model(CASES[name])
    emulate(model, recipe)
    trace = watch_emulated(model, make_inputs(), recipe)
    assert not trace.faults
    # Coordinates and the loss are a small part of the step.
    assert trace.num_exempt < 0.25 * trace.num_values
    # The same step as it is without us is full of faults.
    formats = {role: rule["format"] for role, rule in recipe.items()}
    faults = watch(build_model(CASES[name]), make_inputs(), formats).faults
    assert len(faults) > 25


@each_case("resnet", "gpt")
def test_nothing_is_read_unrounded_when_computed_again(name: str) -> None:
    plain, model = build_model(CASES[name]), build_model(CASES[name], is_checkpointed=True)
    emulate(plain, CFP8)
    emulate(model, CFP8)
    trace = watch_emulated(model, make_inputs(), CFP8)
    assert not trace.faults
    # It is computed again, indeed.
    once = watch_emulated(plain, make_inputs(), CFP8).op_counts()
    again = trace.op_counts()
    matrix_ops = ("convolution", "mm", "addmm", "bmm")
    assert sum(again[op] for op in matrix_ops) > sum(once[op] for op in matrix_ops)


@each_case("resnet", "unet_index_add")
def test_nothing_is_read_unrounded_in_validation(name: str) -> None:
    """Every bias is chosen from the tensor itself then, without a history."""
    model = build_model(CASES[name]).eval()
    emulate(model, CFP8)
    with torch.no_grad():
        model(make_inputs())
    trace = watch(model, make_inputs(), {role: rule["format"] for role, rule in CFP8.items()})
    assert not trace.faults
    assert not any(event.is_second_half for event in trace.events if event.has_floats)


class LossOf(nn.Module):
    def __init__(self, network: HydraBev) -> None:
        super().__init__()
        self.step = TrainingStep(network)

    def forward(self, batch: ClipBatch) -> Tensor:
        return self.step(batch).loss


@RECIPES
def test_nothing_of_hydra_bev_is_read_unrounded(
    make_network: Callable[..., HydraBev],
    make_batch: Callable[..., ClipBatch],
    recipe: dict[str, Any],
) -> None:
    model = LossOf(make_network())
    emulate(model, recipe)
    trace = watch_emulated(model, make_batch(), recipe)
    assert not trace.faults


class Saboteur:
    """Leaves out the rounding of one site, and notes whether that made a difference."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left_out = ""
        self.has_changed = False
        add = SiteTable.add

        def add_store(table: SiteTable, site: Site, *, is_training: bool) -> Store:
            store = add(table, site, is_training=is_training)

            def store_or_not(tensor: Tensor) -> None:
                before = tensor.clone() if site.name == self.left_out else None
                store(tensor)
                if before is not None:
                    self.has_changed = self.has_changed or not torch.equal(before, tensor)
                    tensor.copy_(before)

            return store_or_not

        monkeypatch.setattr(SiteTable, "add", add_store)


@each_case("resnet")
def test_every_store_that_is_left_out_is_noticed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saboteur = Saboteur(monkeypatch)
    model, inputs = build_model(CASES[name]), make_inputs()
    table = emulate(model, CFP8)
    assert not watch_emulated(model, inputs, CFP8).faults
    num_noticed = 0
    for site in table.sites:
        saboteur.left_out, saboteur.has_changed = site.name, False
        faults = watch_emulated(model, inputs, CFP8).faults
        assert bool(faults) == saboteur.has_changed, site
        num_noticed += bool(faults)
    assert num_noticed > 0.8 * len(table.sites)
