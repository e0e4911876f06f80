"""New items: those with hardly any events, by their text and by how they begin to rise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled, compiled_sums
from stream_app.heap import drain, keep_best
from stream_app.mixing import GOLDEN, mixed
from stream_app.retrieval.interests import SLOW
from stream_app.retrieval.source import Context, best_of
from stream_app.unowned import on_stack

__all__ = ["new_items", "promise"]

_RISING = 2.0
"""Weight of recent counts against closeness in text (measured: 21 % of the right cold items in the first ten with 2,
20 % by counts alone, 4 % by text alone)."""


@compiled
def new_items(context: Context, wanted: int, found: NDArray[np.int32]) -> int:
    """Cold items by closeness to the slow interest vector and recent counts; without either the newest, then a sample
    of the user's own."""
    cold, slow, counts = context.tables.cold, context.queries[SLOW], context.cold_counts
    servable, blocked, request = context.tables.servable, context.blocked, context.request
    of_all = context.cold_closeness
    rows, rising = on_stack(len(cold), np.int32), on_stack(len(cold), np.float64)
    closeness = on_stack(len(cold), np.float32)
    count = 0
    known = False
    for place, row in enumerate(cold):
        if servable[row] and blocked[row] != request:
            rows[count] = row
            closeness[count] = of_all[place]
            # Most of them nobody took of late.
            rising[count] = np.log(np.float32(1.0 + counts[place])) if counts[place] > 0.0 else 0.0
            known = known or counts[place] > 0.0
            count += 1
    for value in slow:
        known = known or value != 0.0
    rows = rows[:count]
    if not known:
        return _newest(context, rows, wanted, found)
    promising = on_stack(count, np.float64)
    promise(closeness[:count], rising[:count], promising)
    return best_of(rows, promising, context.tables.hashes, wanted, found)


@compiled
def _newest(context: Context, rows: NDArray[np.int32], wanted: int, found: NDArray[np.int32]) -> int:
    wanted = min(wanted, len(rows))
    kept = found[:wanted]
    published, ties = on_stack(wanted, np.float64), on_stack(wanted, np.int64)
    hashes, published_at, seed = context.tables.hashes, context.tables.published_at, context.seed
    count = 0
    for row in rows:
        # Of items published at the same time everybody sees others.
        tie = int(mixed(np.uint64(hashes[row]) + seed * GOLDEN) >> np.uint64(1))
        count = keep_best(kept, published, ties, count, row, published_at[row], tie)
    drain(kept, published, ties, count)
    return count


@compiled
def promise(
    closeness: NDArray[np.floating[Any]], rising: NDArray[np.floating[Any]], promising: NDArray[np.float64]
) -> None:
    """How much new items promise, compared with each other.

    Args:
        closeness: [n], cosines to what the user likes.
        rising: [n], logarithms of decayed counts; any scale.
        promising: float64 [n], overwritten.
    """
    promising[:] = 0.0
    _add_standardised(closeness, 1.0, promising)
    _add_standardised(rising, _RISING, promising)


@compiled_sums
def _add_standardised(values: NDArray[np.floating[Any]], weight: float, sums: NDArray[np.float64]) -> None:
    """Add z-scores, weighted; nothing where all values are the same."""
    count = max(len(values), 1)
    mean = squares = 0.0
    for value in values:
        mean += value
    mean /= count
    for value in values:
        squares += (value - mean) ** 2
    spread = np.sqrt(squares / count)
    if spread >= 1e-6:
        scale = weight / spread
        for place, value in enumerate(values):
            sums[place] += scale * (value - mean)
