"""The interface of a candidate source, and what a source sees of a request.

A new source is one file with one compiled function like these::

    @compiled
    def newest(context: Context, wanted: int, found: NDArray[np.int32]) -> int: ...

It fills ``found`` (int32, room for ``wanted`` or more) with distinct rows that may be recommended to this user now,
best first, and returns how many there are; helpers are below. What a loop reads of the context is taken out before it.
Arrays for the call alone are taken from the stack (``stream_app.unowned``). The function gets its line and its name in
:mod:`stream_app.retrieval.sources`.

What the user had to do with before is ``again``'s alone: it lies nearest to every interest, and would take the places
of what it leads to.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.heap import best_first, largest
from stream_app.retrieval.tables import Tables
from stream_app.unowned import on_stack

__all__ = ["Context", "best_of", "first_allowed", "first_open"]


class Context(NamedTuple):
    """One request as sources see it; read-only.

    Attributes:
        tables: what is known by row.
        queries: float32 [5 or more, dimensions], see ``Interests.queries``.
        own, own_weights: the user's own rows that may be recommended again (``Interests``); to all sources but
            ``again`` they are blocked.
        links: int32 [u], the strongest of what the recent items point to (:mod:`stream_app.retrieval.links`).
        link_scores: float64 [u], what ``transitions`` orders them by, -inf: the row is not for this user.
        near: int32 [2, k], allowed rows nearest to the slow and to the fast interest vector, best first, -1 where there
            are fewer.
        by_factors: int32 [2, k], allowed rows with the largest scores by learned factors, with a long and with a short
            memory, best first, -1 where there are fewer.
        cold_counts, cold_closeness: float64, float32, decayed counts of the new items (``tables.cold``), and their
            cosines to the slow interest vector, to the error of codes.
        blocked: int64 by row; rows that hold ``request`` are not for this user.
        request: number of the request.
        seed: a hash of the user, for choices that are random but the same every time.
    """

    tables: Tables
    queries: NDArray[np.float32]
    own: NDArray[np.int32]
    own_weights: NDArray[np.float64]
    links: NDArray[np.int32]
    link_scores: NDArray[np.float64]
    near: NDArray[np.int32]
    by_factors: NDArray[np.int32]
    cold_counts: NDArray[np.float64]
    cold_closeness: NDArray[np.float32]
    blocked: NDArray[np.int64]
    request: int
    seed: np.uint64


@compiled
def first_allowed(context: Context, rows: NDArray[np.int32], wanted: int, found: NDArray[np.int32]) -> int:
    """The first ``wanted`` of ``rows`` that may be recommended, in the same order; negative ones are left out."""
    return first_open(rows, context.tables.servable, context.blocked, context.request, wanted, found)


@compiled
def first_open(
    rows: NDArray[np.int32],
    servable: NDArray[np.bool_],
    blocked: NDArray[np.int64],
    request: int,
    wanted: int,
    found: NDArray[np.int32],
) -> int:
    """:func:`first_allowed` without a context."""
    count = 0
    for row in rows:
        if count == wanted:
            break
        if row >= 0 and servable[row] and blocked[row] != request:
            found[count] = row
            count += 1
    return count


@compiled
def best_of(
    rows: NDArray[np.int32],
    scores: NDArray[np.float64],
    hashes: NDArray[np.int64],
    wanted: int,
    found: NDArray[np.int32],
) -> int:
    """The ``wanted`` of ``rows`` with the largest scores, best first; how many there are.

    Args:
        rows: int32 [n], distinct.
        scores: float64 [n], compared in steps of 1e-6: sums in another order must not change what is proposed, and
            from 4e6 on all are the same. Ties go to the smaller id hash. What is not finite is left out: -inf says that
            the row may not be recommended to this user.
        hashes: int64 by row.
        wanted, found: as a source gets them.
    """
    wanted = min(wanted, len(rows))
    if not wanted:
        return 0
    steps = on_stack(len(rows), np.float64)
    for place in range(len(rows)):
        steps[place] = np.rint(scores[place] * 1e6)
    places = on_stack(len(rows), np.int32)
    count = largest(steps, wanted, places)
    of_best = on_stack(count, np.float64)
    for at in range(count):
        of_best[at] = steps[places[at]]
    return best_first(places[:count], of_best, rows, hashes, found[:wanted])
