"""Faust's consumer with a batched drain: what a fetch brought is handed to the agents at once, not record by record.

Faust awaits a callback, two locks and two tasks for every record, makes a message and an event of it, and tells its
sensors. Measured on two busy cores, that was 120 to 200 us of a saturated process's time per record; this is 10 to
17. What it keeps are Faust's rules: its queues (which a rebalance empties), its flow control and its read offsets.

Four rules are stricter than Faust's:

* A fetch during which the flow was stopped or resumed is void, and the first fetch after it starts from what is
  committed. Faust hands out such a fetch where only the resuming fell into it; the queues are emptied then, and the
  records would be missing until the next rebalance.
* Where nothing is committed yet, it starts from the first record there is. aiokafka leaves such partitions where they
  are, and what was fetched of them and dropped would be lost.
* The first records of a new partition are delivered when the older ones are done as far as they went when these came:
  the later records of keys that moved to it come after their earlier ones.
* What is committed is up to the first record that is not acknowledged (:mod:`~stream_app.delivery.acknowledgements`),
  and an acknowledgement counts only for the delivery it is of: a record that is delivered again is to be done again.

``tests/unit/test_engine.py`` fails when a version changes whose inside this relies on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream_app.delivery.acknowledgements import Acknowledgements
from stream_app.delivery.reading import position_now
from stream_app.errors import NotAuthorized

__all__ = ["Delivered", "DrainingConsumer", "DrainingThread", "DrainingTransport", "Place"]

_FETCH_S = 1.0
"""How long a fetch waits for records when every partition may bring some."""
_SOME_FULL_S = 0.05
"""The same when partitions are left out because their agent is behind: soon it may have room."""
_NOTHING_TO_FETCH_S = 0.01
"""Until it is looked again, when all agents are behind (thousands of records wait for them) or nothing is assigned."""
_FIRST_WITHIN_S = 5.0
"""The broker is asked again where partitions begin when it has not answered for so long."""
_SOUGHT_AT_ONCE = 32
"""Partitions that are asked for one by one, after all together failed."""
_ORDER_S = 60.0
"""A new partition waits for the older ones for so long: one of them may be stuck, and the new one is not to be."""
_NO_PROGRESS_S = 5.0
"""The same when nothing more is done of the older ones: an end that is no record (a transaction's) is never reached."""
_HELD_S = 0.25
"""It is looked so often."""
_LAST_COMMIT_S = 1.0
"""How long the partitions that move wait for the last commit. Without it some records are processed again."""


class Delivered:
    """A record as agents get it: what Faust has an event and a message for, in one small object.

    Not thread-safe: acknowledge it on the loop it came on.
    """

    __slots__ = ("_acknowledgements", "headers", "key", "offset", "partition", "timestamp", "topic", "tp", "value")

    def __init__(self, acknowledgements: Acknowledgements, tp: TP, record: Any) -> None:
        self._acknowledgements = acknowledgements
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
        self._acknowledgements.acknowledge(self.offset)

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

    async def seek_to_first(self, places: Sequence[TP]) -> None:
        """The next fetch of these partitions begins with the first record there is.

        Raises:
            Exception: of the client, when one of them has no leader, or is not ours any more.
        """
        # Not in Faust's queue of methods, whose two workers others need: it may take as long as a request may.
        sought = self._seek_to_first(self._ensure_consumer(), places)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(sought, self.thread_loop))

    @staticmethod
    async def _seek_to_first(client: Any, places: Sequence[TP]) -> None:
        # Not seek_to_beginning(): it leaves partitions without a position for a moment, which ends Faust's consumer.
        offsets = await client.beginning_offsets([TopicPartition(*place) for place in places])
        for place, offset in offsets.items():
            client.seek(place, offset)

    async def committed_of(self, topic: str) -> tuple[dict[TP, int], int]:
        """What the group has committed of each partition of the topic that it has committed anything of, whosever it is
        now, and how many partitions the topic has.

        Raises:
            Exception: of the client, when the broker does not answer.
        """
        asked = self._committed_of(self._ensure_consumer(), topic)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self.thread_loop))

    @staticmethod
    async def _committed_of(client: Any, topic: str) -> tuple[dict[TP, int], int]:
        places = [TopicPartition(topic, number) for number in client.partitions_for_topic(topic) or ()]
        held = await client._coordinator.fetch_committed_offsets(places)
        return {TP(*place): found.offset for place, found in held.items() if found.offset > 0}, len(places)

    async def ends_of(self, places: Iterable[TP]) -> dict[TP, int]:
        """Where these partitions end.

        Raises:
            Exception: of the client, when the broker does not answer.
        """
        asked = self._ensure_consumer().end_offsets([TopicPartition(*place) for place in places])
        ends = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self.thread_loop))
        return {TP(*place): end for place, end in ends.items()}

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
        self._acknowledgements: dict[TP, Acknowledgements] = {}
        self._said: Mapping[TP, int] = {}
        self._young: set[TP] = set()
        self._left_out: set[TP] = set()
        self._old: dict[str, tuple[TP, ...]] = {}
        self._asking = asyncio.Lock()
        self._known: dict[str, tuple[float, tuple[Mapping[TP, int], int] | None]] = {}
        self._waiting: set[asyncio.Task[None]] = set()
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
            await self.app.tailrace_before_moving()
            committing = asyncio.ensure_future(self._commit_all())
            # Not cancelled: Faust takes that for a reason to begin another commit, and waits for it.
            if not (await asyncio.wait([committing], timeout=_LAST_COMMIT_S))[0]:
                self.log.warning("not committed before the partitions moved: the broker does not answer")
        except Exception as error:
            self.log.warning("not finished before the partitions moved: %r", error)
        for tp in revoked:
            self._acknowledgements.pop(tp, None)
        await super().on_partitions_revoked(revoked)

    async def _commit_all(self) -> None:
        try:
            # False also when another commit was under way, which may have begun before the last acknowledgement.
            if not await self.commit():
                await self.commit()
        except Exception as error:
            self.log.warning("not committed before the partitions moved: %r", error)

    async def perform_seek(self) -> None:
        """Nothing: the drain seeks after every move by itself, for as long as that takes. Faust asks for it within a
        request's time, and where the broker answers too late its recovery ends for good: the flow is never resumed."""

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """As Faust's; what the broker said is kept: what Faust takes for committed a late commit may change."""
        said: Mapping[TP, int] = await super().seek_to_committed()
        self._said = said
        return said

    def _new_offset(self, tp: TP) -> int | None:
        held = self._acknowledgements.get(tp)
        return None if held is None else held.position

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (tp for tp in self._acknowledgements if topics is None or tp in topics or tp.topic in topics)

    def place(self, tp: TP) -> Place:
        """How far it is in a partition that it has."""
        held = self._acknowledgements.get(tp)
        through = None if held is None else held.position
        undone = 0 if held is None else held.undone
        return Place(self._thread.position_now(tp), through or self._committed_offset.get(tp) or 0, undone)

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
            # Faust ends the fetcher and nothing else: the process would stand and consume nothing.
            self.transport.app.tailrace_on_failure(self._reason(error))
            raise
        finally:
            self._end_waiting()

    def _told_of(self, error: Exception) -> bool:
        """Whether the error is a missing right: trying again is of no use, and the agent is told."""
        if _forbidden(error):
            self.transport.app.tailrace_on_failure(self._reason(error))
            return True
        return False

    def _reason(self, error: Exception) -> Exception:
        """What ended the drain, as somebody is told who has to do something about it."""
        if not _forbidden(error):
            return error
        topics = ", ".join(sorted({place.topic for place in self.assignment()})) or "its topics"
        return NotAuthorized(f"Kafka does not allow us Read on {topics} as a consumer group: {error!r}")

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
        if not self.app.tailrace_gate.lets(self, idle=self._idle(partitions), now=time.monotonic()):
            await asyncio.sleep(_SOME_FULL_S)
            return
        partitions -= self._left_out
        with_room = {tp for tp in partitions if (queue := self._queue(tp)) is not None and not queue.full()}
        if not with_room:
            await asyncio.sleep(_NOTHING_TO_FETCH_S)
            return
        all_there = len(with_room) == len(partitions) and not self._left_out
        fetched = await self._getmany(with_room, _FETCH_S if all_there else _SOME_FULL_S)
        for place, records in fetched.items():
            tp = TP(place.topic, place.partition)
            read = self._read_offset[tp]
            # What was read last; or, after a seek, what is to be read next. The client may go back by itself.
            wanted = records if read is None or read <= records[0].offset else _from(records, read)
            if self._moves != moves:
                return
            if wanted and tp in self._young:
                self._young.discard(tp)
                if await self._is_new(tp):
                    if self._moves != moves:
                        return
                    # Nothing of it is kept meanwhile: it is sought again.
                    self._left_out.add(tp)
                    self._wait(self._hold(tp, moves))
                    continue
                if self._moves != moves:
                    return
            if wanted:
                self._deliver(tp, wanted)

    async def _seek_to_committed(self) -> bool:
        try:
            # Records delivered before are delivered again: what is acknowledged of them counts no more.
            self._acknowledgements.clear()
            # Faust takes what it last tried to commit for committed, also where that failed.
            self._committed_offset.clear()
            await super().perform_seek()
        except Exception as error:  # the partitions may be moving again
            if _forbidden(error):
                raise
            self.log.warning("not at the committed offsets yet: %r", error)
            await asyncio.sleep(_SOME_FULL_S)
            return False
        self._end_waiting()
        fresh = {tp for tp in self._get_active_partitions() if not self._said.get(tp)}
        self._young, self._left_out, self._old = set(fresh), set(fresh), {}
        if fresh:
            self._wait(self._seek_to_first(fresh, self._moves))
        return True

    def _wait(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._waiting.add(task)
        task.add_done_callback(self._waited)

    def _waited(self, task: asyncio.Task[None]) -> None:
        self._waiting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.transport.app.tailrace_on_failure(error)  # its partitions would be left out for good

    def _end_waiting(self) -> None:
        for task in self._waiting:
            task.cancel()

    async def _seek_to_first(self, fresh: Set[TP], moves: int) -> None:
        """Where nothing is committed; the other partitions go on meanwhile, for one of these may have no leader."""
        left, together = list(fresh), True
        while left and self._moves == moves:
            parts = [left] if together else [[place] for place in left[:_SOUGHT_AT_ONCE]]
            rest = [] if together else left[_SOUGHT_AT_ONCE:]
            failed: list[TP] = []
            for places, error in zip(parts, await asyncio.gather(*map(self._sought_first, parts)), strict=True):
                if error is None:
                    if self._moves == moves:
                        self._left_out.difference_update(places)
                elif self._told_of(error):
                    return
                else:  # no leader, the broker away, or the partitions may be moving again
                    self.log.warning("not at the first record of %r yet: %r", places, error)
                    failed += places
            left, together = [*rest, *failed], False
            if failed:
                await asyncio.sleep(_SOME_FULL_S)

    async def _sought_first(self, places: Sequence[TP]) -> Exception | None:
        try:
            async with asyncio.timeout(_FIRST_WITHIN_S):
                await self._thread.seek_to_first(places)
        except Exception as error:
            return error
        return None

    async def _is_new(self, tp: TP) -> bool:
        """Whether the topic was given more partitions since the group committed, and this is one of them: the first
        part of them, a divisor and no less than a quarter, has commits without a gap.

        A group that begins with many partitions looks like that for a moment at most, and by chance.
        """
        if tp.topic not in self._old:
            self._old[tp.topic] = ()
            try:
                committed, count = await self._committed(tp.topic)
            except Exception as error:  # then the order across partitions is not kept; nothing else depends on it
                self.log.warning("not known whether %r is new: %r", tp, error)
            else:
                first = next(number for number in range(count + 1) if TP(tp.topic, number) not in committed)
                sizes = [size for size in range(1, count) if count % size == 0 and size <= first and 4 * size >= count]
                self._old[tp.topic] = tuple(TP(tp.topic, number) for number in range(max(sizes, default=0)))
        old = self._old[tp.topic]
        return bool(old) and tp.partition >= len(old)

    async def _committed(self, topic: str) -> tuple[Mapping[TP, int], int]:
        """What the group has committed, asked once for all partitions that wait for it."""
        async with self._asking:
            at, known = self._known.get(topic, (-math.inf, None))
            if known is None or self.loop.time() - at > _HELD_S / 2:
                async with asyncio.timeout(_FIRST_WITHIN_S):
                    known = await self._thread.committed_of(topic)
                self._known[topic] = self.loop.time(), known
            return known

    async def _hold(self, tp: TP, moves: int) -> None:
        """Read a new partition when the old ones are done as far as they go now: it holds the later events of keys
        whose earlier ones are in those."""
        deadline, ends, before, moved_at = self.loop.time() + _ORDER_S, None, -1, self.loop.time()
        while self._moves == moves and self.loop.time() < min(deadline, moved_at + _NO_PROGRESS_S):
            try:
                if ends is None:
                    async with asyncio.timeout(_FIRST_WITHIN_S):
                        ends = await self._thread.ends_of(self._old[tp.topic])
                committed, _ = await self._committed(tp.topic)
            except Exception as error:  # the broker is away: then nothing is read of the others either
                if self._told_of(error):
                    return
                self.log.warning("not known yet how far the partitions beside %r are read: %r", tp, error)
                await asyncio.sleep(_FETCH_S)
                continue
            if all(committed.get(old, 0) >= end for old, end in ends.items()):
                break
            done = sum(committed.values())
            if done != before:
                before, moved_at = done, self.loop.time()
            await asyncio.sleep(_HELD_S)
        if self._moves == moves:
            await self._seek_to_first({tp}, moves)

    def _deliver(self, tp: TP, records: Sequence[Any]) -> None:
        """Into the queue, all of it: it may grow beyond its size by one fetch."""
        queue = self._queue(tp)
        held = self._acknowledgements.setdefault(tp, Acknowledgements())
        held.deliver(record.offset for record in records)
        # What put_nowait() does, once.
        queue._queue.extend([Delivered(held, tp, record) for record in records])
        queue._wakeup_next(queue._getters)
        self._read_offset[tp] = records[-1].offset

    def _idle(self, partitions: Iterable[TP]) -> bool:
        """Whether nothing that was fetched waits."""
        return not any(queue is not None and queue.qsize() for queue in map(self._queue, partitions))

    def _queue(self, tp: TP) -> Any:
        """Of the one agent whose topic it is; None while the conductor does not know the partition yet."""
        for channel in self.app.topics._tp_index.get(tp, ()):
            return channel.queue
        return None


def _from(records: Sequence[Any], offset: int) -> list[Any]:
    return [record for record in records if record.offset >= offset]


def _forbidden(error: Exception) -> bool:
    """Whether the broker does not allow it; of some requests aiokafka keeps only the error's name, in a text."""
    return "AuthorizationFailedError" in repr(error)


class DrainingTransport(driver.Transport):  # type: ignore[misc]
    """Faust's transport with the consumer above."""

    Consumer = DrainingConsumer


# A service logs under the module of its class; these are Faust's, and logged as such.
for _service in (DrainingThread, DrainingConsumer):
    _service.logger = driver.logger
