"""Up to where the records of a partition are done, whatever order they are done in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

__all__ = ["Acknowledgements"]


class Acknowledgements:
    """Of one partition, since it was last sought.

    Only what was delivered counts: offsets that compaction removed need no acknowledgement, and nothing is said to be
    done while a delivered record before it is not. Faust counts offsets instead, and commits one that was never
    acknowledged where it is the only one missing.

    A partition that is sought again has new ones; who holds records from before acknowledges them to the old ones,
    which nobody asks any more: these records are delivered again.
    """

    __slots__ = ("_done", "_waiting", "position")

    def __init__(self) -> None:
        self.position: int | None = None
        """The offset that may be committed: all before it are done. None: nothing is."""
        self._waiting: deque[int] = deque()
        self._done: set[int] = set()

    @property
    def undone(self) -> int:
        """Records delivered and not done."""
        return len(self._waiting) - len(self._done)

    def deliver(self, offsets: Iterable[int]) -> None:
        """Records of these offsets, ascending, are to be done; those delivered before are passed over."""
        last = self._waiting[-1] if self._waiting else (self.position or 0) - 1
        self._waiting.extend(offset for offset in offsets if offset > last)

    def acknowledge(self, offset: int) -> None:
        """The record is done; again changes nothing."""
        waiting = self._waiting
        if not waiting or offset < waiting[0]:
            return
        if offset != waiting[0]:
            self._done.add(offset)
            return
        waiting.popleft()
        while waiting and waiting[0] in self._done:
            offset = waiting.popleft()
            self._done.discard(offset)
        self.position = offset + 1
