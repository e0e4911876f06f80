"""Items that other users took together with, or after, the user's recent items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.retrieval.links import DIRECTED, SYMMETRIC
from stream_app.retrieval.source import Context, best_of

__all__ = ["score_links", "taken_together"]


@compiled
def taken_together(context: Context, wanted: int, found: NDArray[np.int32]) -> int:
    """Neighbours of the recent items by the sum of their symmetric (long memory) and directed scores."""
    return best_of(context.links, context.link_scores, context.tables.hashes, wanted, found)


@compiled
def score_links(
    links: NDArray[np.int32],
    sums: NDArray[np.float32],
    scale: NDArray[np.float64],
    servable: NDArray[np.bool_],
    blocked: NDArray[np.int64],
    request: int,
    scores: NDArray[np.float64],
) -> None:
    """What :func:`taken_together` orders links by: float64 [links], overwritten; -inf: it may not be recommended.

    Args:
        links, sums, scale: see :mod:`stream_app.retrieval.links`.
        servable, blocked, request: see :class:`Context`.
    """
    for place, row in enumerate(links):
        own = np.float32(scale[row])
        score = np.sqrt(sums[place, SYMMETRIC] * own) + np.sqrt(sums[place, DIRECTED] * own)
        scores[place] = score if servable[row] and blocked[row] != request else -np.inf
