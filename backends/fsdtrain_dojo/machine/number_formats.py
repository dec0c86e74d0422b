"""Bytes that an element of each number format takes in a machine's memories and on its links.

The Dojo formats are described in `formats.py`; the others are those of the machines it is compared
with, whose arithmetic nothing here emulates.
"""

from fsdtrain.backend import BackendError
from fsdtrain_dojo.formats import FORMATS

FORMAT_BYTES: dict[str, int] = {
    **{name: each.num_bits // 8 for name, each in FORMATS.items()},
    "tf32": 4,  # kept as fp32, multiplied with 10 fraction bits
    "fp16": 2,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}


def format_bytes(name: str) -> int:
    """Bytes of an element.

    Raises:
        BackendError: no such format.
    """
    if name not in FORMAT_BYTES:
        raise BackendError(f"format {name!r} is not known; known are {', '.join(FORMAT_BYTES)}")
    return FORMAT_BYTES[name]
