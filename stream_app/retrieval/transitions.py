"""Items that other users took together with, or after, the user's recent items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.retrieval.links import DIRECTED, SYMMETRIC
from stream_app.retrieval.source import Context, best

__all__ = ["taken_together"]


@compiled
def taken_together(context: Context, wanted: int, found: NDArray[np.int32]) -> int:
    """Neighbours of the recent items by the sum of their symmetric (long memory) and directed scores."""
    links, sums, scale = context.links, context.sums, context.tables.arena.scale
    scores = np.empty(len(links))
    for place, row in enumerate(links):
        scores[place] = (np.sqrt(sums[place, SYMMETRIC]) + np.sqrt(sums[place, DIRECTED])) * np.sqrt(scale[row])
    return best(context, links, scores, wanted, found)
