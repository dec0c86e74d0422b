"""Any op that no other file describes: one point that reads and writes everything.

It cannot be divided, so that one node does it all; its work is taken as one operation for each
element read or written.
"""

from collections.abc import Sequence

from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import call_with, make_kernel, values_of
from fsdtrain_dojo.lowering.describe.pointwise import is_random
from fsdtrain_dojo.lowering.kernel import Access, Block, Unit, Value, whole
from fsdtrain_dojo.lowering.op_call import Expansion, OpCall


def describe_whole(call: OpCall) -> Expansion:
    """One kernel without loops."""
    operands = {value.name: value for value in values_of(call)}
    indices = [index for index, value in enumerate(call.outputs) if value is not None]
    results = [value for value in call.outputs if value is not None]

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        found = call_with(call, dict(zip(operands, tensors, strict=True)))
        return [found[i] for i in indices] if isinstance(found, list | tuple) else [found]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=(),
        reads=tuple(map(all_of, operands.values())),
        writes=tuple(map(all_of, results)),
        flops=sum(value.num_elements for value in (*operands.values(), *results)),
        compute=compute,
        is_random=is_random(call),
    )
    return Expansion(kernels=(kernel,))


def all_of(value: Value) -> Access:
    """Access to the whole of a value at every point."""
    return Access(value.name, tuple(map(whole, value.shape)))
