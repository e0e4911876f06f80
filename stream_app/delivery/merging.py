"""Several topics read as one, in the order the broker took the records.

Kafka orders the records of a partition and nothing else. Where what a record means depends on records of another topic
(events of a user, and the request to forget the user), a reader that was not there when they came has only the broker's
append times to go by. Records of one partition keep their order whatever their times say.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from stream_app.delivery.reading import open_consumer, partitions_of, poll
from stream_app.errors import TopicError, Unavailable
from stream_app.settings import Settings

__all__ = ["MergedReader"]

_AT_ONCE = 2_000
"""Records handed out at a time, and held per partition beyond those of one fetch."""


class MergedReader:
    """Reads on, from the beginnings, as far as it is told each time. Made by :meth:`open`.

    Attributes:
        beginnings: the first offset of each partition that is still there.
    """

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer, topics: Sequence[str]) -> None:
        self._settings = settings
        self._consumer = consumer
        self._order = {topic: number for number, topic in enumerate(topics)}
        self._ahead: dict[TopicPartition, deque[ConsumerRecord]] = {}
        self.beginnings: dict[TopicPartition, int] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, topics: Sequence[str], *, patience_s: float) -> AsyncIterator[MergedReader]:
        """A reader of all partitions of ``topics``; of records taken at the same time those of the first topic first.

        Raises:
            Unavailable: when no broker answers within ``patience_s`` seconds.
            TopicError: when a topic is not there.
        """
        async with open_consumer(settings, patience_s) as consumer:
            reader = cls(settings, consumer, topics)
            places = [
                TopicPartition(topic, number)
                for topic in topics
                for number in sorted(await partitions_of(consumer, settings, topic, patience_s))
            ]
            consumer.assign(places)
            reader._ahead = {place: deque() for place in places}
            reader.beginnings = dict(await consumer.beginning_offsets(places))
            for place, offset in reader.beginnings.items():
                consumer.seek(place, offset)
            yield reader

    async def ends(self) -> dict[TopicPartition, int]:
        """Where each partition ends now: the larger of what the broker says and what the last fetch said (see
        ``reading``). Before anything was read that may be too low (:func:`~stream_app.delivery.reading.true_ends`).
        """
        ends = await self._consumer.end_offsets(list(self._ahead))
        return {place: max(end, self._consumer.highwater(place) or 0) for place, end in ends.items()}

    async def read(
        self, until: Mapping[TopicPartition, int], *, patience_s: float
    ) -> AsyncGenerator[list[ConsumerRecord], None]:
        """The records before the offset ``until`` of each partition that were not read yet, by some thousands.

        Partitions that are not named are not read on. What was fetched beyond is kept for the next time.

        Raises:
            TopicError: when there is no such partition.
            Unavailable: when nothing came for ``patience_s`` seconds, although there must be more.
        """
        for place in until.keys() - self._ahead.keys():
            raise TopicError(f"topic {place.topic} has no partition {place.partition} (any more)")
        progress_at = time.monotonic()
        while True:
            ready, lacking = await self._merge(until)
            if ready:
                progress_at = time.monotonic()
                yield ready
            if not lacking:
                if not ready:
                    return
                continue
            # Only of those that others wait for: what is held of the others stays bounded.
            topics = ", ".join(sorted({place.topic for place in lacking}))
            polled = await poll(self._consumer, self._settings, topics, only=lacking)
            for place, records in polled.items():
                self._ahead[place].extend(records)
                progress_at = time.monotonic()
            if time.monotonic() - progress_at > patience_s:
                place = next(iter(lacking))
                raise Unavailable(
                    f"{place.topic}[{place.partition}] on Kafka at {self._settings.kafka}: nothing came for "
                    f"{patience_s:g} s, and it must reach offset {until[place]}; was the topic made again?"
                )

    async def _merge(self, until: Mapping[TopicPartition, int]) -> tuple[list[ConsumerRecord], set[TopicPartition]]:
        """What can be handed out now, and the partitions that others wait for."""
        found: list[ConsumerRecord] = []
        heads = {}
        lacking = set()
        for place, end in until.items():
            records = self._ahead[place]
            if records:
                if records[0].offset < end:
                    heads[place] = self._rank(records[0])
            elif await self._consumer.position(place) < end:
                lacking.add(place)
        while heads and not lacking and len(found) < _AT_ONCE:
            place = min(heads, key=heads.__getitem__)
            records = self._ahead[place]
            found.append(records.popleft())
            if records and records[0].offset < until[place]:
                heads[place] = self._rank(records[0])
            else:
                del heads[place]
                if not records and await self._consumer.position(place) < until[place]:
                    lacking.add(place)
        return found, lacking

    def _rank(self, record: ConsumerRecord) -> tuple[int, int, int]:
        return record.timestamp, self._order[record.topic], record.partition
