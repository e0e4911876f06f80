"""Items that people with similar taste take: the largest scores by learned factors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.retrieval.source import Context

__all__ = ["SimilarTaste"]


@dataclass(frozen=True, slots=True)
class SimilarTaste:
    """The items with the largest ``user . target + bias``; nothing for users without factors."""

    name: str = "factors"

    def propose(self, context: Context) -> NDArray[np.int32]:
        user, count = context.interests.factors, context.settings.factors
        if not count or not user.any():
            return np.zeros(0, np.int32)
        hashes = context.catalogue.id_hash
        return context.factors.best(user, context.servable, context.scratch.blocked, context.request, count, hashes)
