"""Which items are cold (known, but with hardly any events), without looking at the whole catalogue each time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.index.hnsw import VectorIndex
from stream_app.items.catalogue import Catalogue

__all__ = ["ColdItems"]

_REFRESH_SHARE = 0.01


class ColdItems:
    """The cold rows, newest first, at most ``limit`` of them, with their vectors side by side.

    Args:
        limit: how many are looked at per request; more are cut by publication time, then id hash.
    """

    def __init__(self, *, limit: int = 1_024) -> None:
        self._limit = limit
        self._members: set[int] = set()
        self._changes = 0
        self._stale = True
        self._rows: NDArray[np.int32] = np.zeros(0, np.int32)
        self._matrix: NDArray[np.float32] = np.zeros((0, 0), np.float32)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, row: int) -> bool:
        return row in self._members

    def set(self, row: int, *, cold: bool, changed: bool = False) -> None:
        """State whether a row is cold; ``changed`` says that its vector or dates are different now."""
        if cold:
            changed |= row not in self._members
            self._members.add(row)
        elif row in self._members:
            changed = True
            self._members.discard(row)
        else:
            return
        self._changes += changed
        # Beyond the limit the choice is a sample anyway, so a few changes may wait; below it is exact.
        if self._changes and (len(self._members) <= self._limit or self._changes > _REFRESH_SHARE * self._limit):
            self._stale = True

    def vectors_changed(self) -> None:
        """Every vector is another one now: they are read again."""
        self._stale = True

    def rows(self, catalogue: Catalogue, index: VectorIndex) -> NDArray[np.int32]:
        """The rows, int32 [c], newest publication first, then by id hash."""
        self._refresh(catalogue, index)
        return self._rows

    def matrix(self, catalogue: Catalogue, index: VectorIndex) -> NDArray[np.float32]:
        """Their vectors, float32 [c, dimensions]; zeros where an item has none yet."""
        self._refresh(catalogue, index)
        return self._matrix

    def _refresh(self, catalogue: Catalogue, index: VectorIndex) -> None:
        if not self._stale:
            return
        rows = np.fromiter(self._members, np.int32, len(self._members))
        if len(rows) > 2 * self._limit:
            published = catalogue.published_at[rows]
            floor = np.partition(published, len(rows) - self._limit)[len(rows) - self._limit]
            rows = rows[published >= floor]
        order = np.lexsort((catalogue.id_hash[rows], -catalogue.published_at[rows]))[: self._limit]
        self._rows = rows[order]
        self._matrix = index.vectors(self._rows)
        self._changes = 0
        self._stale = False
