"""The figures of TPU v3, and how a core, or the two cores of a chip, are put together.

Each core runs its own program out of its own half of the memory, so one core is a machine of its
own; `tpu_v3_chip` is what datasheets describe.
"""

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
from fsdtrain_dojo.machine.preset import Preset, Values
from fsdtrain_dojo.machine.quantity import Confidence, Quantity, constant
from fsdtrain_dojo.machine.schema import Interface, Level, Machine, Memory, Power, Topology

STATED, DERIVED, INFERRED = Confidence.STATED, Confidence.DERIVED, Confidence.INFERRED
RECALLED, ASSUMED = Confidence.RECALLED, Confidence.ASSUMED
ATTRIBUTED = Confidence.ATTRIBUTED

DOCS = "Google Cloud, TPU v3 system architecture"
CACM = "Jouppi et al., A Domain-Specific Supercomputer for Training DNNs, CACM 2020"
NORRIE = "Norrie and Patil, Hot Chips 2020"
LESSONS = "Jouppi et al., Ten Lessons, ISCA 2021, table 2 (7 nm), recalled"

CORE: dict[str, Quantity] = {
    "num_cores": constant(1, "count", STATED, f"of the two of a chip; {DOCS}"),
    "clock_ghz": constant(0.94, "GHz", RECALLED, CACM),
    "num_matrix_units": constant(2, "count", STATED, f"MXUs a core; {DOCS}"),
    "matrix_rows": constant(8, "count", ATTRIBUTED, f"a register has 8 sublanes; {NORRIE}"),
    "matrix_columns": constant(128, "count", ATTRIBUTED, f"128 x 128 systolic array; {NORRIE}"),
    "matrix_depth": constant(128, "count", ATTRIBUTED, f"128 x 128 systolic array; {NORRIE}"),
    "bf16_macs_per_cycle": constant(
        32768, "1/cycle", DERIVED, f"2 arrays of 128 x 128; 123 TFLOPS of 2 cores; {DOCS}"
    ),
    "fp32_macs_per_cycle": constant(
        32768,
        "1/cycle",
        INFERRED,
        "operands are rounded to BF16 on the way in, the default of XLA",
        (32768 / 6, 32768),
    ),
    "matrix_latency_cycles": constant(
        256, "cycles", DERIVED, "down 128 rows and across 128 columns", (128, 300)
    ),
    "matrix_load_cycles": constant(
        128,
        "cycles",
        ASSUMED,
        "a row of weights a cycle; hidden where they are prefetched",
        (64, 256),
    ),
    "vector_lanes": constant(
        2048, "count", ATTRIBUTED, f"128 lanes x 8 sublanes x 2 ALUs a core; {NORRIE}"
    ),
    "vector_latency_cycles": constant(4, "cycles", ASSUMED, "not public", (2, 8)),
    "special_per_cycle": constant(
        1024, "1/cycle", ASSUMED, "a register of 128 x 8 a cycle", (128, 1024)
    ),
    "register_kib": constant(128, "KiB", ATTRIBUTED, f"32 of 128 x 8 x 4 B; {NORRIE}"),
    "vmem_mib": constant(16, "MiB", ATTRIBUTED, f"32Ki x 32 b a lane; {NORRIE}"),
    "num_load_ports": constant(1, "count", ATTRIBUTED, f"vector load slot; {NORRIE}"),
    "num_store_ports": constant(1, "count", ATTRIBUTED, f"vector store slot; {NORRIE}"),
    "port_bytes_per_cycle": constant(4096, "B/cycle", DERIVED, "a register of 128 x 8 x 4 B"),
    "vmem_latency_cycles": constant(6, "cycles", ASSUMED, "not public", (3, 12)),
    "dma_bytes_per_cycle": constant(
        1024, "B/cycle", ASSUMED, "to and from VMEM, twice the memory's rate", (512, 4096)
    ),
    "dma_latency_ns": constant(50, "ns", ASSUMED, "each way; not public", (10, 200)),
    "dma_packet_bytes": constant(512, "B", RECALLED, "a row of 128 x 4 B", (32, 512)),
    "hbm_gib": constant(16, "GiB", STATED, f"half of a chip's 32 GiB; {DOCS}"),
    "hbm_gb_per_s": constant(450, "GB/s", STATED, f"half of a chip's 900 GB/s; {DOCS}"),
    "hbm_efficiency_share": constant(0.9, "share", ASSUMED, "long streams", (0.8, 0.95)),
    "hbm_latency_ns": constant(300, "ns", ASSUMED, "not public", (150, 600)),
    "num_hbm_channels": constant(16, "count", ATTRIBUTED, "PyTorchSim, TPU v3 of one core"),
    "hbm_access_bytes": constant(64, "B", ASSUMED, "HBM2: 4 bursts of 16 B", (32, 64)),
    "hbm_pj_per_byte": constant(28, "pJ/B", ATTRIBUTED, "HBM2: 3.48 pJ/bit; PyTorchSim"),
    "pcie_gb_per_s": constant(16, "GB/s", ASSUMED, "Gen3 x16, each way", (8, 16)),
    "pcie_latency_ns": constant(1000, "ns", ASSUMED, "not public", (500, 2000)),
    "pcie_pj_per_byte": constant(50, "pJ/B", ASSUMED, "6 pJ/bit", (30, 100)),
    "num_peer_links": constant(4, "count", RECALLED, f"ICI, shared by the cores; {CACM}"),
    "peer_gb_per_s": constant(82, "GB/s", RECALLED, f"656 Gb/s, each way; {CACM}"),
    "peer_latency_ns": constant(1000, "ns", ASSUMED, "not public", (500, 3000)),
    "peer_pj_per_byte": constant(64, "pJ/B", ASSUMED, "8 pJ/bit", (10, 100)),
    "op_start_ns": constant(100, "ns", ASSUMED, "the next op of one program", (0, 1000)),
    "bf16_mac_pj": constant(1, "pJ", ASSUMED, f"16 nm; 0.6 at 7 nm; {LESSONS}", (0.6, 2)),
    "vector_flop_pj": constant(2, "pJ", ASSUMED, "16 nm; 0.9 at 7 nm", (1, 4)),
    "vmem_pj_per_byte": constant(2.5, "pJ/B", ASSUMED, "16 nm; 1.75 at 7 nm", (1, 4)),
    "dma_pj_per_byte": constant(8, "pJ/B", ASSUMED, "a centimetre at 0.1 pJ/bit/mm", (4, 20)),
    "core_watts": constant(131, "W", STATED, f"half of the largest measured, 262 W a chip; {DOCS}"),
    "idle_share": constant(0.47, "share", DERIVED, f"least of 123 W in 262 measured; {DOCS}"),
}

