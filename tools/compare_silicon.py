"""Published cycles of a TPU v3 core beside those of the model: square products, fp32 in memory.

    python tools/compare_silicon.py

The machine is the preset as it is: no figure was set by these rows' sizes. MODELLED.
"""

from fsdtrain_dojo.lowering.kernel import (
    Access,
    Kernel,
    Loop,
    Phase,
    Unit,
    Value,
    ValueKind,
    along,
)
from fsdtrain_dojo.lowering.mapping import Layout, Mapping, Storage, access_boxes
from fsdtrain_dojo.lowering.passes.tile_kernels import choose_steps
from fsdtrain_dojo.lowering.program import Pattern, Step, Transfer
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.timing.cost import KernelTime
from fsdtrain_dojo.timing.fabric import Fabric, build_fabric
from fsdtrain_dojo.timing.kernel_time import time_kernel
from fsdtrain_dojo.timing.transfer_cost import cost_transfer
from rich.console import Console
from rich.table import Table

# Cycles at 940 MHz of m = n = k, measured by others (PyTorchSim, MICRO 2025).
PUBLISHED = {256: 3101, 512: 9490, 1024: 47099, 2048: 317435}
FP32_BYTES = 4
MEMORY = Layout(storage=Storage.HBM)


def main() -> None:
    """Print the table."""
    fabric = build_fabric(read_machine("tpu_v3"))
    table = Table(title="tpu_v3, products n x n x n: MODELLED beside published silicon")
    for head in ("n", "published cycles", "MODELLED cycles", "ratio", "bound by", "steps"):
        table.add_column(head, justify="right")
    errors = []
    for size, published in PUBLISHED.items():
        time, steps = time_product(fabric, size)
        cycles = time.seconds * fabric.clock_hz
        errors.append(abs(cycles / published - 1))
        table.add_row(
            str(size),
            f"{published:,}",
            f"{cycles:,.0f}",
            f"{cycles / published:.3f}",
            time.bound.value,
            " ".join(f"{name} {count}" for name, count in steps.items()),
        )
    console = Console()
    console.print(table)
    console.print(f"mean error {sum(errors) / len(errors):.1%}, largest {max(errors):.1%}")


def time_product(fabric: Fabric, size: int) -> tuple[KernelTime, dict[str, int]]:
    """One product of square fp32 matrices on a machine of one node, and its steps over time."""
    names = ("left", "right", "out")
    values = {
        name: Value(
            name=name,
            shape=(size, size),
            format="fp32",
            element_bytes=FP32_BYTES,
            kind=ValueKind.ACTIVATION,
        )
        for name in names
    }
    left, right, out = (
        Access(name, (along(rows), along(columns)))
        for name, (rows, columns) in zip(names, ((0, 2), (2, 1), (0, 1)), strict=True)
    )
    kernel = Kernel(
        name="product",
        op="aten.mm",
        phase=Phase.FORWARD,
        unit=Unit.MATRIX,
        loops=(Loop("m", size), Loop("n", size), Loop("k", size)),
        reads=(left, right),
        writes=(out,),
        macs=size**3,
        compute=lambda tensors, block: [tensors[0] @ tensors[1]],
    )
    mapping = Mapping()
    loads, stores = (
        tuple(
            Transfer(
                value=each.value,
                pattern=pattern,
                boxes=access_boxes(kernel, each, mapping, (size, size), fabric.grid),
                source=MEMORY if pattern is Pattern.HBM_LOAD else None,
                target=MEMORY if pattern is Pattern.HBM_STORE else None,
            )
            for each in accesses
        )
        for accesses, pattern in (
            (kernel.loaded, Pattern.HBM_LOAD),
            (kernel.stored, Pattern.HBM_STORE),
        )
    )
    load_costs = [cost_transfer(fabric, each, FP32_BYTES) for each in loads]
    store_costs = [cost_transfer(fabric, each, FP32_BYTES) for each in stores]
    tiling = choose_steps(
        fabric,
        kernel,
        mapping,
        values,
        free_bytes=fabric.machine.node.memory.capacity_bytes,
        load_costs=load_costs,
        store_costs=store_costs,
        local_loads=[False, False],
        local_stores=[False],
    )
    assert not isinstance(tiling, str), tiling
    step = Step(
        kernel=kernel,
        mapping=tiling.mapping,
        loads=loads,
        stores=stores,
        working_bytes=tiling.working_bytes,
        buffers=tiling.buffers,
    )
    time = time_kernel(fabric, step, load_costs, store_costs, values)
    return time, {kernel.loops[loop].name: count for loop, count in tiling.mapping.steps.items()}


if __name__ == "__main__":
    main()
