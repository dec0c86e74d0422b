"""The model of a TPU v3 core beside cycles that others measured on one."""

import importlib.util
from pathlib import Path

import pytest
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.timing.fabric import build_fabric

TOOL = Path(__file__).parents[4] / "tools" / "compare_silicon.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("compare_silicon", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ratios(tool):
    fabric = build_fabric(read_machine("tpu_v3"))
    return {
        size: tool.time_product(fabric, size)[0].seconds * fabric.clock_hz / published
        for size, published in tool.PUBLISHED.items()
    }


def test_products_take_the_published_cycles(ratios):
    assert sum(abs(ratio - 1) for ratio in ratios.values()) / len(ratios) <= 0.11
    assert all(0.85 <= ratio <= 1.15 for ratio in ratios.values())


def test_small_products_wait_for_memory_large_ones_for_the_arrays(tool):
    fabric = build_fabric(read_machine("tpu_v3"))
    bounds = {size: tool.time_product(fabric, size)[0].bound.value for size in tool.PUBLISHED}
    assert bounds == {256: "HBM", 512: "HBM", 1024: "matrix", 2048: "matrix"}
