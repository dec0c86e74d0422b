"""The table of the small models, and inputs for all of them."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.backends.dojo.model_zoo import (
    DROPOUT,
    NUM_CLASSES,
    ConvNext,
    Gpt,
    Inputs,
    LiftSplatUnet,
    Lstm,
    Model,
    ResNet,
    VisionTransformer,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model.

    Args:
        build: with or without checkpointing.
        has_same_kernels: whether eager runs the very ops that are captured, so that the same bits
            come out; not with fused attention and LSTM kernels.
    """

    build: Callable[..., Model]
    has_same_kernels: bool = True


CASES = {
    "resnet": Case(build=ResNet),
    "vit": Case(build=VisionTransformer, has_same_kernels=False),
    "vit_attention_dropout": Case(
        build=lambda **options: VisionTransformer(attention_dropout=DROPOUT, **options)
    ),
    "convnext": Case(build=ConvNext),
    "lstm": Case(build=Lstm, has_same_kernels=False),
    "gpt": Case(build=Gpt),
    "unet_index_add": Case(build=LiftSplatUnet),
    "unet_scatter_add": Case(
        build=lambda **options: LiftSplatUnet(uses_scatter_add=True, **options)
    ),
}


def each_case(*quick: str) -> pytest.MarkDecorator:
    """Parametrizes `name` by all models; those that are not named here are slow."""
    return pytest.mark.parametrize(
        "name", [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
    )


def make_inputs(seed: int = 0) -> Inputs:
    """Of all the models; each takes what it needs."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    return {
        "images": normal(4, 3, 32, 32),
        "labels": whole(0, NUM_CLASSES, 4),
        "series": normal(4, 5, 6),
        "targets": normal(4, 2),
        "tokens": whole(0, 19, 3, 13),
        "focal_lengths": 8.0 + normal(4).abs(),
        "cells": normal(4, LiftSplatUnet.CELLS, LiftSplatUnet.CELLS),
    }


def build_model(case: Case, *, is_checkpointed: bool = False) -> Model:
    """The model with weights from a fixed seed."""
    torch.manual_seed(0)
    return case.build(is_checkpointed=is_checkpointed)
