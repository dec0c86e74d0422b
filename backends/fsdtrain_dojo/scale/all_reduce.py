"""How long the gradients of all replicas take to be summed, and what that moves.

On a mesh, homes of replicas sum by the bucket algorithm (rows scatter, columns all-reduce the
parts, rows gather; or columns first), or, where that is quicker, by a reduce to the home in the
middle and a multicast. Between meshes, the parts that the homes of a mesh have summed go over all
its interfaces at once, in a ring or up and down a tree of meshes, and are gathered back. Formulas
are those of `network.closed_forms`, for a network with nothing else on it. All MODELLED.

Within a home, every node sums the part of the gradients that it holds. Where the program keeps
them on several nodes alike, the sum over homes takes place between the scatter and the gather of
the program's own all-reduce, so nothing is sent twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fsdtrain_dojo.network.closed_forms import Line, choose_reduce, part
from fsdtrain_dojo.scale.join import Join
from fsdtrain_dojo.scale.rings import parallel_ring_clocks


@dataclass(frozen=True, kw_only=True)
class AllReduce:
    """Of one block of gradients, by itself.

    Args:
        scatter_s: on the mesh, before the network.
        network_s: between meshes.
        gather_s: on the mesh, after the network.
        memory_s: of reading gradients from the memory outside and writing sums there, which goes
            on meanwhile; 0 where the nodes hold them.
        how: in words.
        num_bytes: "mesh": over borders of homes; "SRAM": that nodes send; "network"; "HBM".
        joules: of all that.
    """

    scatter_s: float
    network_s: float
    gather_s: float
    memory_s: float
    how: str
    num_bytes: Mapping[str, float]
    joules: float

    @property
    def seconds(self) -> float:
        return max(self.mesh_s + self.network_s, self.memory_s)

    @property
    def mesh_s(self) -> float:
        return self.scatter_s + self.gather_s


def all_reduce(join: Join, num_bytes: float, *, lies_outside: bool = False) -> AllReduce:
    """Every replica gets the sum of all replicas' `num_bytes`.

    Args:
        join: of the replicas.
        num_bytes: of one replica's gradients.
        lies_outside: whether they are in HBM rather than in the nodes' memory.
    """
    if join.num_replicas == 1:
        return AllReduce(
            scatter_s=0.0, network_s=0.0, gather_s=0.0, memory_s=0.0,
            how="nothing to sum", num_bytes={}, joules=0.0,
        )  # fmt: skip
    mesh = min(
        (_bucket(join, num_bytes, rows_first=each) for each in (True, False)),
        key=lambda each: each.seconds,
    )
    if _least_to_root(join, num_bytes) < mesh.seconds:
        mesh = min(mesh, _root(join, num_bytes), key=lambda each: each.seconds)
    network_s, network_how = _over_network(join, num_bytes)
    hows = [mesh.how] if join.num_in_mesh > 1 else []
    hows += [network_how] if network_how else []
    moved = _moved_bytes(join, num_bytes, mesh, lies_outside=lies_outside)
    return AllReduce(
        scatter_s=mesh.scatter_s,
        network_s=network_s,
        gather_s=mesh.gather_s,
        memory_s=2 * num_bytes / join.memory_bytes_per_s if lies_outside else 0.0,
        how=", ".join(hows),
        num_bytes={name: each for name, (each, _) in moved.items()},
        joules=sum(joules for _, joules in moved.values()),
    )


@dataclass(frozen=True, kw_only=True)
class _OnMesh:
    scatter_s: float
    gather_s: float
    is_bucket: bool
    rows_first: bool
    how: str

    @property
    def seconds(self) -> float:
        return self.scatter_s + self.gather_s


def _bucket(join: Join, num_bytes: float, *, rows_first: bool) -> _OnMesh:
    """Reduce-scatter and all-gather around rings along both axes; see `rings.py`.

    Each phase waits for all of the one before. On a network, parts that come early go on early:
    the packet model is up to 12 % quicker.
    """
    axes = [(join.row, join.nodes_along_row), (join.column, join.nodes_along_column)]
    first, second = axes if rows_first else axes[::-1]
    share = num_bytes / len(first[0])
    scatter = _scatter_s(join, *first, num_bytes) + _scatter_s(join, *second, share)
    gather = _gather_s(join, *second, share) + _gather_s(join, *first, num_bytes)
    return _OnMesh(
        scatter_s=scatter,
        gather_s=gather,
        is_bucket=True,
        rows_first=rows_first,
        how=f"{'rows' if rows_first else 'columns'} first, bucket on the mesh",
    )


def _scatter_s(join: Join, line: Line, num_parts: int, num_bytes: float) -> float:
    """With the addition of what arrives last."""
    if len(line) == 1:
        return 0.0
    add_s = add_seconds(join, num_bytes / len(line), join.num_nodes)
    clocks = parallel_ring_clocks(
        line, num_bytes, num_parts=num_parts, add_clocks=add_s * join.clock_hz
    )
    return clocks / join.clock_hz + add_s


def _gather_s(join: Join, line: Line, num_parts: int, num_bytes: float) -> float:
    if len(line) == 1:
        return 0.0
    return parallel_ring_clocks(line, num_bytes, num_parts=num_parts) / join.clock_hz


def add_seconds(join: Join, num_bytes: float, num_nodes: int) -> float:
    """For nodes to add a block that is spread over them: their memories' ports limit it."""
    return num_bytes / num_nodes * join.add_s_per_byte


