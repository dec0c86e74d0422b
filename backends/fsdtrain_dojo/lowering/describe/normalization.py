"""Batch, layer, group and RMS norms as statistics and element-wise kernels."""

from fsdtrain_dojo.lowering.op_call import Describe

RULES: dict[str, Describe] = {}
