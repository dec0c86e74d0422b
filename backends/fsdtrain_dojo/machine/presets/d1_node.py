"""How a D1 node is put together from its constants, and where nodes of a die are missing."""

import random
from functools import lru_cache

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.node import (
    Link,
    LocalMemory,
    MatrixUnit,
    Node,
    Port,
    PortKind,
    Stationary,
    VectorUnit,
)
from fsdtrain_dojo.machine.preset import Values
from fsdtrain_dojo.machine.schema import Position

MAX_DRAWS = 20  # for each place of a die, before it is said that its missing nodes do not fit
NEAR = (-1, 0, 1)


def build_node(values: Values) -> Node:
    """One D1 node."""
    clock = values["clock_ghz"]
    macs = {
        "bf16": values["bf16_macs_per_cycle"],
        "cfloat8_1_4_3": values["cfloat8_macs_per_cycle"],
        "cfloat8_1_5_2": values["cfloat8_macs_per_cycle"],
        "cfloat16_shp": values["cfloat16_macs_per_cycle"],
        "cfloat16_uhp": values["cfloat16_macs_per_cycle"],
    }
    narrow = values["cfloat8_mac_pj"]
    wide = values["bf16_mac_pj"]
    matrix = MatrixUnit(
        rows=values.number("matrix_rows"),
        columns=values.number("matrix_columns"),
        depth=values.number("matrix_depth"),
        num_units=1,
        clock_hz=clock,
        macs_per_cycle=macs,
        stationary=Stationary.OUTPUT,
        num_accumulators=values.number("num_accumulators"),
        latency_cycles=values["matrix_latency_cycles"],
        load_cycles=0,
        joules_per_mac={name: narrow if "cfloat8" in name else wide for name in macs},
    )
    vector = VectorUnit(
        lanes={"fp32": values["fp32_lanes"], **dict.fromkeys(macs, values["narrow_lanes"])},
        flops_per_lane=2,
        clock_hz=clock,
        latency_cycles=values["vector_latency_cycles"],
        special_per_cycle=values["special_per_cycle"],
        register_bytes=values.number("register_kib"),
        joules_per_flop=values["vector_flop_pj"],
    )
    edge = Link(
        bytes_per_s=values["link_bytes_per_cycle"] * clock,
        latency_s=values["hop_cycles"] / clock,
        packet_bytes=values.number("packet_bytes"),
        joules_per_byte=values["hop_pj_per_byte"],
    )
    return Node(clock_hz=clock, matrix=matrix, vector=vector, memory=_build_sram(values), edge=edge)


def _build_sram(values: Values) -> LocalMemory:
    ports = {
        PortKind.LOAD: "num_load_ports",
        PortKind.STORE: "num_store_ports",
        PortKind.NETWORK_READ: "num_network_read_ports",
        PortKind.NETWORK_WRITE: "num_network_write_ports",
    }
    width, scalar = values["port_bytes_per_cycle"], values["scalar_port_bytes_per_cycle"]
    return LocalMemory(
        capacity_bytes=values.number("sram_kb"),
        ports=(
            *(
                Port(kind=kind, count=values.number(name), bytes_per_cycle=width)
                for kind, name in ports.items()
            ),
            Port(kind=PortKind.SCALAR_LOAD, count=1, bytes_per_cycle=scalar),
            Port(kind=PortKind.SCALAR_STORE, count=1, bytes_per_cycle=scalar),
        ),
        accesses_per_cycle=values.number("num_address_units"),
        latency_cycles=values["sram_latency_cycles"],
        joules_per_byte=values["sram_pj_per_byte"],
    )


@lru_cache(maxsize=1024)
def draw_missing(rows: int, columns: int, count: int, seed: str) -> tuple[Position, ...]:
    """Places of `count` missing nodes: evenly over rows and columns, no two touching.

    So no node is cut off, and a repair that leaves a node of every row or column unused, of which
    the yield harvesting of the D1 is not known to be one, always works.

    Raises:
        BackendError: they do not fit.
    """
    random_numbers = random.Random(seed)
    drawn: list[Position] = []
    blocked: set[Position] = set()
    in_row, in_column = [-(-count // max(rows, 1))] * rows, [-(-count // max(columns, 1))] * columns
    for _ in range(MAX_DRAWS * rows * columns if count < rows * columns else 0):
        if len(drawn) == count:
            return tuple(sorted(drawn))
        row, column = random_numbers.randrange(rows), random_numbers.randrange(columns)
        if (row, column) not in blocked and in_row[row] and in_column[column]:
            drawn.append((row, column))
            in_row[row] -= 1
            in_column[column] -= 1
            blocked |= {(row + down, column + right) for down in NEAR for right in NEAR}
    raise BackendError(
        f"{count} missing nodes that do not touch each other do not fit into {rows} x {columns}: "
        "lower backend.machine.missing_nodes"
    )
