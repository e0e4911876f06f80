"""The items with the largest decayed counts, kept up to date by what changed instead of by sorting.

All counts of one half-life shrink by the same factor per second, so their order depends only on
``log2(count) + at / half_life``, which does not change with time ("forward decay": Cormode, Shkapenyuk, Srivastava
and Xu 2009, doi 10.1109/ICDE.2009.65). An update therefore changes the place of one item, and the new top is among
the old top and the changed items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled

__all__ = ["TopRows"]

_REMEMBERED = 1_024
"""Changed rows remembered between two calls; after more of them looking at everything is as fast."""


class TopRows:
    """The ``size`` rows with the largest keys, exactly, best first; ties go to the smaller tie-break.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._top: NDArray[np.int32] = np.zeros(size, np.int32)
        self._count = 0
        self._floor = (-np.inf, 0)
        self._changed: NDArray[np.int32] = np.zeros(_REMEMBERED, np.int32)
        self._changes = 0
        self._all = True
        self.scans = 0

    def change(self, rows: NDArray[np.int32]) -> None:
        """The keys of ``rows`` (int32) are different now."""
        changes = self._changes + len(rows)
        if changes > _REMEMBERED:
            self._all = True
        if not self._all:
            self._changed[self._changes : changes] = rows
            self._changes = changes

    def rows(self, keys: NDArray[np.float64], ties: NDArray[np.int64]) -> NDArray[np.int32]:
        """The top rows, int32, fewer than ``size`` when fewer have a key above -inf; a copy.

        Args:
            keys: float64 [rows], -inf for rows that count nothing.
            ties: int64 [rows].
        """
        if self._changes and not self._all:
            self._count = _renew(self._top, self._count, self._changed[: self._changes], keys, ties, *self._floor)
            self._all = self._count < 0
        if self._all:
            self._scan(keys, ties)
        if self._changes and self._count:
            last = self._top[self._count - 1]
            self._floor = (float(keys[last]), int(ties[last]))
        self._changes = 0
        return self._top[: self._count].copy()

    def _scan(self, keys: NDArray[np.float64], ties: NDArray[np.int64]) -> None:
        self.scans += 1
        pool = np.arange(len(keys), dtype=np.int32)
        if len(keys) > 4 * self._size:
            floor = np.partition(keys, len(keys) - self._size)[len(keys) - self._size]
            pool = pool[keys >= floor]
        pool = pool[keys[pool] > -np.inf]
        top = pool[np.lexsort((ties[pool], -keys[pool]))[: self._size]]
        self._count = len(top)
        self._top[: self._count] = top
        self._changes = 1  # the floor is another
        self._all = False


@compiled
def _before(key: float, tie: int, other_key: float, other_tie: int) -> bool:
    return key > other_key or (key == other_key and tie < other_tie)


@compiled
def _renew(
    top: NDArray[np.int32],
    count: int,
    changed: NDArray[np.int32],
    keys: NDArray[np.float64],
    ties: NDArray[np.int64],
    floor_key: float,
    floor_tie: int,
) -> int:
    """Put the ``changed`` rows (some twice) where they belong; how many rows the top has, -1 to look at everything.

    The rows outside that did not change are behind the floor, which is the last of a full top as it was. So the top
    must be searched anew only when a changed row of it is now behind that floor, and nothing took its place.
    """
    full = count == len(top)
    kept = 0
    for place in range(count):
        row = top[place]
        held = True
        for other in changed:
            if other == row:
                held = False
                break
        if held:
            top[kept] = row
            kept += 1
    count = kept
    for row in changed:
        if row >= len(keys) or keys[row] == -np.inf:
            continue
        key, tie = keys[row], ties[row]
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            other = top[middle]
            if _before(keys[other], ties[other], key, tie):
                low = middle + 1
            else:
                high = middle
        if low < count and top[low] == row:
            continue
        if low == len(top):
            continue
        for place in range(min(count, len(top) - 1), low, -1):
            top[place] = top[place - 1]
        top[low] = row
        count = min(count + 1, len(top))
    if full and (count < len(top) or _before(floor_key, floor_tie, keys[top[count - 1]], ties[top[count - 1]])):
        return -1
    return count
