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
        # Where each member is in the array, whose rest is unused: choosing reads it whole.
        self._place_of: dict[int, int] = {}
        self._members: NDArray[np.int32] = np.zeros(1_024, np.int32)
        self._changes = 0.0
        self._stale = True
        self._rows: NDArray[np.int32] = np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self._place_of)

    def __contains__(self, row: int) -> bool:
        return row in self._place_of

    def set(self, row: int, *, cold: bool, changed: bool = False, counted: bool = False) -> None:
        """State whether a row is cold.

        Args:
            row: the item.
            cold: whether it is.
            changed: its dates are different now.
            counted: its counts are.
        """
        member = row in self._place_of
        if not (cold or member):
            return
        if cold != member:
            changed = True
            if cold:
                self._add(row)
            else:
                self._remove(row)
        self._changes += 1.0 if changed else _COUNTED * counted
        # Beyond the limit the choice is a sample anyway, so a few changes may wait; below it only counts may.
        exact = len(self._place_of) <= self._limit and self._changes >= 1.0
        if exact or self._changes > _REFRESH_SHARE * self._limit:
            self._stale = True

    def _add(self, row: int) -> None:
        place = len(self._place_of)
        if place == len(self._members):
            self._members = np.concatenate([self._members, np.zeros(place, np.int32)])
        self._place_of[row] = place
        self._members[place] = row

    def _remove(self, row: int) -> None:
        """The last member takes the place that becomes free."""
        place, last = self._place_of[row], int(self._members[len(self._place_of) - 1])
        self._members[place] = last
        self._place_of[last] = place
        del self._place_of[row]

    def rows(self, catalogue: Catalogue, momentum: NDArray[np.float64]) -> NDArray[np.int32]:
        """The rows, int32 [c]: rising ones first, then the newest publication, then by id hash.

        Args:
            catalogue: publication times and id hashes.
            momentum: float64 by row, larger for what was taken more and later; -inf for what nobody took.
        """
        if self._stale:
            count = len(self._place_of)
            rows = np.empty(min(self._limit, count), np.int32)
            _choose(self._members[:count], momentum, catalogue.published_at, catalogue.id_hash, self._limit // 2, rows)
            self._rows = rows
            self._changes = 0.0
            self._stale = False
        return self._rows


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
