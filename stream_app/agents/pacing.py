"""What waits, spread over an interval: some of it often instead of all of it at once, at most so much per interval."""

from __future__ import annotations

__all__ = ["Pace"]

_PARTS, _LEAST_S = 5, 0.05
"""An interval has so many parts, which last no less than this (seconds)."""


class Pace:
    """Says when the next part is due, and how much of what waits leaves with it.

    The parts before the last take an equal share of what waited when the interval began, the last all that waits then:
    so nothing waits longer than without parts, and what changes all the time leaves at most twice.

    Args:
        interval_s: seconds.
        limit: how much may leave per interval, at least 1 (count).
        now: of a clock that never goes back (seconds).

    Attributes:
        next_at: when the next part is due.
    """

    def __init__(self, interval_s: float, *, limit: int, now: float) -> None:
        self._parts = max(1, min(_PARTS, int(interval_s / _LEAST_S)))
        self._pause = interval_s / self._parts
        self._limit = self._left = limit
        self._part = self._each = 0
        self.next_at = now + self._pause

    def share(self, now: float, waiting: int) -> int:
        """How much leaves with the part that is due; the next is due a part of the interval later, or at once where
        that is over already."""
        if self._part == 0:
            self._left = self._limit
            self._each = -(-min(waiting, self._limit) // self._parts)
        self._part = (self._part + 1) % self._parts
        leaves = min(waiting, self._left, self._each if self._part else waiting)
        self._left -= leaves
        self.next_at = max(self.next_at + self._pause, now)
        return leaves
