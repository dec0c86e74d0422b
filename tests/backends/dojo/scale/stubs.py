"""Machines and replicas for the tests of this folder."""

from collections.abc import Callable

from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.machine.totals import totals
from fsdtrain_dojo.scale.replica import Gradient, ReplicaTime

from fsdtrain.backend import BackendError


def small_tile(rows: int, columns: int, **constants: float) -> Machine:
    """A tile of whole dies of 4 x 4 nodes, whose die edges are as wide as four links."""
    given = {"die_rows": 4, "die_columns": 4, "missing_nodes": 0, "die_edge_tb_per_s": 0.512}
    return read_machine(
        {"name": "d1_tile", **given, "tile_rows": rows, "tile_columns": columns, **constants}
    )


def replica(
    seconds: float,
    *,
    num_gradients: int = 8,
    gradient_bytes: float = 184e6,
    batch_size: int = 240,
    **others: object,
) -> ReplicaTime:
    """A step: a third forward, half backward with gradients all along, a sixth optimiser."""
    ready = [seconds * (1 / 3 + (1 + each) / num_gradients / 2) for each in range(num_gradients)]
    figures = {
        "optimizer_start_s": seconds * 5 / 6,
        "fixed_s": 0.0,
        "matmul_flops": 1e15,
        "joules": 1.0,
        "bound": "matrix",
    }
    return ReplicaTime(
        seconds=seconds,
        batch_size=batch_size,
        gradients=tuple(
            Gradient(num_bytes=gradient_bytes / num_gradients, ready_s=each) for each in ready
        ),
        **(figures | others),
    )


def times_by_nodes(
    node_seconds: float, *, needs_bytes: float = 0.0, **others: object
) -> Callable[[Machine], ReplicaTime]:
    """A step that takes `node_seconds` over the number of nodes and needs memory outside."""

    def time_on(machine: Machine) -> ReplicaTime:
        has = totals(machine)
        if has.memory_bytes < needs_bytes:
            raise BackendError(
                f"needs {needs_bytes / 1e9:g} GB, {machine.name} has {has.memory_bytes / 1e9:.3g}"
            )
        return replica(node_seconds / has.num_nodes, **others)

    return time_on
