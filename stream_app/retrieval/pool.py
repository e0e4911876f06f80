"""What is looked at for a request: rows that something speaks for, and how near they are to the user.

Of a small catalogue that is everything. Of a large one it is what lies near to one of the user's last items
(:mod:`stream_app.index.neighbours`), what others took together with them, and what is popular: a few hundred to two
thousand rows, however large the catalogue is. 98 % of the best 60 of a whole catalogue by learned factors are among
them (measured on MovieLens, 9,742 items), so these are not looked for elsewhere. Of what was taken together only the
strongest 400 are looked at since, which cost MovieLens half a percent of its hits (``retrieval.candidates``).

Products are those of 8-bit codes (:mod:`stream_app.codes`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.codes import WORD, in_words, two_products
from stream_app.compiled import compiled, compiled_sums
from stream_app.heap import best_first, largest
from stream_app.prefetch import AHEAD, prefetch_row
from stream_app.unowned import on_stack

__all__ = ["best_of_pool", "gather"]

_SPARE = 16
"""Rows beyond those wanted that are compared in full precision."""


@compiled
def gather(
    near: NDArray[np.int32],
    others: NDArray[np.int32],
    allowed: NDArray[np.bool_],
    blocked: NDArray[np.int64],
    request: int,
    slot: NDArray[np.int32],
    pool: NDArray[np.int32],
) -> tuple[int, int]:
    """Distinct rows that may be recommended: those of ``near`` first, then those only in ``others``.

    Args:
        near, others: int32; negative ones are left out.
        allowed: bool by row.
        blocked: int64 by row; rows that hold ``request`` are left out.
        slot: int32 by row, -1 everywhere; and again afterwards.
        pool: int32 [len(near) + len(others) or more], overwritten.

    Returns:
        how many are of ``near``, and how many there are in all.
    """
    count = 0
    for row in near:
        if row >= 0 and slot[row] < 0 and allowed[row] and blocked[row] != request:
            slot[row] = 0
            pool[count] = row
            count += 1
    first = count
    for row in others:
        if row >= 0 and slot[row] < 0 and allowed[row] and blocked[row] != request:
            slot[row] = 0
            pool[count] = row
            count += 1
    for place in range(count):
        slot[pool[place]] = -1
    return first, count


@compiled
def best_of_pool(
    pool: NDArray[np.int32],
    queries: NDArray[np.float32],
    values: NDArray[np.int8],
    steps: NDArray[np.float32],
    bias: NDArray[np.float32],
    has: NDArray[np.bool_],
    hashes: NDArray[np.int64],
    table: NDArray[np.float32],
    rows: NDArray[np.int32],
) -> None:
    """The rows with the largest ``query . vector + bias`` for each of two queries, best first.

    Args:
        pool: int32 [n], distinct.
        queries: float32 [2, columns].
        values, steps: codes by row (:class:`stream_app.codes.Codes`).
        bias: float32 by row, or empty: none has any.
        has: bool by row, whether there is a vector.
        hashes: int64 by row; of equal scores the smaller goes first.
        table: float32 [more than any row, columns], the vectors: the best by codes, and a few more, are compared in
            full precision. Without rows: codes decide.
        rows: int32 [2, wanted], overwritten, -1 where there are fewer; scores are compared in steps of 1e-6.
    """
    words, scale = on_stack((2, values.shape[1]), WORD), on_stack(2, np.float32)
    in_words(queries, words, scale)
    first_query, second_query = words[0], words[1]
    products = on_stack((2, len(pool)), np.float32)
    products[:] = -np.inf
    last = len(pool) - 1
    for place, row in enumerate(pool):
        prefetch_row(values, pool[min(place + AHEAD, last)])
        if has[row]:
            first, second = two_products(values, row, first_query, second_query)
            added = bias[row] if len(bias) else np.float32(0.0)
            products[0, place] = np.float32(first) * steps[row] * scale[0] + added
            products[1, place] = np.float32(second) * steps[row] * scale[1] + added
    wanted = rows.shape[1]
    near, all_steps = on_stack(len(pool), np.int32), on_stack(len(pool), np.float64)
    for query in range(2):
        of_query = products[query]
        count = largest(of_query, wanted + (_SPARE if len(table) else 0), near)
        if len(table):
            _compare(queries[query], table, bias, pool, near[:count], of_query)
        steps_of = all_steps[:count]
        for at in range(count):
            steps_of[at] = np.rint(np.float64(of_query[near[at]]) * 1e6)
        found = best_first(near[:count], steps_of, pool, hashes, rows[query])
        rows[query, found:] = -1


@compiled_sums
def _compare(
    query: NDArray[np.float32],
    table: NDArray[np.float32],
    bias: NDArray[np.float32],
    pool: NDArray[np.int32],
    places: NDArray[np.int32],
    scores: NDArray[np.float32],
) -> None:
    """Scores in full precision at some places of the pool."""
    last = len(places) - 1
    for at, place in enumerate(places):
        prefetch_row(table, pool[places[min(at + AHEAD, last)]])
        row = pool[place]
        score = bias[row] if len(bias) else np.float32(0.0)
        for column in range(table.shape[1]):
            score += query[column] * table[row, column]
        scores[place] = score
