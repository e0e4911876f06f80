"""The item-keyed stage: transitions in, one row per changed item and flush out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from schemas.decode import decode_item_signals, decode_transitions, encode
from stream_app.agents.base import Agent
from stream_app.delivery.publisher import OutRecord
from stream_app.delivery.reading import read_to_end
from stream_app.delivery.records import InRecord
from stream_app.errors import InvalidMessage
from stream_app.items.statistics import ItemStatistics
from stream_app.logs import get_logger

__all__ = ["ItemsAgent"]

_log = get_logger(__name__)
_MAX_HELD = 50_000
"""Events read but not yet durable; beyond it reading waits for the flush."""


@dataclass(slots=True)
class _Owned:
    statistics: ItemStatistics
    held: deque[tuple[int, Any]] = field(default_factory=deque)


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
                owned.statistics.apply(decode_transitions(record.value), offset=record.offset)
            except InvalidMessage as error:
                # Before it is held: what is held may be acknowledged by a flush at any await.
                await self.publisher.publish([self.letter(record, error)])
                owned.statistics.skip(record.offset)
            owned.held.append((record.offset, event))
        while any(len(owned.held) > _MAX_HELD for owned in self._owned.values()):
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
        through = statistics.commit_offset()
        held = owned.held
        while held and through is not None and held[0][0] < through:
            held.popleft()[1].ack()
