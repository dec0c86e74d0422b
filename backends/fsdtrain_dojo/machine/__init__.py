"""Machines as data: what lowering and timing know of the hardware, and nothing else knows."""
