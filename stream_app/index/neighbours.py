"""The nearest items of each item, kept: what is near to a user is near to something the user took.

A search costs a pass over everything, or a walk through a graph, for every request; the neighbours of an item are the
same for everybody who took it. So they are looked for once, when they are first asked for, and kept. Those of the last
items of a user hold most of what a search by the user's interest vectors finds (measured on MovieLens, 20 items of 64
neighbours: 82 to 84 % of the nearest 60, and the same hit rates).

Lists follow what changes, within bounds. A new vector, or one that moved, is put into the lists of what is near to it.
A list is made again when it is next asked for after a quarter of its rows changed or left, or after a tenth of all
vectors did. One request makes a few lists and brings in one changed vector at most, however much is waiting; the lists
of a batch of requests are made by one search. So what a list holds depends on when it was asked for: two processes may
differ in some of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled

__all__ = ["HeldLists", "NeighbourLists", "Search"]

Search = Callable[[NDArray[np.integer[Any]], int], tuple[NDArray[np.int32], NDArray[np.float32]]]
"""The so many rows nearest to each of some rows, themselves among them: rows and similarities [rows, k], best first, -1
and -inf where there are fewer."""

_MADE_AT_ONCE = 8
"""Lists made for one request at most, those asked for first; the next request makes more."""
_WAITING = 256
"""Changed vectors waiting to be put into lists at most; the oldest are left to the lists' being made again."""
_FEWEST = 256
"""Changes until a list is made again, in a small index."""
_NO_SLOT, _COMING = -1, -2
_NEVER = -(2**62)
_START = 64


