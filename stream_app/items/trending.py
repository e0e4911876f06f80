"""The items with the largest decayed counts, kept up to date by what changed instead of by sorting.

All counts of one half-life shrink by the same factor per second, so their order depends only on
``log2(count) + at / half_life``, which does not change with time ("forward decay": Cormode, Shkapenyuk, Srivastava
and Xu 2009, doi 10.1109/ICDE.2009.65). An update therefore changes the place of one item, and the new top is among
the old top and the changed items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["TopRows"]


class TopRows:
    """The ``size`` rows with the largest keys, exactly, best first; ties go to the smaller tie-break.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._top: NDArray[np.int32] = np.zeros(0, np.int32)
        self._floor = -np.inf
        self._changed: set[int] = set()
        self._all = True
        self.scans = 0

    def change(self, row: int) -> None:
        """The row's key is different now."""
        self._changed.add(row)

    def reset(self) -> None:
        """Rows were renumbered or many changed: look at everything at the next call."""
        self._all = True

    def rows(self, keys: NDArray[np.float64], ties: NDArray[np.int64]) -> NDArray[np.int32]:
        """The top rows, int32, fewer than ``size`` when fewer have a key above -inf.

        Args:
            keys: float64 [rows], -inf for rows that count nothing.
            ties: int64 [rows].
        """
        if not self._all and self._changed:
            held = set(self._top.tolist())
            # A row of the top that fell below its floor may have been overtaken by one that did not change.
            fell = [row for row in self._changed & held if keys[row] < self._floor]
            if fell and self._floor > -np.inf:
                self._all = True
            else:
                pool = np.fromiter(held | self._changed, np.int32, len(held | self._changed))
                self._take(pool, keys, ties)
        if self._all:
            self.scans += 1
            pool = np.arange(len(keys), dtype=np.int32)
            if len(keys) > 4 * self._size:
                floor = np.partition(keys, len(keys) - self._size)[len(keys) - self._size]
                pool = pool[keys >= floor]
            self._take(pool, keys, ties)
            self._all = False
        self._changed.clear()
        return self._top

    def _take(self, pool: NDArray[np.int32], keys: NDArray[np.float64], ties: NDArray[np.int64]) -> None:
        pool = pool[keys[pool] > -np.inf]
        order = np.lexsort((ties[pool], -keys[pool]))[: self._size]
        self._top = pool[order]
        self._floor = float(keys[self._top[-1]]) if len(self._top) == self._size else -np.inf
