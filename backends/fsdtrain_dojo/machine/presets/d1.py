"""How the D1 machines are put together from their constants."""

from dataclasses import replace

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.node import (
    Link,
)
from fsdtrain_dojo.machine.preset import Preset, Values
from fsdtrain_dojo.machine.presets import d1_constants as d1
from fsdtrain_dojo.machine.presets.d1_node import build_node, draw_missing
from fsdtrain_dojo.machine.schema import (
    Interface,
    Level,
    Machine,
    Memory,
    Power,
    Side,
    Topology,
)


def _build_die(values: Values, num_dies: int) -> Level:
    rows, columns = values.number("die_rows"), values.number("die_columns")
    count, seed = values.number("missing_nodes"), values.number("missing_seed")
    return Level(
        name="die",
        rows=rows,
        columns=columns,
        topology=Topology.MESH,
        missing=tuple(
            draw_missing(rows, columns, count, f"{seed}/{die}") for die in range(num_dies)
        ),
        do_missing_route=bool(values.number("do_missing_nodes_route")),
        edge=Link(
            bytes_per_s=values["die_edge_tb_per_s"],
            latency_s=values["die_crossing_ns"] + values["hop_cycles"] / values["clock_ghz"],
            packet_bytes=values.number("packet_bytes"),
            joules_per_byte=values["die_edge_pj_per_byte"],
        ),
    )


def _build_tile(values: Values) -> Level:
    return Level(
        name="tile",
        rows=values.number("tile_rows"),
        columns=values.number("tile_columns"),
        topology=Topology.MESH,
        edge=Link(
            bytes_per_s=values["tile_edge_gb_per_s"],
            latency_s=values["tile_crossing_ns"] + values["hop_cycles"] / values["clock_ghz"],
            packet_bytes=values.number("packet_bytes"),
            joules_per_byte=values["tile_edge_pj_per_byte"],
        ),
        is_edge_per_member=True,
    )


def _build_interface(values: Values, level: str, count: int, link_bytes_per_s: float) -> Interface:
    num_sides = values.number("num_interface_sides")
    if not 1 <= num_sides <= 2:
        raise BackendError(
            f"backend.machine.num_interface_sides={num_sides}: must be 1 (west) or 2 (and east)"
        )
    packet = values.number("packet_bytes")
    return Interface(
        name="interface processor",
        level=level,
        sides=(Side.WEST, Side.EAST)[:num_sides],
        count=count,
        link=Link(
            bytes_per_s=link_bytes_per_s,
            latency_s=values["interface_crossing_ns"] + values["hop_cycles"] / values["clock_ghz"],
            packet_bytes=packet,
            joules_per_byte=values["interface_pj_per_byte"],
        ),
        memory=Memory(
            capacity_bytes=values.number("hbm_gb"),
            bytes_per_s=values["hbm_gb_per_s"],
            efficiency=values["hbm_efficiency_share"],
            latency_s=values["hbm_latency_ns"],
            num_channels=values.number("num_hbm_channels"),
            access_bytes=values.number("hbm_access_bytes"),
            joules_per_byte=values["hbm_pj_per_byte"],
        ),
        host=Link(
            bytes_per_s=values["pcie_gb_per_s"],
            latency_s=values["pcie_latency_ns"],
            packet_bytes=packet,
            joules_per_byte=values["pcie_pj_per_byte"],
        ),
        network=Link(
            bytes_per_s=values["ethernet_gb_per_s"],
            latency_s=values["ethernet_latency_ns"],
            packet_bytes=values.number("ethernet_packet_bytes"),
            joules_per_byte=values["ethernet_pj_per_byte"],
        ),
    )


def _power(values: Values, limit_watts: float) -> Power:
    return Power(limit_watts=limit_watts, idle_watts=values["idle_share"] * limit_watts)


def _machine(
    values: Values, levels: tuple[Level, ...], interface: Interface, limit_watts: float
) -> Machine:
    return Machine(
        node=build_node(values),
        levels=levels,
        interfaces=(interface,),
        power=_power(values, limit_watts),
        op_start_s=values["op_start_ns"],
    )


def build_single_node(values: Values) -> Machine:
    """One node, with an interface processor behind its western link, as wide as that."""
    level = Level(name="node", rows=1, columns=1, topology=Topology.MESH)
    width = values["link_bytes_per_cycle"] * values["clock_ghz"]
    return _machine(
        values, (level,), _build_interface(values, "node", 1, width), values["node_watts"]
    )


def build_die(values: Values) -> Machine:
    """One die, as if cut from the western edge of a tile, with the processor of that edge."""
    count = values.number("interfaces_per_die_edge")
    interface = _build_interface(values, "die", count, values["interface_gb_per_s"])
    return _machine(values, (_build_die(values, 1),), interface, values["die_watts"])


