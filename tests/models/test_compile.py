"""One graph, forward and backward, whatever the calibration and the resets."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.models.hydra_bev import HydraBev

MakeBatch = Callable[..., ClipBatch]
MakeNetwork = Callable[..., HydraBev]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def gradients(step: TrainingStep, batch: ClipBatch) -> dict[str, Tensor]:
    step.zero_grad()
    step(batch).loss.backward()
    return {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}


def test_one_graph_with_the_gradients_of_eager(
    make_network: MakeNetwork, make_batch: MakeBatch
) -> None:
    eager = TrainingStep(make_network())
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)

    for seed, is_reset in ((0, False), (1, True), (2, False)):
        batch = make_batch(seed=seed, is_reset=is_reset)
        expected, found = gradients(eager, batch), gradients(compiled, batch)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
        for name, buffer in eager.named_buffers():
            torch.testing.assert_close(compiled.get_buffer(name), buffer, msg=name)

    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert counters["aot_autograd"]["total"] == counters["aot_autograd"]["ok"] == 1


def test_no_coordinate_becomes_an_index_outside_the_sampler(
    make_network: MakeNetwork, make_batch: MakeBatch
) -> None:
    """Number formats narrower than float32 may round anything that is not an address."""
    step = TrainingStep(make_network())
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compile(step, backend=keep, fullgraph=True, dynamic=False)(make_batch())

    (graph,) = graphs
    targets = {str(node.target) for node in graph.graph.nodes}
    assert not targets & {"long", "int", "nonzero", "gather", "index_add", "inv"}
    assert any("grid_sample" in target for target in targets)
