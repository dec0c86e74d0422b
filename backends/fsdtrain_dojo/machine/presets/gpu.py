"""How a GPU is put together: SMs at a switch, a cache behind it, memory behind the cache.

A GPU of several compute dies has a level more: SMs at the switch of a die, dies at the switch of
the package. Figures are in the files beside this one.
"""

from dataclasses import replace

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
from fsdtrain_dojo.machine.number_formats import format_bytes
from fsdtrain_dojo.machine.preset import Values
from fsdtrain_dojo.machine.schema import (
    Interface,
    Level,
    Machine,
    Memory,
    Power,
    SharedMemory,
    Topology,
)

HALF_BYTES = 2  # an operand of the 16-bit formats; energy is taken to grow with the width


def build_gpu(values: Values, matrix_formats: dict[str, str]) -> Machine:
    """A GPU of one compute die.

    Args:
        values: its constants.
        matrix_formats: the constant with the rate of the matrix units, by format.
    """
    gpu = Level(
        name="gpu",
        rows=1,
        columns=values.number("num_sms"),
        topology=Topology.SWITCH,
        shared_memory=replace(
            _build_cache(values, "l2"), num_served=values.number("multicast_sms")
        ),
    )
    return _build(values, matrix_formats, (gpu,))


def build_chiplet_gpu(values: Values, matrix_formats: dict[str, str]) -> Machine:
    """A GPU of several compute dies, each with an L2, and a last cache that they share."""
    die = Level(
        name="compute_die",
        rows=1,
        columns=values.number("num_sms"),
        topology=Topology.SWITCH,
        edge=Link(
            bytes_per_s=values["fabric_bytes_per_cycle"] * values["fabric_clock_ghz"],
            latency_s=values["fabric_latency_ns"],
            packet_bytes=values.number("line_bytes"),
            joules_per_byte=values["fabric_pj_per_byte"],
        ),
        shared_memory=_build_cache(values, "l2"),
    )
    gpu = Level(
        name="gpu",
        rows=1,
        columns=values.number("num_compute_dies"),
        topology=Topology.SWITCH,
        shared_memory=_build_cache(values, "last_cache"),
    )
    return _build(values, matrix_formats, (die, gpu))


def _build_cache(values: Values, name: str) -> SharedMemory:
    return SharedMemory(
        capacity_bytes=values.number(f"{name}_mib"),
        bytes_per_s=values[f"{name}_tb_per_s"],
        latency_s=values[f"{name}_latency_ns"],
        joules_per_byte=values[f"{name}_pj_per_byte"],
    )


def _build(values: Values, matrix_formats: dict[str, str], levels: tuple[Level, ...]) -> Machine:
    limit_watts = values["gpu_watts"]
    return Machine(
        node=_build_sm(values, matrix_formats),
        levels=levels,
        interfaces=_build_interfaces(values),
        power=Power(limit_watts=limit_watts, idle_watts=values["idle_share"] * limit_watts),
        op_start_s=values["op_start_ns"],
    )


def _build_sm(values: Values, matrix_formats: dict[str, str]) -> Node:
    clock = values["clock_ghz"]
    matrix = MatrixUnit(
        rows=values.number("matrix_rows"),
        columns=values.number("matrix_columns"),
        depth=values.number("matrix_depth"),
        num_units=values.number("num_matrix_units"),
        clock_hz=values["matrix_clock_ghz"],
        macs_per_cycle={name: values[rate] for name, rate in matrix_formats.items()},
        stationary=Stationary.OUTPUT,
        num_accumulators=values.number("num_accumulators"),
        latency_cycles=values["matrix_latency_cycles"],
        load_cycles=0,
        joules_per_mac={
            name: values["half_mac_pj"] * format_bytes(name) / HALF_BYTES for name in matrix_formats
        },
    )
    # TF32 and FP8 are formats of the matrix units; on the vector side they are FP32 lanes.
    lanes = dict.fromkeys(["fp32", *matrix_formats], values["fp32_lanes"])
    lanes |= dict.fromkeys(["bf16", "fp16"], values["half_lanes"])
    vector = VectorUnit(
        lanes=lanes,
        flops_per_lane=2,
        clock_hz=clock,
        latency_cycles=values["vector_latency_cycles"],
        special_per_cycle=values["special_per_cycle"],
        register_bytes=values.number("register_kib"),
        joules_per_flop=values["vector_flop_pj"],
    )
    width, line = values["shared_bytes_per_cycle"], values["sm_link_bytes_per_cycle"]
    memory = LocalMemory(
        capacity_bytes=values.number("shared_kib"),
        ports=(
            Port(kind=PortKind.LOAD, count=1, bytes_per_cycle=width),
            Port(kind=PortKind.STORE, count=1, bytes_per_cycle=width),
            Port(kind=PortKind.NETWORK_READ, count=1, bytes_per_cycle=line),
            Port(kind=PortKind.NETWORK_WRITE, count=1, bytes_per_cycle=line),
        ),
        accesses_per_cycle=values.number("shared_accesses_per_cycle"),
        latency_cycles=values["shared_latency_cycles"],
        joules_per_byte=values["shared_pj_per_byte"],
    )
    edge = Link(
        bytes_per_s=line * clock,
        latency_s=values["sm_link_latency_cycles"] / clock,
        packet_bytes=values.number("line_bytes"),
        joules_per_byte=values["crossbar_pj_per_byte"],
    )
    return Node(clock_hz=clock, matrix=matrix, vector=vector, memory=memory, edge=edge)


def _build_interfaces(values: Values) -> tuple[Interface, ...]:
    num_stacks = values.number("num_hbm_stacks")
    memory = Memory(
        capacity_bytes=values.number("hbm_gb") // num_stacks,
        bytes_per_s=values["hbm_tb_per_s"] / num_stacks,
        efficiency=values["hbm_efficiency_share"],
        latency_s=values["hbm_latency_ns"],
        num_channels=values.number("num_hbm_channels"),
        access_bytes=values.number("hbm_access_bytes"),
        joules_per_byte=values["hbm_pj_per_byte"],
    )
    host, peer = _build_link(values, "pcie"), _build_link(values, "peer")
    return (
        Interface(
            name="memory stack", level="gpu", sides=(), count=num_stacks,
            link=_on_die(values, memory.bytes_per_s), memory=memory,
        ),
        Interface(
            name="host port", level="gpu", sides=(), count=1,
            link=_on_die(values, host.bytes_per_s), host=host,
        ),
        Interface(
            name="peer link", level="gpu", sides=(), count=values.number("num_peer_links"),
            link=_on_die(values, peer.bytes_per_s), network=peer,
        ),
    )  # fmt: skip


def _build_link(values: Values, name: str) -> Link:
    return Link(
        bytes_per_s=values[f"{name}_gb_per_s"],
        latency_s=values[f"{name}_latency_ns"],
        packet_bytes=values.number("line_bytes"),
        joules_per_byte=values[f"{name}_pj_per_byte"],
    )


def _on_die(values: Values, bytes_per_s: float) -> Link:
    """From the switch to what lies behind it: as wide as that, and counted with its latency."""
    return Link(
        bytes_per_s=bytes_per_s,
        latency_s=0,
        packet_bytes=values.number("line_bytes"),
        joules_per_byte=0,
    )
