"""A gate in front of what a process consumes: while it is closed, records wait at the broker, but for a few."""

from __future__ import annotations

__all__ = ["DRIP_S", "Gate"]

DRIP_S = 1.0
"""While the gate is closed, a consumer with nothing left to do may fetch once in so many seconds: what it waits for
may never come, as when the catalogue alone takes the memory, and a process that takes nothing any more helps nobody."""


class Gate:
    """Open at first. One for all consumers of a process.

    Attributes:
        closed: whether consumers wait.
    """

    def __init__(self) -> None:
        self.closed = False
        self._next: dict[object, float] = {}

    def lets(self, consumer: object, *, idle: bool, now: float) -> bool:
        """Whether a consumer may fetch.

        Args:
            consumer: whichever asks.
            idle: whether nothing that it fetched before waits to be processed.
            now: of a clock that never goes back (seconds).
        """
        if not self.closed:
            self._next.clear()
            return True
        if not idle or now < self._next.get(consumer, now):
            return False
        self._next[consumer] = now + DRIP_S
        return True
