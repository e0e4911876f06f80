"""Items that other users took together with, or after, the user's recent items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.retrieval.source import Context, best

__all__ = ["TakenTogether"]


@dataclass(frozen=True, slots=True)
class TakenTogether:
    """Neighbours of the recent items by the sum of their symmetric (long memory) and directed scores."""

    name: str = "transitions"

    def propose(self, context: Context) -> NDArray[np.int32]:
        links = context.links
        kept = context.servable[links.rows] & (context.scratch.blocked[links.rows] != context.request)
        rows = links.rows[kept]
        scores = links.scores[0, kept] + links.scores[3, kept]
        return best(rows, scores, context.settings.transitions, context.catalogue)
