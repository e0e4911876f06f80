"""Asking memory for rows before they are needed.

Rows that are read here and there come from memory one after the other, and most of the time is waiting. A processor
looks ahead by itself, but not as far as one row of a few hundred numbers. For compiled functions::

    for place, row in enumerate(rows):
        prefetch_row(table, rows[min(place + AHEAD, len(rows) - 1)])
        ...  # work on table[row]
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types as numba_types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["AHEAD", "prefetch_part", "prefetch_row"]

types: Any = numba_types

AHEAD = 6
"""Rows asked for ahead of the one that is worked on (measured: from 4 to 12 it makes no difference)."""
_LINE = 64


@intrinsic  # type: ignore[untyped-decorator]
def prefetch_row(_context: Any, table: Any, row: Any) -> Any:
    """Ask for row ``row`` of a contiguous two-dimensional array; nothing is read, and nothing fails."""
    if not (isinstance(table, types.Array) and table.ndim == 2 and table.layout == "C"):
        return None
    return types.void(table, types.intp), _generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch_part(_context: Any, array: Any, start: Any, count: Any) -> Any:
    """Ask for ``count`` numbers of a contiguous array from ``start`` on; nothing is read, and nothing fails."""
    if not (isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"):
        return None
    return types.void(array, types.intp, types.intp), _generate_part


def _generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    length = cgutils.unpack_tuple(builder, array.strides, 2)[0]
    return _ask(context, builder, array.data, builder.mul(args[1], length), length)


def _generate_part(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    size = ir.Constant(args[1].type, signature.args[0].dtype.bitwidth // 8)
    return _ask(context, builder, array.data, builder.mul(args[1], size), builder.mul(args[2], size))


def _ask(context: Any, builder: Any, pointer: Any, offset: Any, length: Any) -> Any:
    """Ask for ``length`` bytes from ``offset`` on."""
    byte, whole = ir.IntType(8), ir.IntType(32)
    data = builder.bitcast(pointer, byte.as_pointer())
    start = builder.gep(data, [offset])
    kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), whole, whole, whole])
    ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    step = ir.Constant(length.type, _LINE)
    lines = builder.udiv(builder.add(length, ir.Constant(length.type, _LINE - 1)), step)
    with cgutils.for_range(builder, lines) as loop:
        line = builder.gep(start, [builder.mul(loop.index, step)])
        # To read, to be kept in all caches, data.
        builder.call(ask, [line, ir.Constant(whole, 0), ir.Constant(whole, 3), ir.Constant(whole, 1)])
    return context.get_dummy_value()
