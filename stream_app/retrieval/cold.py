"""New items: those with hardly any events, by their text and by how they begin to rise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_app.codes import in_words, two_products
from stream_app.compiled import compiled
from stream_app.mixing import shuffled
from stream_app.prefetch import AHEAD, prefetch_row
from stream_app.retrieval.interests import SLOW
from stream_app.retrieval.source import Context

__all__ = ["NewItems", "promise"]

_RISING = 2.0
"""Weight of recent counts against closeness in text (measured: 21 % of the right cold items in the first ten with 2,
20 % by counts alone, 4 % by text alone)."""


@dataclass(frozen=True, slots=True)
class NewItems:
    """Cold items by closeness to the slow interest vector and recent counts; without either the newest, then a sample
    of the user's own."""

    name: str = "new"

    def propose(self, context: Context) -> NDArray[np.int32]:
        rows, count = context.cold_rows, context.settings.cold
        if not len(rows) or not count:
            return rows[:0]
        promising = np.empty(len(rows))
        known = _promising(
            rows, context.interests.vectors[SLOW], context.codes.values, context.codes.steps, context.cold_counts,
            context.servable, context.scratch.blocked, context.request, promising,
        )  # fmt: skip
        if known:
            return context.best(rows, promising, count)
        rows = context.first_allowed(rows, len(rows))
        sample = shuffled(context.catalogue.id_hash[rows], context.seed)
        newest: NDArray[np.int32] = rows[np.lexsort((sample, -context.catalogue.published_at[rows]))[:count]]
        return newest


def promise(closeness: NDArray[np.floating[Any]], rising: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """How much new items promise, compared with each other: float64 [n].

    Args:
        closeness: [n], cosines to what the user likes.
        rising: [n], logarithms of decayed counts; any scale.
    """
    promising = np.empty(len(closeness))
    _promise(closeness, rising, promising)
    return promising


@compiled
def _promising(
    rows: NDArray[np.int32],
    slow: NDArray[np.float32],
    values: NDArray[np.int8],
    steps: NDArray[np.float32],
    counts: NDArray[np.float64],
    servable: NDArray[np.bool_],
    blocked: NDArray[np.int64],
    request: int,
    promising: NDArray[np.float64],
) -> bool:
    """:func:`promise` of the rows that may be recommended, compared with each other; of the others anything.

    Args:
        values, steps: codes by row (:class:`stream_app.codes.Codes`).

    Returns:
        whether there is something to go by: any of them was taken lately, or ``slow`` is not zero.
    """
    places = np.empty(len(rows), np.int32)
    found = 0
    for place, row in enumerate(rows):
        if servable[row] and blocked[row] != request:
            places[found] = place
            found += 1
    places = places[:found]
    # Not exact: what promises more is a guess to begin with.
    words, scale = in_words(slow.reshape(1, -1), values.shape[1])
    closeness = np.empty(found, np.float32)
    for place in range(found):
        prefetch_row(values, rows[places[min(place + AHEAD, found - 1)]])
        row = rows[places[place]]
        product, _ = two_products(values, row, words[0], words[0])
        closeness[place] = np.float32(product) * steps[row] * scale[0]
    of_them = np.empty(found)
    _promise(closeness, np.log1p(counts[places]), of_them)
    known = False
    for place in range(found):
        promising[places[place]] = of_them[place]
        known = known or counts[places[place]] > 0.0
    for value in slow:
        known = known or value != 0.0
    return known


@compiled
def _promise(
    closeness: NDArray[np.floating[Any]], rising: NDArray[np.floating[Any]], promising: NDArray[np.float64]
) -> None:
    promising[:] = 0.0
    _add_standardised(closeness, 1.0, promising)
    _add_standardised(rising, _RISING, promising)


@compiled
def _add_standardised(values: NDArray[np.floating[Any]], weight: float, sums: NDArray[np.float64]) -> None:
    """Add z-scores, weighted; nothing where all values are the same."""
    count = len(values)
    mean = squares = 0.0
    for value in values:
        mean += value / count
    for value in values:
        squares += (value - mean) ** 2 / count
    spread = np.sqrt(squares)
    if spread >= 1e-6:
        for place, value in enumerate(values):
            sums[place] += weight * (value - mean) / spread
