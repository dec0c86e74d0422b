"""Two profiles side by side: every op once, nothing of different origin added up."""

import math
from typing import Any

import pytest

from fsdtrain.comparison.op_names import main_op
from fsdtrain.comparison.performance import compare_performance
from fsdtrain.comparison.record import CostRow, PerformanceComparison
from fsdtrain.step_profile import MemoryUse, OpProfile, StepProfile


def make_op(name: str, time_s: float, **changes: Any) -> OpProfile:
    fields: dict[str, Any] = {
        "shapes": "4x3x8x8", "dtype": "fp32", "num_calls": 1, "flops": None, "num_bytes": 100,
        "bound_by": None, "phase": "forward", "layer": "network.stem",
    }  # fmt: skip
    return OpProfile(name=name, time_s=time_s, **fields | changes)


def make_profile(*ops: OpProfile, **changes: Any) -> StepProfile:
    fields: dict[str, Any] = {
        "backend": "cpu", "device": "a CPU", "origin": "MEASURED",
        "step_time_s": sum(op.time_s for op in ops),
    }  # fmt: skip
    return StepProfile(ops=ops, **fields | changes)


MEASURED = make_profile(
    make_op("aten::conv2d", 0.001),
    make_op("aten::mkldnn_convolution", 0.009, shapes="4x3x64x64, 8x3x3x3"),
    make_op("aten::relu_", 0.002),
    make_op("aten::convolution_backward", 0.02, phase="backward"),
    make_op("aten::addcdiv_", 0.003, phase="optimizer", layer=None, num_bytes=None),
    data_wait_s=0.01,
    flops=1e9,
)
MODELLED = make_profile(
    make_op("convolution + relu", 1e-5, bound_by="matrix"),
    make_op("convolution_backward", 2e-5, phase="backward", bound_by="matrix"),
    make_op("mul + lerp", 1e-6, phase="optimizer", layer="network.stem", bound_by="latency"),
    make_op("sqrt", 1e-6, phase="optimizer", layer="network.head", bound_by="latency"),
    backend="dojo",
    device="a tile",
    origin="MODELLED",
    flops=1e9,
    peak_flops_per_s=1e14,
    roofline_s=1.6e-5,
    energy_j=0.5,
    memory=(MemoryUse(name="SRAM", peak_bytes=1000),),
    validation="the model is off by 4.8 %",
)


def find(rows: tuple[CostRow, ...], name: str, word: str = "") -> CostRow:
    (row,) = [row for row in rows if row.name == name and word in row.detail]
    return row


@pytest.fixture(scope="module")
def found() -> PerformanceComparison:
    return compare_performance(MEASURED, MODELLED, num_samples=4)


def test_totals_have_both_sides_and_their_ratio(found: PerformanceComparison) -> None:
    step = find(found.totals, "step time")
    assert (step.a, step.b) == (MEASURED.step_time_s, MODELLED.step_time_s)
    assert (step.a_origin, step.b_origin) == ("MEASURED", "MODELLED")
    assert step.ratio == pytest.approx(3.2e-5 / 0.035)
    rate = find(found.totals, "samples a second")
    assert (rate.a, rate.b) == (pytest.approx(4 / 0.035), pytest.approx(4 / 3.2e-5))
    assert find(found.totals, "share of the roofline").b == pytest.approx(0.5)
    assert find(found.totals, "share of the peak rate").b == pytest.approx(1e9 / 3.2e-5 / 1e14)


def test_what_one_side_cannot_tell_is_none_and_has_no_ratio(found: PerformanceComparison) -> None:
    for name, a, b in (
        ("energy", None, 0.5), ("wait for data", 0.01, None), ("peak of SRAM", None, 1000),
    ):  # fmt: skip
        row = find(found.totals, name)
        assert (row.a, row.b, row.ratio, row.ratio_note) == (a, b, None, "")


def test_a_ratio_of_two_origins_is_labelled_with_the_models_error(
    found: PerformanceComparison,
) -> None:
    label = "measured against modelled: the model is off by 4.8 %"
    assert find(found.totals, "step time").ratio_note == label
    assert find(found.ops, "convolution").ratio_note == "measured against modelled"
    assert label in found.notes[0]
    assert label in found.sentence
    swapped = compare_performance(MODELLED, MEASURED, num_samples=4)
    assert find(swapped.totals, "step time").ratio_note == label


