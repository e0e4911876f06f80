"""New items: those with hardly any events, by their text, since nothing else is known of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.retrieval.interests import SLOW
from stream_app.retrieval.source import Context, best

__all__ = ["NewItems", "mixed"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class NewItems:
    """Cold items nearest to the slow interest vector; for users without one the newest, then a sample of their own."""

    name: str = "new"

    def propose(self, context: Context) -> NDArray[np.int32]:
        rows, count = context.cold_rows, context.settings.cold
        kept = context.servable[rows] & (context.scratch.blocked[rows] != context.request)
        rows = rows[kept]
        if context.interests.vectors[SLOW].any():
            return best(rows, context.cold_similarity[kept], count, context.catalogue)
        sample = mixed(context.catalogue.id_hash[rows], context.seed)
        newest: NDArray[np.int32] = rows[np.lexsort((sample, -context.catalogue.published_at[rows]))[:count]]
        return newest


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
