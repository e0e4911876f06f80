"""Items with the largest decayed counts, at one half-life each, and with the largest counts of all time."""

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
        column: index of the half-life in ``items.half_lives_days``; the one after the last is all time.
        days: the half-life, for the name; None: all time.
    """

    column: int
    days: float | None

    @property
    def name(self) -> str:
        return "popular" if self.days is None else f"trending_{self.days:g}d"

    def propose(self, context: Context) -> NDArray[np.int32]:
        rows = context.signals.trending(self.column, context.catalogue.id_hash)
        return context.first_allowed(rows, context.settings.trending)
