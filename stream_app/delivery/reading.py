"""Reading topics without a consumer group: a whole topic to its end, one record at a known place, or the tail.

Where a topic ends is asked twice, because end offsets alone are not dependable on every broker (the embedded one
reports its last batch's first offset + 1): the end of a partition is the larger of the end offset asked for at the
start and the high watermark that comes with its first fetch. When every partition is there, reading goes on until a
poll comes back empty, though not for long: a busy topic never falls silent.

Consumers here use ``auto_offset_reset="earliest"`` and explicit positions. With ``latest`` aiokafka reads nothing
after ``end_offsets`` followed by ``seek_to_beginning``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.structs import ConsumerRecord

from stream_app.delivery.connections import kafka_options, no_broker, stop_consumer
from stream_app.delivery.retry import until_it_works
from stream_app.errors import NotAuthorized, TopicError, Unavailable
from stream_app.logs import get_logger
from stream_app.settings import Settings

__all__ = [
    "Ends",
    "default_partition",
    "follow",
    "latest",
    "open_consumer",
    "partitions_of",
    "poll",
    "position_now",
    "read_at",
    "read_part",
    "read_to_end",
    "tail",
    "true_ends",
]

T = TypeVar("T")

_log = get_logger(__name__)
_POLL_MS = 200
_RETRY_S = 0.25
_SETTLE_S = 1.0
"""How long a topic that keeps growing is read beyond where it ended when reading started."""
_MAX_RECORDS = 2_000
"""Records held per poll; bounds memory together with the fetch size."""


async def read_to_end(
    settings: Settings,
    topic: str,
    *,
    partitions: Sequence[int] | None = None,
    patience_s: float | None = None,
) -> AsyncGenerator[ConsumerRecord, None]:
    """Every record of the topic from its beginning to its end, in order per partition.

    The end is where the topic ended when reading started, or later. A caller that may break off early wraps the
    generator in ``contextlib.aclosing``, so that the connection closes at once.

    Args:
        partitions: which; None: all.
        patience_s: give up after this long without a broker or without progress (seconds); None: wait for as
            long as it takes, logging what is waited for.

    Raises:
        Unavailable: when patience ran out.
        TopicError: when the topic is not there (with ``patience_s``) or lacks one of ``partitions``.
        NotAuthorized: when the broker does not let us read it.
    """
    async with open_consumer(settings, patience_s) as consumer:
        assigned = await _assign(consumer, settings, topic, partitions, patience_s)
        beginning, end = await _offsets(consumer, assigned, settings, patience_s)
        for partition in assigned:
            consumer.seek(partition, beginning[partition])
        loop = asyncio.get_running_loop()
        progress_at = loop.time()
        reached_at: float | None = None
        ends = Ends(end)
        while True:
            polled = await poll(consumer, settings, topic)
            for records in polled.values():
                for record in records:
                    yield record
            now = loop.time()
            if reached_at is None and await ends.reached(consumer):
                reached_at = now
            if reached_at is not None and (not polled or now - reached_at > _SETTLE_S):
                return
            if polled:
                progress_at = now
            elif patience_s is not None and now - progress_at > patience_s:
                raise Unavailable(
                    f"{topic} on Kafka at {settings.kafka}: nothing came for {patience_s:g} s, and it has more"
                )


async def true_ends(settings: Settings, topic: str, *, patience_s: float) -> dict[int, int]:
    """The next offset of each partition, of all that was in the topic when this was asked, on every broker.

    Raises:
        Unavailable: when no broker answers within ``patience_s`` seconds.
        TopicError: when the topic is not there.
        NotAuthorized: when the broker does not let us read it.
    """
    async with open_consumer(settings, patience_s) as consumer:
        assigned = await _assign(consumer, settings, topic, None, patience_s)
        beginning, end = await _offsets(consumer, assigned, settings, patience_s)
        for partition in assigned:
            consumer.seek(partition, max(beginning[partition], end[partition] - 1))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        while any(consumer.highwater(partition) is None for partition in assigned):
            if loop.time() > deadline:
                raise Unavailable(f"Kafka at {settings.kafka} does not say within {patience_s:g} s where {topic} ends")
            await poll(consumer, settings, topic)
        return {one.partition: max(end[one], consumer.highwater(one) or 0) for one in assigned}


async def latest(
    settings: Settings,
    topic: str,
    key: bytes,
    *,
    partition: Callable[[int], int] | None = None,
    patience_s: float | None = None,
) -> ConsumerRecord | None:
    """The last record of the topic with this key (its value may be null), None when there is none.

    Reads the whole topic, or one partition of it: give ``partition`` where it is known how the producer chooses.

    Args:
        partition: from the number of partitions to the one that holds the key, for example
            :func:`default_partition` of it; None: the key may be anywhere.
        patience_s: as for :func:`read_to_end`.

    Raises:
        Unavailable, TopicError: as :func:`read_to_end`.
    """
    async with open_consumer(settings, patience_s) as consumer:
        count = len(await partitions_of(consumer, settings, topic, patience_s))
    found: ConsumerRecord | None = None
    only = None if partition is None else [partition(count)]
    async for record in read_to_end(settings, topic, partitions=only, patience_s=patience_s):
        if record.key == key and (found is None or _after(record, found)):
            found = record
    return found


def _after(record: ConsumerRecord, other: ConsumerRecord) -> bool:
    """Offsets order records of one partition; across partitions (a changed partitioner) only time does."""
    if record.partition == other.partition:
        return bool(record.offset > other.offset)
    return bool(record.timestamp >= other.timestamp)


def default_partition(key: bytes, partitions: int) -> int:
    """The partition Kafka's own clients choose for a key: murmur2, as Tailrace's producer does."""
    numbers = list(range(partitions))
    chosen: int = DefaultPartitioner()(key, numbers, numbers)
    return chosen


def position_now(consumer: AIOKafkaConsumer, place: TopicPartition) -> int | None:
    """The offset that the client fetches next, without asking anybody; callable from any thread.

    It passes what is no record for us: the markers of a producer's transactions, and what compaction removed. None: the
    partition is not assigned to the client, or it does not know its position yet.
    """
    subscription = consumer._subscription.subscription
    assignment = None if subscription is None else subscription.assignment
    if assignment is None or place not in assignment.tps:
        return None
    position: int | None = assignment.state_value(place)._position
    return position


async def read_at(
    settings: Settings, topic: str, partition: int, offset: int, *, patience_s: float = 10.0
) -> ConsumerRecord | None:
    """The record at this place; None when it is not there any more (retention, compaction) or not yet.

    Raises:
        Unavailable: when no broker answers within ``patience_s`` seconds.
        TopicError: when there is no such topic or partition.
    """
    async with open_consumer(settings, patience_s) as consumer:
        (place,) = await _assign(consumer, settings, topic, [partition], patience_s)
        beginning, _ = await _offsets(consumer, [place], settings, patience_s)
        if offset < beginning[place]:
            return None
        consumer.seek(place, offset)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        while loop.time() < deadline:
            polled = await poll(consumer, settings, topic, limit=1)
            for records in polled.values():
                return records[0] if records[0].offset == offset else None
            highwater = consumer.highwater(place)
            if highwater is not None and offset >= highwater:
                return None
        raise Unavailable(f"{topic}[{partition}]@{offset} did not come within {patience_s:g} s from {settings.kafka}")


async def read_part(
    settings: Settings, topic: str, partition: int, *, begin: int, end: int, patience_s: float | None = None
) -> AsyncGenerator[ConsumerRecord, None]:
    """The records of a partition from the offset ``begin`` on and before ``end``, as far as they are still there.

    Raises:
        Unavailable: when no broker answers, or nothing comes for ``patience_s`` seconds (None: it is waited for).
        TopicError: when there is no such topic or partition (with ``patience_s``).
    """
    async with open_consumer(settings, patience_s) as consumer:
        (place,) = await _assign(consumer, settings, topic, [partition], patience_s)
        beginning, _ = await _offsets(consumer, [place], settings, patience_s)
        consumer.seek(place, max(begin, beginning[place]))
        loop = asyncio.get_running_loop()
        progress_at = loop.time()
        while await consumer.position(place) < end:
            polled = await poll(consumer, settings, topic)
            for record in (record for records in polled.values() for record in records):
                if record.offset < end:
                    yield record
            if polled:
                progress_at = loop.time()
            elif patience_s is not None and loop.time() - progress_at > patience_s:
                raise Unavailable(f"{topic}[{partition}] on Kafka at {settings.kafka}: nothing came before {end}")


async def tail(
    settings: Settings, topic: str, *, from_start: bool = False, patience_s: float | None = None
) -> AsyncGenerator[ConsumerRecord, None]:
    """Records of the topic as they come, for ever; from the end, or from the beginning.

    Partitions added while reading are not seen. A broker that goes away is waited for.

    Raises:
        Unavailable, TopicError: at the start, as :func:`read_to_end`.
    """
    async with open_consumer(settings, patience_s) as consumer:
        assigned = await _assign(consumer, settings, topic, None, patience_s)
        beginning, end = await _offsets(consumer, assigned, settings, patience_s)
        for partition in assigned:
            consumer.seek(partition, (beginning if from_start else end)[partition])
        while True:
            polled = await poll(consumer, settings, topic)
            for records in polled.values():
                for record in records:
                    yield record


async def follow(settings: Settings, topic: str) -> AsyncGenerator[tuple[list[ConsumerRecord], bool], None]:
    """Records of the topic from its beginning and on as they come, for ever, by the poll that brought them; with
    each, whether everything that was there when reading started has come by now.

    A poll that brings nothing is told only until that is so. A broker that goes away is waited for, and reading goes on
    where it was. Close the generator (``contextlib.aclosing``) to end the connection.
    """
    loop = asyncio.get_running_loop()
    positions: dict[TopicPartition, int] = {}
    ends: Ends | None = None
    reached_at: float | None = None
    caught_up = False
    while True:
        try:
            async with open_consumer(settings, None) as consumer:
                assigned = await _assign(consumer, settings, topic, None, None)
                beginning, end = await _offsets(consumer, assigned, settings, None)
                for partition in assigned:
                    consumer.seek(partition, positions.setdefault(partition, beginning[partition]))
                ends = ends or Ends(end)
                while True:
                    polled = await poll(consumer, settings, topic)
                    records = [record for part in polled.values() for record in part]
                    for record in records:
                        positions[TopicPartition(record.topic, record.partition)] = record.offset + 1
                    before = caught_up
                    if reached_at is None and await ends.reached(consumer):
                        reached_at = loop.time()
                    if reached_at is not None:
                        caught_up = before or not records or loop.time() - reached_at > _SETTLE_S
                    if records or not before:
                        yield records, caught_up
        except Unavailable as error:
            _log.warning("reading interrupted", topic=topic, error=str(error))
            await asyncio.sleep(settings.delivery.retry_max_s)


async def poll(
    consumer: AIOKafkaConsumer,
    settings: Settings,
    topic: str,
    *,
    limit: int = _MAX_RECORDS,
    only: Iterable[TopicPartition] = (),
) -> dict[TopicPartition, list[ConsumerRecord]]:
    """What has come within :data:`_POLL_MS`; a broker that is away gives nothing, not an error.

    Args:
        topic: named in errors.
        limit: records at most.
        only: of these partitions; none: of all that are assigned. Of the others no more than a fetch is held.

    Raises:
        TopicError: when the topic may not be read.
        Unavailable: when the broker answers that it cannot be read.
    """
    try:
        polled: dict[TopicPartition, list[ConsumerRecord]] = await consumer.getmany(
            *only, timeout_ms=_POLL_MS, max_records=limit
        )
    except TopicAuthorizationFailedError as error:
        raise NotAuthorized(f"Kafka at {settings.kafka} does not allow us Read on topic {topic}") from error
    except KafkaError as error:
        raise Unavailable(f"topic {topic} on Kafka at {settings.kafka} cannot be read: {error}") from error
    return polled


@dataclass(frozen=True, slots=True)
class Ends:
    """Where each partition ends; raised once to the high watermark that comes with its first fetch."""

    offsets: dict[TopicPartition, int]
    confirmed: set[TopicPartition] = field(default_factory=set)

    async def reached(self, consumer: AIOKafkaConsumer) -> bool:
        """Whether every position has passed its partition's end."""
        reached = True
        for partition, offset in self.offsets.items():
            highwater = consumer.highwater(partition)
            if highwater is not None and partition not in self.confirmed:
                self.confirmed.add(partition)
                self.offsets[partition] = max(offset, highwater)
            reached = reached and await consumer.position(partition) >= self.offsets[partition]
        return reached


