"""Items the user had to do with before, where people come back to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.retrieval.source import Context, best_of

__all__ = ["again"]


@compiled
def again(context: Context, wanted: int, found: NDArray[np.int32]) -> int:
    """The user's own recent items that may still be recommended (what an event type consumes may not,
    ``event_types.<type>.consumes_for_days``), those with the most and latest events first.

    Whether that is what people want is not assumed: the feature ``again`` starts with a small weight against them,
    and the ranker learns how much it says.
    """
    return best_of(context.own, context.own_weights, context.tables.hashes, wanted, found)
