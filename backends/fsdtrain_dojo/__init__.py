"""The Dojo backend: a training step in the number formats of an emulated Tesla D1 tile."""

from fsdtrain_dojo.backend import DojoBackend

__all__ = ["DojoBackend"]
