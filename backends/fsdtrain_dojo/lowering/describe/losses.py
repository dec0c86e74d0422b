"""Losses and their gradients as element-wise kernels and reductions."""

from fsdtrain_dojo.lowering.op_call import Describe

RULES: dict[str, Describe] = {}
