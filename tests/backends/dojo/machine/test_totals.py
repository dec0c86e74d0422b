"""Published totals as printed, with who printed them; nothing here is computed by the code."""

from dataclasses import replace

import pytest
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.node import PortKind
from fsdtrain_dojo.machine.schema import Topology
from fsdtrain_dojo.machine.totals import (
    bisection_bytes_per_s,
    corner_latency_s,
    corner_to_corner,
    num_interfaces,
    totals,
)

# machine, total, published figure in SI units, half of its last printed digit, who printed it.
PUBLISHED = [
    ("d1_node", "matmul bf16", 1.024e12, 0.0005e12, "Hot Chips 34"),
    ("d1_node", "matmul fp32", 64e9, 0.5e9, "SemiAnalysis, AI Day 2021"),
    ("d1_node", "sram_bytes", 1.25e6, 0.005e6, "Hot Chips 34"),
    ("d1_die", "num_nodes", 354, 0, "Hot Chips 34"),
    ("d1_die", "matmul bf16", 362e12, 0.5e12, "AI Day 2021"),
    ("d1_die", "matmul cfloat8_1_4_3", 362e12, 0.5e12, "AI Day 2021"),
    ("d1_die", "matmul fp32", 22.6e12, 0.1e12, "AI Day 2021, printed cut, not rounded"),
    ("d1_die", "sram_bytes", 440e6, 5e6, "AI Day 2021"),
    ("d1_die", "edge_bytes_per_s", 2 * 8e12, 0.1e12, "AI Day 2021: 4 x 2 TB/s one way"),
    ("d1_die", "limit_watts", 400, 0, "AI Day 2021"),
    ("d1_tile", "num_nodes", 8850, 0, "25 x 354"),
    ("d1_tile", "matmul bf16", 9.06e15, 0.005e15, "AI Day 2021: 9 PFLOPS"),
    ("d1_tile", "sram_bytes", 11e9, 0.5e9, "Hot Chips 34"),
    ("d1_tile", "edge_bytes_per_s", 36e12, 0.5e12, "Hot Chips 34, both ways"),
    ("d1_tile", "bisection_bytes_per_s", 10e12, 0.5e12, "Hot Chips 34"),
    ("d1_tile", "memory_bytes", 160e9, 0, "Hot Chips 34: 5 interface processors at an edge"),
    ("d1_tile", "memory_bytes_per_s", 4.0e12, 0, "Hot Chips 34: 5 x 800 GB/s"),
    ("d1_tile", "interface_bytes_per_s", 4.5e12, 0, "Hot Chips 34: TTP of an edge"),
    ("d1_tile", "limit_watts", 15e3, 0, "Hot Chips 34"),
    ("d1_tray", "matmul bf16", 54e15, 0.5e15, "AI Day 2022"),
    ("d1_tray", "bisection_bytes_per_s", 13.4e12, 0.11e12, "AI Day 2022; 3 edges of 4.5 are 13.5"),
    ("d1_tray", "memory_bytes", 640e9, 0, "AI Day 2022"),
    ("d1_tray", "interface_bytes_per_s", 18e12, 0, "AI Day 2022"),
    ("d1_tray", "network_bytes_per_s", 1e12, 0, "AI Day 2022: 1 TB/s of Ethernet"),
    ("d1_tray", "host_bytes_per_s", 640e9, 0, "AI Day 2022"),
    ("d1_tray", "limit_watts", 100e3, 0, "AI Day 2022: 100+ kW"),
    ("d1_cabinet", "matmul bf16", 108.7e15, 0.1e15, "AI Day 2021: over 100 PFLOPS"),
    ("d1_cabinet", "sram_bytes", 132e9, 1e9, "AI Day 2021"),
    ("exapod", "num_nodes", 1_062_000, 0, "AI Day 2021"),
    ("exapod", "matmul bf16", 1.09e18, 0.005e18, "AI Day 2021: 1.1 EFLOPS"),
    ("exapod", "sram_bytes", 1.33e12, 0.005e12, "AI Day 2021: 1.3 TB"),
    ("exapod", "memory_bytes", 13e12, 0.5e12, "AI Day 2022"),
    ("d2_wafer", "num_nodes", 8850, 0, "as the tile it is made from"),
    ("d2_wafer", "matmul bf16", 9.06e15, 0.005e15, "as the tile it is made from"),
    ("tpu_v3", "matmul bf16", 61.5e12, 0.2e12, "half of 123 TFLOPS, Google Cloud"),
    ("tpu_v3_chip", "matmul bf16", 123e12, 0.5e12, "Google Cloud, TPU v3"),
    ("tpu_v3_chip", "vector fp32", 4e12, 0.5e12, "Jouppi et al., CACM 2020"),
    ("tpu_v3_chip", "memory_bytes", 32 * 2**30, 0, "Google Cloud, TPU v3"),
    ("tpu_v3_chip", "memory_bytes_per_s", 900e9, 0, "Google Cloud, TPU v3"),
    ("tpu_v3_chip", "sram_bytes", 32 * 2**20, 0, "Hot Chips 2020"),
    ("tpu_v3_chip", "limit_watts", 262, 0, "Google Cloud, TPU v3, measured"),
    ("a100", "matmul bf16", 312e12, 0.5e12, "NVIDIA A100 datasheet"),
    ("a100", "matmul tf32", 156e12, 0.5e12, "NVIDIA A100 datasheet"),
    ("a100", "vector fp32", 19.5e12, 0.05e12, "NVIDIA A100 datasheet"),
    ("a100", "vector bf16", 39e12, 0.5e12, "NVIDIA A100 white paper"),
    ("a100", "memory_bytes", 80e9, 0, "NVIDIA A100 datasheet"),
    ("a100", "memory_bytes_per_s", 2.039e12, 1, "NVIDIA A100 datasheet"),
    ("a100", "shared_bytes", 40 * 2**20, 0, "NVIDIA A100 white paper, L2"),
    ("a100", "network_bytes_per_s", 600e9 / 2, 0, "NVIDIA A100 datasheet, NVLink both ways"),
    ("a100", "limit_watts", 400, 0, "NVIDIA A100 datasheet"),
    ("h100", "matmul bf16", 989.4e12, 0.05e12, "NVIDIA H100 white paper"),
    ("h100", "matmul tf32", 494.7e12, 0.05e12, "NVIDIA H100 white paper"),
    ("h100", "matmul fp8_e4m3", 1978.9e12, 0.1e12, "NVIDIA H100 white paper"),
    ("h100", "vector fp32", 66.9e12, 0.05e12, "NVIDIA H100 white paper"),
    ("h100", "vector bf16", 133.8e12, 0.05e12, "NVIDIA H100 white paper"),
    ("h100", "memory_bytes", 80e9, 0, "NVIDIA H100 datasheet"),
    ("h100", "memory_bytes_per_s", 3.35e12, 1, "NVIDIA H100 datasheet"),
    ("h100", "network_bytes_per_s", 900e9 / 2, 0, "NVIDIA H100 datasheet, NVLink both ways"),
    ("h100", "host_bytes_per_s", 128e9 / 2, 0, "NVIDIA H100 datasheet, PCIe both ways"),
    ("h100", "limit_watts", 700, 0, "NVIDIA H100 datasheet"),
    ("h200", "matmul bf16", 989.4e12, 0.05e12, "NVIDIA H200 datasheet"),
    ("h200", "memory_bytes", 141e9, 0, "NVIDIA H200 datasheet"),
    ("h200", "memory_bytes_per_s", 4.8e12, 1, "NVIDIA H200 datasheet"),
    ("mi300x", "num_nodes", 304, 0, "AMD MI300X datasheet"),
    ("mi300x", "matmul bf16", 1307.4e12, 0.1e12, "AMD MI300X datasheet"),
    ("mi300x", "matmul tf32", 653.7e12, 0.1e12, "AMD MI300X datasheet"),
    ("mi300x", "matmul fp8_e4m3", 2614.9e12, 0.1e12, "AMD MI300X datasheet"),
    ("mi300x", "vector fp32", 163.4e12, 0.05e12, "AMD MI300X datasheet"),
    ("mi300x", "memory_bytes", 192e9, 0, "AMD MI300X datasheet"),
    ("mi300x", "memory_bytes_per_s", 5.3e12, 1, "AMD MI300X datasheet"),
    ("mi300x", "network_bytes_per_s", 896e9 / 2, 0, "AMD MI300X datasheet, both ways"),
    ("mi300x", "limit_watts", 750, 0, "AMD MI300X datasheet"),
]


