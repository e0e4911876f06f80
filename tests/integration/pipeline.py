"""Tailrace in the test's own process: every role in one event loop, on the session's stack."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import RecordMetadata

from schemas.decode import decode_dead_letter, decode_slate, encode
from schemas.messages import DeadLetter, Interaction, Item, Slate, User
from stream_app.app import ROLES, Role, Tailrace
from stream_app.delivery.connections import kafka_options
from stream_app.delivery.reading import read_to_end
from stream_app.settings import Settings
from stream_app.topics import Topics
from tests.waiting import eventually

__all__ = ["Live", "live"]


class Live:
    """A running pipeline and a client's view of it."""

    def __init__(self, settings: Settings, tailrace: Tailrace, producer: AIOKafkaProducer) -> None:
        self.settings = settings
        self.topics = Topics(settings)
        self.tailrace = tailrace
        self.producer = producer
        self.slates: dict[str, Slate] = {}
        self.published: Counter[str] = Counter()
        self._events = 0

    async def put(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> RecordMetadata:
        """Any record, acknowledged."""
        return await self.producer.send_and_wait(topic, value, key=key, headers=list(headers))

    async def item(self, item_id: str, title: str = "", **fields: Any) -> RecordMetadata:
        item = Item(item_id=item_id, title=title or f"item {item_id}", **fields)
        return await self.put(self.topics.items, item_id.encode(), encode(item))

    async def event(
        self, user_id: str, item_id: str | None = None, kind: str = "click", **fields: Any
    ) -> RecordMetadata:
        self._events += 1
        event = Interaction(
            **{
                "event_id": f"event-{self._events}",
                "user_id": user_id,
                "type": kind,
                "item_id": item_id,
                "occurred_at": datetime.now(UTC),
                **fields,
            }
        )
        return await self.put(self.topics.interactions, user_id.encode(), encode(event))

    async def profile(self, user_id: str, **fields: Any) -> RecordMetadata:
        user = User(user_id=user_id, **fields)
        return await self.put(self.topics.users, user_id.encode(), encode(user))

    async def forget(self, user_id: str) -> RecordMetadata:
        return await self.put(self.topics.users, user_id.encode(), None)

    async def slate_after(self, user_id: str, place: RecordMetadata, *, timeout_s: float = 30.0) -> Slate:
        """The user's first slate that knows the event or profile at ``place``."""

        def known() -> Slate | None:
            slate = self.slates.get(user_id)
            if slate is None or slate.trigger.topic != place.topic:
                return None
            return slate if slate.trigger.offset >= place.offset else None

        slate = await eventually(known, timeout_s=timeout_s, what=f"slate of {user_id} after {place}")
        assert slate is not None
        return slate

    async def indexed(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Wait until ``count`` items have vectors."""
        assert self.tailrace.replica is not None
        serving = self.tailrace.replica.serving
        await eventually(lambda: len(serving.index) >= count, timeout_s=timeout_s, what=f"{count} vectors")

    async def dead_letters(self, count: int, *, timeout_s: float = 30.0) -> list[DeadLetter]:
        """All dead letters, once there are ``count``."""
        letters: list[DeadLetter] = []

        async def enough() -> bool:
            letters.clear()
            async for record in read_to_end(self.settings, self.topics.dead_letter):
                letters.append(decode_dead_letter(record.value))  # noqa: PERF401 - refilled at every try
            return len(letters) >= count

        await eventually(enough, timeout_s=timeout_s, interval_s=0.2, what=f"{count} dead letters")
        return letters


@asynccontextmanager
async def live(settings: Settings, roles: Sequence[Role] = ROLES) -> AsyncIterator[Live]:
    """Start the roles, follow the slates, and stop everything at the end."""
    stop = asyncio.Event()
    tailrace = Tailrace(settings, roles)
    running = asyncio.create_task(tailrace.run(stop))
    ready = asyncio.create_task(tailrace.ready.wait())
    await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED, timeout=60)
    if running.done():
        running.result()
    assert ready.done(), "not ready within 60 s"
    producer = AIOKafkaProducer(**kafka_options(settings), acks="all", max_request_size=64 * 1_048_576)
    await producer.start()
    pipeline = Live(settings, tailrace, producer)
    following = asyncio.create_task(_follow(pipeline))
    try:
        yield pipeline
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await producer.stop()
        stop.set()
        began = time.monotonic()
        await asyncio.wait_for(running, timeout=30)
        assert time.monotonic() - began < 20, "stopping took too long"


async def _follow(pipeline: Live) -> None:
    consumer = AIOKafkaConsumer(
        pipeline.topics.recommendations,
        **kafka_options(pipeline.settings),
        auto_offset_reset="earliest",
        fetch_max_wait_ms=20,
    )
    await consumer.start()
    try:
        async for record in consumer:
            user_id, slate = decode_slate(record.key, record.value, record.headers)
            pipeline.published[user_id] += 1
            if slate is None:
                pipeline.slates.pop(user_id, None)
            else:
                pipeline.slates[user_id] = slate
    finally:
        await consumer.stop()
