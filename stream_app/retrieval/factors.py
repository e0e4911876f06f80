"""Items that people with similar taste take: the largest scores by learned factors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.retrieval.source import Context, first_allowed

__all__ = ["similar_taste"]


@compiled
def similar_taste(context: Context, memory: int, wanted: int, found: NDArray[np.int32]) -> int:
    """The items with the largest ``user . target + bias`` for one of the memories (``SLOW`` or ``FAST``); nothing for
    users without factors."""
    return first_allowed(context, context.by_factors[memory], wanted, found)
