"""Softmax and its kin as reductions over a row and element-wise kernels."""

from fsdtrain_dojo.lowering.op_call import Describe

RULES: dict[str, Describe] = {}
