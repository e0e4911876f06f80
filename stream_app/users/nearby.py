"""Who a new item suits: the active users of a process by their interests, and the new items that wait for them.

The users' slow interest vectors are kept as they were when their slates were made. They change with every event and are
searched only when an item is new, so the index scans them (a graph would cost more to keep than it saves): 20,000
vectors of 384 numbers take some 5 ms.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from stream_app.index.hnsw import VectorIndex
from stream_app.settings import IndexSettings

__all__ = ["NearbyUsers", "Newest", "best_first"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_SCANNED = IndexSettings(exact_below=1_000_000)


class NearbyUsers:
    """The latest interest vectors of the most recent users, all of one vector space.

    Args:
        limit: users kept at most.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._space = ""
        self._index = VectorIndex(0, _SCANNED)
        self._row_of: OrderedDict[str, int] = OrderedDict()
        self._users: list[str] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._row_of

    def clear(self) -> None:
        """Forget everybody."""
        self._index = VectorIndex(self._index.dimensions, _SCANNED)
        self._row_of.clear()
        self._users.clear()
        self._free.clear()

    def put(self, users: Sequence[str], vectors: NDArray[np.float32], *, space: str) -> None:
        """Set the interests of distinct users, who are now the most recent.

        Args:
            users: ids.
            vectors: float32 [users, dimensions], unit length, or zeros where nothing is known: no item finds these.
            space: the vectors' space; vectors of another one are dropped.
        """
        if not len(users) or not self._limit:
            return
        if (space, vectors.shape[1]) != (self._space, self._index.dimensions):
            self._space, self._index = space, VectorIndex(vectors.shape[1], _SCANNED)
            self.clear()
        users, vectors = users[-self._limit :], vectors[-self._limit :]
        known = np.einsum("ud,ud->u", vectors, vectors) > 0
        rows = []
        for user_id, knows in zip(users, known.tolist(), strict=True):
            if knows:
                rows.append(self._row(user_id))
            else:
                self.gone(user_id)
        self._index.upsert(np.array(rows, np.int32), vectors[known])

    def gone(self, user_id: str) -> None:
        """Forget a user."""
        row = self._row_of.pop(user_id, None)
        if row is not None:
            self._index.remove(np.array([row], np.int32))
            self._free.append(row)

    def near(self, items: NDArray[np.float32], count: int, *, space: str) -> list[list[tuple[str, float]]]:
        """For each item the ``count`` users nearest to it, with the cosines, best first.

        Args:
            items: float32 [items, dimensions], unit length.
            count: users per item at most.
            space: the vectors' space; in another one than the users' nobody is near.
        """
        if space != self._space or not len(items) or items.shape[1] != self._index.dimensions:
            return [[] for _ in items]
        rows, cosines = self._index.search(items, min(count, len(self)))
        return [
            [(self._users[row], cosine) for row, cosine in zip(*pair, strict=True) if row >= 0]
            for pair in zip(rows.tolist(), cosines.tolist(), strict=True)
        ]

    def _row(self, user_id: str) -> int:
        row = self._row_of.get(user_id)
        if row is None:
            if len(self._row_of) >= self._limit:
                self.gone(next(iter(self._row_of)))
            if self._free:
                row = self._free.pop()
                self._users[row] = user_id
            else:
                row = len(self._users)
                self._users.append(user_id)
        self._row_of[user_id] = row
        self._row_of.move_to_end(user_id)
        return row


class Newest(Generic[K, V]):
    """What waits, by key; beyond ``limit`` the longest waiting is dropped. Put again, it is new."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, key: K, value: V) -> int:
        """Add one; returns how many were dropped for it."""
        self._waiting[key] = value
        self._waiting.move_to_end(key)
        dropped = 0
        while len(self._waiting) > self._limit:
            self._waiting.popitem(last=False)
            dropped += 1
        return dropped

    def take(self) -> dict[K, V]:
        """Everything that waits, the longest waiting first; then nothing does."""
        taken, self._waiting = self._waiting, OrderedDict()
        return dict(taken)


def best_first(found: Sequence[Sequence[tuple[str, float]]], limit: int) -> tuple[list[str], int]:
    """The distinct users near any of the items, by their largest cosine, and how many are left out beyond ``limit``.

    Args:
        found: per item, users and cosines.
        limit: users at most.
    """
    nearest: dict[str, float] = {}
    for users in found:
        for user_id, cosine in users:
            nearest[user_id] = max(cosine, nearest.get(user_id, -np.inf))
    ordered = sorted(nearest, key=lambda user_id: (-nearest[user_id], user_id))
    return ordered[:limit], max(0, len(ordered) - limit)
