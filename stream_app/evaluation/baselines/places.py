"""From scores of the whole catalogue to ranks: one pass over the scores per tested item, and one for the first ten."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.evaluation.metrics import DEPTH

__all__ = ["places"]


@compiled
def _count(
    scores: NDArray[np.float32], had: NDArray[np.int32], tested: NDArray[np.int32], ranks: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Fill ``ranks``, and give the first ten rows. ``scores`` is scratch: what may not be ranked becomes -inf."""
    none = np.float32(-np.inf)
    for row in had:
        scores[row] = none
    wanted = 10
    best = np.full(wanted, -1, np.int32)
    worth = np.full(wanted, none, np.float32)
    size = scores.shape[0]
    for row in range(size):
        score = scores[row]
        if score > worth[wanted - 1]:
            place = wanted - 1
            while place > 0 and score > worth[place - 1]:
                worth[place] = worth[place - 1]
                best[place] = best[place - 1]
                place -= 1
            worth[place] = score
            best[place] = row
    own = np.empty(tested.shape[0], np.float32)
    for test in range(tested.shape[0]):
        own[test] = scores[tested[test]]
    for row in tested:
        scores[row] = none
    for test in range(tested.shape[0]):
        score = own[test]
        better = 0
        ties = 0
        if score > none:
            for row in range(size):
                other = scores[row]
                better += other > score
                ties += other == score
        ranks[test] = 1.0 + better + 0.5 * ties if score > none else np.inf
    found = 0
    while found < wanted and best[found] >= 0:
        found += 1
    return best[:found]


def places(
    scores: NDArray[np.float32], had: NDArray[np.int32], tested: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Ranks of the tested rows and the first ten rows, as ``Baseline.test`` gives them.

    Args:
        scores: float32 [catalogue], -inf where a row cannot be recommended; changed.
        had: int32, rows that take no place.
        tested: int32, distinct rows, none of them in ``had``.
    """
    ranks = np.empty(len(tested), np.float32)
    first = _count(scores, had, tested, ranks)
    ranks[ranks > DEPTH] = np.inf
    return ranks, first