def _least_to_root(join: Join, num_bytes: float) -> float:
    """No reduce and multicast is quicker: all of it crosses every border, there and back."""
    return (
        2
        / join.clock_hz
        * sum(
            max(line.packet_clocks) * (line.num_packets(num_bytes) - 1)
            for line in (join.row, join.column)
            if len(line) > 1
        )
    )


def _root(join: Join, num_bytes: float) -> _OnMesh:
    """To the middle of every row, along the middle column to its middle, and back by multicast."""
    add_s = add_seconds(join, num_bytes, join.num_nodes)
    scatter = gather = 0.0
    for line in (join.row, join.column):
        if len(line) > 1:
            arms = _arms(line)
            clocks = [
                choose_reduce(arm, num_bytes, add_clocks=add_s * join.clock_hz).clocks
                for arm in arms
            ]
            scatter += max(clocks) / join.clock_hz + len(arms) * add_s
            back = [arm.transfer(0, len(arm) - 1, arm.num_packets(num_bytes)) for arm in arms]
            gather += max(back) / join.clock_hz
    return _OnMesh(
        scatter_s=scatter,
        gather_s=gather,
        is_bucket=False,
        rows_first=True,
        how="reduce and multicast on the mesh",
    )


def _arms(line: Line) -> list[Line]:
    """A line from its middle to either end, the middle first."""
    middle = len(line) // 2
    back = part(line, 0, middle + 1)
    arms = [
        Line(
            latency=back.latency[::-1],
            packet_clocks=back.packet_clocks[::-1],
            packet_bytes=line.packet_bytes,
        )
    ]
    if middle < len(line) - 1:
        arms.append(part(line, middle, len(line)))
    return arms


def _over_network(join: Join, num_bytes: float) -> tuple[float, str]:
    """Between meshes, over all interfaces of each at once; the quicker of ring and tree.

    Before and after, the parts cross the mesh to and from the nodes before the interfaces. A
    message waits for the one before it on its way to the same sum.
    """
    port, count = join.network, join.num_meshes
    if count == 1:
        return 0.0, ""
    assert port is not None
    piece = num_bytes / count
    ring_s = 2 * (count - 1) * port.message_s(piece)
    ring_s += (count - 1) * add_seconds(join, piece, port.num_nodes)
    depth = (count - 1).bit_length()
    tree_s = 2 * depth * port.message_s(num_bytes)
    tree_s += depth * add_seconds(join, num_bytes, port.num_nodes)
    seconds, shape = min((ring_s, "ring"), (tree_s, "tree"))
    return seconds + 2 * port.way_s, f"{shape} of {count} over the network"


def _moved_bytes(
    join: Join, num_bytes: float, mesh: _OnMesh, *, lies_outside: bool
) -> dict[str, tuple[float, float]]:
    """Bytes and joules by what they cross, of the whole machine."""
    rows, columns = len(join.column), len(join.row)
    row_bytes, column_bytes = _border_bytes(rows, columns, num_bytes, mesh)
    sent = 2 * num_bytes * (join.num_in_mesh - 1) * join.num_meshes
    meshes = join.num_meshes
    joules = row_bytes * sum(join.row_joules_per_byte)
    joules += column_bytes * sum(join.column_joules_per_byte)
    moved = {
        "mesh": (
            meshes * (row_bytes * (columns - 1) + column_bytes * (rows - 1)),
            meshes * joules,
        ),
        # a byte is read and written at each end, and read twice and written where it is added
        "SRAM": (sent, sent * (2 + 3 / 2) * join.sram_joules_per_byte),
    }
    if meshes > 1:
        assert join.network is not None
        over = 2 * (meshes - 1) * num_bytes
        moved["network"] = (over, over * join.network.joules_per_byte)
    if lies_outside:
        outside = 2 * num_bytes * join.num_replicas
        moved["HBM"] = (outside, outside * join.memory_joules_per_byte)
    return {name: each for name, each in moved.items() if each[0] > 0}


def _border_bytes(rows: int, columns: int, num_bytes: float, mesh: _OnMesh) -> tuple[float, float]:
    """Bytes over one border between columns of homes, and over one between rows, both ways."""
    if not mesh.is_bucket:
        return 2 * num_bytes * rows, 2 * num_bytes
    row_share, column_share = (columns - 1) / columns, (rows - 1) / rows
    if mesh.rows_first:
        column_share /= columns
    else:
        row_share /= rows
    # Two phases, in each of which the folded ring of a line crosses its borders twice.
    return 4 * num_bytes * row_share * rows, 4 * num_bytes * column_share * columns
