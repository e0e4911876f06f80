"""Which items are cold (known, but with hardly any events), without looking at the whole catalogue each time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.heap import drain, keep_best
from stream_app.items.catalogue import Catalogue

__all__ = ["ColdItems"]

_REFRESH_SHARE = 0.01
_COUNTED = 0.1
"""What a change of counts weighs against one of membership or vector."""


class ColdItems:
    """Cold rows, of which at most ``limit`` are looked at.

    Up to half are the rising ones: those few that somebody took lately, the latest and most taken first. What a few
    people just took is by far the best guess at which new item the next one takes (measured on Online Retail: among
    all cold items the right one is in the first ten of 20 % of the tests, by text in 4 %). The others are the newest.

    Args:
        limit: how many are looked at per request.
    """

    def __init__(self, *, limit: int = 512) -> None:
        self._limit = limit
        # Where each member is in the array of members, by row, -1: it is none; and the members, in no order.
        self._place_of: NDArray[np.int32] = np.full(1_024, -1, np.int32)
        self._members: NDArray[np.int32] = np.zeros(1_024, np.int32)
        self._count = 0
        self._changes = 0.0
        self._stale = True
        self._rows: NDArray[np.int32] = np.zeros(0, np.int32)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, row: int) -> bool:
        return row < len(self._place_of) and bool(self._place_of[row] >= 0)

    def set(self, row: int, *, cold: bool, changed: bool = False, counted: bool = False) -> None:
        """State whether a row is cold.

        Args:
            row: the item.
            cold: whether it is.
            changed: its dates are different now.
            counted: its counts are.
        """
        self.set_all(np.array([row], np.int32), np.array([cold]), changed=changed, counted=counted)

    def set_all(
        self, rows: NDArray[np.int32], cold: NDArray[np.bool_], *, changed: bool = False, counted: bool = False
    ) -> None:
        """:meth:`set` of several rows (int32, distinct): ``cold`` bool, one for each."""
        if not len(rows):
            return
        self._reserve(int(rows.max()) + 1)
        self._count, moved, others = _set_all(rows, cold, self._place_of, self._members, self._count)
        self._changes += moved + others * (1.0 if changed else _COUNTED * counted)
        # Beyond the limit the choice is a sample anyway, so a few changes may wait; below it only counts may.
        exact = self._count <= self._limit and self._changes >= 1.0
        if exact or self._changes > _REFRESH_SHARE * self._limit:
            self._stale = True

    def _reserve(self, rows: int) -> None:
        held = len(self._place_of)
        if rows > held:
            size = max(rows, 2 * held)
            self._place_of = np.concatenate([self._place_of, np.full(size - held, -1, np.int32)])
            self._members = np.concatenate([self._members, np.zeros(size - held, np.int32)])

    def rows(self, catalogue: Catalogue, momentum: NDArray[np.float64]) -> NDArray[np.int32]:
        """The rows, int32 [c]: rising ones first, then the newest publication, then by id hash.

        Args:
            catalogue: publication times and id hashes.
            momentum: float64 by row, larger for what was taken more and later; -inf for what nobody took.
        """
        if self._stale:
            rows = np.empty(min(self._limit, self._count), np.int32)
            _choose(
                self._members[: self._count],
                momentum,
                catalogue.published_at,
                catalogue.id_hash,
                self._limit // 2,
                rows,
            )
            self._rows = rows
            self._changes = 0.0
            self._stale = False
        return self._rows


@compiled
def _set_all(
    rows: NDArray[np.int32],
    cold: NDArray[np.bool_],
    place_of: NDArray[np.int32],
    members: NDArray[np.int32],
    count: int,
) -> tuple[int, int, int]:
    """Take rows in or out; how many members there are now, how many rows came or went, and how many stayed in."""
    moved = stayed = 0
    for at, row in enumerate(rows):
        place = place_of[row]
        if cold[at] and place >= 0:
            stayed += 1
        elif cold[at]:
            place_of[row], members[count] = count, row
            count += 1
            moved += 1
        elif place >= 0:
            # The last member takes the place that becomes free.
            count -= 1
            last = members[count]
            members[place], place_of[last] = last, place
            place_of[row] = -1
            moved += 1
    return count, moved, stayed


@compiled
def _choose(
    members: NDArray[np.int32],
    momentum: NDArray[np.float64],
    published: NDArray[np.float64],
    hashes: NDArray[np.int64],
    most_rising: int,
    rows: NDArray[np.int32],
) -> None:
    """:meth:`ColdItems.rows`.

    Args:
        members: int32 [m].
        momentum: float64 by row, which may end early.
        published, hashes: float64, int64 by row.
        most_rising: how many may be rising ones.
        rows: int32, no longer than ``members``, overwritten.
    """
    keys = np.empty(len(rows))
    ties = np.empty(len(rows), np.int64)
    rising = rows[: min(most_rising, len(rows))]
    found = 0
    for row in members:
        if row < len(momentum) and momentum[row] > -np.inf:
            # In steps: the last bits differ between processors, and the order must not.
            key = np.rint(momentum[row] * 1e6)
            # Asked here too, because a call takes longer than the answer.
            if found < len(rising) or (found and key >= keys[0]):
                found = keep_best(rising, keys, ties, found, row, key, hashes[row])
    drain(rising, keys, ties, found)
    held = set(rising[:found])
    newest = rows[found:]
    count = 0
    for row in members:
        at = published[row]
        # Asked here too, because a call takes longer than the answer, and in many catalogues no item has a date.
        if count == len(newest) and (not count or at < keys[0] or (at == keys[0] and hashes[row] > ties[0])):
            continue
        if row not in held:
            count = keep_best(newest, keys, ties, count, row, at, hashes[row])
    drain(newest, keys, ties, count)
