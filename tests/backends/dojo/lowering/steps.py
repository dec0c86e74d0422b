"""Graphs to lower: a matrix product, and a small training step of most kinds of kernels."""

from functools import lru_cache

import torch
from fsdtrain_dojo.lowering.kernel import KernelGraph, Phase, Value, ValueKind
from fsdtrain_dojo.lowering.op_call import OpCall
from fsdtrain_dojo.lowering.passes.expand_macros import expand_macros, find_describe
from fsdtrain_dojo.lowering.record_step import record_step
from fsdtrain_dojo.recipe import bf16_options, read_recipe
from torch import Tensor, nn
from torch.nn import functional as F


def gemm_graph(
    m: int, n: int, k: int, format_name: str = "bf16", element_bytes: int = 2
) -> KernelGraph:
    """c[m, n] = a[m, k] b[k, n]"""

    def value(name: str, rows: int, columns: int, kind: ValueKind) -> Value:
        return Value(
            name=name, shape=(rows, columns), format=format_name, element_bytes=element_bytes,
            kind=kind, is_output=name == "c",
        )  # fmt: skip

    a, b = value("a", m, k, ValueKind.INPUT), value("b", k, n, ValueKind.INPUT)
    c = value("c", m, n, ValueKind.ACTIVATION)
    call = OpCall(
        name="mm", op="aten.mm", function=torch.ops.aten.mm.default, args=(a, b), kwargs={},
        outputs=(c,), phase=Phase.FORWARD,
    )  # fmt: skip
    expansion = find_describe(call)(call)
    values = (a, b, c, *expansion.values)
    return KernelGraph(values={each.name: each for each in values}, kernels=expansion.kernels)


class Small(nn.Module):
    """Two equal blocks of convolution, norm and ReLU, an attention-like product, a loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, 1, 1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.last = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + F.relu(norm(block(x)))
        x = x.flatten(2).transpose(1, 2)
        x = (x @ x.transpose(1, 2)).softmax(-1) @ x
        return self.last(x.mean(1))


def small_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 14, 10, generator=generator)
    return images, torch.randint(0, 5, (4,), generator=generator)


@lru_cache
def training_graph() -> KernelGraph:
    """Of `Small`, with AdamW."""
    module = Small().train()
    recorded = record_step(
        module,
        small_batch(),
        torch.optim.AdamW(module.parameters()),
        recipe=read_recipe(bf16_options()),
        run=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
    )
    return expand_macros(recorded)
