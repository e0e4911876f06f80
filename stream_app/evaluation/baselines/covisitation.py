"""Co-visitation: what others took together with, or shortly after, what the user took last.

Item-to-item collaborative filtering (Linden, Smith and York 2003, doi 10.1109/MIC.2003.1167344) with recency: an item
counts for the user's last 20 items, 0.9 less per place back, both ways; counts halve every 60 days; a row keeps its
200 largest. Scores are divided by the square roots of both items' counts (cosine).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.evaluation.baselines.baseline import Told
from stream_app.evaluation.baselines.places import places

__all__ = ["Covisitation"]

_RECENT: Final = 20
_DECAY: Final = 0.9
_NEIGHBOURS: Final = 200
_HALF_LIFE_S: Final = 60 * 86_400.0


@compiled
def _add(
    others: NDArray[np.int32],
    weights: NDArray[np.float32],
    stated: NDArray[np.float64],
    row: int,
    other: int,
    weight: float,
    at: float,
    half_life: float,
) -> None:
    """Add to one cell of a sparse row, stated at ``at``; a full row gives up its smallest cell."""
    decay = np.float32(2.0 ** (-(at - stated[row]) / half_life))
    stated[row] = at
    found, smallest = -1, 0
    for cell in range(others.shape[1]):
        if others[row, cell] < 0:
            smallest = cell
            break
        weights[row, cell] *= decay
        if others[row, cell] == other:
            found = cell
        if weights[row, cell] < weights[row, smallest]:
            smallest = cell
    if found >= 0:
        weights[row, found] += weight
    elif others[row, smallest] < 0 or weights[row, smallest] < weight:
        others[row, smallest] = other
        weights[row, smallest] = weight


@compiled
def _learn(
    rows: NDArray[np.int32],
    at: float,
    recent: NDArray[np.int32],
    others: NDArray[np.int32],
    weights: NDArray[np.float32],
    stated: NDArray[np.float64],
    counts: NDArray[np.float64],
    counted: NDArray[np.float64],
    half_life: float,
    decay: float,
) -> None:
    """Count a basket; ``recent`` (newest first, -1 where there is none) becomes what the user has now."""
    before = recent.copy()
    for place in range(rows.shape[0]):
        row = rows[place]
        counts[row] = counts[row] * 2.0 ** (-(at - counted[row]) / half_life) + 1.0
        counted[row] = at
        first = max(0, place - recent.shape[0])
        for peer in range(first, place):
            if rows[peer] != row:
                _add(others, weights, stated, row, rows[peer], 1.0, at, half_life)
                _add(others, weights, stated, rows[peer], row, 1.0, at, half_life)
        weight = 1.0
        for lag in range(before.shape[0]):
            if before[lag] < 0:
                break
            weight *= decay
            if before[lag] != row:
                _add(others, weights, stated, row, before[lag], weight, at, half_life)
                _add(others, weights, stated, before[lag], row, weight, at, half_life)
    for place in range(rows.shape[0]):
        row = rows[place]
        last = recent.shape[0] - 1
        for lag in range(recent.shape[0]):
            if recent[lag] == row or recent[lag] < 0:
                last = lag
                break
        for lag in range(last, 0, -1):
            recent[lag] = recent[lag - 1]
        recent[0] = row


@compiled
def _score(
    scores: NDArray[np.float32],
    recent: NDArray[np.int32],
    at: float,
    others: NDArray[np.int32],
    weights: NDArray[np.float32],
    stated: NDArray[np.float64],
    counts: NDArray[np.float64],
    counted: NDArray[np.float64],
    half_life: float,
    decay: float,
) -> None:
    """Scores of everything linked to ``recent``; 0 elsewhere."""
    scores[:] = 0.0
    worth = 1.0
    for lag in range(recent.shape[0]):
        row = recent[lag]
        if row < 0:
            break
        left = 2.0 ** (-(at - stated[row]) / half_life)
        own = counts[row] * 2.0 ** (-(at - counted[row]) / half_life)
        for cell in range(others.shape[1]):
            other = others[row, cell]
            if other < 0:
                break
            theirs = counts[other] * 2.0 ** (-(at - counted[other]) / half_life)
            scores[other] += worth * left * weights[row, cell] / np.sqrt(own * theirs + 1e-12)
        worth *= decay


class Covisitation:
    """Decayed co-occurrence with the user's last items.

    Args:
        items: size of the catalogue; memory is 1.6 KB per item.
    """

    name = "covisitation"

    def __init__(self, items: int) -> None:
        self._others = np.full((items, _NEIGHBOURS), -1, np.int32)
        self._weights = np.zeros((items, _NEIGHBOURS), np.float32)
        self._stated, self._counts, self._counted = np.zeros(items), np.zeros(items), np.zeros(items)
        self._scores = np.zeros(items, np.float32)
        self._recent: dict[int, NDArray[np.int32]] = {}

    def test(
        self, user: int, at: float, had: NDArray[np.int32], tested: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """See ``Baseline``; items without a link tie in the last place."""
        recent = self._recent.get(user)
        if recent is None:
            recent = np.full(_RECENT, -1, np.int32)
        _score(self._scores, recent, at, *self._table(), _HALF_LIFE_S, _DECAY)
        return places(self._scores, had, tested)

    def learn(self, told: Told) -> None:
        """See ``Baseline``."""
        recent = self._recent.setdefault(told.user, np.full(_RECENT, -1, np.int32))
        _learn(told.rows, told.at, recent, *self._table(), _HALF_LIFE_S, _DECAY)

    def _table(
        self,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        return self._others, self._weights, self._stated, self._counts, self._counted
