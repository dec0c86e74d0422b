"""Finding and loading backends: cheap, and one sentence where one cannot run."""

import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

import fsdtrain.backend
from fsdtrain.backend import Backend, BackendError, installed_backends, load_backend
from fsdtrain.errors import UserError
from fsdtrain.ops.table import OpTable

INSTALLED = installed_backends()
UNAVAILABLE = [name for name, entry in INSTALLED.items() if not entry.availability.is_available]


def test_options_it_does_not_have_are_one_sentence(backend: Backend) -> None:
    with pytest.raises(UserError, match="no_such_option") as caught:
        load_backend(backend.name, {"no_such_option": 1})
    assert "\n" not in str(caught.value)
    assert backend.name in str(caught.value)


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_what_cannot_run_refuses_with_its_own_sentence(name: str) -> None:
    detail = INSTALLED[name].availability.detail
    with pytest.raises(UserError) as caught:
        load_backend(name, {})
    assert str(caught.value) == f"backend {name!r} is not available: {detail}"
    assert detail
    assert "\n" not in detail


def test_a_backend_that_is_not_installed_is_named_beside_those_that_are() -> None:
    with pytest.raises(UserError, match=r"'tpu' is not installed; installed are .*cpu"):
        load_backend("tpu", {})


@pytest.mark.parametrize(
    "options", [{"precision": "fp64"}, {"precision": 32}, {"devices": 0}, {"devices": -1}]
)
def test_cpu_names_the_wrong_value_and_the_allowed_ones(options: dict[str, Any]) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(BackendError, match=rf"backend\.{name}={value!r}.*(fp32|at least 1)"):
        load_backend("cpu", options)


BROKEN_MODULES = {
    "missing": ("import no_such_driver", "no_such_driver"),
    "syntax": ("class Backend(:", "SyntaxError"),
    "raises": ("raise RuntimeError('no driver')", "no driver"),
    "library": ("import ctypes; ctypes.CDLL('libnothere.so')", "libnothere.so"),
    "name": ("Backend = undefined", "undefined"),
    "nothing": ("", "Backend"),
    "function": ("def Backend(): pass", "no subclass"),
    "stranger": ("class Backend: pass", "no subclass"),
    "asks": (
        """
from fsdtrain.backend import Backend as Contract
class Backend(Contract):
    @classmethod
    def availability(cls): raise OSError("device busy\\nand more")
""",
        "device busy",
    ),
}


@pytest.mark.parametrize("kind", list(BROKEN_MODULES))
def test_a_broken_backend_is_listed_and_stops_no_other(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, word = BROKEN_MODULES[kind]
    module = f"broken_backend_{kind}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    group = fsdtrain.backend.ENTRY_POINT_GROUP
    points = [
        EntryPoint("broken", f"{module}:Backend", group),
        *entry_points(group=group),
    ]
    monkeypatch.setattr(fsdtrain.backend, "entry_points", lambda group: points)
    found = installed_backends()
    assert word in found["broken"].availability.detail
    assert "\n" not in found["broken"].availability.detail
    assert load_backend("cpu", {}).name == "cpu"
    with pytest.raises(UserError, match="'broken' is not available"):
        load_backend("broken", {})


LOAD_ALONE = """
import sys
import fsdtrain.backend
before = set(sys.modules)
from importlib.metadata import entry_points
for point in entry_points(group=fsdtrain.backend.ENTRY_POINT_GROUP):
    if point.name == sys.argv[1]:
        backend_class = point.load()
        backend_class.availability()
import torch
assert not torch.cuda.is_initialized(), "a device was initialised"
print(len(set(sys.modules) - before), *sorted(set(sys.modules) & set(sys.argv[2:])))
"""
HEAVY = ("lightning", "triton", "numba", "hydra", "webdataset", "av", "torch._inductor.compile_fx")


@pytest.mark.parametrize("name", list(INSTALLED))
def test_importing_a_backend_is_cheap_and_touches_no_device(name: str) -> None:
    command = [sys.executable, "-c", LOAD_ALONE, name, *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    num_modules, *heavy = done.stdout.split()
    assert heavy == []
    assert int(num_modules) < 50


def test_the_references_are_the_default() -> None:
    table = load_backend("cpu", {}).op_table()
    assert table == OpTable()
