"""Compile a numeric function with numba, keeping the machine code on disk where a folder allows it.

A cached function is compiled anew when its own file changes, not when a file it calls into does:
so each kernel file here is complete in itself and calls no compiled function of another file.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """`function` as a numba kernel without the GIL; division by zero gives inf or NaN."""
    return _compile(function, forceinline=False)


def inlined(function: Function) -> Function:
    """As `compiled`, for a part of a kernel: a call would copy every array's shape and strides."""
    return _compile(function, forceinline=True)


def _compile(function: Function, *, forceinline: bool) -> Function:
    def compile_with(*, cache: bool) -> object:
        jit = numba.njit(cache=cache, nogil=True, error_model="numpy", forceinline=forceinline)
        return jit(function)

    try:
        fast = compile_with(cache=True)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        fast = compile_with(cache=False)
    return cast(Function, fast)  # a dispatcher is called like the function it was made of
