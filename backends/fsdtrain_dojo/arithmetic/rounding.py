"""Round float32 tensors in place to a number format, counting what is lost, in one pass.

The rules of all devices, with |x| before rounding:

- nearest: to the nearest value, ties to the even code; stochastic: up or down with probabilities
  as the distances, the random bits as in random_bits.py.
- saturated: rounded beyond the largest finite value. Formats without infinity then hold the largest
  value with the sign of x, infinities too. Formats with infinity become infinite when rounding to
  nearest (IEEE 754); stochastic rounding clamps finite numbers and leaves infinities.
- an unsigned format holds zero for a negative x, counted as saturated; -0 becomes +0.
- NaN stays NaN, or becomes the largest positive value where the format has none: the white paper
  says "clamp to max representable" and nothing of the sign. Only counted as NaN.
- underflowed: x is not zero, the result is. Signed zeros stay.
"""

from enum import Enum, IntEnum

import torch

from fsdtrain.backend import BackendError
from fsdtrain_dojo.arithmetic import rounding_cpu
from fsdtrain_dojo.arithmetic.flat_memory import is_dense
from fsdtrain_dojo.arithmetic.grid import make_grid, make_kind
from fsdtrain_dojo.arithmetic.random_bits import Key
from fsdtrain_dojo.formats import FP32, Format

NUM_COUNTS = 5


class Rounding(Enum):
    """How to choose between the two neighbouring values."""

    NEAREST = "nearest"
    STOCHASTIC = "stochastic"


class Count(IntEnum):
    """The layout of one row of counts, int64."""

    ELEMENTS = 0
    SATURATED = 1
    UNDERFLOWED = 2
    NAN = 3
    AMAX_BITS = 4  # float32 bits of the largest finite |x| before rounding; of rows the maximum


class Rounder:
    """Rounds to one format in one way, at any of its biases."""

    def __init__(self, format: Format, rounding: Rounding) -> None:
        self.format = format
        self.rounding = rounding
        self._kind = make_kind(format, stochastic=rounding is Rounding.STOCHASTIC)
        self._cpu_kernel = rounding_cpu.make_kernel(self._kind)
        self._grids: dict[tuple[int, torch.device], torch.Tensor] = {}
        self._cpu_addresses: dict[int, int] = {}  # of the grids, by bias

    def __call__(
        self,
        tensor: torch.Tensor,
        bias: int,
        counts: torch.Tensor,
        key: Key = (0, 0),
        first_element: int = 0,
    ) -> None:
        """Round `tensor` in place and add what happened to `counts`.

        Args:
            tensor: float32, dense in memory in any order of its dimensions.
            bias: exponent bias of the format.
            counts: int64 [NUM_COUNTS] on the tensor's device, see `Count`.
            key: key of the random bits, see `random_bits.stream_key`.
            first_element: index of the element that comes first in memory.

        Raises:
            BackendError: no such bias; another dtype or device; strides with holes or overlaps.
        """
        assert counts.dtype is torch.int64, counts.dtype
        assert counts.is_contiguous(), counts.stride()
        if tensor.dtype is not torch.float32:
            raise BackendError(f"rounding works on float32 tensors in place, not {tensor.dtype}")
        if not is_dense(tensor):
            raise BackendError(
                f"rounding in place needs a tensor without holes or overlaps in memory; this one "
                f"has shape {tuple(tensor.shape)} and strides {tensor.stride()}"
            )
        if tensor.is_cpu:
            address = self._cpu_addresses.get(bias)
            if address is None:
                address = self._cpu_addresses[bias] = self._grid(bias, tensor.device).data_ptr()
            rounding_cpu.run(
                self._cpu_kernel, tensor.data_ptr(), tensor.numel(), counts, address, key,
                first_element,
            )  # fmt: skip
        elif tensor.is_cuda:
            from fsdtrain_dojo.arithmetic import rounding_triton  # triton is heavy

            grid = self._grid(bias, tensor.device)
            rounding_triton.run(self._kind, tensor, counts, grid, key, first_element)
        else:
            raise BackendError(f"rounding works on CPU and CUDA tensors, not on {tensor.device}")

    def _grid(self, bias: int, device: torch.device) -> torch.Tensor:
        """The grid's words, int32, on the device; kept, for kernels get their address."""
        grid = self._grids.get((bias, device))
        if grid is None:
            words = torch.from_numpy(make_grid(self.format, bias).words().view("int32"))
            grid = self._grids[bias, device] = words.to(device)
        return grid


def make_rounder(format: Format, rounding: Rounding) -> Rounder:
    """Rounds to `format` in the way of `rounding`."""
    return Rounder(format, rounding)


def amax(tensor: torch.Tensor) -> float:
    """The largest finite magnitude in a float32 tensor; zero if there is none."""
    counts = torch.zeros(NUM_COUNTS, dtype=torch.int64, device=tensor.device)
    make_rounder(FP32, Rounding.NEAREST)(tensor, FP32.bias, counts)
    return float(counts[Count.AMAX_BITS].to(torch.int32).view(torch.float32))
