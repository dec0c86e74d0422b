"""What may import what: light doors, no pickle, no shell, and nothing that cannot be imported."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import fsdtrain

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "fsdtrain").rglob("*.py")) + sorted((ROOT / "backends").rglob("*.py"))
MODULES = [info.name for info in pkgutil.walk_packages(fsdtrain.__path__, "fsdtrain.")]
HEAVY = ("torch", "lightning", "webdataset", "av", "numba", "plotly", "tensorboard", "numpy")


def imported_by(code: str) -> set[str]:
    """Top-level packages in sys.modules after `code` in a fresh interpreter."""
    tail = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", f"{code}\n{tail}"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", MODULES)
def test_every_module_can_be_imported(module: str) -> None:
    import_module(module)


def test_the_door_is_light() -> None:
    """`fsdtrain --help` and a wrong command wait for nothing heavy."""
    code = "from fsdtrain.__main__ import main; main(['--help']); main(['no-such-command'])"
    assert imported_by(code).isdisjoint(HEAVY)


def test_the_contract_needs_torch_and_no_trainer() -> None:
    found = imported_by("import fsdtrain.backend, fsdtrain.ops.table")
    assert "torch" in found
    assert found.isdisjoint({"lightning", "hydra", "webdataset", "av", "numba"})


def test_models_need_no_data_plane() -> None:
    found = imported_by("import fsdtrain.models.hydra_bev, fsdtrain.heads.vehicle_segmentation")
    assert found.isdisjoint({"lightning", "hydra", "webdataset", "av"})


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(), filename=str(path)))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module}
    return found


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_is_unpickled_and_no_shell_is_spawned(path: Path) -> None:
    forbidden = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "compile"}
    for name, call in calls(path):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        assert name not in forbidden, f"line {call.lineno}"
        assert "shell" not in keywords, f"line {call.lineno}"
        if name == "torch.load":
            assert ast.unparse(keywords["weights_only"]) == "True", f"line {call.lineno}"
        if name in ("np.load", "numpy.load"):
            allows = keywords.get("allow_pickle")
            assert allows is None or ast.unparse(allows) == "False", f"line {call.lineno}"
    # Named for its exception, which torch's safe reader raises.
    is_reader = relative(path) == "fsdtrain/engine/checkpoints.py"
    assert is_reader or not imports(path) & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_environment_variable_changes_behaviour(path: Path) -> None:
    """Everything speaks through knobs, but for what others make speak through it."""
    if relative(path) in (
        "fsdtrain/hydra_app.py",  # Hydra's completion
        "backends/fsdtrain_cuda/numerics.py",  # torch hands cuBLAS its workspace that way
        "fsdtrain/comparison/seeds.py",  # puts back what a training has set
    ):
        return
    names = {ast.unparse(node) for node in nodes(path) if isinstance(node, ast.Attribute)}
    assert not names & {"os.environ", "os.getenv"}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=relative)
def test_packages_do_no_work_on_import(path: Path) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign)
    assert all(isinstance(node, allowed) for node in ast.parse(path.read_text()).body)


def test_import_linter_agrees() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
