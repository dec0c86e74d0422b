"""A mapping in words, for `--explain`."""

from collections.abc import Sequence

from fsdtrain_dojo.lowering.kernel import Kernel
from fsdtrain_dojo.lowering.mapping import Mapping, Part
from fsdtrain_dojo.timing.cost import KernelTime


def describe_choice(kernel: Kernel, mapping: Mapping, time: KernelTime) -> str:
    """One line: who does what, how long it takes, bound by what."""

    def words(parts: Sequence[Part]) -> str:
        return " x ".join(f"{kernel.loops[part.loop].name}/{part.count}" for part in parts) or "-"

    steps = ", ".join(
        f"{kernel.loops[loop].name} in {count}" for loop, count in mapping.steps.items()
    )
    where = (
        "every node for itself"
        if mapping.is_everywhere
        else f"rows {words(mapping.rows)}, columns {words(mapping.columns)}"
    )
    return (
        f"{1e6 * time.seconds:.2f} us: {where}{f', {steps} steps' if steps else ''}; "
        f"bound by {time.bound.value}"
    )
