"""The best few of many without sorting them all: for compiled functions that score row after row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.lanes import LANES, finite_range
from stream_app.unowned import on_stack

__all__ = ["ascending", "best_first", "drain", "in_order", "keep_best", "largest"]

_BUCKETS, _FEW_BUCKETS, _MANY = 2_048, 512, 2_000
_COUNTED = 256
_PLACE_BITS = 20
_PLACE_MASK = (1 << _PLACE_BITS) - 1
_MOST_STEPS = 4e12
"""What fits into 64 bits beside a place."""


@compiled
def _sink(
    rows: NDArray[np.int32],
    scores: NDArray[np.floating[Any]],
    ties: NDArray[np.int64],
    end: int,
    score: np.floating[Any],
    tie: int,
) -> int:
    """The place in a heap of ``end`` rows, whose first is gone, for what has this score; the others move up."""
    place = 0
    while True:
        below = 2 * place + 1
        if below >= end:
            return place
        other = below + 1
        if other < end and (
            scores[other] < scores[below] or (scores[other] == scores[below] and ties[other] > ties[below])
        ):
            below = other
        if scores[below] > score or (scores[below] == score and ties[below] < tie):
            return place
        rows[place], scores[place], ties[place] = rows[below], scores[below], ties[below]
        place = below


@compiled
def keep_best(
    rows: NDArray[np.int32],
    scores: NDArray[np.floating[Any]],
    ties: NDArray[np.int64],
    found: int,
    row: int,
    score: np.floating[Any],
    tie: int,
) -> int:
    """Offer a row to a heap that keeps the largest scores, of equal ones those with the smaller ties.

    What is kept does not depend on the order in which rows are offered.

    Args:
        rows, scores, ties: int32, float32 or float64, int64 [k], the heap: the worst of what is kept comes first.
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
        place = _sink(rows, scores, ties, found, score, tie)
    rows[place], scores[place], ties[place] = row, score, tie
    return found


@compiled
def drain(rows: NDArray[np.int32], scores: NDArray[np.floating[Any]], ties: NDArray[np.int64], found: int) -> None:
    """Put the first ``found`` places of a heap of :func:`keep_best` in order, best first; it is no heap any more."""
    for last in range(found - 1, 0, -1):
        # The worst goes to the end of what is left, and what stood there finds its place.
        row, score, tie = rows[last], scores[last], ties[last]
        rows[last], scores[last], ties[last] = rows[0], scores[0], ties[0]
        place = _sink(rows, scores, ties, last, score, tie)
        rows[place], scores[place], ties[place] = row, score, tie


@compiled
def ascending(keys: NDArray[np.int64]) -> None:
    """Sort distinct whole numbers in place.

    Of a few, how many are smaller is counted for each, eight at a time and without a branch: a quarter of the time of
    a quicksort for eighty of them, half of it for two hundred.
    """
    count = len(keys)
    if count > _COUNTED:
        keys.sort()
        return
    unsorted = on_stack(count, np.int64)
    unsorted[:] = keys
    for at in range(count):
        key = unsorted[at]
        place = 0
        for other in range(count):
            place += unsorted[other] < key
        keys[place] = key


@compiled
def best_first(
    places: NDArray[np.int32],
    steps: NDArray[np.float64],
    rows: NDArray[np.int32],
    hashes: NDArray[np.int64],
    found: NDArray[np.int32],
) -> int:
    """The rows with the largest scores, best first, of equal ones those with the smaller hash: for the few that
    :func:`largest` left.

    Whole numbers that hold score and place are sorted, half the time that a heap takes and its sorting afterwards.

    Args:
        places: int32 [n], of ``rows``; at most a million.
        steps: float64 [n], whole numbers, the scores at these places; beyond 4e12 all are the same, what is not a
            number comes last.
        rows: int32, distinct.
        hashes: int64 by row.
        found: int32 [up to n], overwritten.

    Returns:
        how many there are.
    """
    count = len(places)
    keys = on_stack(count, np.int64)
    for at in range(count):
        step = steps[at]
        # Compared so that what is no number is the smallest.
        bounded = min(step, _MOST_STEPS) if step > -_MOST_STEPS else -_MOST_STEPS
        keys[at] = ((-np.int64(bounded)) << _PLACE_BITS) | at
    ascending(keys)
    wanted = min(len(found), count)
    begin = 0
    while begin < wanted:
        end = begin + 1
        while end < count and keys[end] >> _PLACE_BITS == keys[begin] >> _PLACE_BITS:
            end += 1
        if end == begin + 1:
            found[begin] = rows[places[keys[begin] & _PLACE_MASK]]
        else:
            equal = np.empty(end - begin, np.int32)
            ties = np.empty(end - begin, np.int64)
            for at in range(begin, end):
                row = rows[places[keys[at] & _PLACE_MASK]]
                equal[at - begin], ties[at - begin] = row, hashes[row]
            ordered = np.argsort(ties)
            for at in range(begin, min(end, wanted)):
                found[at] = equal[ordered[at - begin]]
        begin = end
    return wanted


@compiled
def in_order(keys: NDArray[np.float64], seconds: NDArray[Any], order: NDArray[np.intp]) -> None:
    """Indices by ``keys``, the largest first, then by ``seconds`` (int or float), the smallest first, then by index:
    int [len(keys)], overwritten. For a hundred or so: how many come before is counted for each, as in
    :func:`ascending`."""
    count = len(keys)
    for at in range(count):
        order[at] = at  # What is not a number is no index either: some would stand in no place.
    for at in range(count):
        key, second = keys[at], seconds[at]
        place = 0
        for other in range(count):
            earlier = (seconds[other] < second) | ((seconds[other] == second) & (other < at))
            place += (keys[other] > key) | ((keys[other] == key) & earlier)
        order[place] = at


@compiled
def largest(scores: NDArray[np.floating[Any]], wanted: int, rows: NDArray[np.int32]) -> int:
    """The places of the ``wanted`` largest scores and of some that are close to the last of them, in three passes.

    For long lists: a fifteenth of the time that a heap takes, and what is close to the edge can be compared in full
    precision, or by something else, afterwards.

    Args:
        scores: float32 or float64 [n]; what is not finite is left out.
        wanted: how many, more than 0.
        rows: int32 [n], overwritten with the result, in ascending order.

    Returns:
        how many were found.
    """
    low, high = finite_range(scores)
    for score in scores[len(scores) // LANES * LANES :]:
        if -np.inf < score < np.inf:
            low, high = min(low, score), max(high, score)
    if low > high:
        return 0
    # More of them than needed is little more to compare, and none of a list of a hundred is worth two thousand counts.
    buckets = _FEW_BUCKETS if len(scores) < _MANY else _BUCKETS
    scale = (buckets - 1) / (high - low) if high > low else 0.0
    counts, held_in = on_stack(buckets + 1, np.int32), on_stack(len(scores), np.int16)
    counts[:] = 0
    for place, score in enumerate(scores):
        # What is not finite has a bucket of its own, the lowest. Of scores further apart than a number can say the
        # first: compiled code does not check indices.
        at = (score - low) * scale
        bucket = int(at) + 1 if 0.0 <= at < buckets else 1
        bucket = bucket if -np.inf < score < np.inf else 0
        held_in[place] = bucket
        counts[bucket] += 1
    edge = buckets
    held = counts[edge]
    while held < wanted and edge > 1:
        edge -= 1
        held += counts[edge]
    found = 0
    for place in range(len(scores)):
        rows[found] = place
        found += held_in[place] >= edge
        if found == len(rows):
            break
    return found
