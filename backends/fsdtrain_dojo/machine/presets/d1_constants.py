"""The figures of Tesla's D1 and what is built of it: the one place where they are.

Energies, and everything marked ASSUMED, are not public for this machine.
"""

from fsdtrain_dojo.machine.quantity import Confidence, Quantity, constant

STATED, ATTRIBUTED, DERIVED = Confidence.STATED, Confidence.ATTRIBUTED, Confidence.DERIVED
PRESS, INFERRED, ASSUMED = Confidence.PRESS, Confidence.INFERRED, Confidence.ASSUMED
CONFLICTING, RECALLED = Confidence.CONFLICTING, Confidence.RECALLED

Table = dict[str, Quantity]

HC34_NODE = "Hot Chips 34, The Microarchitecture of Tesla's Exa-Scale Computer"
HC34_SYSTEM = "Hot Chips 34, Dojo: Super-Compute System Scaling for ML Training"
HC34_NOTES = "notes of the Hot Chips 34 and AI Day 2022 slides"
CC = "Chips and Cheese, Hot Chips 34 - Tesla's Dojo Microarchitecture"
SA = "SemiAnalysis 2021-08-20, of AI Day 2021"
PATENT = "US 11,556,615"
STH = "ServeTheHome, Hot Chips 34"
NBF = "nextbigfuture.com 2024-08, of an attendee of Hot Chips 2024; conditions not given"
LESSONS = "Jouppi et al., Ten Lessons, ISCA 2021, table 2 (7 nm)"
NOT_PUBLIC = "not public"

NODE: Table = {
    "clock_ghz": constant(2, "GHz", ATTRIBUTED, f"{CC}; {SA}"),
    "matrix_rows": constant(8, "count", STATED, f"8x8x4 matrix pipe; {HC34_NODE}"),
    "matrix_columns": constant(8, "count", STATED, f"8x8x4 matrix pipe; {HC34_NODE}"),
    "matrix_depth": constant(4, "count", STATED, f"8x8x4 matrix pipe; {HC34_NODE}"),
    "bf16_macs_per_cycle": constant(
        256, "1/cycle", DERIVED, "1.024 TFLOPS a node at 2 GHz; one 8x8x4 step a cycle"
    ),
    "cfloat8_macs_per_cycle": constant(
        256, "1/cycle", DERIVED, "peak of BF16 and CFP8 is quoted as one figure, 362 TFLOPS a die"
    ),
    "cfloat16_macs_per_cycle": constant(
        256, "1/cycle", ASSUMED, f"as BF16, whose operands are as wide; {NOT_PUBLIC}", (64, 256)
    ),
    "num_accumulators": constant(
        4,
        "count",
        ASSUMED,
        f"several a processing element ({PATENT}); number {NOT_PUBLIC}",
        (1, 16),
    ),
    "matrix_latency_cycles": constant(8, "cycles", ASSUMED, NOT_PUBLIC, (4, 16)),
    "fp32_lanes": constant(
        16, "count", DERIVED, "22.6 TFLOPS FP32 a die: 16 multiply-adds, 64 B of SIMD"
    ),
    "narrow_lanes": constant(
        16, "count", ASSUMED, "16- and 8-bit elements are worked on as FP32", (16, 32)
    ),
    "vector_latency_cycles": constant(6, "cycles", ASSUMED, NOT_PUBLIC, (4, 12)),
    "special_per_cycle": constant(
        2, "1/cycle", ASSUMED, "16 lanes, 8 operations of a polynomial a result", (0.5, 16)
    ),
    "register_kib": constant(8, "KiB", ASSUMED, "4 threads x 32 registers of 64 B", (2, 32)),
    "sram_kb": constant(
        1250, "kB", ATTRIBUTED, f"1.25 MB, MB or MiB not said; {HC34_NODE}", (1250, 1310.72)
    ),
    "num_load_ports": constant(2, "count", ATTRIBUTED, f"five 64 B ports; {CC}"),
    "num_store_ports": constant(1, "count", ATTRIBUTED, f"five 64 B ports; {CC}"),
    "num_network_read_ports": constant(1, "count", ATTRIBUTED, f"one packet a cycle; {HC34_NOTES}"),
    "num_network_write_ports": constant(
        1, "count", ATTRIBUTED, f"one packet a cycle; {HC34_NOTES}"
    ),
    "port_bytes_per_cycle": constant(64, "B/cycle", ATTRIBUTED, CC),
    "scalar_port_bytes_per_cycle": constant(8, "B/cycle", ATTRIBUTED, f"64-bit scalar; {CC}"),
    "num_address_units": constant(
        2, "count", STATED, f"2 AGUs; {HC34_NODE}: 2 loads and 1 store cannot go on every cycle"
    ),
    "sram_latency_cycles": constant(5, "cycles", INFERRED, CC, (4, 12)),
    "link_bytes_per_cycle": constant(
        64, "B/cycle", DERIVED, f"one 64 B packet in and one out a side; {HC34_NOTES}"
    ),
    "hop_cycles": constant(1, "cycles", ATTRIBUTED, HC34_NOTES),
    "packet_bytes": constant(64, "B", ATTRIBUTED, HC34_NOTES),
    "op_start_ns": constant(
        50, "ns", ASSUMED, "100 clocks to pass a semaphore and start the next code", (0, 1000)
    ),
    "bf16_mac_pj": constant(
        0.6, "pJ", ASSUMED, f"BF16 multiply 0.21 and FP32 add 0.38, recalled; {LESSONS}", (0.4, 1.2)
    ),
    "cfloat8_mac_pj": constant(0.5, "pJ", ASSUMED, "a little below BF16; the add stays", (0.3, 1)),
    "vector_flop_pj": constant(
        0.9, "pJ", ASSUMED, f"FP32 multiply 1.31 and add 0.38, recalled; {LESSONS}", (0.6, 3)
    ),
    "sram_pj_per_byte": constant(
        1.75, "pJ/B", ASSUMED, f"14 pJ for 64 bits of 1 MB, recalled; {LESSONS}", (0.5, 2.5)
    ),
    "hop_pj_per_byte": constant(
        1.2, "pJ/B", ASSUMED, "1.35 mm of wire at 0.1 pJ/bit/mm, and a router", (0.5, 3)
    ),
    "idle_share": constant(0.25, "share", ASSUMED, f"of the limit; {NOT_PUBLIC}", (0.1, 0.4)),
}

