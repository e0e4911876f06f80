"""Faust's consumer with a batched drain: what a fetch brought is handed to the agents at once, not record by record.

Faust awaits a callback, two locks and two tasks for every record, makes a message and an event of it, and tells its
sensors. Measured on two busy cores, that was 120 to 200 us of a saturated process's time per record; this is 10 to
17. What it keeps are Faust's rules: its queues (which a rebalance empties), its flow control,
its read offsets and gaps, its lists of acknowledged offsets and therefore its commits.

One rule is stricter than Faust's: a fetch during which the flow was stopped or resumed is void, and the first fetch
after it starts from what is committed. Faust hands out such a fetch where only the resuming fell into it; the queues
are emptied then, and the records would be missing until the next rebalance.

``tests/unit/test_engine.py`` fails when a version changes whose inside this relies on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream_app.delivery.reading import position_now

__all__ = ["Delivered", "DrainingConsumer", "DrainingThread", "DrainingTransport", "Place"]

_FETCH_S = 1.0
"""How long a fetch waits for records when every partition may bring some."""
_SOME_FULL_S = 0.05
"""The same when partitions are left out because their agent is behind: soon it may have room."""
_NOTHING_TO_FETCH_S = 0.01
"""Until it is looked again, when all agents are behind (thousands of records wait for them) or nothing is assigned."""
_LAST_COMMIT_S = 1.0
"""How long the partitions that move wait for the last commit. Without it some records are processed again."""


class Delivered:
    """A record as agents get it: what Faust has an event and a message for, in one small object.

    Not thread-safe: acknowledge it on the loop it came on.
    """

    __slots__ = ("_consumer", "headers", "key", "offset", "partition", "timestamp", "topic", "tp", "value")

    def __init__(self, consumer: Any, tp: TP, record: Any) -> None:
        self._consumer = consumer
        self.tp = tp
        self.topic: str = record.topic
        self.partition: int = record.partition
        self.offset: int = record.offset
        self.timestamp: float = record.timestamp / 1000.0
        self.key: bytes | None = record.key
        self.value: bytes | None = record.value
        self.headers: Sequence[tuple[str, bytes]] = record.headers

    @property
    def message(self) -> Delivered:
        """Where Faust's events keep these."""
        return self

    def ack(self) -> None:
        """Its effects are durable: its offset may be committed, when those before it are too. Again changes nothing."""
        self._consumer.acknowledge(self.tp, self.offset)

    def __repr__(self) -> str:
        return f"<{self.topic}[{self.partition}]@{self.offset}>"


@dataclass(frozen=True, slots=True)
class Place:
    """How far a consumer is in one partition.

    Attributes:
        position: the offset that is fetched next, which passes what is no record for us too (transaction markers, what
            compaction removed); None: not known yet.
        through: everything before this offset is acknowledged.
        undone: records that were delivered and are not acknowledged, at most (by offsets).
    """

    position: int | None
    through: int
    undone: int


class DrainingThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc] # faust is not typed
    """The thread with the client."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = self.app.tailrace_fetch_max_wait_ms
        consumer._fetch_min_bytes = self.app.tailrace_fetch_min_bytes
        return consumer

    async def seek_to_committed(self) -> Any:
        """aiokafka leaves partitions without a committed offset where they are. What was fetched of them and dropped
        when partitions moved would be lost: later offsets are acknowledged and committed all the same."""
        committed = await super().seek_to_committed()
        fresh = [place for place, offset in committed.items() if not offset]
        if fresh:
            await self.call_thread(self._seek_to_first, self._ensure_consumer(), fresh)
        return committed

    @staticmethod
    async def _seek_to_first(client: Any, places: Sequence[Any]) -> None:
        # Not seek_to_beginning(): it leaves partitions without a position for a moment, which ends Faust's consumer.
        for place, offset in (await client.beginning_offsets(places)).items():
            client.seek(place, offset)

    def position_now(self, tp: TP) -> int | None:
        """The client's position, None where it has none."""
        return position_now(self._ensure_consumer(), tp)

    async def getmany(self, active_partitions: Any, timeout: float) -> Any:
        """Ask the thread directly: Faust's queue of methods costs a few tasks, and one of its two workers."""
        client = self._ensure_consumer()
        fetched = self._fetch_records(client, active_partitions, timeout=timeout, max_records=client._max_poll_records)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(fetched, self.thread_loop))


