"""Publishing with acknowledgement: a batch is done when the broker has all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from stream_app.delivery.connections import close_client, kafka_options
from stream_app.delivery.retry import until_it_works
from stream_app.errors import NotAuthorized, TailraceError
from stream_app.metrics import Metrics
from stream_app.settings import Settings

__all__ = ["OutRecord", "Publisher", "RefusedRecord", "producer_options"]

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_BATCH_BYTES = 524_288
_REFUSED = (*_TOO_LARGE, InvalidTopicError)


@dataclass(frozen=True, slots=True)
class OutRecord:
    """A record to publish; ``partition`` None leaves the choice to the hash of the key (murmur2)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None


class RefusedRecord(TailraceError):
    """The broker will never take this record, however often it is sent."""

    def __init__(self, record: OutRecord, error: BaseException) -> None:
        size = len(record.value or b"")
        super().__init__(f"record of {size} bytes for {record.topic} was refused: {type(error).__name__}: {error}")
        self.record = record
        self.error = error


def producer_options(settings: Settings) -> dict[str, Any]:
    """How a process publishes, for ``AIOKafkaProducer``.

    Batches are as large as is useful below what the broker takes, with room for what surrounds them: a partition has
    one request under way at a time, and with the client's 16 KiB three slates fill one, so the slates of 256 events
    wait for a chain of some twenty acknowledgements.
    """
    connection = settings.connection
    return {
        **kafka_options(settings),
        "acks": "all",
        "linger_ms": 0,
        "max_batch_size": min(_BATCH_BYTES, connection.max_message_bytes // 2),
        "max_request_size": connection.max_message_bytes,
        "compression_type": None if connection.compression == "none" else connection.compression,
    }


class Publisher:
    """One producer per process; every publish waits for the acknowledgement of all in-sync replicas.

    Plain at-least-once: a record may be appended twice when an acknowledgement is lost; consumers of Tailrace's
    topics are idempotent. Broker-side idempotent producers are not used, for the embedded broker lacks them.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect; waits until the broker is there."""

        async def connect() -> AIOKafkaProducer:
            producer = AIOKafkaProducer(**producer_options(self._settings))
            try:
                await producer.start()
            except BaseException:
                await close_client(producer.stop())
                raise
            return producer

        self._producer = await until_it_works(
            connect,
            what=f"Kafka at {self._settings.kafka}",
            transient=(KafkaError, OSError),
            settings=self._settings.delivery,
            metrics=self._metrics,
        )

    async def stop(self) -> None:
        """Close the connection. Nothing is pending: every publish was awaited."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await close_client(producer.stop())

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; waits until the broker knows it."""

        async def attempt() -> int:
            if self._producer is None:
                raise RuntimeError("Publisher.start() was not called")
            return len(await self._producer.partitions_for(topic))

        return await until_it_works(
            attempt,
            what=f"topic {topic} on Kafka at {self._settings.kafka}",
            transient=(KafkaError, OSError),
            settings=self._settings.delivery,
            metrics=self._metrics,
        )

    async def publish(self, records: Iterable[OutRecord]) -> None:
        """Send the records in order and wait until the broker has acknowledged each.

        What fails for a passing reason is sent again until it works. Two records of one partition may change
        places when the first fails and the second does not: callers that need order within a partition send
        one record per partition and call.

        Raises:
            RefusedRecord: for the first record the broker will never take; all others are acknowledged.
            NotAuthorized: when the broker does not let us write to a topic; all other records are acknowledged.
        """
        pending = list(records)
        refused: list[RefusedRecord | NotAuthorized] = []

        async def attempt() -> None:
            nonlocal pending
            pending, errors = await self._send(pending, refused)
            if errors:
                raise errors[0]

        if pending:
            await until_it_works(
                attempt,
                what=f"acknowledgements from Kafka at {self._settings.kafka}",
                transient=(KafkaError, OSError),
                settings=self._settings.delivery,
                metrics=self._metrics,
            )
        if refused:
            raise next((error for error in refused if isinstance(error, NotAuthorized)), refused[0])

    async def _send(
        self, records: list[OutRecord], refused: list[RefusedRecord | NotAuthorized]
    ) -> tuple[list[OutRecord], list[BaseException]]:
        producer = self._producer
        if producer is None:
            raise RuntimeError("Publisher.start() was not called")
        waiting: list[tuple[OutRecord, asyncio.Future[Any]]] = []
        failed: list[OutRecord] = []
        errors: list[BaseException] = []
        suspects: list[OutRecord] = []

        def failure(record: OutRecord, error: BaseException, *, by_broker: bool = False) -> None:
            if by_broker and isinstance(error, _TOO_LARGE) and len(records) > 1:
                suspects.append(record)
            elif isinstance(error, _REFUSED):
                refused.append(RefusedRecord(record, error))
            elif isinstance(error, TopicAuthorizationFailedError):
                refused.append(
                    NotAuthorized(f"Kafka at {self._settings.kafka} does not allow us Write on topic {record.topic}")
                )
            elif isinstance(error, KafkaError | OSError):
                failed.append(record)
                errors.append(error)
            else:
                raise error

        for record in records:
            try:
                future = await producer.send(
                    record.topic,
                    record.value,
                    key=record.key,
                    partition=record.partition,
                    headers=list(record.headers),
                )
            except (KafkaError, OSError) as error:
                failure(record, error)
            else:
                waiting.append((record, future))
        if waiting:
            await asyncio.wait([future for _, future in waiting])
        done: dict[str, int] = {}
        for record, future in waiting:
            problem = future.exception()
            if problem is not None:
                failure(record, problem, by_broker=True)
            else:
                done[record.topic] = done.get(record.topic, 0) + 1
        for topic, count in done.items():
            self._metrics.records_out.labels(topic).inc(count)
        for record in suspects:
            # Records travel in batches, and a broker that finds a batch too large refuses all of it.
            again, problems = await self._send([record], refused)
            failed += again
            errors += problems
        return failed, errors
