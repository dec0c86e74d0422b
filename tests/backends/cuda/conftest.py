"""Where the Triton kernels run in tests: on the GPU, or else on CPU tensors in the interpreter.

tests/conftest.py switches the interpreter on before anything imports Triton.
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def device() -> str:
    """Of the tensors that kernels get: "cuda", or "cpu" where Triton interprets."""
    pytest.importorskip("triton")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def untuned() -> Iterator[None]:
    """On a GPU, take each kernel's first configuration: tests are no time to choose."""
    tuning = pytest.importorskip("fsdtrain_cuda.tuning")
    tuning.switch_tuning(False)
    yield
    tuning.switch_tuning(True)
