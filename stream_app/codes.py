"""Vectors in 8-bit whole numbers, for passes over everything: a quarter of the memory to read, many products at once.

A row is kept as whole numbers of a step of its own (symmetric scalar quantisation, as in Faiss and ScaNN). A product of
two such rows is off by .0004 of their lengths in the mean and .003 at most (384 columns; measured, of 48 columns .0009
and .004). Where that matters, what is found by codes is compared in full precision afterwards, with room for what
rounding misplaces (:data:`SPARE`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types as numba_types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.prefetch import AHEAD, prefetch_row
from stream_app.unowned import on_stack

types: Any = numba_types

__all__ = [
    "MAX_COLUMNS",
    "SPARE",
    "WORD",
    "ZERO",
    "Codes",
    "code_products",
    "four_products",
    "in_words",
    "one_product",
    "scan_codes",
    "two_products",
]

MAX_COLUMNS = 100_000
"""Sums of products of two codes over so many columns stay within 32 bits."""
SPARE = 64
"""Rows beyond those wanted that a scan of codes compares in full precision: far more than rounding can misplace (of
10,000 vectors of MiniLM some 5 lie within .001 of the hundredth)."""
_LARGEST = 127
_LANES = 64
_LINE = 64


def _has_dot_products() -> bool:
    """Whether the processor that is compiled for multiplies bytes and adds them up by fours, 64 at once (AVX-512 VNNI,
    since 2019 in servers). As numba sees it, which leaves out what its settings or a wrongly named processor do."""
    if config.CPU_FEATURES is not None:
        return "+avx512vnni" in config.CPU_FEATURES.split(",")
    return config.CPU_NAME is None and "+avx512vnni" in get_host_cpu_features().split(",")


_DOT_PRODUCTS = _has_dot_products()
WORD: type[np.uint8] | type[np.int16] = np.uint8 if _DOT_PRODUCTS else np.int16
"""What a number of a query is kept as, and :data:`ZERO` what 0 is: the instruction takes bytes without a sign."""
ZERO = 128 if _DOT_PRODUCTS else 0


class Codes:
    """Codes by row; zeros where nothing was taken.

    Args:
        columns: of the vectors.
        rows: room at first.

    Attributes:
        values: int8 [rows, columns filled up with zeros to a multiple of 64].
        steps: float32 [rows].
        changes: how often any of them changed.
    """

    def __init__(self, columns: int, rows: int) -> None:
        width = -(-columns // _LANES) * _LANES
        self.values = _at_lines(rows, width)
        self.steps = np.zeros(rows, np.float32)
        self.changes = 0

    def reserve(self, rows: int) -> None:
        """Make room for exactly so many rows, if there is less."""
        held = len(self.steps)
        if rows > held:
            values = _at_lines(rows, self.values.shape[1])
            values[:held] = self.values
            self.values = values
            self.steps = np.concatenate([self.steps, np.zeros(rows - held, np.float32)])

    def take(self, rows: NDArray[np.integer[Any]], table: NDArray[np.float32]) -> None:
        """The vectors of ``rows`` from those by row: float32 [more than the largest row, columns]."""
        _take(rows.astype(np.int64), table, self.values, self.steps)
        self.changes += 1

    def clear(self, rows: NDArray[np.integer[Any]]) -> None:
        """``rows`` have no vectors any more."""
        self.values[rows] = 0
        self.steps[rows] = 0.0
        self.changes += 1

    def of(self, rows: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Copies of the codes and steps of some rows, one after the other: int8 [len(rows), width], float32."""
        values = _at_lines(len(rows), self.values.shape[1])
        np.take(self.values, rows, axis=0, out=values)
        return values, self.steps[rows]


def _at_lines(rows: int, width: int) -> NDArray[np.int8]:
    """Zeros that begin where a line of the processor's cache does, so that no row lies in more lines than it must."""
    room = np.zeros(rows * width + _LINE, np.int8)
    start = -room.ctypes.data % _LINE
    return room[start : start + rows * width].reshape(rows, width)


@compiled
def _take(
    rows: NDArray[np.int64], table: NDArray[np.float32], values: NDArray[np.int8], steps: NDArray[np.float32]
) -> None:
    """Codes of ``rows`` of a table, in the first columns of ``values``, and their steps."""
    columns, last = table.shape[1], len(rows) - 1
    # Without their signs floats are in the order of the whole numbers with the same bits, which many at once can be
    # compared as.
    bits = on_stack(1, np.int32)
    as_float = bits.view(np.float32)
    for place, row in enumerate(rows):
        prefetch_row(table, rows[min(place + AHEAD, last)])
        prefetch_row(values, rows[min(place + AHEAD, last)])
        numbers = table[row].view(np.int32)
        most = np.int32(0)
        for column in range(columns):
            number = np.int32(numbers[column] & np.int32(0x7FFFFFFF))
            most = number if number > most else most
        bits[0] = most
        largest = as_float[0]
        # What is so small has no codes: its scale would not be finite.
        scale = np.float32(_LARGEST) / largest if largest > 1e-30 else np.float32(0.0)
        for column in range(columns):
            values[row, column] = np.int32(np.rint(table[row, column] * scale))
        steps[row] = largest / np.float32(_LARGEST)


