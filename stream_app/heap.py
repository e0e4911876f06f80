"""The best few of many, in one pass and without sorting: for compiled functions that score row after row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled

__all__ = ["keep_best"]


@compiled
def keep_best(
    rows: NDArray[np.int32],
    scores: NDArray[np.float32],
    ties: NDArray[np.int64],
    found: int,
    row: int,
    score: np.float32,
    tie: int,
) -> int:
    """Offer a row to a heap that keeps the largest scores, of equal ones those with the smaller ties.

    What is kept does not depend on the order in which rows are offered.

    Args:
        rows, scores, ties: int32, float32, int64 [k], the heap: the worst of what is kept comes first.
        found: how many places are filled.
        row, score, tie: what is offered; ties are distinct.

    Returns:
        how many places are filled now.
    """
    if found < len(rows):
        place = found
        found += 1
        while place > 0:
            above = (place - 1) // 2
            if scores[above] < score or (scores[above] == score and ties[above] > tie):
                break
            rows[place], scores[place], ties[place] = rows[above], scores[above], ties[above]
            place = above
    elif found == 0 or score < scores[0] or (score == scores[0] and tie > ties[0]):
        return found
    else:
        place = 0
        while True:
            below = 2 * place + 1
            if below >= found:
                break
            other = below + 1
            if other < found and (
                scores[other] < scores[below] or (scores[other] == scores[below] and ties[other] > ties[below])
            ):
                below = other
            if scores[below] > score or (scores[below] == score and ties[below] < tie):
                break
            rows[place], scores[place], ties[place] = rows[below], scores[below], ties[below]
            place = below
    rows[place], scores[place], ties[place] = row, score, tie
    return found
