"""Sampling at given coordinates, and its gradients, as loop nests."""

from fsdtrain_dojo.lowering.op_call import Describe

RULES: dict[str, Describe] = {}