@pytest.mark.parametrize(
    ("machine", "total", "published", "slack", "source"),
    PUBLISHED,
    ids=[f"{machine}-{total.replace(' ', '-')}" for machine, total, *_ in PUBLISHED],
)
def test_totals_are_the_published_ones(machine, total, published, slack, source):
    sums = totals(read_machine(machine))
    kind, _, number_format = total.partition(" ")
    rates = {"matmul": sums.matmul_flops_per_s, "vector": sums.vector_flops_per_s}
    found = rates[kind][number_format] if number_format else getattr(sums, total)
    assert found == pytest.approx(published, rel=1e-12, abs=slack), source


def test_sram_ports_give_the_published_400_and_270_gigabytes_a_second():
    node = read_machine("d1_node").node
    loads = (PortKind.LOAD, PortKind.NETWORK_READ, PortKind.SCALAR_LOAD)
    stores = (PortKind.STORE, PortKind.NETWORK_WRITE, PortKind.SCALAR_STORE)
    load = node.memory.bytes_per_cycle(*loads) * node.clock_hz
    store = node.memory.bytes_per_cycle(*stores) * node.clock_hz
    assert load == pytest.approx(400e9)
    assert store == pytest.approx(270e9, rel=0.01)  # 136 B a clock are 272


def test_a_node_moves_512_gigabytes_a_second_over_its_four_sides_each_way():
    assert 4 * read_machine("d1_node").node.edge.bytes_per_s == pytest.approx(512e9)


