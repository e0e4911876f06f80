"""Steps over several numbers at once that no loop is compiled to by itself: for compiled functions.

They are written in LLVM's vector instructions, which the compiler cuts to what a processor has. Results do not depend
on that: nothing is added up in another order, and no product and sum are taken as one.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types as numba_types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["LANES", "add_scaled", "count_up_to", "finite_range", "least_above"]

types: Any = numba_types

LANES = 8
"""Numbers at once."""

_WHOLE, _FLOAT = ir.IntType(32), ir.FloatType()
_FLOATS, _WHOLES = ir.VectorType(_FLOAT, LANES), ir.VectorType(_WHOLE, LANES)


def _is(given: Any, dtype: Any, dimensions: int) -> bool:
    return isinstance(given, types.Array) and given.dtype == dtype and given.ndim == dimensions and given.layout == "C"


@intrinsic  # type: ignore[untyped-decorator]
def count_up_to(_context: Any, values: Any, limits: Any, counts: Any) -> Any:
    """How many values of each column are not above the column's limit.

    Args:
        values: float32 [k, columns], columns a multiple of :data:`LANES`.
        limits: float32 [columns].
        counts: int32 [columns], overwritten.
    """
    if not (_is(values, types.float32, 2) and _is(limits, types.float32, 1) and _is(counts, types.int32, 1)):
        return None

    def count(builder: Any, held: Any, limit: Any, counted: Any) -> Any:
        # True is -1 in all bits.
        return builder.sub(counted, builder.sext(builder.fcmp_ordered("<=", held, limit), _WHOLES))

    return types.void(values, limits, counts), _by_columns(count, ir.Constant(_WHOLES, None))


@intrinsic  # type: ignore[untyped-decorator]
def least_above(_context: Any, values: Any, limits: Any, least: Any) -> Any:
    """The smallest value of each column that is above the column's limit, inf where none is.

    Args:
        values, limits: as in :func:`count_up_to`.
        least: float32 [columns], overwritten.
    """
    if not (_is(values, types.float32, 2) and _is(limits, types.float32, 1) and _is(least, types.float32, 1)):
        return None

    def smaller(builder: Any, held: Any, limit: Any, found: Any) -> Any:
        better = builder.and_(builder.fcmp_ordered(">", held, limit), builder.fcmp_ordered("<", held, found))
        return builder.select(better, held, found)

    return types.void(values, limits, least), _by_columns(smaller, ir.Constant(_FLOATS, [math.inf] * LANES))


def _by_columns(step: Any, start: Any) -> Any:
    """What generates ``found = step(value, limit, found)`` over the values of each column, from ``start`` on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, limits, out = (
            context.make_array(kind)(context, builder, given) for kind, given in zip(signature.args, args, strict=True)
        )
        rows, columns = cgutils.unpack_tuple(builder, values.shape, 2)
        found = cgutils.alloca_once(builder, start.type)
        with cgutils.for_range(builder, builder.udiv(columns, ir.Constant(columns.type, LANES))) as block:
            first = builder.mul(block.index, ir.Constant(columns.type, LANES))
            limit = _load(builder, limits.data, first, _FLOATS)
            builder.store(start, found)
            with cgutils.for_range(builder, rows) as loop:
                place = builder.add(builder.mul(loop.index, columns), first)
                held = _load(builder, values.data, place, _FLOATS)
                builder.store(step(builder, held, limit, builder.load(found)), found)
            _store(builder, builder.load(found), out.data, first)
        return context.get_dummy_value()

    return generate


@intrinsic  # type: ignore[untyped-decorator]
def finite_range(_context: Any, values: Any) -> Any:
    """The smallest and the largest of the first ``len(values) // LANES * LANES`` numbers, without those that are not
    finite: two numbers, inf and -inf where there are none.

    Args:
        values: float32 or float64 [n].
    """
    if not (_is(values, types.float32, 1) or _is(values, types.float64, 1)):
        return None
    return types.UniTuple(values.dtype, 2)(values), _generate_finite_range


