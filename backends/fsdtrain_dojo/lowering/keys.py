"""Keys by which choices for equal kernels and equally placed values are looked up."""

from collections.abc import Mapping as Dict
from collections.abc import Sequence

from fsdtrain_dojo.lowering.kernel import Access, Kernel, Value
from fsdtrain_dojo.lowering.mapping import Boxes, Mapping


def signature(kernel: Kernel, values: Dict[str, Value]) -> object:
    """What decides a kernel's mappings: equal for equal kernels of other layers."""

    def accesses(each: Sequence[Access]) -> object:
        return tuple(
            (
                access.spans,
                values[access.value].shape,
                values[access.value].format,
                access.is_gathered,
                access.gathered_share,
            )
            for access in each
        )

    return (
        kernel.op,
        kernel.unit,
        kernel.loops,
        kernel.macs,
        kernel.flops,
        kernel.specials,
        accesses(kernel.loaded),
        accesses(kernel.stored),
        accesses(kernel.writes),
        tuple((each.op, each.flops, each.specials) for each in kernel.epilogue),
    )


def division_key(division: Mapping) -> object:
    """Of a division of a value's dimensions."""
    return (division.rows, division.columns, division.is_everywhere)


def key_of(division: Mapping | None) -> object:
    """`division_key`, or None."""
    return None if division is None else division_key(division)


def boxes_key(boxes: Boxes) -> object:
    """Of boxes that no division gives."""
    arrays = (*boxes.first, *boxes.end, boxes.busy)
    return tuple((each.shape, each.tobytes()) for each in arrays)
