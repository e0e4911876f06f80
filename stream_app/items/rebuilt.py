"""Rows made again from the events, taken over by the owner of their partition. Pure.

They come on ``transitions.v1`` itself, in parts, between other messages, so the owner needs no other channel and no
lock: what is before the last part is held by the rows or read again, what is behind it is applied as ever. Until then
the old rows go on being served and changed.
"""

from __future__ import annotations

from schemas.messages import RebuiltRows
from stream_app.items.statistics import ItemStatistics
from stream_app.settings import ItemSettings

__all__ = ["StagedRows"]


class StagedRows:
    """Parts that have come of a rebuild's rows.

    Args:
        partition, partitions, settings: as for :class:`ItemStatistics`.
        offset: of the first part; nothing from there on is acknowledged before the rows are taken over.
        now: seconds of a clock that never goes back.

    Attributes:
        statistics: the rows so far.
        since: when the first part came.
        broken: a part is missing, and the rows cannot be used.
    """

    def __init__(
        self, first: RebuiltRows, partition: int, partitions: int, settings: ItemSettings, *, offset: int, now: float
    ) -> None:
        self.statistics = ItemStatistics(partition, partitions, settings)
        self.generation = first.generation
        self.offset = offset
        self.since = now
        self.broken = False
        self._next = 0

    def take(self, rebuilt: RebuiltRows) -> bool:
        """One more part of the same generation; whether it was the last, and all are there.

        Raises:
            ValueError: when a row cannot be used.
        """
        if rebuilt.part < self._next:
            return False  # published twice
        if rebuilt.part > self._next:
            self.broken = True
            return False
        for row in rebuilt.rows:
            self.statistics.restore(row)
        self._next += 1
        return self._next == rebuilt.parts and not self.broken