DIE: Table = {
    "die_rows": constant(
        18, "count", ASSUMED, "18 x 20 is commonly assumed for 354 nodes; no source", (18, 19)
    ),
    "die_columns": constant(20, "count", ASSUMED, "see die_rows", (19, 20)),
    "missing_nodes": constant(
        6, "count", ASSUMED, f"354 usable nodes ({HC34_NOTES}) of an assumed 360", (0, 7)
    ),
    "missing_seed": constant(0, "count", ASSUMED, f"draws their places; {NOT_PUBLIC}"),
    "do_missing_nodes_route": constant(
        0, "count", ASSUMED, "0: routes go around missing nodes; 1: their routers work", (0, 1)
    ),
    "die_edge_tb_per_s": constant(
        2,
        "TB/s",
        CONFLICTING,
        "one direction; 2 (HC34) and 4 (AI Day 2021) are 144 lanes of 112 Gb/s one and both ways",
    ),
    "die_crossing_ns": constant(
        100, "ns", ATTRIBUTED, f"beyond the hop of the node; {CC}; {HC34_NOTES}", (50, 300)
    ),
    "die_edge_pj_per_byte": constant(
        12, "pJ/B", ASSUMED, "1.5 pJ/bit, short-reach 112 Gb/s lanes", (6, 40)
    ),
}

