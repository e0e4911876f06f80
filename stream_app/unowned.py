"""Arrays that nobody counts references to: for compiled functions that are called for every request.

Compiled code counts references as Python does, by instructions that no other processor may come between and that wait
for everything written before, and asks for memory as C does. Every tuple of arrays that is passed on, and every row of
an array that is looked at in a loop, counts twice. For each slate that was 880 counts and 200 requests for memory, a
tenth of its time (measured). Arrays that own nothing are not counted::

    @compiled
    def outermost(tables: Tables, rows: NDArray[np.int32]) -> None:
        tables, rows = borrowed(tables), borrowed(rows)
        sums = on_stack(len(rows), np.float64)
        ...  # pass them on, take rows and slices of them

Nothing unowned, and no part of it, may be returned or kept: nobody would know that it is still looked at.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types as numba_types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

__all__ = ["STACK_BYTES", "borrowed", "on_stack"]

types: Any = numba_types

STACK_BYTES = 32_768
"""What one array may take of the stack; a larger one gets memory as any other. Some thirty are there at once, and a
thread has 2 MiB or more, unless ``ulimit -s`` says less."""
_ALIGN = 64


@intrinsic  # type: ignore[untyped-decorator]
def borrowed(_context: Any, given: Any) -> Any:
    """An argument (an array, or a tuple of arrays, numbers and such tuples) as the same that owns nothing: the caller
    holds it until the function returns."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _without_owners(context, builder, signature.args[0], args[0])

    return given(given), generate


def _without_owners(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        for owner in ("meminfo", "parent"):
            setattr(array, owner, cgutils.get_null_value(getattr(array, owner).type))
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        for place, part in enumerate(kind):
            held = builder.extract_value(value, place)
            value = builder.insert_value(value, _without_owners(context, builder, part, held), place)
    return value


@intrinsic  # type: ignore[untyped-decorator]
def on_stack(_context: Any, shape: Any, dtype: Any) -> Any:
    """A new array with anything in it, for as long as the function runs that asks for it.

    Not in a loop: what each round asks for stays until the function returns.

    Args:
        shape: a whole number or a tuple of them, not negative; beyond :data:`STACK_BYTES` this is ``np.empty``.
        dtype: such as ``np.float64``.
    """
    sizes = [shape] if isinstance(shape, types.Integer) else list(shape) if isinstance(shape, types.BaseTuple) else []
    if not (sizes and all(isinstance(size, types.Integer) for size in sizes) and isinstance(dtype, types.NumberClass)):
        return None
    return types.Array(dtype.dtype, len(sizes), "C")(shape, dtype), _generate_on_stack


def _generate_on_stack(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    kind, given = signature.return_type, signature.args[0]
    parts, kinds = ([args[0]], [given]) if isinstance(given, types.Integer) else (
        cgutils.unpack_tuple(builder, args[0]), list(given)
    )  # fmt: skip
    shape = [context.cast(builder, part, of, types.intp) for part, of in zip(parts, kinds, strict=True)]
    item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    strides = [item]
    for size in reversed(shape):
        strides.insert(0, builder.mul(strides[0], size))
    length, strides = strides[0], strides[1:]
    fits = builder.icmp_unsigned("<=", length, context.get_constant(types.intp, STACK_BYTES))
    with builder.if_else(fits) as (small, large):
        with small:
            taken = builder.alloca(ir.IntType(8), length)
            taken.align = _ALIGN
            array = context.make_array(kind)(context, builder)
            arrayobj.populate_array(
                array, data=builder.bitcast(taken, array.data.type), shape=shape, strides=strides, itemsize=item,
                meminfo=cgutils.get_null_value(array.meminfo.type), parent=cgutils.get_null_value(array.parent.type),
            )  # fmt: skip
            of_stack, from_stack = array._getvalue(), builder.basic_block
        with large:
            of_heap = arrayobj._empty_nd_impl(context, builder, kind, shape)._getvalue()
            from_heap = builder.basic_block
    found = builder.phi(of_stack.type)
    found.add_incoming(of_stack, from_stack)
    found.add_incoming(of_heap, from_heap)
    return found
