"""Items with the largest decayed counts, at one half-life each, and with the largest counts of all time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.retrieval.source import Context, first_allowed

__all__ = ["trending"]


@compiled
def trending(context: Context, column: int, wanted: int, found: NDArray[np.int32]) -> int:
    """The top of one popularity column: a half-life of ``items.half_lives_days``, or all time, the last."""
    tables = context.tables
    return first_allowed(context, tables.tops[column, : tables.top_counts[column]], wanted, found)