def _generate_finite_range(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    number = context.get_data_type(signature.args[0].dtype)
    kind = ir.VectorType(number, LANES)
    least, most = ir.Constant(kind, [-math.inf] * LANES), ir.Constant(kind, [math.inf] * LANES)
    low, high = cgutils.alloca_once_value(builder, most), cgutils.alloca_once_value(builder, least)
    (count,) = cgutils.unpack_tuple(builder, array.shape, 1)
    with cgutils.for_range(builder, builder.udiv(count, ir.Constant(count.type, LANES))) as loop:
        held = _load(builder, array.data, builder.mul(loop.index, ir.Constant(count.type, LANES)), kind)
        finite = builder.and_(builder.fcmp_ordered(">", held, least), builder.fcmp_ordered("<", held, most))
        for found, sign in ((low, "<"), (high, ">")):
            before = builder.load(found)
            better = builder.and_(finite, builder.fcmp_ordered(sign, held, before))
            builder.store(builder.select(better, held, before), found)
    ends = []
    for found, sign in ((low, "<"), (high, ">")):
        lanes = builder.load(found)
        end = builder.extract_element(lanes, ir.Constant(_WHOLE, 0))
        for lane in range(1, LANES):
            other = builder.extract_element(lanes, ir.Constant(_WHOLE, lane))
            end = builder.select(builder.fcmp_ordered(sign, other, end), other, end)
        ends.append(end)
    return context.make_tuple(builder, signature.return_type, ends)


@intrinsic  # type: ignore[untyped-decorator]
def add_scaled(_context: Any, sums: Any, row: Any, fresh: Any, by: Any, one: Any, two: Any) -> Any:
    """Add ``by[0] * one + by[1] * two + by[2]`` to ``sums[row]``, and where ``by[3]`` is not 0 keep the larger of what
    was there and ``one`` instead.

    Args:
        sums: float32 [k, 8].
        row: of ``sums``.
        fresh: bool, whether it counts as zeros so far.
        by: float32 [4, 8].
        one, two: float32.
    """
    if not (_is(sums, types.float32, 2) and _is(by, types.float32, 2)):
        return None
    return types.void(sums, types.intp, types.boolean, by, types.float32, types.float32), _generate_add_scaled


def _generate_add_scaled(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    sums, by = (context.make_array(signature.args[place])(context, builder, args[place]) for place in (0, 3))
    size = args[1].type
    first = builder.mul(args[1], ir.Constant(size, LANES))
    nothing = ir.Constant(_FLOATS, None)
    held = builder.select(args[2], nothing, _load(builder, sums.data, first, _FLOATS))
    of_one, of_two, more, largest = (
        _load(builder, by.data, ir.Constant(size, LANES * place), _FLOATS) for place in range(4)
    )
    one, two = (_all(builder, given) for given in args[4:])
    added = builder.fadd(builder.fadd(builder.fmul(of_one, one), builder.fmul(of_two, two)), more)
    larger = builder.select(builder.fcmp_ordered(">", one, held), one, held)
    kept = builder.fcmp_unordered("!=", largest, nothing)
    _store(builder, builder.select(kept, larger, builder.fadd(held, added)), sums.data, first)
    return context.get_dummy_value()


def _load(builder: Any, pointer: Any, place: Any, kind: Any) -> Any:
    loaded = builder.load(builder.bitcast(builder.gep(pointer, [place]), kind.as_pointer()))
    loaded.align = 4
    return loaded


def _store(builder: Any, value: Any, pointer: Any, place: Any) -> None:
    stored = builder.store(value, builder.bitcast(builder.gep(pointer, [place]), value.type.as_pointer()))
    stored.align = 4


def _all(builder: Any, number: Any) -> Any:
    """A vector of one number."""
    unused = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(unused, number, ir.Constant(_WHOLE, 0))
    return builder.shuffle_vector(first, unused, ir.Constant(_WHOLES, [0] * LANES))
