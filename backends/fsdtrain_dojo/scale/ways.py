"""The quicker way of a message between two slices: over the mesh, or through the Z plane.

On the Z plane, a message leaves the mesh through an interface, crosses the switch of the network,
and comes in again through another interface: four hops in place of the dies between. Little goes
that way (a network port is far narrower than the side of a die), but it is soon there. MODELLED.
"""

from dataclasses import dataclass

from fsdtrain_dojo.machine.schema import Position, Side
from fsdtrain_dojo.scale.grid import Hop, SliceGrid, way_to_sides
from fsdtrain_dojo.scale.join import NetworkPort

Z_PLANE_HOPS = 4  # to the interface, to the switch, to the other interface, to the mesh


@dataclass(frozen=True, kw_only=True)
class Way:
    """Of one message.

    Args:
        name: "mesh", or "Z plane", or "network" between meshes.
        seconds: until its last byte is there.
        num_hops: links from node to node, or through interfaces and switch.
        joules: of all its bytes.
    """

    name: str
    seconds: float
    num_hops: int
    joules: float


def find_ways(
    grid: SliceGrid, port: NetworkPort | None, start: Position, end: Position, num_bytes: float
) -> list[Way]:
    """All ways of a message between two slices of one mesh, quickest first.

    It goes from the nodes of one slice to the nodes at the same places of the other, over all
    links between them at once; through the Z plane, from the middle of one slice to the middle of
    the other over the slices' share of the network ports.

    Args:
        grid: of the slices.
        port: of a whole mesh; None: there is no network.
        start: row and column of the slice that sends.
        end: of the slice that receives.
        num_bytes: of the message.
    """
    ways = [_over_mesh(grid, start, end, num_bytes)]
    if port is not None and port.sides:
        ways.append(_over_z_plane(grid, port, (start, end), num_bytes))
    return sorted(ways, key=lambda way: way.seconds)


def network_way(port: NetworkPort, num_bytes: float) -> Way:
    """Of a message from one whole mesh to another."""
    return Way(
        name="network",
        seconds=port.message_s(num_bytes) + 2 * port.way_s,
        num_hops=Z_PLANE_HOPS,
        joules=num_bytes * port.joules_per_byte,
    )


def _over_mesh(grid: SliceGrid, start: Position, end: Position, num_bytes: float) -> Way:
    """Along the row, then along the column."""
    first, last = sorted((start[1], end[1]))
    across = grid.row_hops[first:last]
    first, last = sorted((start[0], end[0]))
    down = grid.column_hops[first:last]
    way = (*across, *down)
    if not way:
        return Way(name="mesh", seconds=0.0, num_hops=0, joules=0.0)
    return Way(
        name="mesh",
        seconds=_latency_s(way) + num_bytes / min(hop.bytes_per_s for hop in way),
        num_hops=len(across) * grid.slice_columns + len(down) * grid.slice_rows,
        joules=num_bytes * sum(hop.joules_per_byte for hop in way),
    )


def _over_z_plane(
    grid: SliceGrid,
    port: NetworkPort,
    ends: tuple[Position, Position],
    num_bytes: float,
) -> Way:
    out, back = (way_to_sides(grid, port.sides, *end) for end in ends)
    is_beside = bool({Side.WEST, Side.EAST} & set(port.sides))
    across = grid.across_row_s if is_beside else grid.across_column_s
    extent = grid.slice_columns if is_beside else grid.slice_rows
    rate = port.bytes_per_s / (grid.rows * grid.columns)
    hops = (*out, *back)
    return Way(
        name="Z plane",
        seconds=port.latency_s + _latency_s(hops) + across + num_bytes / rate,
        num_hops=Z_PLANE_HOPS + (len(hops) + 1) * extent,
        joules=num_bytes * (port.joules_per_byte + sum(hop.joules_per_byte for hop in hops)),
    )


def _latency_s(way: tuple[Hop, ...]) -> float:
    return sum(hop.latency_s for hop in way)