@dataclass(frozen=True, slots=True)
class HeldLists:
    """The lists of a moment, to be written by a thread while more are made.

    Attributes:
        rows, slots: of the lists that were made, int32.
        moved: of every row, when it last changed; ``made``: of every slot, when it was filled; int64, copies.
        waiting: rows that are not in the lists of others yet, int32, in order.
        changes: how many changes there had been.
        lists, similarity: by slot. Not copies: those of ``since`` may be others by now.
        since: slots that were filled or changed after that moment.
    """

    rows: NDArray[np.int32]
    slots: NDArray[np.int32]
    moved: NDArray[np.int64]
    made: NDArray[np.int64]
    waiting: NDArray[np.int32]
    changes: int
    lists: NDArray[np.int32]
    similarity: NDArray[np.float32]
    since: set[int] = field(default_factory=set)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What :meth:`NeighbourLists.restore` takes."""
        lists, similarity = self.lists[self.slots], self.similarity[self.slots]
        # Looked at after they were copied, so none of those that stay was changed before.
        kept = ~np.isin(self.slots, list(self.since))
        return {
            "rows": self.rows[kept],
            "lists": lists[kept],
            "similarity": similarity[kept],
            "made": self.made[self.slots[kept]],
            "moved": self.moved,
            "waiting": self.waiting,
            "changes": np.array([self.changes], np.int64),
        }


class NeighbourLists:
    """Lists of the nearest rows, by row; made when they are asked for.

    Memory: 8 bytes per row of a list that is made (up to twice that after growing), and 12 per row of the index.

    Args:
        size: rows in a list.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._slot: NDArray[np.int32] = np.zeros(0, np.int32)
        self._moved: NDArray[np.int64] = np.zeros(0, np.int64)
        self._lists: NDArray[np.int32] = np.zeros((0, size), np.int32)
        self._similarity: NDArray[np.float32] = np.zeros((0, size), np.float32)
        self._made: NDArray[np.int64] = np.zeros(0, np.int64)
        self._used = 0
        self._free: list[int] = []
        self._waiting: dict[int, None] = {}
        self._changes = 0
        self._held: HeldLists | None = None

    def __len__(self) -> int:
        """How many lists are made."""
        return self._used - len(self._free)

    @property
    def waiting(self) -> int:
        """Changed vectors that are not in the lists of others yet."""
        return len(self._waiting)

    @property
    def memory_bytes(self) -> int:
        """What they take."""
        arrays = (self._slot, self._moved, self._lists, self._similarity, self._made)
        return sum(array.nbytes for array in arrays)

    def changed(self, rows: NDArray[np.int32]) -> None:
        """The vectors of rows (int32, distinct) are new or others."""
        self._leave(rows)
        if not len(self):
            return
        for row in rows[-_WAITING:].tolist():
            self._waiting.pop(row, None)
            self._waiting[row] = None
        while len(self._waiting) > _WAITING:
            del self._waiting[next(iter(self._waiting))]

    def removed(self, rows: NDArray[np.int32]) -> None:
        """Rows (int32, distinct) have no vector any more."""
        self._leave(rows)
        for row in rows.tolist():
            self._waiting.pop(row, None)

    @property
    def table(self) -> NDArray[np.int32]:
        """All lists, int32 [any, size], nearest first, -1 where there are fewer; read-only, and good until the next
        change."""
        return self._lists

    def slots(self, rows: NDArray[np.int32], search: Search, *, live: int) -> NDArray[np.int32]:
        """Where the lists of ``rows`` are in :attr:`table`: int32 of the same shape, -1 for those without one. Of the
        rows of a request that have none only the first few get one now.

        Args:
            rows: int32 [requests, any], of a request distinct, negative or with a vector.
            search: see :data:`Search`.
            live: how many vectors there are.
        """
        self._reserve(max(int(rows.max(initial=-1)) + 1, 1))
        for row in list(islice(self._waiting, len(rows))):
            del self._waiting[row]
            self._bring(np.array([row], np.int32), search)
        due = np.empty(rows.size, np.int32)
        newest = self._changes
        oldest = newest - max(_FEWEST, live // 10)
        count = _due(rows, self._slot, self._moved, self._lists, self._made, oldest, newest, _MADE_AT_ONCE, due)
        if count:
            try:
                self._put(due[:count], *search(due[:count], self.size + 1))
            except BaseException:
                # As if nobody had asked: what is coming is not, and what was made is out of date.
                slots = self._slot[due[:count]]
                self._made[slots[slots >= 0]] = _NEVER
                self._slot[due[:count]] = np.maximum(slots, _NO_SLOT)
                raise
        return np.where(rows >= 0, self._slot[rows], _NO_SLOT)

    def hold(self) -> HeldLists:
        """The lists as they are now; until the next call, or :meth:`release`, it is told what changes."""
        rows = np.flatnonzero(self._slot >= 0).astype(np.int32)
        self._held = HeldLists(
            rows,
            self._slot[rows],
            self._moved.copy(),
            self._made.copy(),
            np.fromiter(self._waiting, np.int32, len(self._waiting)),
            self._changes,
            self._lists,
            self._similarity,
        )
        return self._held

    def release(self) -> None:
        """Nobody writes the lists any more."""
        self._held = None

    def restore(self, arrays: Mapping[str, NDArray[Any]], present: NDArray[np.bool_]) -> None:
        """Have the lists of :meth:`HeldLists.arrays`; there are none yet, and none when this fails.

        Args:
            arrays: of lists of this size.
            present: which rows have a vector.

        Raises:
            ValueError: when they do not fit together.
        """
        rows, lists, similarity, moved = arrays["rows"], arrays["lists"], arrays["similarity"], arrays["moved"]
        made, waiting, changes, end = arrays["made"], arrays["waiting"], arrays["changes"], len(present)
        if lists.shape != (len(rows), self.size) or similarity.shape != lists.shape or made.shape != rows.shape:
            raise ValueError("kept neighbours differ in length")
        whole = (rows, lists, made, moved, waiting, changes)
        if not all(array.dtype.kind == "i" for array in whole) or moved.ndim != 1 or changes.shape != (1,):
            raise ValueError("kept neighbours are not what they should be")
        named = max(rows.max(initial=-1), lists.max(initial=-1), waiting.max(initial=-1))
        least = min(rows.min(initial=0), lists.min(initial=0) + 1, waiting.min(initial=0))
        if named >= max(end, len(moved)) or least < 0 or len(np.unique(rows)) < len(rows):
            raise ValueError("kept neighbours name rows that cannot be")
        good = (rows < min(end, len(moved))) & (lists < end).all(axis=1)
        good[good] = present[rows[good]]
        # Rows that have no vector any more stay in lists, as they do in a process that runs on.
        self._reserve(len(moved))
        self._moved[: len(moved)] = moved
        self._used, self._changes = int(good.sum()), int(changes[0])
        self._slot[rows[good]] = np.arange(self._used, dtype=np.int32)
        self._lists, self._similarity = lists[good].astype(np.int32), similarity[good].astype(np.float32)
        self._made = made[good].astype(np.int64)
        self._waiting = dict.fromkeys([row for row in waiting.tolist() if row < end and present[row]])

    def _leave(self, rows: NDArray[np.int32]) -> None:
        """What lists know of ``rows`` is not so any more."""
        if not self._used or not len(rows):
            return
        self._reserve(int(rows.max()) + 1)
        self._changes += len(rows)
        self._moved[rows] = self._changes
        slots = self._slot[rows]
        self._free += slots[slots >= 0].tolist()
        self._slot[rows] = _NO_SLOT

    def _bring(self, row: NDArray[np.int32], search: Search) -> None:
        """Make the list of a changed row, and put the row into the lists of what is near to it."""
        # Twice as far as a list reaches: who is among the nearest of another is not among its own for certain.
        found, similarity = search(row, 2 * self.size + 1)
        self._put(row, found, similarity)
        if self._held is not None:
            near = found[0]
            others = self._slot[near[(near >= 0) & (near < len(self._slot))]]
            self._held.since.update(others[others >= 0].tolist())
        _put_into_others(int(row[0]), found[0], similarity[0], self._slot, self._lists, self._similarity)

    def _put(self, rows: NDArray[np.int32], found: NDArray[np.int32], similarity: NDArray[np.float32]) -> None:
        for row in rows[self._slot[rows] < 0].tolist():
            self._slot[row] = self._free.pop() if self._free else self._new_slot()
        slots = self._slot[rows]
        self._made[slots] = self._changes
        if self._held is not None:
            self._held.since.update(slots.tolist())
        _fill(rows, slots, found, similarity, self._lists, self._similarity)

    def _new_slot(self) -> int:
        slot = self._used
        if slot == len(self._made):
            more = max(_START, slot)
            self._lists = np.concatenate([self._lists, np.zeros((more, self.size), np.int32)])
            self._similarity = np.concatenate([self._similarity, np.zeros((more, self.size), np.float32)])
            self._made = np.concatenate([self._made, np.zeros(more, np.int64)])
        self._used += 1
        return slot

    def _reserve(self, rows: int) -> None:
        held = len(self._slot)
        if rows > held:
            more = max(rows, 2 * held) - held
            self._slot = np.concatenate([self._slot, np.full(more, _NO_SLOT, np.int32)])
            self._moved = np.concatenate([self._moved, np.zeros(more, np.int64)])


@compiled
def _due(
    rows: NDArray[np.int32],
    slots: NDArray[np.int32],
    moved: NDArray[np.int64],
    lists: NDArray[np.int32],
    made: NDArray[np.int64],
    oldest: int,
    newest: int,
    most: int,
    due: NDArray[np.int32],
) -> int:
    """Those of ``rows`` (int32 [requests, any]) whose lists are to be made: of each request the first that have none,
    then the first whose list is out of date; at most ``most``. How many there are; they are in ``due``, int32 [at least
    as many as there are rows], overwritten, and distinct: ``slots`` says of a new one that it is coming, ``made`` of an
    old one that it is made."""
    count = 0
    for request in range(len(rows)):
        left = most
        for row in rows[request]:
            if left > 0 and row >= 0 and slots[row] == _NO_SLOT:
                due[count] = row
                slots[row] = _COMING
                count += 1
                left -= 1
        for row in rows[request]:
            if left <= 0 or row < 0 or slots[row] < 0:
                continue
            slot = slots[row]
            changed = 0
            for near in lists[slot]:
                if 0 <= near < len(moved) and moved[near] > made[slot]:
                    changed += 1
            if made[slot] < oldest or 4 * changed > lists.shape[1]:
                due[count] = row
                made[slot] = newest
                count += 1
                left -= 1
    return count


@compiled
def _fill(
    rows: NDArray[np.int32],
    slots: NDArray[np.int32],
    found: NDArray[np.int32],
    similarity: NDArray[np.float32],
    lists: NDArray[np.int32],
    kept: NDArray[np.float32],
) -> None:
    """Fill the lists of ``rows`` with what was found, without themselves."""
    size = lists.shape[1]
    for place, row in enumerate(rows):
        slot = slots[place]
        count = 0
        for rank in range(found.shape[1]):
            near = found[place, rank]
            if near >= 0 and near != row and count < size:
                lists[slot, count] = near
                kept[slot, count] = similarity[place, rank]
                count += 1
        lists[slot, count:] = -1
        kept[slot, count:] = -np.inf


@compiled
def _put_into_others(
    row: int,
    found: NDArray[np.int32],
    similarity: NDArray[np.float32],
    slots: NDArray[np.int32],
    lists: NDArray[np.int32],
    kept: NDArray[np.float32],
) -> None:
    """Put ``row`` into the lists of what was found near to it, where it belongs."""
    size = lists.shape[1]
    for rank, near in enumerate(found):
        if near < 0 or near == row or near >= len(slots) or slots[near] < 0:
            continue
        slot = slots[near]
        # Out of the list first: it may be there by its old vector.
        end = 0
        for at in range(size):
            if lists[slot, at] != row:
                lists[slot, end], kept[slot, end] = lists[slot, at], kept[slot, at]
                end += 1
        lists[slot, end:] = -1
        kept[slot, end:] = -np.inf
        close = similarity[rank]
        at = size
        while at > 0 and kept[slot, at - 1] < close:
            at -= 1
        if at < size:
            for moved in range(size - 1, at, -1):
                lists[slot, moved], kept[slot, moved] = lists[slot, moved - 1], kept[slot, moved - 1]
            lists[slot, at], kept[slot, at] = row, close
