"""A made-up shop into a broker and Redis, where its owners would have put it; and out of them again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from redis.exceptions import RedisError

from schemas.decode import encode
from stream_app.bench.child import Progress
from stream_app.bench.shop import MadeUpPast
from stream_app.delivery.admin import create_topics, describe_topics
from stream_app.delivery.connections import close_client, kafka_options
from stream_app.errors import TailraceError, Unavailable
from stream_app.items.partitions import item_partition
from stream_app.logs import get_logger
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.stores.redis_client import REDIS_TRANSIENT, connect_redis
from stream_app.stores.users import UserStore
from stream_app.topics import Topics

__all__ = ["answering", "publish_items", "publish_past", "remove_past", "sender"]

_log = get_logger(__name__)
_IN_FLIGHT: Final = 2_000
_AT_ONCE: Final = 500
_PATIENCE_S: Final = 15.0


async def answering(settings: Settings) -> None:
    """Return when a broker and Redis answer.

    Raises:
        Unavailable: when one does not; says which.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await describe_topics(settings)
    except TimeoutError:
        raise Unavailable(
            f"no Kafka broker answers at {settings.kafka} within {_PATIENCE_S:.0f} s; is the address right (--kafka)?"
        ) from None
    redis = connect_redis(settings)
    try:
        await redis.ping()
    except (RedisError, *REDIS_TRANSIENT) as error:
        raise Unavailable(f"Redis does not answer: {error}; is the address right (--redis)?") from error
    finally:
        await redis.aclose()


async def publish_past(settings: Settings, past: MadeUpPast, *, on_progress: Progress) -> None:
    """Create the topics, which must be new, and fill them and Redis.

    Args:
        past: its space is that of the encoder's model, and its partitions are the topic's.

    Raises:
        Unavailable: when a broker or Redis goes away.
        TailraceError: when the broker took an event of the history twice: the states would not fit to it.
    """
    topics, plan = Topics(settings), past.plan
    await create_topics(settings)
    async with sender(settings) as sending:
        space, basis = past.space(settings), past.learner.basis.message()
        await sending.send(topics.spaces, space.space, encode(space))
        await sending.send(topics.factor_basis, basis.space, encode(basis))
    await publish_items(settings, past, range(plan.items), on_progress=on_progress)
    async with sender(settings) as sending:
        for item_id, signals in past.statistics.take(past.statistics.waiting):
            partition = item_partition(item_id, plan.partitions)
            await sending.send(topics.item_signals, item_id, encode(signals) if signals else None, partition=partition)
        for item_id, factors in past.learner.take(past.learner.waiting):
            await sending.send(topics.item_factors, item_id, encode(factors) if factors else None)
        for number, (partition, offset, event) in enumerate(plan.interactions(0, plan.past)):
            value = encode(event)
            await sending.send(topics.interactions, event.user_id, value, partition=partition, offset=offset)
            if number % _AT_ONCE == 0:
                on_progress("events of the past sent", number, plan.past)
    await _save(settings, past)


async def publish_items(settings: Settings, past: MadeUpPast, numbers: Iterable[int], *, on_progress: Progress) -> None:
    """Items and their vectors, as a shop and the catalogue role would send them."""
    topics, plan = Topics(settings), past.plan
    wanted = list(numbers)
    async with sender(settings) as sending:
        for done, number in enumerate(wanted):
            item, vector = plan.item(number), plan.item_vector(number, past.vectors[number])
            await sending.send(topics.items, item.item_id, encode(item))
            await sending.send(topics.item_vectors, item.item_id, encode(vector))
            if done % _AT_ONCE == 0:
                on_progress("items sent", done, len(wanted))


async def _save(settings: Settings, past: MadeUpPast) -> None:
    redis = connect_redis(settings)
    try:
        users = UserStore(redis, settings, Metrics())
        names = list(past.states)
        for start in range(0, len(names), _AT_ONCE):
            states = {user_id: past.states[user_id] for user_id in names[start : start + _AT_ONCE]}
            # Each has events of one partition.
            await users.save(states, partitions={user_id: max(state.applied) for user_id, state in states.items()})
    finally:
        await redis.aclose()


async def remove_past(settings: Settings, past: MadeUpPast) -> None:
    """Take the topics and states away again, as far as one may; what could not be removed is logged.

    Consumer groups stay until the broker forgets them.
    """
    names = list(Topics(settings).by_full_name)
    admin = AIOKafkaAdminClient(**kafka_options(settings))
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await admin.start()
            response = (await admin.delete_topics(names)).to_object()
        problems = [
            f"{entry['topic']}: {for_code(entry['error_code']).__name__}"
            for entry in response.get("topic_error_codes", response.get("responses", []))
            if entry["error_code"]
        ]
        if problems:
            _log.warning("topics not deleted", prefix=settings.topics.prefix, why=", ".join(problems))
    except (KafkaError, OSError, TimeoutError) as error:
        _log.warning("topics not deleted", prefix=settings.topics.prefix, why=f"{type(error).__name__}: {error}")
    finally:
        with contextlib.suppress(KafkaError, OSError):
            await close_client(admin.close())
    redis = connect_redis(settings)
    keys = [f"{settings.topics.prefix}:user:{user_id}" for user_id in past.states]
    try:
        for start in range(0, len(keys), _AT_ONCE):
            await redis.unlink(*keys[start : start + _AT_ONCE])
    except (RedisError, *REDIS_TRANSIENT) as error:
        _log.warning("states not deleted", prefix=settings.topics.prefix, why=f"{type(error).__name__}: {error}")
    finally:
        await redis.aclose()


class _Sender:
    """Records on their way to the broker, a bounded number at a time."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self._free = asyncio.Semaphore(_IN_FLIGHT)
        self._error: BaseException | None = None

    async def send(
        self, topic: str, key: str, value: bytes | None, *, partition: int | None = None, offset: int | None = None
    ) -> None:
        """One record; ``offset``: where it must come to lie."""
        await self._free.acquire()
        if self._error is not None:
            raise self._error
        future = await self._producer.send(topic, value, key=key.encode(), partition=partition)

        def done(future: asyncio.Future[Any]) -> None:
            self._free.release()
            if future.cancelled():
                return
            error = future.exception()
            if error is None and offset is not None and future.result().offset != offset:
                error = TailraceError(f"{topic} took a record twice: the broker was slow to answer; run it again")
            self._error = self._error or error

        future.add_done_callback(done)

    async def flush(self) -> None:
        """Until all are acknowledged."""
        await self._producer.flush()
        await asyncio.sleep(0)
        if self._error is not None:
            raise self._error


@asynccontextmanager
async def sender(settings: Settings) -> AsyncIterator[_Sender]:
    """What sends records; at the end of the context all are acknowledged."""
    producer = AIOKafkaProducer(
        **kafka_options(settings),
        acks="all",
        linger_ms=5,
        max_batch_size=262_144,
        max_request_size=settings.connection.max_message_bytes,
    )
    try:
        await producer.start()
        sending = _Sender(producer)
        yield sending
        await sending.flush()
    except (KafkaError, OSError) as error:
        raise Unavailable(f"Kafka at {settings.kafka}: {error}") from error
    finally:
        await close_client(producer.stop())
