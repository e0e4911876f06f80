"""Items close in text to what the user liked: what of the pool is nearest to the slow or the fast interest vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.retrieval.interests import FAST, SLOW
from stream_app.retrieval.source import Context

__all__ = ["NearInterests"]


@dataclass(frozen=True, slots=True)
class NearInterests:
    """The nearest to one of the interest vectors (``SLOW`` or ``FAST``)."""

    vector: int

    @property
    def name(self) -> str:
        return {SLOW: "text_slow", FAST: "text_fast"}[self.vector]

    def propose(self, context: Context) -> NDArray[np.int32]:
        count = context.settings.slow if self.vector == SLOW else context.settings.fast
        return context.best(context.near.rows[self.vector], context.near.similarity[self.vector], count)