CHIP = CORE | {"num_cores": constant(2, "count", STATED, DOCS)}


def build_tpu(values: Values) -> Machine:
    """Cores at a switch, with the memory, host and peer links of their chip."""
    num_cores = values.number("num_cores")
    limit_watts = num_cores * values["core_watts"]
    chip = Level(name="chip", rows=1, columns=num_cores, topology=Topology.SWITCH)
    return Machine(
        node=_build_core(values),
        levels=(chip,),
        interfaces=_build_interfaces(values, num_cores),
        power=Power(limit_watts=limit_watts, idle_watts=values["idle_share"] * limit_watts),
        op_start_s=values["op_start_ns"],
    )


def _build_core(values: Values) -> Node:
    clock = values["clock_ghz"]
    matrix = MatrixUnit(
        rows=values.number("matrix_rows"),
        columns=values.number("matrix_columns"),
        depth=values.number("matrix_depth"),
        num_units=values.number("num_matrix_units"),
        clock_hz=clock,
        macs_per_cycle={
            "bf16": values["bf16_macs_per_cycle"],
            "fp32": values["fp32_macs_per_cycle"],
        },
        stationary=Stationary.WEIGHT,
        num_accumulators=0,  # sums of a pass leave the array; the vector unit adds them
        latency_cycles=values["matrix_latency_cycles"],
        load_cycles=values["matrix_load_cycles"],
        joules_per_mac=dict.fromkeys(("bf16", "fp32"), values["bf16_mac_pj"]),
    )
    lanes = values["vector_lanes"]
    vector = VectorUnit(
        lanes={"fp32": lanes, "bf16": lanes},
        flops_per_lane=1,
        clock_hz=clock,
        latency_cycles=values["vector_latency_cycles"],
        special_per_cycle=values["special_per_cycle"],
        register_bytes=values.number("register_kib"),
        joules_per_flop=values["vector_flop_pj"],
    )
    num_loads, num_stores = values.number("num_load_ports"), values.number("num_store_ports")
    width, dma = values["port_bytes_per_cycle"], values["dma_bytes_per_cycle"]
    memory = LocalMemory(
        capacity_bytes=values.number("vmem_mib"),
        ports=(
            Port(kind=PortKind.LOAD, count=num_loads, bytes_per_cycle=width),
            Port(kind=PortKind.STORE, count=num_stores, bytes_per_cycle=width),
            Port(kind=PortKind.NETWORK_READ, count=1, bytes_per_cycle=dma),
            Port(kind=PortKind.NETWORK_WRITE, count=1, bytes_per_cycle=dma),
        ),
        accesses_per_cycle=num_loads + num_stores,
        latency_cycles=values["vmem_latency_cycles"],
        joules_per_byte=values["vmem_pj_per_byte"],
    )
    edge = Link(
        bytes_per_s=dma * clock,
        latency_s=values["dma_latency_ns"],
        packet_bytes=values.number("dma_packet_bytes"),
        joules_per_byte=values["dma_pj_per_byte"],
    )
    return Node(clock_hz=clock, matrix=matrix, vector=vector, memory=memory, edge=edge)


