"""The interface of a baseline: a simple published method, told the same events and tested on the same items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Baseline", "Told"]


@dataclass(frozen=True, slots=True)
class Told:
    """A basket: ``rows`` (int32, in order, may repeat) that ``user`` (numbered from 0) wanted at ``at`` (seconds)."""

    user: int
    at: float
    rows: NDArray[np.int32]


class Baseline(Protocol):
    """Orders the whole catalogue for a user; what the user had takes no place."""

    @property
    def name(self) -> str:
        """As ``--compare`` calls it."""

    def test(
        self, user: int, at: float, had: NDArray[np.int32], tested: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Rank items for a user who was told of before.

        Args:
            user: number of the user.
            at: event time, seconds since 1970.
            had: int32, distinct rows the user had.
            tested: int32 [n], distinct rows, none of them in ``had``.

        Returns:
            float32 [n], the rank of each tested item from 1, the other tested ones left out, ties counted half,
            infinity beyond ``metrics.DEPTH``; and int32 [up to 10], the first rows.
        """

    def learn(self, told: Told) -> None:
        """Learn from a basket; baskets come in order of time."""