def test_the_tray_has_20_interface_processors_and_the_pod_400():
    for name, count in (("d1_tile", 5), ("d1_tray", 20), ("d1_cabinet", 40), ("exapod", 400)):
        machine = read_machine(name)
        assert num_interfaces(machine, machine.interfaces[0]) == count


def test_corner_to_corner_of_a_tile_is_188_links_of_which_8_leave_a_die():
    tile = read_machine("d1_tile")
    links = corner_to_corner(tile)
    assert links["die"] == 8
    assert sum(links.values()) == 188
    # 188 hops of a clock at 2 GHz are 94 ns, 8 crossings of 100 ns are 800.
    assert corner_latency_s(tile) == pytest.approx(894e-9)


def test_a_wafer_has_the_hops_of_a_tile_and_no_crossings():
    wafer = read_machine("d2_wafer")
    assert corner_to_corner(wafer) == {"node": 188}
    assert corner_latency_s(wafer) == pytest.approx(94e-9)
    assert wafer.is_hypothetical


def test_corner_to_corner_of_a_tray_counts_every_border_once():
    # 2 x 3 tiles of 5 x 5 dies of 18 x 20 nodes: 180 x 300 nodes, 10 x 15 dies.
    assert corner_to_corner(read_machine("d1_tray")) == {
        "tile": 1 + 2,
        "die": (9 + 14) - (1 + 2),
        "node": (179 + 299) - (9 + 14),
    }


def test_bisection_of_a_die_is_its_18_rows_of_links():
    # The cut across 20 columns of links is wider: 2.56 TB/s.
    assert bisection_bytes_per_s(read_machine("d1_tile"), "die") == pytest.approx(18 * 128e9)


def test_bisection_prefers_even_halves_over_a_narrow_cut():
    # 2 x 3 tiles: only the cut between the rows halves them, over 3 tile edges of 4.5 TB/s.
    tray = read_machine("d1_tray")
    assert bisection_bytes_per_s(tray, "tray") == pytest.approx(3 * 4.5e12)
    # Of 4 x 3, the cut between rows is as even and 3 wide; the columns cannot be halved.
    taller = read_machine({"name": "d1_tray", "tray_rows": 4})
    assert bisection_bytes_per_s(taller, "tray") == pytest.approx(3 * 4.5e12)


def test_missing_dies_are_missed_with_their_nodes():
    tile = read_machine({"name": "d1_tile", "missing_nodes": 0})
    levels = (tile.levels[0], replace(tile.levels[1], missing=(((0, 0), (4, 4)),)))
    assert totals(replace(tile, levels=levels)).num_nodes == 23 * 360


def test_trays_meet_over_the_network_links_of_their_processors():
    pod = read_machine("exapod")
    assert pod.levels[-1].topology is Topology.NETWORK
    # Half of ten cabinets of 40 links of 50 GB/s.
    assert totals(pod).bisection_bytes_per_s == pytest.approx(5 * 40 * 50e9)