def test_a_ratio_of_one_origin_needs_no_label() -> None:
    found = compare_performance(MEASURED, MEASURED, num_samples=4)
    assert {row.ratio_note for row in (*found.totals, *found.bounds, *found.ops)} == {""}
    assert all(row.ratio in (1, None) for row in found.ops)
    assert "b is as fast as a" in found.sentence


def test_a_model_that_says_nothing_of_its_error_is_told(found: PerformanceComparison) -> None:
    silent = make_profile(make_op("mm", 1e-5), origin="MODELLED")
    notes = compare_performance(MEASURED, silent, num_samples=4).notes
    assert "the model's error is not known" in notes[0]


def test_ops_match_by_phase_layer_and_name(found: PerformanceComparison) -> None:
    forward = find(found.ops, "convolution")
    assert (forward.a, forward.b) == (pytest.approx(0.010), 1e-5)
    assert "network.stem; forward; 4x3x64x64, 8x3x3x3" in forward.detail
    assert "b fuses convolution + relu" in forward.detail
    backward = find(found.ops, "convolution_backward")
    assert (backward.a, backward.b) == (0.02, 2e-5)


def test_the_update_is_one_row_however_it_is_divided(found: PerformanceComparison) -> None:
    update = find(found.ops, "update of the weights")
    assert (update.a, update.b) == (0.003, pytest.approx(2e-6))


def test_an_op_of_one_side_alone_says_so(found: PerformanceComparison) -> None:
    relu = find(found.ops, "relu")
    assert (relu.a, relu.b, relu.ratio) == (0.002, None, None)
    assert relu.detail.endswith("only a has it by itself")


@pytest.mark.parametrize("other", [MEASURED, MODELLED])
def test_each_sides_times_add_up_to_its_step(other: StepProfile) -> None:
    found = compare_performance(MEASURED, other, num_samples=4)
    for rows in (found.ops, found.bounds):
        assert math.fsum(row.a or 0 for row in rows) == pytest.approx(MEASURED.step_time_s)
        assert math.fsum(row.b or 0 for row in rows) == pytest.approx(other.step_time_s)


def test_the_largest_difference_comes_first() -> None:
    slower = make_profile(
        make_op("aten::mm", 0.010), make_op("aten::cos", 0.005), make_op("aten::sin", 0.001)
    )
    faster = make_profile(
        make_op("aten::mm", 0.009), make_op("aten::cos", 0.001), make_op("aten::sin", 0.001)
    )
    found = compare_performance(slower, faster, num_samples=1)
    assert [row.name for row in found.ops] == ["cos", "mm", "sin"]


def test_across_origins_shares_of_the_step_decide() -> None:
    """a: mm has most of the time on both sides; only cos has another share of the step."""
    a = make_profile(make_op("mm", 0.080), make_op("cos", 0.010), make_op("sin", 0.010))
    ops = (make_op("mm", 8e-5), make_op("cos", 2e-5), make_op("sin", 1e-12))
    b = make_profile(*ops, origin="MODELLED")
    found = compare_performance(a, b, num_samples=1)
    assert [row.name for row in found.ops][-1] == "mm"
    assert "ordered by the difference of their shares" in found.notes[0]


def test_bounds_are_by_what_bounds_them(found: PerformanceComparison) -> None:
    assert [row.name for row in found.bounds] == ["not told", "matrix", "latency"]
    assert find(found.bounds, "matrix").b == pytest.approx(3e-5)
    assert find(found.bounds, "matrix").a is None


def test_bytes_that_some_ops_do_not_tell_are_noted(found: PerformanceComparison) -> None:
    assert find(found.totals, "bytes read and written by ops").a == 400
    assert any("the bytes of a are of the 4 of its 5 ops" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("aten::relu_", "relu"),
        ("aten.convolution.default", "convolution"),
        ("aten::__and__", "__and__"),
        ("aten::_slow_conv2d_forward", "convolution"),
        ("convolution + add + relu", "convolution"),
        ("prims.fma", "fma"),
        ("aten::batch_norm", "native_batch_norm"),
        ("triton_poi_fused_add_0", "triton_poi_fused_add_0"),
    ],
)
def test_an_op_has_one_name(name: str, op: str) -> None:
    assert main_op(name) == op
