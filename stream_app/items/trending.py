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
_UNKNOWN = -1


class TopRows:
    """The ``size`` rows with the largest keys of each column, exactly, best first; ties go to the smaller tie-break.

    Args:
        columns: how many.
        size: how many rows of each.

    Attributes:
        scans: how often all rows of a column were looked at.
    """

    def __init__(self, columns: int, size: int) -> None:
        self._size = size
        self._top: NDArray[np.int32] = np.zeros((columns, size), np.int32)
        self._counts: NDArray[np.int64] = np.full(columns, _UNKNOWN)
        self._floor_keys = np.full(columns, -np.inf)
        self._floor_ties: NDArray[np.int64] = np.zeros(columns, np.int64)
        self._changed: NDArray[np.int32] = np.zeros(_REMEMBERED, np.int32)
        self._changes = 0
        self._marked: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._all = True
        self.scans = 0

    def change(self, rows: NDArray[np.int32]) -> None:
        """The keys of ``rows`` (int32) are different now, in any column."""
        changes = self._changes + len(rows)
        if changes > _REMEMBERED:
            self._all = True
        if not self._all:
            self._changed[self._changes : changes] = rows
            self._changes = changes

    def rows(
        self, keys: NDArray[np.float64], ties: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The top rows of each column, int32 [columns, size], and how many there are, int64 [columns]: fewer than
        ``size`` when fewer have a key above -inf. Read-only, and good until the next call.

        Args:
            keys: float64 [columns, rows or more], -inf for rows that count nothing.
            ties: int64 [rows or more].
            count: rows.
        """
        if self._all:
            self._counts[:] = _UNKNOWN
        elif self._changes:
            if count > len(self._marked):
                self._marked = np.zeros(2 * count, np.bool_)
            _renew(
                self._top, self._counts, self._changed[: self._changes], self._marked, keys, ties, count,
                self._floor_keys, self._floor_ties,
            )  # fmt: skip
        if self._all or self._changes:
            for column in np.flatnonzero(self._counts < 0).tolist():
                self._scan(column, keys[column, :count], ties[:count])
        self._changes = 0
        self._all = False
        return self._top, self._counts

    def _scan(self, column: int, keys: NDArray[np.float64], ties: NDArray[np.int64]) -> None:
        self.scans += 1
        pool = np.arange(len(keys), dtype=np.int32)
        if len(keys) > 4 * self._size:
            floor = np.partition(keys, len(keys) - self._size)[len(keys) - self._size]
            pool = pool[keys >= floor]
        pool = pool[keys[pool] > -np.inf]
        top = pool[np.lexsort((ties[pool], -keys[pool]))[: self._size]]
        self._counts[column] = len(top)
        self._top[column, : len(top)] = top
        if len(top):
            self._floor_keys[column], self._floor_ties[column] = keys[top[-1]], ties[top[-1]]


@compiled
def _before(key: float, tie: int, other_key: float, other_tie: int) -> bool:
    return key > other_key or (key == other_key and tie < other_tie)


@compiled
def _renew(
    tops: NDArray[np.int32],
    counts: NDArray[np.int64],
    changed: NDArray[np.int32],
    marked: NDArray[np.bool_],
    all_keys: NDArray[np.float64],
    ties: NDArray[np.int64],
    rows: int,
    floor_keys: NDArray[np.float64],
    floor_ties: NDArray[np.int64],
) -> None:
    """Put the ``changed`` rows (some twice) where they belong in each column; a count of -1 says that everything has to
    be looked at. ``marked`` is False everywhere, and again afterwards.

    The rows outside that did not change are behind the floor, which is the last of a full top as it was. So the top
    must be searched anew only when a changed row of it is now behind that floor, and nothing took its place.
    """
    for row in changed:
        if row < rows:
            marked[row] = True
    for column in range(len(tops)):
        top, keys = tops[column], all_keys[column]
        count = counts[column]
        full = count == len(top)
        kept = 0
        for place in range(count):
            row = top[place]
            if not marked[row]:
                top[kept] = row
                kept += 1
        count = kept
        for row in changed:
            if row >= rows or keys[row] == -np.inf:
                continue
            key, tie = keys[row], ties[row]
            if count == len(top) and not _before(key, tie, keys[top[count - 1]], ties[top[count - 1]]):
                continue
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
            for place in range(min(count, len(top) - 1), low, -1):
                top[place] = top[place - 1]
            top[low] = row
            count = min(count + 1, len(top))
        if full and (
            count < len(top)
            or _before(floor_keys[column], floor_ties[column], keys[top[count - 1]], ties[top[count - 1]])
        ):
            counts[column] = -1
            continue
        counts[column] = count
        if count:
            floor_keys[column], floor_ties[column] = keys[top[count - 1]], ties[top[count - 1]]
    for row in changed:
        if row < rows:
            marked[row] = False
