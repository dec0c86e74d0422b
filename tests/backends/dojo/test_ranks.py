"""Two processes round their shares of a batch to what one process makes of the whole batch."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch

SCRIPT = Path(__file__).parent / "one_rank.py"


def one_rank() -> ModuleType:
    spec = spec_from_file_location("one_rank", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rounding_does_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    results = [tmp_path / f"rank{rank}.pt" for rank in range(2)]
    processes = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), tmp_path / "store", result])
        for rank, result in enumerate(results)
    ]
    for process in processes:
        assert process.wait(timeout=120) == 0
    whole = one_rank().train(0, 1)
    first, second = (torch.load(result, weights_only=True) for result in results)
    assert torch.equal(torch.cat([first["shares"], second["shares"]], 1), whole["shares"])
    for name in ("weights", "history", "trained"):
        assert torch.isfinite(whole[name]).all(), name
        assert torch.equal(first[name], whole[name]), name
        assert torch.equal(second[name], whole[name]), name
