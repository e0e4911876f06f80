"""Items that people with similar taste take: the largest scores by learned factors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.retrieval.interests import FAST, SLOW
from stream_app.retrieval.source import Context

__all__ = ["SimilarTaste"]


@dataclass(frozen=True, slots=True)
class SimilarTaste:
    """The items with the largest ``user . target + bias`` for one of the memories (``SLOW`` or ``FAST``); nothing for
    users without factors."""

    memory: int

    @property
    def name(self) -> str:
        return {SLOW: "factors", FAST: "factors_fast"}[self.memory]

    def propose(self, context: Context) -> NDArray[np.int32]:
        settings = context.settings
        count = settings.factors if self.memory == SLOW else settings.factors_fast
        if not count or not context.interests.factors.any():
            return np.zeros(0, np.int32)
        found = context.by_factors[self.memory, :count]
        return found[found >= 0]