@asynccontextmanager
async def open_consumer(settings: Settings, patience_s: float | None) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer of no group, started; partitions are for the caller to assign.

    Raises:
        Unavailable: when no broker answers within ``patience_s`` seconds (None: it is waited for).
    """

    async def start() -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **kafka_options(settings),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=min(settings.connection.fetch_max_wait_ms, _POLL_MS // 2),
            max_partition_fetch_bytes=max(settings.connection.max_message_bytes, 1_048_576),
        )
        try:
            await consumer.start()
        except BaseException:
            await stop_consumer(consumer)
            raise
        return consumer

    consumer = await _patiently(start, settings, patience_s)
    try:
        yield consumer
    finally:
        await stop_consumer(consumer)


async def _assign(
    consumer: AIOKafkaConsumer,
    settings: Settings,
    topic: str,
    partitions: Sequence[int] | None,
    patience_s: float | None,
) -> list[TopicPartition]:
    there = await partitions_of(consumer, settings, topic, patience_s)
    wanted: Iterable[int] = sorted(there) if partitions is None else partitions
    if lacking := [number for number in wanted if number not in there]:
        raise TopicError(f"topic {topic} has {len(there)} partitions, there is no {lacking[0]}")
    assigned = [TopicPartition(topic, number) for number in wanted]
    consumer.assign(assigned)
    return assigned


async def partitions_of(
    consumer: AIOKafkaConsumer, settings: Settings, topic: str, patience_s: float | None
) -> set[int]:
    """The numbers of a topic's partitions.

    Raises:
        Unavailable: when no broker answers within ``patience_s`` seconds (None: broker and topic are waited for).
        TopicError: when the topic is not there (with ``patience_s``).
    """

    async def known() -> set[int]:
        # All topics, never by name: that would create the topic on a broker that creates them on demand.
        metadata = await consumer._client.fetch_all_metadata()
        found: set[int] | None = metadata.partitions_for_topic(topic)
        if found:
            return found
        missing = (
            f"topic {topic} is not on Kafka at {settings.kafka}, or we may not see it; "
            "create it with: tailrace topics create"
        )
        if patience_s is None:
            raise Unavailable(missing)
        raise TopicError(missing)

    return await _patiently(known, settings, patience_s)


async def _offsets(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition], settings: Settings, patience_s: float | None
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """The beginning and the end of each partition."""

    async def ask() -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        return await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)

    return await _patiently(ask, settings, patience_s)


async def _patiently(attempt: Callable[[], Awaitable[T]], settings: Settings, patience_s: float | None) -> T:
    """The result of ``attempt``, tried again while no broker answers: for ever and logged, or for ``patience_s``."""
    if patience_s is None:
        return await until_it_works(
            attempt,
            what=f"Kafka at {settings.kafka}",
            transient=(KafkaError, OSError, Unavailable),
            settings=settings.delivery,
        )
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while True:
        try:
            return await attempt()
        except (KafkaError, OSError, Unavailable) as error:
            if loop.time() + _RETRY_S > deadline:
                raise no_broker(settings, error) from error
        await asyncio.sleep(_RETRY_S)
