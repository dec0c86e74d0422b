"""Pools and their gradients as loop nests over windows."""

from fsdtrain_dojo.lowering.op_call import Describe

RULES: dict[str, Describe] = {}