INTERFACE: Table = {
    "interfaces_per_die_edge": constant(
        1, "count", DERIVED, f"5 interface processors on a tile edge of 5 dies; {STH}"
    ),
    "num_interface_sides": constant(
        1, "count", ASSUMED, "sides with interface processors: 1 west, 2 west and east", (1, 2)
    ),
    "interface_gb_per_s": constant(900, "GB/s", STATED, f"TTP, each way; {HC34_SYSTEM}"),
    "interface_crossing_ns": constant(
        150, "ns", ASSUMED, f"as a tile edge; {NOT_PUBLIC}", (100, 500)
    ),
    "interface_pj_per_byte": constant(16, "pJ/B", ASSUMED, "2 pJ/bit", (8, 50)),
    "hbm_gb": constant(32, "GB", STATED, f"a processor; {HC34_SYSTEM}"),
    "hbm_gb_per_s": constant(800, "GB/s", STATED, f"a processor; {HC34_SYSTEM}"),
    "hbm_efficiency_share": constant(0.9, "share", ASSUMED, "long streams", (0.8, 0.95)),
    "hbm_latency_ns": constant(1000, "ns", ASSUMED, f"likely very high ({CC})", (500, 2000)),
    "num_hbm_channels": constant(
        32, "count", ASSUMED, "2 processors of 2 stacks (press), 8 channels a stack", (16, 64)
    ),
    "hbm_access_bytes": constant(64, "B", ASSUMED, "HBM2: 4 bursts of 16 B", (32, 64)),
    "hbm_pj_per_byte": constant(28, "pJ/B", ASSUMED, "HBM2: 3.5 pJ/bit", (20, 56)),
    "pcie_gb_per_s": constant(32, "GB/s", STATED, f"Gen4 x16, each way; {HC34_SYSTEM}"),
    "pcie_latency_ns": constant(1000, "ns", ASSUMED, NOT_PUBLIC, (500, 2000)),
    "pcie_pj_per_byte": constant(50, "pJ/B", ASSUMED, "6 pJ/bit", (30, 100)),
    "ethernet_gb_per_s": constant(50, "GB/s", STATED, f"TTPoE, each way; {HC34_SYSTEM}"),
    "ethernet_latency_ns": constant(1300, "ns", PRESS, f"one way; {NBF}", (1000, 5000)),
    "ethernet_packet_bytes": constant(1024, "B", STATED, "TTPoE payload: 1 to 16 beats of 64 B"),
    "ethernet_pj_per_byte": constant(160, "pJ/B", ASSUMED, "20 pJ/bit with its switch", (80, 400)),
}

TILE: Table = {
    "tile_rows": constant(5, "count", STATED, f"25 dies, 5 x 5; {HC34_SYSTEM}"),
    "tile_columns": constant(5, "count", STATED, f"25 dies, 5 x 5; {HC34_SYSTEM}"),
    "tile_edge_gb_per_s": constant(
        900, "GB/s", DERIVED, f"a die at the edge, each way; {CC}; 9 TB/s an edge is two-way"
    ),
    "tile_crossing_ns": constant(
        150, "ns", ASSUMED, "no less than a die crossing; beyond the hop", (100, 500)
    ),
    "tile_edge_pj_per_byte": constant(16, "pJ/B", ASSUMED, "2 pJ/bit", (8, 50)),
}

TRAY: Table = {
    "num_interface_sides": constant(
        2, "count", DERIVED, "20 processors, 5 a tile edge: 4 edges, the short sides of 2 x 3 tiles"
    ),
    "tray_rows": constant(2, "count", ATTRIBUTED, f"6 tiles, 2 x 3; {SA}"),
    "tray_columns": constant(3, "count", ATTRIBUTED, f"6 tiles, 2 x 3; {SA}"),
}

CABINET: Table = {
    "cabinet_trays": constant(2, "count", ATTRIBUTED, f"2 trays; {HC34_NOTES}"),
}

EXAPOD: Table = {
    "exapod_cabinets": constant(10, "count", ATTRIBUTED, f"{SA}; {HC34_NOTES}"),
}

NODE_POWER: Table = {
    "node_watts": constant(1.13, "W", DERIVED, "400 W of a die / 354 nodes"),
}
DIE_POWER: Table = {"die_watts": constant(400, "W", ATTRIBUTED, f"TDP; {SA}")}
TILE_POWER: Table = {"tile_watts": constant(15000, "W", ATTRIBUTED, STH)}
TRAY_POWER: Table = {"tray_watts": constant(100e3, "W", ATTRIBUTED, f"100+ kW; {HC34_NOTES}")}

WAFER: Table = {
    "missing_seed": DIE["missing_seed"],
    "do_missing_nodes_route": DIE["do_missing_nodes_route"],
    "wafer_rows": constant(90, "count", ASSUMED, "a D1 tile's 5 dies of 18, on one wafer"),
    "wafer_columns": constant(100, "count", ASSUMED, "a D1 tile's 5 dies of 20, on one wafer"),
    "missing_nodes": constant(150, "count", ASSUMED, "6 in 360, as on a D1 die", (0, 450)),
    "interfaces_per_wafer_edge": constant(5, "count", ASSUMED, "as at the edge of a D1 tile"),
    "wafer_edge_gb_per_s": constant(
        4500, "GB/s", ASSUMED, "a side as a whole, each way; as a D1 tile's edge", (4500, 9000)
    ),
    "wafer_crossing_ns": constant(150, "ns", ASSUMED, "as a D1 tile's edge", (100, 500)),
    "wafer_edge_pj_per_byte": constant(16, "pJ/B", ASSUMED, "as a D1 tile's edge", (8, 50)),
    "wafer_watts": constant(15000, "W", ASSUMED, "as a D1 tile", (10000, 20000)),
}
