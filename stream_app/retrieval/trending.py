"""Items with the largest decayed counts, at one half-life each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.retrieval.source import Context

__all__ = ["Trending"]


@dataclass(frozen=True, slots=True)
class Trending:
    """The top of one popularity column.

    Attributes:
        column: index of the half-life in ``items.half_lives_days``.
        days: the half-life, for the name.
    """

    column: int
    days: float

    @property
    def name(self) -> str:
        return f"trending_{self.days:g}d"

    def propose(self, context: Context) -> NDArray[np.int32]:
        rows = context.signals.trending(self.column, context.catalogue.id_hash)
        return context.first_allowed(rows, context.settings.trending)