@intrinsic  # type: ignore[untyped-decorator]
def one_product(_context: Any, codes: Any, row: Any, one: Any) -> Any:
    """:func:`two_products` of one query: a tuple of one int32."""
    return _products_of(codes, one)


@intrinsic  # type: ignore[untyped-decorator]
def two_products(_context: Any, codes: Any, row: Any, one: Any, two: Any) -> Any:
    """Products of two queries (words [columns]) with a row of codes (int8 [rows, columns]): two int32.

    In vector instructions, because no loop is turned into them. What they are differs between processors, and the
    products do not: whole numbers.
    """
    return _products_of(codes, one, two)


@intrinsic  # type: ignore[untyped-decorator]
def four_products(_context: Any, codes: Any, row: Any, one: Any, two: Any, three: Any, four: Any) -> Any:
    """:func:`two_products` of four queries: the row is read and widened once for all of them."""
    return _products_of(codes, one, two, three, four)


def _products_of(codes: Any, *queries: Any) -> Any:
    if not all(isinstance(given, types.Array) and given.layout == "C" for given in (codes, *queries)):
        return None
    word = types.uint8 if _DOT_PRODUCTS else types.int16
    if codes.dtype != types.int8 or any(query.dtype != word for query in queries):
        return None
    signature = types.Tuple([types.int32] * len(queries))(codes, types.intp, *queries)
    return signature, _generate_dot_products if _DOT_PRODUCTS else _generate_products


