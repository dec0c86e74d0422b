"""The model of a TPU v3 core beside cycles that others measured on one."""

import importlib.util
from pathlib import Path

import pytest
from fsdtrain_dojo.modelled_profile import VALIDATION

TOOL = Path(__file__).parents[4] / "tools" / "compare_silicon.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("compare_silicon", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def products(tool):
    return {size: tool.model_product(size) for size in tool.PUBLISHED}


def test_products_take_the_published_cycles(tool, products):
    ratios = [tool.cycles_of(products[size]) / cycles for size, cycles in tool.PUBLISHED.items()]
    assert sum(abs(ratio - 1) for ratio in ratios) / len(ratios) < 0.11
    assert all(0.85 <= ratio <= 1.15 for ratio in ratios)


def test_small_products_wait_for_memory_large_ones_for_the_arrays(tool, products):
    bounds = {size: tool.bounds(modelled) for size, modelled in products.items()}
    assert bounds == {256: "HBM", 512: "HBM", 1024: "matrix", 2048: "matrix"}


def test_operands_are_as_wide_as_those_that_were_measured(products):
    for size, modelled in products.items():
        assert len(modelled.program.steps) == 1
        (outside,) = (time.alone.num_bytes["HBM"] for time in modelled.time.steps)
        assert outside >= 3 * 4 * size * size


def test_a_profile_states_the_error_that_is_found_here(tool, products):
    errors = [
        abs(tool.cycles_of(products[size]) / cycles - 1) for size, cycles in tool.PUBLISHED.items()
    ]
    assert f"{100 * sum(errors) / len(errors):.1f} %" in VALIDATION
