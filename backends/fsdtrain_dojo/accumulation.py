"""How matrix ops add up: as the library does, or in the order that is documented for Dojo."""

from collections.abc import Callable
from typing import Any

from fsdtrain.backend import BackendError
from fsdtrain_dojo.arithmetic.exact_ops import ExactOps
from fsdtrain_dojo.formats import ACCUMULATOR_21, FP32

ACCUMULATORS = {each.name: each for each in (FP32, ACCUMULATOR_21)}


def matrix_implementations(
    accumulate: str, *, accumulator: str, k_tile: int, host: str
) -> dict[Any, Callable[..., Any]]:
    """Implementations of the ATen matrix ops, by overload; none for `fast`.

    Args:
        accumulate: fast | exact.
        accumulator: fp32 | accumulator_21.
        k_tile: products added up before tiles are added, a multiple of 4.
        host: cpu | cuda.

    Raises:
        BackendError: an unknown value, or two that do not go together.
    """
    if accumulate not in ("fast", "exact"):
        raise BackendError(f"backend.accumulate={accumulate!r}: must be fast or exact")
    if accumulator not in ACCUMULATORS:
        raise BackendError(
            f"backend.accumulator={accumulator!r}: must be {' or '.join(ACCUMULATORS)}"
        )
    if accumulate == "fast":
        if accumulator != "fp32":
            raise BackendError(
                f"backend.accumulator={accumulator} needs backend.accumulate=exact: the library's "
                "matrix products add in FP32"
            )
        return {}
    if host != "cpu":
        raise BackendError("backend.accumulate=exact runs on the CPU: set backend.host=cpu")
    return dict(ExactOps(ACCUMULATORS[accumulator], k_tile).by_overload())
