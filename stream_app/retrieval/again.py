"""Items the user had to do with before, where people come back to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.retrieval.source import Context

__all__ = ["Again"]


@dataclass(frozen=True, slots=True)
class Again:
    """The user's own recent items that may still be recommended (what an event type consumes may not,
    ``event_types.<type>.consumes_for_days``), those with the most and latest events first.

    Whether that is what people want is not assumed: the feature ``again`` starts with weight 0, and the ranker learns
    how much it says.
    """

    name: str = "again"

    def propose(self, context: Context) -> NDArray[np.int32]:
        interests = context.interests
        return context.best(interests.own, interests.own_weights, context.settings.again)
