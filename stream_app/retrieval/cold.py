"""New items: those with hardly any events, by their text and by how they begin to rise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.retrieval.interests import SLOW
from stream_app.retrieval.source import Context, best

__all__ = ["NewItems", "mixed"]

_RISING = 2.0
"""Weight of recent counts against closeness in text (measured: 21 % of the right cold items in the first ten with 2,
20 % by counts alone, 4 % by text alone)."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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
            scores = _RISING * _standardised(np.log1p(rising))
            if near:
                scores = scores + _standardised(context.cold_similarity[kept].astype(np.float64))
            return best(rows, scores, count, context.catalogue)
        sample = mixed(context.catalogue.id_hash[rows], context.seed)
        newest: NDArray[np.int32] = rows[np.lexsort((sample, -context.catalogue.published_at[rows]))[:count]]
        return newest


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """z-scores; zeros where all are the same."""
    spread = float(values.std()) if len(values) else 0.0
    scaled: NDArray[np.float64] = (values - values.mean()) / spread if spread > 1e-9 else np.zeros(len(values))
    return scaled


def mixed(hashes: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Hashes shuffled by a seed (the finalizer of SplitMix64, Steele et al. 2014, doi 10.1145/2660193.2660195).

    Sorting by them is a random order that depends on ids and seed alone, not on rows or insertion.
    """
    with np.errstate(over="ignore"):
        values = hashes.astype(np.uint64) + np.uint64(seed & 0xFFFFFFFFFFFFFFFF) * _GOLDEN
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        shuffled: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return shuffled
