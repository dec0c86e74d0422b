"""The flow model against the packet model, which share routes and nothing else.

Load is the share of what the network carries of a pattern when it is offered too much, found with
the packet model; messages are of 16 KiB.
"""

import numpy as np
import pytest
from fsdtrain_dojo.network import collectives
from fsdtrain_dojo.network.flow_model import simulate_flows
from fsdtrain_dojo.network.packet_model import simulate_packets
from fsdtrain_dojo.network.program import FlowProgram

from tests.backends.dojo.network.meshes import random_arrivals, square, two_dies

SIDE, PACKETS, CLOCKS = 8, 256, 25_600


def saturation(pattern: str, buffer_packets: int) -> float:
    """The share of the busiest link's rate that a pattern reaches."""
    load, mesh = 1.5, square(SIDE)
    crowd = random_arrivals(mesh, pattern, SIDE, load=load, packets=PACKETS, clocks=CLOCKS)
    return load * CLOCKS / simulate_packets(crowd, buffer_packets=buffer_packets).makespan


@pytest.mark.parametrize("pattern", ["random", "transpose", "hot-spot"])
@pytest.mark.parametrize(("buffer_packets", "loads"), [(8, (0.3, 0.5)), (32, (0.3, 0.5, 0.7))])
def test_message_times_agree_below_saturation(pattern, buffer_packets, loads):
    limit = saturation(pattern, buffer_packets)
    for share in loads:
        traffic = random_arrivals(
            square(SIDE), pattern, SIDE, load=share * limit, packets=PACKETS, clocks=CLOCKS
        )
        packets = simulate_packets(traffic, buffer_packets=buffer_packets)
        flows = simulate_flows(traffic)
        times = [(delivery.finish - traffic.start).mean() for delivery in (flows, packets)]
        assert times[0] == pytest.approx(times[1], rel=0.05), f"at {share} of saturation"
        assert flows.makespan == pytest.approx(packets.makespan, rel=0.01)
        for moved in ("link_packets", "sent", "received"):
            assert (getattr(flows, moved) == getattr(packets, moved)).all()


@pytest.mark.parametrize("mesh", [square(6), two_dies(3, 6, crossing=100, rate=50)])
def test_all_reduces_side_by_side_agree(mesh):
    rows = np.arange(36).reshape(6, 6).tolist()
    program = FlowProgram()
    collectives.bucket_all_reduce(program, rows, 64 * 1440, add_clocks=9)
    for row in rows[:3]:
        collectives.ring_all_reduce(program, row, 64 * 360, add_clocks=9)
    traffic = program.build(mesh)
    flows, packets = simulate_flows(traffic), simulate_packets(traffic)
    assert flows.makespan == pytest.approx(packets.makespan, rel=0.05)
    times = [(delivery.finish - delivery.start).mean() for delivery in (flows, packets)]
    assert times[0] == pytest.approx(times[1], rel=0.05)
