"""New items: those with hardly any events, by their text and by how they begin to rise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_app.mixing import shuffled
from stream_app.retrieval.interests import SLOW
from stream_app.retrieval.source import Context, best

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
        kept = context.servable[rows] & (context.scratch.blocked[rows] != context.request)
        rows, rising = rows[kept], context.cold_counts[kept]
        near = context.interests.vectors[SLOW].any()
        if near or rising.any():
            scores = promise(context.cold_similarity[kept], np.log1p(rising))
            return best(rows, scores, count, context.catalogue)
        sample = shuffled(context.catalogue.id_hash[rows], context.seed)
        newest: NDArray[np.int32] = rows[np.lexsort((sample, -context.catalogue.published_at[rows]))[:count]]
        return newest


def promise(closeness: NDArray[np.floating[Any]], rising: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """How much new items promise, compared with each other: float64 [n].

    Args:
        closeness: [n], cosines to what the user likes.
        rising: [n], logarithms of decayed counts; any scale.
    """
    return _standardised(closeness) + _RISING * _standardised(rising)


def _standardised(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """z-scores; zeros where all are the same."""
    spread = float(values.std()) if len(values) else 0.0
    if spread < 1e-6:
        return np.zeros(len(values))
    scaled: NDArray[np.float64] = (values.astype(np.float64) - float(values.mean())) / spread
    return scaled
