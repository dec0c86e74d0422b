"""Attentions, recorded and lowered with chains whether or not these pay."""

from collections.abc import Mapping

import torch
from fsdtrain_dojo.lowering.chain_space import find_spaces
from fsdtrain_dojo.lowering.kernel import KernelGraph
from fsdtrain_dojo.lowering.lower import place
from fsdtrain_dojo.lowering.passes.expand_macros import expand_macros
from fsdtrain_dojo.lowering.passes.fold_views import fold_views
from fsdtrain_dojo.lowering.passes.fuse_elementwise import fuse_elementwise
from fsdtrain_dojo.lowering.passes.tile_chains import tile_chains
from fsdtrain_dojo.lowering.program import TileProgram
from fsdtrain_dojo.lowering.record_step import RecordedStep, record_forward, record_step
from fsdtrain_dojo.lowering.verify import verify_graph, verify_program
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.recipe import bf16_options, read_recipe
from fsdtrain_dojo.timing.costs import Costs
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Of several heads, with projections, to tokens of another length.

    Args:
        heads: number of them.
        width: of a head.
        kind: "plain", "causal", "masked" (with the input "mask"), "by hand" (softmax of products).
    """

    def __init__(self, heads: int, width: int, kind: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(heads + width)
        self.heads, self.kind = heads, kind
        channels = heads * width
        self.query, self.value = (nn.Linear(channels, channels) for _ in range(2))
        self.key = nn.Linear(channels, channels, bias=False)  # one would have no gradient
        self.out = nn.Linear(heads * width, 3)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query = split(self.query(inputs["tokens"]))
        key, value = split(self.key(inputs["others"])), split(self.value(inputs["others"]))
        if self.kind == "by hand":
            weights = (query @ key.transpose(-1, -2)).softmax(-1)
            found = weights @ value
        else:
            found = F.scaled_dot_product_attention(
                query, key, value, attn_mask=inputs.get("mask"), is_causal=self.kind == "causal"
            )
        return self.out(found.transpose(1, 2).flatten(2)).square().mean()


def inputs_of(
    batch: int, rows: int, columns: int, channels: int, *, seed: int = 0, is_masked: bool = False
) -> dict[str, Tensor]:
    """Tokens, others to attend to, and a mask that hides all of a row or its first columns."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        "tokens": 3 * torch.randn(batch, rows, channels, generator=generator),
        "others": 3 * torch.randn(batch, columns, channels, generator=generator),
    }
    if is_masked:
        mask = torch.rand(rows, columns, generator=generator) < 0.6
        mask[0] = False
        mask[1:5, : columns // 2] = False
        found["mask"] = mask
    return found


def record_attention(
    batch: int, rows: int, columns: int, heads: int, width: int, kind: str = "plain", seed: int = 0
) -> RecordedStep:
    module = Attention(heads, width, kind).train()
    inputs = inputs_of(batch, rows, columns, heads * width, seed=seed, is_masked=kind == "masked")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, eps=1e-2)
    return record_step(
        module, inputs, optimizer, recipe=read_recipe(bf16_options()),
        run=lambda net, batch: net(batch),
    )  # fmt: skip


class _Forward(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


def forward_graph(heads: int, rows: int, width: int) -> KernelGraph:
    """An attention by itself, without gradients."""
    operands = [torch.zeros(()).expand(1, heads, rows, width) for _ in range(3)]
    return expand_macros(record_forward(_Forward(), *operands, recipe=read_recipe(bf16_options())))


def with_passes(graph: KernelGraph) -> KernelGraph:
    return fuse_elementwise(fold_views(graph))


def with_chains(graph: KernelGraph) -> KernelGraph:
    """The graph as `choose_layouts` gets it, with all chains that there can be."""
    graph = with_passes(graph)
    return tile_chains(graph, list(find_spaces(graph)))


def place_chains(graph: KernelGraph, machine: Mapping[str, object]) -> TileProgram:
    """The verified program with all chains on a machine."""
    costs = Costs(read_machine(machine))
    program = place(with_chains(graph), costs)
    verify_graph(program.graph)
    verify_program(program, sram_bytes=costs.machine.node.memory.capacity_bytes)
    return program
