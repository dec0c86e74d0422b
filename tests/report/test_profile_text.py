"""The terminal's view of a profile: columns that say something, and sums that add up."""

from typing import Any

from rich.console import Console, RenderableType

from fsdtrain.report.profile_text import (
    explanations,
    op_columns,
    ops_table,
    summary,
    summary_lines,
    time_by_bound,
)
from fsdtrain.step_profile import MemoryUse, OpProfile, StepProfile


def make_op(name: str, time_s: float, **fields: Any) -> OpProfile:
    known: dict[str, Any] = {"flops": None, "num_bytes": None, "bound_by": None} | fields
    return OpProfile(
        name=name, shapes="2x3, 3x4", dtype="fp32", num_calls=1, time_s=time_s, **known
    )


def make_profile(*ops: OpProfile, **fields: Any) -> StepProfile:
    return StepProfile(
        backend="b", device="d", origin="MODELLED", ops=ops, **({"step_time_s": 2.0} | fields)
    )


def text(what: RenderableType, width: int = 200) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


def headings(*ops: OpProfile) -> list[str]:
    return [column.heading for column in op_columns(ops)]


def test_the_table_leaves_out_what_the_backend_cannot_tell() -> None:
    plain = ["op", "shapes", "time"]
    assert headings(make_op("aten::mm", 1.0)) == [*plain, "share"]
    assert headings(make_op("aten::mm", 0.0, flops=24)) == plain
    assert headings(make_op("mm", 1.0, flops=24), make_op("relu", 1.0)) == [
        *plain,
        "share",
        "FLOP/s",
    ]
    full = make_op(
        "conv.dw", 1.0, flops=24, phase="backward", layer="stem", utilisation=0.5, roofline_s=0.25,
        bound_by="HBM",
    )  # fmt: skip
    assert headings(full) == [
        "op", "layer", "shapes", "phase", "time", "share", "peak", "roof", "bound",
    ]  # fmt: skip


def test_the_number_of_calls_is_shown_where_one_was_called_twice() -> None:
    twice = OpProfile(
        name="mm", shapes="", dtype="fp32", num_calls=2, time_s=1.0, flops=None, num_bytes=None,
        bound_by=None,
    )  # fmt: skip
    assert "calls" in headings(make_op("mm", 1.0), twice)


def test_the_type_is_shown_where_there_are_several() -> None:
    other = OpProfile(
        name="mm", shapes="", dtype="bf16", num_calls=1, time_s=1.0, flops=None, num_bytes=None,
        bound_by=None,
    )  # fmt: skip
    assert "type" in headings(make_op("mm", 1.0), other)


def test_a_row_of_the_table() -> None:
    ops = (
        make_op("aten::mm[0]", 1.5, utilisation=0.5, roofline_s=0.6, bound_by="HBM"),
        make_op("relu", 0.5),
        make_op("left_out", 0.0),
    )
    shown = text(ops_table(make_profile(*ops), num_samples=3, num_shown=2))
    assert "b, one step of 3 clips: 2 s (MODELLED)" in shown
    (row,) = [line for line in shown.splitlines() if "mm[0]" in line]
    cells = ["mm[0]", "2x3,", "3x4", "1.5", "s", "75.0%", "50.0%", "40.0%", "HBM"]
    assert row.split() == cells
    assert "left_out" not in shown


def test_no_figure_is_cut_on_a_narrow_terminal() -> None:
    op = make_op(
        "a_rather_long_name_of_an_op", 1.2345, phase="optimizer", layer="network.backbone.stem.0",
        utilisation=0.123, roofline_s=0.5, bound_by="SRAM port",
    )  # fmt: skip
    shown = text(ops_table(make_profile(op), num_samples=1, num_shown=9, width=80), width=80)
    for figure in ("1.23 s", "12.3%", "40.5%", "100.0%", "optimizer", "SRAM port"):
        assert figure in shown


def test_shapes_are_shown_where_there_is_room_or_no_layer() -> None:
    def shown(width: int, layer: str | None) -> str:
        profile = make_profile(make_op("mm", 1.0, layer=layer))
        return text(ops_table(profile, num_samples=1, num_shown=9, width=width), width=width)

    assert "2x3" in shown(120, "stem")
    assert "2x3" not in shown(80, "stem")
    assert "2x3" in shown(80, None)


def test_time_by_bound_adds_up_and_ranks() -> None:
    profile = make_profile(
        make_op("a", 3.0, bound_by="HBM", phase="backward"),
        make_op("b", 1.0, bound_by="matrix", phase="forward"),
        make_op("c", 2.5, bound_by="matrix", phase="backward"),
        make_op("d", 0.5, phase="forward"),
    )
    found = time_by_bound(profile)
    assert list(found) == ["forward", "backward"]
    assert found["forward"] == {"matrix": 1.0, "not known": 0.5}
    assert list(found["backward"].items()) == [("matrix", 2.5), ("HBM", 3.0)]
    assert sum(sum(times.values()) for times in found.values()) == 7.0


def test_the_summary_says_what_is_known() -> None:
    op = make_op("a", 1.0, bound_by="HBM", phase="forward")
    lines = dict(
        summary_lines(
            make_profile(
                op,
                flops=1e12,
                peak_flops_per_s=2e12,
                roofline_s=0.5,
                energy_j=300.0,
                power_limit_watts=400.0,
                memory=(MemoryUse(name="HBM", peak_bytes=8 * 10**9, capacity_bytes=32 * 10**9),),
                busy_s={"link": 0.2, "HBM": 1.0},
            )
        )
    )
    assert lines == {
        "step": "2 s, MODELLED",
        "ops": "forward 1 s (100.0%), backward 0 ns (0.0%), optimizer 0 ns (0.0%)",
        "outside of ops": "1 s",
        "work": "1 TFLOP, 25.0% of the peak of 2 TFLOP/s",
        "roofline": "500 ms, 25.0% of the step",
        "limited by": "HBM 1 s (100.0%)",
        "busy": "HBM 50.0%, link 10.0%",
        "HBM, at most": "8 GB of 32 GB (25.0%)",
        "energy": "300 J, 150 W on average of 400 W",
    }
    assert dict(summary_lines(make_profile(make_op("a", 2.0)))) == {"step": "2 s, MODELLED"}


def test_notes_are_not_left_out() -> None:
    assert "! 3 GB were [spilled]" in text(summary(make_profile(notes=("3 GB were [spilled]",))))


def test_explanations_are_of_the_ops_that_were_asked_for() -> None:
    profile = make_profile(
        make_op("conv", 2.0, layer="stem.0", explanation=("SUMMA [2x2]: 3 us",)),
        make_op("relu", 1.0, layer="stem.1", line="model.py:7"),
    )
    assert "SUMMA [2x2]: 3 us" in text(explanations(profile, "conv"))
    by_layer = text(explanations(profile, "stem."))
    assert "conv" in by_layer
    assert "relu" in by_layer
    assert "model.py:7" in text(explanations(profile, "py:7"))
    assert "b gives no reasons" in text(explanations(profile, "relu"))
    assert "no op's name, layer or line holds this; e.g. conv, relu" in text(
        explanations(profile, "attention")
    )


def test_many_explanations_are_cut_short() -> None:
    profile = make_profile(*(make_op(f"op{number}", 1.0) for number in range(30)))
    assert "... and 10 more in profile.json" in text(explanations(profile, "op"))
