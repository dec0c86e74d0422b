"""How much longer a step takes because all devices wait for the slowest of them.

Step times of devices are taken as independent and normal; a device that is always slow, or hangs,
is a fault and not this. It does not know what the devices do.
"""

import math
from functools import cache

NUM_CELLS = 2000  # of the integral; the error is below 1e-6
SPAN = 10.0  # standard deviations: beyond, the integrand is below 1e-17 for a million devices


@cache
def expected_maximum(count: int) -> float:
    """The mean of the largest of `count` standard normal numbers.

    By its definition through the distribution F of one: the integral over x > 0 of 1 - F(x)^n,
    less that over x < 0 of F(x)^n. It stays below sqrt(2 ln n).
    """
    assert count >= 1
    if count == 1:
        return 0.0
    step = SPAN / NUM_CELLS
    total = 0.0
    for cell in range(NUM_CELLS):
        x = (cell + 0.5) * step
        above = 0.5 * math.erfc(x / math.sqrt(2.0))
        total -= math.expm1(count * math.log1p(-above)) + above**count
    return total * step


def straggler_share(sigma: float, count: int) -> float:
    """What the slowest of `count` devices adds to the mean step time, as a share of it.

    Args:
        sigma: standard deviation of one device's step time over its mean.
        count: of devices.
    """
    return sigma * expected_maximum(count)
