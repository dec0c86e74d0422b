"""The installed backends, one after the other; one that cannot run is skipped with its sentence."""

from collections.abc import Iterator

import pytest
import torch

from fsdtrain.backend import Backend, installed_backends, load_backend

INSTALLED = installed_backends()


@pytest.fixture(params=list(INSTALLED))
def backend(request: pytest.FixtureRequest) -> Backend:
    entry = INSTALLED[request.param]
    if not entry.availability.is_available:
        pytest.skip(f"backend {entry.name!r} is not available: {entry.availability.detail}")
    return load_backend(entry.name, {})


@pytest.fixture(autouse=True)
def deterministic_switch() -> Iterator[None]:
    """`Trainer(deterministic=True)` switches the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
