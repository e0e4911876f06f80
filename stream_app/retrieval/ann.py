"""Items close in text to what the user liked: what of the pool is nearest to the slow or the fast interest vector."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.retrieval.source import Context, first_allowed

__all__ = ["near_interest"]


@compiled
def near_interest(context: Context, vector: int, wanted: int, found: NDArray[np.int32]) -> int:
    """The nearest to one of the interest vectors (``SLOW`` or ``FAST``)."""
    return first_allowed(context, context.near[vector], wanted, found)
