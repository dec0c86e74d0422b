"""Scripts that run one op again, in a process of their own."""

import math
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from fsdtrain_cpu import CpuBackend
from torch import Tensor, nn

from fsdtrain.backend import Backend, load_backend
from fsdtrain.comparison.bisect import describe_unit
from fsdtrain.comparison.errors import compare_tensors
from fsdtrain.comparison.repro import find_unit, write_repro
from fsdtrain.comparison.rerun import load_tensors, save_tensors
from fsdtrain.comparison.script import SideBackend, write_script
from fsdtrain.errors import UserError
from fsdtrain.step_graph.graph import GraphOp, OpCall, Operand, StepGraph, run_freely
from fsdtrain.step_graph.units import Unit, UnitSide, find_units

CPU = SideBackend(name="cpu", options={"precision": "fp32"})
RECIPE = {
    "activation": {"format": "cfloat8_1_4_3"},
    "weight": {"format": "cfloat8_1_4_3", "rounding": "stochastic"},
    "vector": {"format": "bf16"},
}
DOJO = SideBackend(name="dojo", options={"recipe": RECIPE, "seed": 3})


class Net(nn.Module):
    """A convolution in channels-last order, a norm and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).relu().square().mean()


def graph_of(backend: Backend) -> StepGraph:
    torch.manual_seed(7)
    net = Net()
    images = torch.randn(2, 3, 9, 6).to(memory_format=torch.channels_last)
    return backend.step_graph(net, images)


def run_script(script: Path) -> str:
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False,
        cwd=script.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(script: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """In this process, which is faster."""
    runpy.run_path(str(script))
    return capsys.readouterr().out


def figures(exact: Tensor, x: Tensor) -> str:
    errors = compare_tensors(exact, x)
    if errors.is_bitwise_equal:
        return "equal in every bit"
    assert errors.snr_db is not None
    assert errors.cosine is not None
    assert errors.max_over_rms is not None
    return (
        f"SNR {errors.snr_db:.7g} dB, cosine {errors.cosine:.7g}, "
        f"max|d|/RMS {errors.max_over_rms:.7g}"
    )


def units_of(*options: SideBackend) -> tuple[dict[str, Tensor], Sequence[Unit]]:
    """Values of the reference, and the units, of the sides that are given."""
    backends = [load_backend(each.name, each.options) for each in options]
    reference, a, b = map(graph_of, (CpuBackend(), *backends))
    return run_freely(reference), find_units(reference, a, b)


def check_figures(printed: str, unit: Unit, values: Mapping[str, Tensor]) -> None:
    exact = unit.sides["reference"].run_exactly(values)
    a, b = unit.run("a", values), unit.run("b", values)
    for name, reference in exact.items():
        assert f"{name} {list(reference.shape)}\n" in printed
        assert f"a against double precision  {figures(reference, a[name])}" in printed
        assert f"b against double precision  {figures(reference, b[name])}" in printed
        assert f"b against a                 {figures(a[name], b[name])}" in printed


@pytest.mark.parametrize("op", ["convolution_backward", "batch_norm"])
def test_a_script_prints_what_the_comparison_finds(
    op: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU, and on Dojo with weights and activations in 8 bits."""
    values, units = units_of(CPU, DOJO)
    script = write_repro(units, values, op, tmp_path / "repro", a=CPU, b=DOJO)
    unit = find_unit(units, op)
    printed = run_script(script) if op == "batch_norm" else run_here(script, capsys)
    assert printed.startswith(describe_unit(unit))
    assert "a: cpu, MEASURED on " in printed
    assert "b: dojo, EMULATED on " in printed
    check_figures(printed, unit, values)
    text = script.read_text()
    assert f"torch.ops.{unit.op}" in text
    assert "stored(" in text
    assert "pickle" not in text
    assert "python repro.py" in (tmp_path / "repro/README.md").read_text()


