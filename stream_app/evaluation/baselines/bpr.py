"""Online BPR: matrix factorisation that learns to put what was taken before what was not.

S. Rendle, C. Freudenthaler, Z. Gantner and L. Schmidt-Thieme 2009, "BPR: Bayesian personalized ranking from implicit
feedback" (arXiv 1205.2618), as a stream: per event a few steps of stochastic gradient descent, each against an item
drawn evenly from those that somebody took, with an item bias.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.evaluation.baselines.baseline import Told
from stream_app.evaluation.baselines.factors import Factors
from stream_app.evaluation.baselines.places import places

__all__ = ["BPR"]

_FACTORS: Final = 32
_RATE: Final = 0.05
_REGULARISATION: Final = 0.01
_NEGATIVES: Final = 10
_SPREAD: Final = 0.1


@compiled
def _learn(
    user: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32],
    rows: NDArray[np.int32],
    drawn: NDArray[np.int32],
    rate: float,
    pull: float,
) -> None:
    """One step per row and drawn negative ([rows, negatives]); a negative that is the row itself is passed over."""
    for place in range(rows.shape[0]):
        i = rows[place]
        for number in range(drawn.shape[1]):
            j = drawn[place, number]
            if i == j:
                continue
            difference = bias[i] - bias[j]
            for k in range(user.shape[0]):
                difference += user[k] * (items[i, k] - items[j, k])
            step = rate / (1.0 + np.exp(difference))
            for k in range(user.shape[0]):
                u, a, b = user[k], items[i, k], items[j, k]
                user[k] += step * (a - b) - rate * pull * u
                items[i, k] += step * u - rate * pull * a
                items[j, k] -= step * u + rate * pull * b
            bias[i] += step - rate * pull * bias[i]
            bias[j] -= step + rate * pull * bias[j]


class BPR:
    """Pairwise matrix factorisation with item bias.

    Args:
        items: size of the catalogue.
        seed: of start values and negatives.
    """

    name = "bpr"

    def __init__(self, items: int, *, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._items = self._rng.normal(0.0, _SPREAD, (items, _FACTORS)).astype(np.float32)
        self._bias = np.zeros(items, np.float32)
        self._known = np.zeros(items, np.bool_)
        self._taken = np.zeros(items, np.int32)
        self._distinct = 0
        self._users = Factors(_FACTORS, spread=_SPREAD, rng=self._rng)

    def test(
        self, user: int, at: float, had: NDArray[np.int32], tested: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """See ``Baseline``; items that nobody took are not ranked: nothing is known of them."""
        scores = self._items @ self._users[user] + self._bias
        scores[~self._known] = -np.inf
        return places(scores, had, tested)

    def learn(self, told: Told) -> None:
        """See ``Baseline``."""
        for row in told.rows[~self._known[told.rows]].tolist():
            if not self._known[row]:
                self._known[row] = True
                self._taken[self._distinct] = row
                self._distinct += 1
        drawn = self._taken[self._rng.integers(self._distinct, size=(len(told.rows), _NEGATIVES))]
        _learn(self._users[told.user], self._items, self._bias, told.rows, drawn, _RATE, _REGULARISATION)
