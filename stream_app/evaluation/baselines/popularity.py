"""Popularity: counts that halve every seven days of event time. The hardest simple method to beat in many shops."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_app.evaluation.baselines.baseline import Told
from stream_app.evaluation.baselines.places import places

__all__ = ["Popularity"]

_HALF_LIFE_S: Final = 7 * 86_400.0
_LARGEST: Final = 60.0
"""Later events weigh more instead of earlier ones less; beyond this many halvings everything is scaled down."""


class Popularity:
    """The same order for everybody.

    Args:
        items: size of the catalogue.
    """

    name = "popularity"

    def __init__(self, items: int) -> None:
        self._counts = np.zeros(items)
        self._origin = 0.0

    def test(
        self, user: int, at: float, had: NDArray[np.int32], tested: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """See ``Baseline``; items nobody took tie in the last place."""
        return places(self._counts.astype(np.float32), had, tested)

    def learn(self, told: Told) -> None:
        """See ``Baseline``."""
        halvings = (told.at - self._origin) / _HALF_LIFE_S
        if halvings > _LARGEST:
            self._counts *= 2.0**-halvings if halvings < 1_000 else 0.0
            self._origin, halvings = told.at, 0.0
        np.add.at(self._counts, told.rows, 2.0**halvings)
