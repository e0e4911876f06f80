"""The item-keyed stage: transitions in, one row per changed item and flush out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from schemas.decode import decode_item_signals, decode_transitions, encode
from schemas.messages import RebuiltRows
from stream_app.agents.base import Agent
from stream_app.delivery.publisher import OutRecord
from stream_app.delivery.reading import read_part, read_to_end
from stream_app.delivery.records import InRecord
from stream_app.errors import InvalidMessage
from stream_app.items.rebuilt import StagedRows
from stream_app.items.statistics import ItemStatistics
from stream_app.logs import get_logger

__all__ = ["ItemsAgent"]

_log = get_logger(__name__)
_MAX_HELD = 50_000
"""Events read but not yet durable; beyond it reading waits for the flush."""
_STAGED_S = 600.0
"""Rows of a rebuild that do not come to an end are given up."""


@dataclass(slots=True)
class _Owned:
    statistics: ItemStatistics
    held: deque[tuple[int, Any]] = field(default_factory=deque)
    staged: StagedRows | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while rows are broadcast, and while others take their place."""


class ItemsAgent(Agent):
    """Owns the statistics of the items of its partitions.

    An event is acknowledged when every row it changed has been acknowledged by the broker. A new owner starts
    from the rows in ``item-signals.v1`` and reads ``transitions.v1`` again from the committed offset.
    """

    role: ClassVar[str] = "items"
    gathers: ClassVar[bool] = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._owned: dict[int, _Owned] = {}
        self._flushed = asyncio.Condition()
        self._partitions = self.settings.topics.partitions
        self._worked = 0

    @property
    def work(self) -> int:
        # Rows of a rebuild are broadcast for minutes before anything is acknowledged.
        return self._worked

    @property
    def topic(self) -> str:
        return self.topics.transitions

    @property
    def patience_s(self) -> float:
        return super().patience_s + self.settings.items.flush_interval_s

    async def start(self) -> None:
        self._partitions = await self.publisher.partitions(self.topics.transitions)
        await super().start()
        self._run("flush", self._flush_for_ever())

    async def partitions_changed(self) -> None:
        self._owned = {}

    async def hand_over(self) -> None:
        while any(owned.statistics.waiting for owned in self._owned.values()):
            for owned in list(self._owned.values()):
                await self._flush(owned)

    async def handle(self, events: Sequence[Any]) -> None:
        owned_by_partition = self._owned
        for event in events:
            record = InRecord.from_faust(event)
            owned = owned_by_partition.get(record.partition)
            if owned is None:
                with self.long_work("taking over the statistics of items"):
                    owned = await self.reading(partial(self._take_over, record.partition), self.topics.item_signals)
                if self._owned is not owned_by_partition:
                    return  # The partitions moved meanwhile; what is ours will be delivered again.
                owned_by_partition[record.partition] = owned
            try:
                message = decode_transitions(record.value)
                owned.statistics.apply(message, offset=record.offset)
                if message.rebuilt is not None:
                    await self._stage(owned, message.rebuilt, record.offset)
            except InvalidMessage as error:
                # Before it is held: what is held may be acknowledged by a flush at any await.
                await self.publisher.publish([self.letter(record, error)])
                owned.statistics.skip(record.offset)
            owned.held.append((record.offset, event))
        while any(len(owned.held) > _MAX_HELD and owned.staged is None for owned in self._owned.values()):
            async with self._flushed:
                await self._flushed.wait()

    async def _take_over(self, partition: int) -> _Owned:
        statistics = ItemStatistics(partition, self._partitions, self.settings.items)
        async for record in read_to_end(self.settings, self.topics.item_signals, partitions=[partition]):
            try:
                item_id, signals = decode_item_signals(record.key, record.value)
                if signals is None:
                    statistics.forget(item_id)
                else:
                    statistics.restore(signals)
            except (InvalidMessage, ValueError) as error:
                _log.warning("row left out", partition=partition, offset=record.offset, error=str(error))
        _log.info("took over items", partition=partition, items=len(statistics))
        return _Owned(statistics)

    async def _stage(self, owned: _Owned, rebuilt: RebuiltRows, offset: int) -> None:
        """One more part of rows that were made again; with the last one they take the place of ours."""
        partition, now = owned.statistics.partition, time.monotonic()
        self._worked += 1
        if owned.staged is None or rebuilt.generation > owned.staged.generation:
            owned.staged = StagedRows(rebuilt, partition, self._partitions, self.settings.items, offset=offset, now=now)
        staged = owned.staged
        if rebuilt.generation < staged.generation:
            return
        try:
            complete = staged.take(rebuilt)
        except ValueError as error:
            _log.error("rebuilt rows cannot be used", partition=partition, offset=offset, error=str(error))
            owned.staged = None
            return
        if staged.broken:
            _log.error("rebuilt rows are incomplete", partition=partition, offset=offset)
            owned.staged = None
        if complete:
            await self._take_rebuilt(owned, staged, rebuilt.begin, offset)

    async def _take_rebuilt(self, owned: _Owned, staged: StagedRows, begin: int, offset: int) -> None:
        """The staged rows, brought to ``offset``, take the place of ours, and all of them are broadcast."""
        statistics = staged.statistics

        async def read_again() -> None:
            # Rows skip what they hold: read twice, nothing counts twice.
            part = read_part(self.settings, self.topics.transitions, statistics.partition, begin=begin, end=offset)
            async for record in part:
                with contextlib.suppress(InvalidMessage):  # it has its dead letter
                    statistics.apply(decode_transitions(record.value), offset=record.offset)

        async with owned.changing:
            with self.long_work("reading transitions again for a rebuild"):
                await self.reading(read_again, self.topics.transitions)
            # Until all of it is durable none of its parts is acknowledged: whoever takes over meets them again.
            statistics.broadcast_all(owned.statistics.item_ids, staged.offset)
            statistics.skip(offset)
            owned.statistics, owned.staged = statistics, None
        _log.info("rebuilt rows taken over", partition=statistics.partition, items=len(statistics))

    async def _flush_for_ever(self) -> None:
        interval_s = self.settings.items.flush_interval_s
        while True:
            # One partition after the other, spread over the interval: readers apply a few rows often instead of all at
            # once, and their users wait for no burst.
            partitions = list(self._owned) or [-1]
            for partition in partitions:
                await asyncio.sleep(interval_s / len(partitions))
                owned = self._owned.get(partition)
                if owned is not None:
                    await self._flush(owned)
                async with self._flushed:
                    self._flushed.notify_all()

    async def _flush(self, owned: _Owned) -> None:
        async with owned.changing:
            await self._flush_alone(owned)

    async def _flush_alone(self, owned: _Owned) -> None:
        statistics = owned.statistics
        share = max(1, self.settings.items.flush_rows // max(1, len(self._owned)))
        rows = statistics.take(share)
        try:
            await self.publisher.publish(
                OutRecord(
                    self.topics.item_signals,
                    item_id.encode(),
                    None if signals is None else encode(signals),
                    partition=statistics.partition,
                )
                for item_id, signals in rows
            )
        except BaseException:
            # Told to stop in the middle: the hand-over broadcasts them again.
            statistics.taken_are_lost()
            raise
        statistics.taken_are_durable()
        self._worked += len(rows)
        through = statistics.commit_offset()
        if owned.staged is not None and through is not None:
            if time.monotonic() - owned.staged.since > _STAGED_S:
                _log.warning("rebuilt rows did not come to an end", partition=statistics.partition)
                owned.staged = None
            else:
                through = min(through, owned.staged.offset)
        held = owned.held
        while held and through is not None and held[0][0] < through:
            held.popleft()[1].ack()