_WHOLE, _BYTE = ir.IntType(32), ir.IntType(8)
_WHOLES = ir.VectorType(_WHOLE, _LANES // 4)
_HALF = _LANES // 2
"""Of what is multiplied at once where whole numbers of 16 bits are."""


def _rows_of(context: Any, builder: Any, signature: Any, args: Any) -> tuple[Any, list[Any], Any]:
    """Where the row of codes begins, where each of the queries does, and how many columns there are."""
    table, *queries = (
        context.make_array(signature.args[place])(context, builder, args[place]) for place in (0, *range(2, len(args)))
    )
    columns = cgutils.unpack_tuple(builder, table.shape, 2)[1]
    return builder.gep(table.data, [builder.mul(args[1], columns)]), [query.data for query in queries], columns


def _loaded(builder: Any, pointer: Any, place: Any, kind: Any) -> Any:
    loaded = builder.load(builder.bitcast(builder.gep(pointer, [place]), kind.as_pointer()))
    loaded.align = 1
    return loaded


def _shuffled(builder: Any, one: Any, two: Any, places: Any) -> Any:
    numbers = list(places)
    return builder.shuffle_vector(one, two, ir.Constant(ir.VectorType(_WHOLE, len(numbers)), numbers))


def _generate_dot_products(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Bytes with and without a sign, 64 at once, added up by fours. Queries are kept with 128 added, so 128 times the
    sum of the row is taken off."""
    start, queries, columns = _rows_of(context, builder, signature, args)
    kind = ir.FunctionType(_WHOLES, [_WHOLES] * 3)
    add_products = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
    nothing, zeros = ir.Constant(_WHOLES, None), ir.Constant(_WHOLES, [ZERO * 0x01010101] * (_LANES // 4))
    sums = [cgutils.alloca_once_value(builder, nothing) for _ in (None, *queries)]
    with cgutils.for_range(builder, builder.udiv(columns, ir.Constant(columns.type, _LANES))) as loop:
        place = builder.mul(loop.index, ir.Constant(columns.type, _LANES))
        held = _loaded(builder, start, place, _WHOLES)
        words = [zeros, *(_loaded(builder, query, place, _WHOLES) for query in queries)]
        for word, total in zip(words, sums, strict=True):
            builder.store(builder.call(add_products, [builder.load(total), word, held]), total)
    of_zeros, *of_queries = (builder.load(total) for total in sums)
    products = [builder.sub(total, of_zeros) for total in of_queries]
    # Of four vectors together, what stands in each quarter of the register first.
    products += [nothing] * (4 - len(products))
    size, lanes = _LANES // 4, range(0, _LANES // 4, 4)
    halves = []
    for one, two in (products[:2], products[2:]):
        parts = [
            _shuffled(builder, one, two, (at + to + of for at in lanes for to in pair for of in (0, size)))
            for pair in ((0, 1), (2, 3))
        ]
        halves.append(builder.add(*parts))
    one, two = halves
    parts = [
        _shuffled(builder, one, two, (at + to + of for at in lanes for of in (0, size) for to in pair))
        for pair in ((0, 1), (2, 3))
    ]
    found = _added_up(builder, builder.add(*parts), 4)
    return context.make_tuple(
        builder,
        signature.return_type,
        [builder.extract_element(found, ir.Constant(_WHOLE, query)) for query in range(len(queries))],
    )


def _generate_products(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Whole numbers of 16 bits, 32 pairs at once, added up by twos; where a processor does not have even that, the
    compiler takes what there is."""
    start, queries, columns = _rows_of(context, builder, signature, args)
    wide, half = ir.VectorType(_WHOLE, _HALF), ir.VectorType(_WHOLE, _HALF // 2)
    bytes_, words = ir.VectorType(_BYTE, _HALF), ir.VectorType(ir.IntType(16), _HALF)
    sums = [cgutils.alloca_once_value(builder, ir.Constant(half, None)) for _ in queries]
    unused = ir.Constant(wide, ir.Undefined)
    with cgutils.for_range(builder, builder.udiv(columns, ir.Constant(columns.type, _HALF))) as loop:
        place = builder.mul(loop.index, ir.Constant(columns.type, _HALF))
        held = builder.sext(_loaded(builder, start, place, bytes_), wide)
        for query, total in zip(queries, sums, strict=True):
            products = builder.mul(held, builder.sext(_loaded(builder, query, place, words), wide))
            pairs = [_shuffled(builder, products, unused, range(side, _HALF, 2)) for side in (0, 1)]
            builder.store(builder.add(builder.load(total), builder.add(*pairs)), total)
    found = [
        builder.extract_element(_added_up(builder, builder.load(total), 1), ir.Constant(_WHOLE, 0)) for total in sums
    ]
    return context.make_tuple(builder, signature.return_type, found)


def _added_up(builder: Any, rest: Any, size: int) -> Any:
    """A vector's parts of ``size`` numbers added up."""
    while rest.type.count > size:
        width = rest.type.count // 2
        unused = ir.Constant(rest.type, ir.Undefined)
        low, high = (_shuffled(builder, rest, unused, range(at, at + width)) for at in (0, width))
        rest = builder.add(low, high)
    return rest


@compiled
def in_words(queries: NDArray[np.float32], words: NDArray[Any], steps: NDArray[np.float32]) -> None:
    """Codes of queries.

    Args:
        queries: float32 [q, columns].
        words: :data:`WORD` [q, width of the rows of codes they are compared with], overwritten; filled up with zeros.
        steps: float32 [q], overwritten.
    """
    count, width = words.shape
    rows, codes = on_stack(count, np.int64), on_stack((count, width), np.int8)
    for query in range(count):
        rows[query] = query
        for column in range(width):
            codes[query, column] = 0
    _take(rows, queries, codes, steps)
    for query in range(count):
        for column in range(width):
            words[query, column] = np.int16(codes[query, column]) + ZERO


@compiled
def scan_codes(
    queries: NDArray[np.float32], values: NDArray[np.int8], steps: NDArray[np.float32], products: NDArray[np.float32]
) -> None:
    """Products of queries with all rows, to the error of codes; four queries at a time.

    Args:
        queries: float32 [q, columns].
        values, steps: of the rows, see :class:`Codes`.
        products: float32 [q, n], overwritten; ``n`` is how many of the rows are looked at.
    """
    count = len(queries)
    words, scale = on_stack((count, values.shape[1]), WORD), on_stack(count, np.float32)
    in_words(queries, words, scale)
    for row in range(products.shape[1]):
        step = steps[row]
        query = 0
        while query + 3 < count:
            found = four_products(values, row, words[query], words[query + 1], words[query + 2], words[query + 3])
            products[query, row] = np.float32(found[0]) * step * scale[query]
            products[query + 1, row] = np.float32(found[1]) * step * scale[query + 1]
            products[query + 2, row] = np.float32(found[2]) * step * scale[query + 2]
            products[query + 3, row] = np.float32(found[3]) * step * scale[query + 3]
            query += 4
        while query + 1 < count:
            one, two = two_products(values, row, words[query], words[query + 1])
            products[query, row] = np.float32(one) * step * scale[query]
            products[query + 1, row] = np.float32(two) * step * scale[query + 1]
            query += 2
        if query < count:
            products[query, row] = np.float32(one_product(values, row, words[query])[0]) * step * scale[query]


@compiled
def code_products(
    rows: NDArray[np.int32],
    values: NDArray[np.int8],
    steps: NDArray[np.float32],
    queries: NDArray[np.float32],
    products: NDArray[np.float32],
) -> None:
    """Products of some rows with queries, to the error of codes.

    Args:
        rows: int32 [k].
        values, steps: by row, see :class:`Codes`.
        queries: float32 [q, columns].
        products: float32 [k, q], overwritten.
    """
    words, scale = on_stack((len(queries), values.shape[1]), WORD), on_stack(len(queries), np.float32)
    in_words(queries, words, scale)
    end, last = len(queries) - 1, len(rows) - 1
    for place, row in enumerate(rows):
        prefetch_row(values, rows[min(place + AHEAD, last)])
        for query in range(0, len(queries), 4):
            # Of a number that four does not divide the last is multiplied more than once.
            two, three, four = min(query + 1, end), min(query + 2, end), min(query + 3, end)
            found = four_products(values, row, words[query], words[two], words[three], words[four])
            step = steps[row]
            products[place, query] = np.float32(found[0]) * step * scale[query]
            products[place, two] = np.float32(found[1]) * step * scale[two]
            products[place, three] = np.float32(found[2]) * step * scale[three]
            products[place, four] = np.float32(found[3]) * step * scale[four]
