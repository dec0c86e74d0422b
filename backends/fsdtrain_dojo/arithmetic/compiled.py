"""Compile a numeric function with numba, and the casts between numbers and their bits.

A cached kernel is compiled anew when its own file changes, not when this one does; so nothing but
what never changes belongs here.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """`function` as a numba kernel without the GIL and without fast-math, cached on disk."""
    return _compile(function, forceinline=False)


def inlined(function: Function) -> Function:
    """As `compiled`, for a part of a kernel."""
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


# numba's own types, and what it compiles, mean nothing to a type checker: Any stands for them.
Bits = Any  # a uint32 within a kernel
u32: Any = numba.uint32
i64: Any = numba.int64
f32: Any = numba.float32


def _cast(result: Any, argument: Any, instruction: str, target: ir.Type) -> Any:
    """An intrinsic of one LLVM instruction; numba wants its signature and a code generator."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(arguments[0], target)

    return result(argument), generate


def _as_float32(typing_context: Any, bits: Any) -> Any:
    """The float32 with these bits, a uint32."""
    return _cast(types.float32, types.uint32, "bitcast", ir.FloatType())


def _as_bits(typing_context: Any, number: Any) -> Any:
    """The bits of a float32, as a uint32."""
    return _cast(types.uint32, types.float32, "bitcast", ir.IntType(32))


def _shift_right(typing_context: Any, bits: Any, places: Any) -> Any:
    """A uint32 shifted right by fewer than 32 places; numba's own operator takes 64 bits for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.lshr(*arguments)

    return types.uint32(types.uint32, types.uint32), generate


def _as_pointer(typing_context: Any, address: Any) -> Any:
    """An address in memory, an int64, as what `carray` takes."""
    return _cast(types.voidptr, types.int64, "inttoptr", ir.IntType(8).as_pointer())


as_float32: Any = intrinsic(_as_float32)
as_bits: Any = intrinsic(_as_bits)
shift_right: Any = intrinsic(_shift_right)
as_pointer: Any = intrinsic(_as_pointer)
array_at: Any = carray  # pointer, length, type of the elements
