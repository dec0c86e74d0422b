"""Captures leave nothing in torch.compile's caches for the next test."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()