def test_a_side_that_casts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mixed precision: a convolution in BF16, of values that the reference has in float32."""
    mixed = SideBackend(name="cpu", options={"precision": "bf16-mixed"})
    values, units = units_of(CPU, mixed)
    unit = next(each for each in units if "convolution_backward" in each.op)
    script = write_repro(units, values, unit.name, tmp_path, a=CPU, b=mixed)
    check_figures(run_here(script, capsys), unit, values)


NASTY = "x\"]; import os; os.abort() #'\\\n\u20ac"


def unit_of(call: OpCall | None, name: str = "y", given: Sequence[str] = ()) -> Unit:
    """The same op on all sides."""
    op = GraphOp(
        name=name, op="aten.foo", phase="forward", layer=name, line="", inputs=tuple(given),
        outputs=(name + "y",), is_move=False, is_elementwise=True, formats=("float32",),
        run=lambda xs: (None,), run_exactly=lambda xs: (None,), call=call,
    )  # fmt: skip
    side = UnitSide(
        ops=(op,), names={each: each for each in given}, constants={},
        results=[(name + "y", name + "y")], formats={}, dtypes=dict.fromkeys(given),
        device=torch.device("cpu"),
    )  # fmt: skip
    return Unit(
        name=name, op=op.op, layer=name, line="", phase="forward", is_elementwise=True,
        inputs=tuple(given), outputs=(name + "y",), sides={"reference": side, "a": side, "b": side},
    )  # fmt: skip


def test_names_cannot_become_code(tmp_path: Path) -> None:
    call = OpCall(target="aten.mul.Tensor", arguments=(Operand(0), 2.0))
    unit = unit_of(call, name=NASTY, given=[NASTY])
    nasty = SideBackend(name="cpu", options={"precision": "fp32"})
    script = write_repro([unit], {NASTY: torch.rand(3)}, NASTY, tmp_path, a=nasty, b=nasty)
    assert script.read_bytes().isascii()
    assert "equal in every bit" in run_script(script)


def test_constants_of_one_side_come_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = unit_of(OpCall(target="aten.add.Tensor", arguments=(Operand(0), 1)), given=["x"])
    call = OpCall(target="aten.add.Tensor", arguments=(Operand(0), Operand(1)))
    op = replace(unit.sides["b"].ops[0], call=call, inputs=("x", "one"))
    b = replace(unit.sides["b"], ops=(op,), constants={"one": torch.ones(3)})
    unit = replace(unit, sides={**unit.sides, "b": b})
    script = write_repro([unit], {"x": torch.rand(3)}, "y", tmp_path, a=CPU, b=CPU)
    assert "b against a                 equal in every bit" in run_here(script, capsys)


def test_what_cannot_be_written_down_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"y \(aten.foo\) cannot be written down"):
        write_repro([unit_of(None)], {}, "y", tmp_path / "new", a=CPU, b=CPU)
    strange = unit_of(OpCall(target="aten.foo.default", arguments=(object(),)))
    with pytest.raises(UserError, match="type object cannot be written down"):
        write_repro([strange], {}, "y", tmp_path / "new", a=CPU, b=CPU)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (math.inf, "float('inf')"),
        ([1, None, True], "[1, None, True]"),
        (torch.float32, "torch.float32"),
        (torch.channels_last, "torch.channels_last"),
        (torch.device("cpu"), "torch.device('cpu')"),
        ("nearest'", '"nearest\'"'),
    ],
)
def test_arguments_are_literals(argument: object, expected: str) -> None:
    unit = unit_of(OpCall(target="aten.foo.default", arguments=(), keywords={"key": argument}))
    text = write_script("foo", {}, unit.sides, a=CPU, b=CPU)
    as_a = text.partition("def as_a")[2].partition("def as_b")[0]
    assert f"torch.ops.aten.foo.default(key={expected})" in as_a
    in_double = text.partition("def in_double")[2]
    if argument is torch.float32:
        assert "key=torch.float64" in in_double


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(3, 4).t(),
        torch.randn(3, 1).expand(3, 4),
        torch.randn(5).bfloat16(),
        torch.arange(6).reshape(2, 3),
        torch.tensor(True),
        torch.tensor([math.nan, -0.0, math.inf]),
        torch.empty(0, 3),
    ],
    ids=["channels last", "transposed", "expanded", "bf16", "int", "bool", "specials", "empty"],
)
def test_tensors_come_back_as_they_were(tensor: Tensor, tmp_path: Path) -> None:
    save_tensors({"a/b.c": tensor, "file": torch.zeros(1)}, tmp_path)
    loaded = load_tensors(str(tmp_path / "repro.py"))
    found = loaded["a/b.c"]
    assert found.dtype == tensor.dtype
    assert found.stride() == tensor.stride()
    torch.testing.assert_close(found, tensor, rtol=0, atol=0, equal_nan=True)
    assert list(loaded) == ["a/b.c", "file"]


def test_a_script_without_its_tensors_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks tensors\.npz"):
        load_tensors(str(tmp_path / "repro.py"))


@dataclass(frozen=True)
class Named:
    """What `find_unit` reads of a unit."""

    name: str
    layer: str
    op: str = "aten.convolution"
    phase: str = "forward"
    line: str = ""


UNITS = [
    Named("convolution", "net.stem.0"),
    Named("convolution_1", "net.stem.1"),
    Named("mul", "net.head", "aten.mul"),
    Named("convolution_2", "net.head"),
]


@pytest.mark.parametrize(
    ("op", "worst", "expected"),
    [
        ("convolution", (), "convolution"),
        ("net.stem", ("convolution_2", "convolution_1"), "convolution_1"),
        ("net.stem", (), "convolution"),
        ("head CONV", (), "convolution_2"),
        ("aten.mul", (), "mul"),
    ],
)
def test_the_worst_of_those_that_match(op: str, worst: tuple[str, ...], expected: str) -> None:
    assert find_unit(UNITS, op, worst=worst).name == expected  # type: ignore[arg-type]


def test_candidates_are_listed_where_nothing_matches() -> None:
    with pytest.raises(UserError, match="'convolutoin_1'; of 4 similar are convolution_1"):
        find_unit(UNITS, "convolutoin_1")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="these come first: mul, convolution"):
        find_unit(UNITS, "zzz", worst=["mul"])  # type: ignore[arg-type]
