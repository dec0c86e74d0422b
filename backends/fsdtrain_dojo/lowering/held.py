"""What nodes at a switch hold from one kernel of an op to the next, within one launch.

    layer_norm on a GPU: mean, variance, result     x is loaded once, mean and variance are
                                                    never stored, and only mean has a start

A node works on a few rows at a time and goes through all kernels of the op with these, if what one
point of the results needs fits into half of its memory (the other half is for the next rows). Then
a later kernel that divides rows alike finds them there. On machines whose nodes keep values this
class holds nothing.
"""

from collections.abc import Mapping as Dict
from collections.abc import Sequence

from fsdtrain_dojo.lowering.finish import divided_reductions, settled
from fsdtrain_dojo.lowering.kernel import Access, Kernel, Value
from fsdtrain_dojo.lowering.mapping import Boxes, Layout, Storage
from fsdtrain_dojo.lowering.program import Step
from fsdtrain_dojo.timing.box_axes import has_own
from fsdtrain_dojo.timing.costs import Costs


class Held:
    """The values in the nodes while the kernels of one call are placed.

    Args:
        costs: of the machine.
    """

    def __init__(self, costs: Costs) -> None:
        self._is_used = not costs.fabric.keeps_values
        self._room = costs.machine.node.memory.capacity_bytes / 2
        self._call = ""
        self._boxes: dict[str, Boxes] = {}
        self.is_continued = False

    def begin(self, kernel: Kernel) -> None:
        """Another kernel follows: of the same call, or of another, which holds nothing yet."""
        self.is_continued = self._is_used and kernel.call != "" and kernel.call == self._call
        if not self.is_continued:
            self._boxes = {}
        self._call = kernel.call

    def end(self) -> None:
        """Nothing is held for whatever follows."""
        self._call, self._boxes, self.is_continued = "", {}, False

    def key(self, kernel: Kernel) -> object:
        """What is held of what the kernel reads; for look-ups of equal choices."""
        held = [self._boxes.get(access.value) for access in kernel.loaded]
        return self.is_continued, tuple(None if boxes is None else id(boxes) for boxes in held)

    def layout(self, name: str, boxes: Boxes) -> Layout | None:
        """Where a value is held, if every node holds the box of it that it needs."""
        held = self._boxes.get(name)
        if held is None or not has_own(held, boxes):
            return None
        return Layout(storage=Storage.SRAM, boxes=held)

    def is_private(self, name: str, readers: Dict[str, Sequence[Kernel]]) -> bool:
        """Whether nobody but kernels of the same call reads a value."""
        found = readers.get(name, ())
        return (
            self._is_used
            and self._call != ""
            and bool(found)
            and all(each.call == self._call for each in found)
        )

    def add(self, step: Step, values: Dict[str, Value]) -> None:
        """Note what a placed kernel leaves in the nodes."""
        kernel = step.kernel
        if not self._is_used or divided_reductions(kernel, step.mapping):
            return
        loads = zip(kernel.loaded, step.loads, strict=True)
        stores = zip(settled(kernel, step.mapping), step.stores, strict=True)
        for access, transfer in (*loads, *stores):
            if not access.is_gathered and self._fits(kernel, access, values[access.value]):
                self._boxes[access.value] = transfer.boxes

    def _fits(self, kernel: Kernel, access: Access, value: Value) -> bool:
        """Whether what one point of the results touches of a value leaves room for the next."""
        ranges = [
            (0, loop.size if number in kernel.reductions else 1)
            for number, loop in enumerate(kernel.loops)
        ]
        num_bytes = value.element_bytes
        for first, end in kernel.touched(access, ranges, value.shape):
            num_bytes *= end - first
        return num_bytes <= self._room