class DrainingConsumer(driver.Consumer):  # type: ignore[misc]
    """Delivers to the queue of the one channel a partition has; see the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._moves = 0
        self._sought = 0
        self._delivered: dict[TP, int] = {}
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> Any:
        return DrainingThread(self, loop=self.loop, beacon=self.beacon)

    def stop_flow(self) -> None:
        self._moves += 1
        super().stop_flow()

    def resume_flow(self) -> None:
        self._moves += 1
        super().resume_flow()

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Faust forgets here what is acknowledged since the last commit, and the next owner would do it again."""
        try:
            async with asyncio.timeout(_LAST_COMMIT_S):
                # False also when another commit was under way, which may have begun before the last acknowledgement.
                if not await self.commit():
                    await self.commit()
        except TimeoutError:
            self.log.warning("not committed before the partitions moved: the broker does not answer")
        await super().on_partitions_revoked(revoked)

    def place(self, tp: TP) -> Place:
        """How far it is in a partition that it has."""
        through, delivered = self._committed_offset.get(tp) or 0, self._delivered.get(tp)
        undone = 0 if delivered is None else max(0, delivered + 1 - through)
        return Place(self._thread.position_now(tp), through, undone)

    def acknowledge(self, tp: TP, offset: int) -> None:
        """What :meth:`ack` does for a message, without the message and (all of ours run on one loop) the lock."""
        committed = self._committed_offset[tp]
        if committed is not None and offset < committed:
            return
        index = self._acked_index[tp]
        if offset not in index:
            index.add(offset)
            self._acked[tp].append(offset)

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self.should_stop or fetcher.should_stop):
                await self._drain_once()
        except self.consumer_stopped_errors:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise
        except Exception as error:
            self.log.exception("Drain messages raised: %r", error)
            raise

    async def _drain_once(self) -> None:
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
            return
        partitions = set(self._get_active_partitions())
        if not partitions:
            await asyncio.sleep(_NOTHING_TO_FETCH_S)
            return
        moves = self._moves
        if self._sought != moves:
            if await self._seek_to_committed():
                self._sought = moves
            return
        with_room = {tp for tp in partitions if (queue := self._queue(tp)) is not None and not queue.full()}
        if not with_room:
            await asyncio.sleep(_NOTHING_TO_FETCH_S)
            return
        fetched = await self._getmany(with_room, _FETCH_S if len(with_room) == len(partitions) else _SOME_FULL_S)
        for place, records in fetched.items():
            tp = TP(place.topic, place.partition)
            wanted = records if self._follow(tp, records) else await self._without_gaps(tp, records)
            if self._moves != moves:
                return
            if wanted:
                self._deliver(tp, wanted)

    async def _seek_to_committed(self) -> bool:
        self._delivered.clear()  # What was in the queues is not there any more.
        try:
            await self.perform_seek()
        except Exception as error:  # the partitions may be moving again
            self.log.warning("not at the committed offsets yet: %r", error)
            await asyncio.sleep(_SOME_FULL_S)
            return False
        return True

    def _follow(self, tp: TP, records: Sequence[Any]) -> bool:
        """Whether these are the next offsets of the partition, all of them."""
        read, first = self._read_offset[tp], records[0].offset
        # What was read last; or, after a seek, what is to be read next.
        return bool((read is None or read <= first <= read + 1) and records[-1].offset - first == len(records) - 1)

    async def _without_gaps(self, tp: TP, records: Sequence[Any]) -> list[Any]:
        """Records that are to be delivered; offsets that are not there (compaction) need no acknowledgement."""
        read, wanted = self._read_offset[tp], []
        for record in records:
            offset = record.offset
            if read is not None and offset < read:
                continue
            # Faust counts the record behind the gap as a part of it, which may commit it before it is acknowledged.
            if read and offset - read > 1:
                await self._add_gap(tp, read + 1, offset - 1)
            read = offset
            wanted.append(record)
        return wanted

    def _deliver(self, tp: TP, records: Sequence[Any]) -> None:
        """Into the queue, all of it: it may grow beyond its size by one fetch."""
        queue = self._queue(tp)
        # What put_nowait() does, once.
        queue._queue.extend([Delivered(self, tp, record) for record in records])
        queue._wakeup_next(queue._getters)
        self._read_offset[tp] = self._delivered[tp] = records[-1].offset

    def _queue(self, tp: TP) -> Any:
        """Of the one agent whose topic it is; None while the conductor does not know the partition yet."""
        for channel in self.app.topics._tp_index.get(tp, ()):
            return channel.queue
        return None


class DrainingTransport(driver.Transport):  # type: ignore[misc]
    """Faust's transport with the consumer above."""

    Consumer = DrainingConsumer


# A service logs under the module of its class; these are Faust's, and logged as such.
for _service in (DrainingThread, DrainingConsumer):
    _service.logger = driver.logger