def build_tile(values: Values) -> Machine:
    """One tile: dies joined as a mesh."""
    tile = _build_tile(values)
    count = values.number("interfaces_per_die_edge") * tile.rows
    interface = _build_interface(values, "tile", count, values["interface_gb_per_s"])
    levels = (_build_die(values, tile.num_places), tile)
    return _machine(values, levels, interface, values["tile_watts"])


def build_tray(values: Values) -> Machine:
    """Tiles joined as a mesh; every tile has the same dies."""
    tile = _build_tile(values)
    tray = Level(
        name="tray",
        rows=values.number("tray_rows"),
        columns=values.number("tray_columns"),
        topology=Topology.MESH,
    )
    count = values.number("interfaces_per_die_edge") * tile.rows * tray.rows
    interface = _build_interface(values, "tray", count, values["interface_gb_per_s"])
    levels = (_build_die(values, tile.num_places), tile, tray)
    return _machine(values, levels, interface, values["tray_watts"])


def _repeat(machine: Machine, name: str, count: int) -> Machine:
    """`count` of a machine, joined by the network that their interfaces reach."""
    level = Level(name=name, rows=1, columns=count, topology=Topology.NETWORK)
    return replace(
        machine,
        levels=(*machine.levels, level),
        power=Power(
            limit_watts=count * machine.power.limit_watts,
            idle_watts=count * machine.power.idle_watts,
        ),
    )


def build_cabinet(values: Values) -> Machine:
    """Trays joined by TTPoE."""
    return _repeat(build_tray(values), "cabinet", values.number("cabinet_trays"))


def build_exapod(values: Values) -> Machine:
    """Cabinets joined by TTPoE."""
    return _repeat(build_cabinet(values), "exapod", values.number("exapod_cabinets"))


def build_wafer(values: Values) -> Machine:
    """The nodes of a tile as one mesh."""
    rows, columns = values.number("wafer_rows"), values.number("wafer_columns")
    count, seed = values.number("missing_nodes"), values.number("missing_seed")
    wafer = Level(
        name="wafer",
        rows=rows,
        columns=columns,
        topology=Topology.MESH,
        missing=(draw_missing(rows, columns, count, f"{seed}"),),
        do_missing_route=bool(values.number("do_missing_nodes_route")),
        edge=Link(
            bytes_per_s=values["wafer_edge_gb_per_s"],
            latency_s=values["wafer_crossing_ns"] + values["hop_cycles"] / values["clock_ghz"],
            packet_bytes=values.number("packet_bytes"),
            joules_per_byte=values["wafer_edge_pj_per_byte"],
        ),
    )
    count = values.number("interfaces_per_wafer_edge")
    interface = _build_interface(values, "wafer", count, values["interface_gb_per_s"])
    return _machine(values, (wafer,), interface, values["wafer_watts"])


def _without(table: d1.Table, *names: str) -> d1.Table:
    return {name: each for name, each in table.items() if name not in names}


_AT_WAFER = _without(d1.INTERFACE, "interfaces_per_die_edge")
_AT_NODE = _without(_AT_WAFER, "interface_gb_per_s")
_TILE = d1.NODE | d1.DIE | d1.TILE | d1.INTERFACE
_TRAY = _TILE | d1.TRAY | d1.TRAY_POWER

PRESETS = (
    Preset(
        name="d1_node",
        summary="one node of a Tesla D1, with an interface processor",
        constants=d1.NODE | _AT_NODE | d1.NODE_POWER,
        build=build_single_node,
    ),
    Preset(
        name="d1_die",
        summary="one Tesla D1: 354 nodes, with an interface processor",
        constants=d1.NODE | d1.DIE | d1.INTERFACE | d1.DIE_POWER,
        build=build_die,
    ),
    Preset(
        name="d1_tile",
        summary="a Dojo training tile: 25 D1, with 5 interface processors at one edge",
        constants=_TILE | d1.TILE_POWER,
        build=build_tile,
    ),
    Preset(
        name="d1_tray",
        summary="a Dojo system tray: 6 tiles, 20 interface processors",
        constants=_TRAY,
        build=build_tray,
    ),
    Preset(
        name="d1_cabinet",
        summary="a Dojo cabinet: 2 trays over TTPoE",
        constants=_TRAY | d1.CABINET,
        build=build_cabinet,
    ),
    Preset(
        name="exapod",
        summary="an ExaPOD: 10 cabinets, 120 tiles, 3000 D1 over TTPoE",
        constants=_TRAY | d1.CABINET | d1.EXAPOD,
        build=build_exapod,
    ),
    Preset(
        name="d2_wafer",
        summary="hypothetical: the nodes of a D1 tile on one wafer, without die crossings",
        constants=d1.NODE | _AT_WAFER | d1.WAFER,
        build=build_wafer,
        is_hypothetical=True,
    ),
)
