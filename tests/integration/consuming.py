"""What tests of single agents share: quick settings, topics, a publisher that can be held up, committed offsets."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord, RecordMetadata

from schemas.decode import decode_dead_letter
from schemas.messages import DeadLetter
from stream_app.agents.base import Agent
from stream_app.delivery.admin import create_topics
from stream_app.delivery.connections import kafka_options
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.delivery.reading import read_to_end
from stream_app.metrics import Metrics
from stream_app.settings import Settings, load_settings
from stream_app.topics import Topics
from tests.stacks import Stack
from tests.waiting import eventually

__all__ = [
    "GatedPublisher",
    "committed",
    "committed_reaches",
    "crash",
    "dead_letters",
    "publishing",
    "put",
    "quick",
    "records",
    "sending",
]


def quick(stack: Stack, prefix: str, **overrides: Any) -> Settings:
    """Settings for one test: one partition, quick flushes and, where the broker allows it, a quick join."""
    connection = {**stack.overrides.get("connection", {}), **overrides.pop("connection", {})}
    if stack.kind == "embedded":
        connection.setdefault("session_timeout_s", 1.5)  # a first join takes half of it there
    merged: dict[str, Any] = {
        "topics": {"prefix": prefix, "partitions": 1},
        "items": {"flush_interval_s": 0.05},
        "ranker": {"publish_interval_s": 0.05},
        "factors": {"flush_interval_s": 0.05},
        "delivery": {"commit_interval_s": 0.1, "retry_max_s": 0.2},
        "replica": {"directory": "off"},
        "metrics": {"port": -1},
    }
    for name, group in overrides.items():
        merged[name] = {**merged.get(name, {}), **group}
    return load_settings(kafka=stack.kafka, redis=stack.redis, connection=connection, **merged)


class GatedPublisher(Publisher):
    """A publisher that notes what passes and, for one topic, waits until its gate is opened.

    Attributes:
        pass_first: so many calls with records of that topic pass before.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        self.gated_topic = ""
        self.pass_first = 0
        self.gate = asyncio.Event()
        self.arrived = asyncio.Event()
        self.calls: deque[list[OutRecord]] = deque(maxlen=1_000)

    async def publish(self, records: Iterable[OutRecord]) -> None:
        held = list(records)
        if any(record.topic == self.gated_topic for record in held):
            self.pass_first -= 1
            if self.pass_first < 0:
                self.arrived.set()
                await self.gate.wait()
        await super().publish(held)
        self.calls.append(held)


@asynccontextmanager
async def publishing(settings: Settings, *, topics: bool = True) -> AsyncIterator[GatedPublisher]:
    """A started publisher, and the topics."""
    if topics:
        await create_topics(settings)
    publisher = GatedPublisher(settings, Metrics())
    await publisher.start()
    try:
        yield publisher
    finally:
        await publisher.stop()


@asynccontextmanager
async def sending(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """A client of its own, as other processes have one."""
    producer = AIOKafkaProducer(**kafka_options(settings))
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def put(producer: AIOKafkaProducer, topic: str, values: Sequence[bytes | None], **options: Any) -> RecordMetadata:
    """Send in order; returns where the last one is."""
    places = [await producer.send(topic, value, partition=0, **{"key": b"k", **options}) for value in values]
    return [await place for place in places][-1]


async def committed(settings: Settings, topic: str, role: str, partition: int = 0) -> int:
    """The group's committed offset; 0 when there is none."""
    consumer = AIOKafkaConsumer(
        **kafka_options(settings), group_id=Topics(settings).group(role), enable_auto_commit=False
    )
    await consumer.start()
    try:
        place = TopicPartition(topic, partition)
        consumer.assign([place])
        return int(await consumer.committed(place) or 0)
    finally:
        await consumer.stop()


async def committed_reaches(settings: Settings, topic: str, role: str, offset: int) -> None:
    """Wait until everything before ``offset`` is committed."""

    async def reached() -> bool:
        return await committed(settings, topic, role) >= offset

    await eventually(reached, interval_s=0.1, what=f"{role} committed {offset}")


async def crash(agent: Agent) -> None:
    """Leave the group as a process that is killed: nothing is handed over, nothing more is acknowledged."""

    async def nothing() -> None:
        return

    agent.hand_over = nothing  # type: ignore[method-assign]
    await agent.stop()


async def records(settings: Settings, topic: str) -> list[ConsumerRecord]:
    return [record async for record in read_to_end(settings, topic, patience_s=20)]


async def dead_letters(settings: Settings, count: int) -> list[DeadLetter]:
    """All dead letters, once there are ``count``."""
    found: list[DeadLetter] = []

    async def enough() -> bool:
        found[:] = [
            decode_dead_letter(record.value) for record in await records(settings, Topics(settings).dead_letter)
        ]
        return len(found) >= count

    await eventually(enough, interval_s=0.1, what=f"{count} dead letters")
    return found
