"""Channels in groups: how a kernel holds any number of them with few lanes idle.

Tensors of a kernel have powers of two along each dimension. 80 channels are five groups of 16, in
two tensors of 4 and 1 groups. Groups come first in a tensor's shape, so that a thread holds some
channels of every group and works out the address of a row once for all.
"""

import triton
import triton.language as tl


def group_channels(num_channels: int) -> tuple[int, int, int]:
    """(channels in a group, groups in the first tensor, groups in the second, which may be none).

    A group of 16 is what a sector of the L2 cache holds in bfloat16; of more than six groups, a
    thread would hold more than its registers do.
    """
    group = min(16, triton.next_power_of_2(num_channels))
    while triton.cdiv(num_channels, group) > 6:
        group *= 2
    num_groups = triton.cdiv(num_channels, group)
    main = 1 << (num_groups.bit_length() - 1)
    rest = num_groups - main
    return group, main, triton.next_power_of_2(rest) if rest else 0


@triton.jit
def channels(FIRST: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr):
    """Numbers of the channels of some groups: [GROUPS, 1, GROUP]."""
    group = FIRST + tl.arange(0, GROUPS)
    return group[:, None, None] * GROUP + tl.arange(0, GROUP)[None, None, :]


@triton.jit
def load_rows(
    row_ptr, is_row, num_channels, FIRST: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr
):
    """Groups of channels of rows: [GROUPS, rows, GROUP]."""
    channel = channels(FIRST, GROUP, GROUPS)
    mask = is_row[None, :, None] & (channel < num_channels)
    return tl.load(row_ptr[None, :, None] + channel, mask=mask, other=0.0)


@triton.jit
def store_rows(
    row_ptr,
    values,
    is_row,
    num_channels,
    FIRST: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Groups of channels [GROUPS, rows, GROUP] into their rows."""
    channel = channels(FIRST, GROUP, GROUPS)
    mask = is_row[None, :, None] & (channel < num_channels)
    tl.store(row_ptr[None, :, None] + channel, values, mask=mask)
