"""The demo as a user of Tailrace: it produces events and reads slates with plain aiokafka, nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import RecordMetadata

from schemas.decode import decode_slate, encode
from schemas.messages import Interaction, Item, Slate
from stream_app.delivery.connections import close_client, kafka_options, stop_consumer
from stream_app.errors import InvalidMessage
from stream_app.settings import Settings
from stream_app.topics import Topics

__all__ = ["ShopClient"]

_IN_FLIGHT = 5_000
"""Unacknowledged events at most; then sending waits."""


class ShopClient:
    """A shop's side: sends its catalogue and events, follows the slates of all users. Use with ``async with``.

    Args:
        settings: where the broker is.
        linger_ms: how long an event may wait for others to travel with.
    """

    def __init__(self, settings: Settings, *, linger_ms: int = 0) -> None:
        self._settings = settings
        self._topics = Topics(settings)
        self._producer = AIOKafkaProducer(**kafka_options(settings), acks="all", linger_ms=linger_ms)
        self._consumer = AIOKafkaConsumer(
            self._topics.recommendations,
            **kafka_options(settings),
            auto_offset_reset="earliest",
            fetch_max_wait_ms=self._settings.connection.fetch_max_wait_ms,
        )
        self._in_flight = asyncio.Semaphore(_IN_FLIGHT)
        self.errors: list[BaseException] = []

    async def __aenter__(self) -> Self:
        await self._producer.start()
        await self._consumer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await stop_consumer(self._consumer)
        await close_client(self._producer.stop())

    async def send_items(self, items: Iterable[Item], on_sent: Callable[[], None] = lambda: None) -> None:
        """The catalogue, acknowledged."""
        for item in items:
            await self._send(self._topics.items, item.item_id, encode(item), lambda _: on_sent())
        await self.flush()

    async def send(self, event: Interaction, on_acknowledged: Callable[[RecordMetadata], None]) -> None:
        """One event; returns when it is on its way, calls back when the broker has it."""
        await self._send(self._topics.interactions, event.user_id, encode(event), on_acknowledged)

    async def flush(self) -> None:
        """Wait until everything sent is acknowledged.

        Raises:
            the first error of a send, if there was one.
        """
        await self._producer.flush()
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors[0]

    async def _send(self, topic: str, key: str, value: bytes, done: Callable[[RecordMetadata], None]) -> None:
        await self._in_flight.acquire()
        try:
            future = await self._producer.send(topic, value, key=key.encode())
        except BaseException:
            self._in_flight.release()
            raise

        def acknowledged(future: asyncio.Future[Any]) -> None:
            self._in_flight.release()
            error = future.exception()
            if error is None:
                done(future.result())
            else:
                self.errors.append(error)

        future.add_done_callback(acknowledged)

    async def slates(self) -> AsyncIterator[tuple[Slate, float]]:
        """Every slate as it arrives, with the time (``perf_counter`` seconds) it was read."""
        while True:
            fetched = await self._consumer.getmany(timeout_ms=200, max_records=2_000)
            at = time.perf_counter()
            for records in fetched.values():
                for record in records:
                    try:
                        _, slate = decode_slate(record.key, record.value, record.headers)
                    except InvalidMessage:
                        continue
                    if slate is not None:
                        yield slate, at
