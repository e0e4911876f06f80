"""Items that other users took together with, or after, the user's recent items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.retrieval.source import Context

__all__ = ["TakenTogether"]


@dataclass(frozen=True, slots=True)
class TakenTogether:
    """Neighbours of the recent items by the sum of their symmetric (long memory) and directed scores."""

    name: str = "transitions"

    def propose(self, context: Context) -> NDArray[np.int32]:
        links = context.links
        return context.best(links.rows, links.scores[0] + links.scores[3], context.settings.transitions)
