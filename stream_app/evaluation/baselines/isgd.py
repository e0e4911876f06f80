"""ISGD: incremental matrix factorisation for positive-only feedback.

J. Vinagre, A. M. Jorge and J. Gama 2014, "Fast incremental matrix factorization for recommendation with positive-only
feedback" (doi 10.1007/978-3-319-08786-3_41): one step of stochastic gradient descent per event towards a rating of 1.
Items are ordered by how close their predicted rating is to 1, as in the paper.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.evaluation.baselines.baseline import Told
from stream_app.evaluation.baselines.factors import Factors
from stream_app.evaluation.baselines.places import places

__all__ = ["ISGD"]

_FACTORS: Final = 50
_RATE: Final = 0.05
_REGULARISATION: Final = 0.01
_SPREAD: Final = 0.01


@compiled
def _learn(
    user: NDArray[np.float32], items: NDArray[np.float32], rows: NDArray[np.int32], rate: float, pull: float
) -> None:
    for row in rows:
        predicted = 0.0
        for k in range(user.shape[0]):
            predicted += user[k] * items[row, k]
        error = 1.0 - predicted
        for k in range(user.shape[0]):
            old = user[k]
            user[k] += rate * (error * items[row, k] - pull * old)
            items[row, k] += rate * (error * old - pull * items[row, k])


class ISGD:
    """Incremental matrix factorisation.

    Args:
        items: size of the catalogue.
        seed: of the start values.
    """

    name = "isgd"

    def __init__(self, items: int, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._items = rng.normal(0.0, _SPREAD, (items, _FACTORS)).astype(np.float32)
        self._known = np.zeros(items, np.bool_)
        self._users = Factors(_FACTORS, spread=_SPREAD, rng=rng)

    def test(
        self, user: int, at: float, had: NDArray[np.int32], tested: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """See ``Baseline``; items that nobody took are not ranked: nothing is known of them."""
        scores = -np.abs(1.0 - self._items @ self._users[user])
        scores[~self._known] = -np.inf
        return places(scores, had, tested)

    def learn(self, told: Told) -> None:
        """See ``Baseline``."""
        self._known[told.rows] = True
        _learn(self._users[told.user], self._items, told.rows, _RATE, _REGULARISATION)