def _build_interfaces(values: Values, num_cores: int) -> tuple[Interface, ...]:
    def on_chip(bytes_per_s: float) -> Link:
        packet = values.number("dma_packet_bytes")
        return Link(bytes_per_s=bytes_per_s, latency_s=0, packet_bytes=packet, joules_per_byte=0)

    def outside(name: str) -> Link:
        return Link(
            bytes_per_s=values[f"{name}_gb_per_s"],
            latency_s=values[f"{name}_latency_ns"],
            packet_bytes=values.number("dma_packet_bytes"),
            joules_per_byte=values[f"{name}_pj_per_byte"],
        )

    memory = Memory(
        capacity_bytes=values.number("hbm_gib"),
        bytes_per_s=values["hbm_gb_per_s"],
        efficiency=values["hbm_efficiency_share"],
        latency_s=values["hbm_latency_ns"],
        num_channels=values.number("num_hbm_channels"),
        access_bytes=values.number("hbm_access_bytes"),
        joules_per_byte=values["hbm_pj_per_byte"],
    )
    host, peer = outside("pcie"), outside("peer")
    return (
        Interface(
            name="memory of a core", level="chip", sides=(), count=num_cores,
            link=on_chip(memory.bytes_per_s), memory=memory,
        ),
        Interface(
            name="host port", level="chip", sides=(), count=1, link=on_chip(host.bytes_per_s),
            host=host,
        ),
        Interface(
            name="peer link", level="chip", sides=(), count=values.number("num_peer_links"),
            link=on_chip(peer.bytes_per_s), network=peer,
        ),
    )  # fmt: skip


PRESETS = (
    Preset(
        name="tpu_v3",
        summary="one core of a Google TPU v3, with its half of the chip's memory",
        constants=CORE,
        build=build_tpu,
    ),
    Preset(
        name="tpu_v3_chip",
        summary="a Google TPU v3 chip: two cores",
        constants=CHIP,
        build=build_tpu,
    ),
)
