"""A whole pipeline of real processes on a broker and Redis, and what it amounts to at the end.

The ranker's learning rate is 0 here: with learning on, weights depend on how events of different partitions interleave,
which no two runs share, disturbed or not. That every example counts exactly once is compared; what the weights become
is the subject of other tests ([0009](../../docs/decisions/0009-learning-rate-zero-in-fault-runs.md)).

Slates are compared after things have settled: when every stage has committed everything and the replica has read
everything, each user sends one event without weight (a visit), and the slates those cause are the last ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import RecordMetadata

from schemas.decode import decode_item_signals, decode_ranker_weights, decode_slate, encode
from schemas.messages import Interaction, Item, ItemSignals, Slate
from stream_app.app import ROLES
from stream_app.delivery.admin import create_topics
from stream_app.delivery.connections import close_client, kafka_options, stop_consumer
from stream_app.delivery.reading import read_to_end
from stream_app.embedded.worker import WorkerProcess
from stream_app.errors import TailraceError
from stream_app.settings import Settings, load_settings
from stream_app.stores.redis_client import connect_redis
from stream_app.topics import Topics
from stream_app.torture.outcome import Outcome
from stream_app.torture.stream import Stream
from stream_app.users.fold import Folder
from stream_app.users.state import UserState, encode_state

__all__ = ["NotSettled", "Pipeline", "settles"]

T = TypeVar("T")


class NotSettled(TailraceError):
    """What must come in the end did not come in time: a process is stuck, or something is lost."""


async def settles(
    condition: Callable[[], Awaitable[T]], *, what: str, timeout_s: float = 120.0, interval_s: float = 0.1
) -> T:
    """The first true value of ``condition``, asked every ``interval_s`` seconds.

    Raises:
        NotSettled: after ``timeout_s`` seconds; says ``what`` was awaited.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if value := await condition():
            return value
        if time.monotonic() > deadline:
            raise NotSettled(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(interval_s)


@dataclass
class Pipeline:
    """Processes on a broker and Redis, with topics and keys of their own. Use :meth:`close` at the end.

    Args:
        where: settings that lead to broker and Redis.
        prefix: of the topics.
        directory: of snapshots.
        overrides: further settings of all processes.
        items: of the catalogue: the served space is fitted when so many are embedded.
        exactly_once: events are produced idempotently, so that a broker that dies has none twice (Apache Kafka).
    """

    where: Mapping[str, Any]
    prefix: str
    directory: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    items: int = 60
    exactly_once: bool = False
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    last_offsets: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.overrides = {
            **self.where,
            "topics": {"prefix": self.prefix, "partitions": 2},
            "ranker": {"learning_rate": 0.0, "publish_interval_s": 0.2},
            "factors": {"learning_rate": 0.0, "flush_interval_s": 0.2},
            "items": {"flush_interval_s": 0.2},
            # Fitted to all of them: with the default, to as many as happened to be embedded by then.
            "spaces": {"first_items": self.items},
            "slate": {"explore": 0.0},
            "delivery": {"commit_interval_s": 0.2},
            "replica": {"directory": str(self.directory / "snapshots"), "snapshot_interval_s": 1.0},
            # One text at a time: beside others a vector differs in its last bits, a code made of it by a step now and
            # then, and scores by some 1e-4, which decides the order where two items come out equal.
            "encoder": {"threads": 1, "precision": "float32", "batch": 1},
            "log": {"level": "info", "format": "text"},
            **self.overrides,
        }
        self.settings: Settings = load_settings(**self.overrides)
        self.topics = Topics(self.settings)

    async def start(self, roles: Sequence[str] = ROLES, *, create: bool = True) -> None:
        """Start one process per entry (a role, or several with commas; what follows ``#`` tells processes of the same
        roles apart) and wait until all take events."""
        if create:
            await create_topics(self.settings)
        for role in roles:
            self.add(role)
        await asyncio.gather(*(self.workers[role].start() for role in roles))

    def add(
        self, role: str, *, overrides: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> WorkerProcess:
        """A process that is not started yet; ``overrides`` and ``environment`` are its own."""
        names = role.partition("#")[0].split(",")
        eager = {**self.overrides, "encoder": {**self.overrides["encoder"], "eager": "catalogue" in names}}
        worker = WorkerProcess(
            names, overrides={**eager, **(overrides or {})}, directory=self.directory, environment=environment
        )
        self.workers[role] = worker
        return worker

    async def close(self) -> None:
        await asyncio.gather(*(worker.kill() for worker in self.workers.values()))

    def logs(self) -> str:
        return "\n".join(f"--- {worker.name}\n{worker.output(60)}" for worker in self.workers.values())

    async def send_items(self, items: Sequence[Item], between: Callable[[int], Awaitable[None]] | None = None) -> None:
        """Produce the catalogue; ``between`` is awaited with the number sent after each."""
        async with _producer(self.settings, exactly_once=self.exactly_once) as producer:
            for number, item in enumerate(items, start=1):
                await producer.send_and_wait(self.topics.items, encode(item), key=item.item_id.encode())
                if between is not None:
                    await between(number)

    async def send_events(
        self,
        events: Sequence[Interaction],
        *,
        per_s: float = 400.0,
        catch_up: bool = True,
        between: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """Produce events one after the other; ``between`` is awaited with the number sent after each.

        Args:
            per_s: events per second. Without ``catch_up``, what held the sender up is not made up for.
        """
        loop = asyncio.get_running_loop()
        async with _producer(self.settings, exactly_once=self.exactly_once) as producer:
            start = loop.time()
            for number, event in enumerate(events, start=1):
                early = start + number / per_s - loop.time()
                if early > 0:
                    await asyncio.sleep(early)
                elif not catch_up:
                    start -= early
                place: RecordMetadata = await producer.send_and_wait(
                    self.topics.interactions, encode(event), key=event.user_id.encode()
                )
                self.last_offsets[place.partition] = place.offset
                if between is not None:
                    await between(number)

    async def settled(self, *, timeout_s: float = 120.0) -> None:
        """Wait until everything produced so far has had all its effects: committed, broadcast and tailed."""
        await self.interactions_done(timeout_s=timeout_s)
        for topic, role in ((self.topics.transitions, "items"), (self.topics.training_examples, "ranker")):
            ends = await self._ends(topic)

            async def committed(topic: str = topic, role: str = role, ends: dict[int, int] = ends) -> bool:
                done = await self._committed(role, topic)
                return all(done.get(partition, 0) >= end for partition, end in ends.items())

            await settles(committed, timeout_s=timeout_s, what=f"{role} done: {ends}")
        for topic in (self.topics.items, self.topics.item_vectors, self.topics.item_signals):
            wanted = sum((await self._ends(topic)).values())

            async def tailed(topic: str = topic, wanted: int = wanted) -> bool:
                sample = f'tailrace_replica_position{{topic="{topic}"}}'
                found = [await worker.metrics() or {} for worker in self.ranking_workers()]
                return all(samples.get(sample, 0) >= wanted for samples in found)

            await settles(tailed, timeout_s=timeout_s, what=f"replica read {topic} ({wanted})")

    async def interactions_done(self, *, timeout_s: float = 120.0) -> None:
        """Wait until every event sent is acknowledged by the interactions role."""
        await settles(self._interactions_committed, timeout_s=timeout_s, what="interactions done")

    async def embedded(self, count: int, *, timeout_s: float = 120.0) -> None:
        """Wait until the interactions process can find ``count`` vectors, in the space that is fitted to so many."""

        async def there() -> bool:
            found = [await worker.metrics() or {} for worker in self.ranking_workers()]
            items = min(samples.get("tailrace_index_items", 0) for samples in found)
            space = min(samples.get("tailrace_space_version", 0) for samples in found)
            return items >= count and (count < self.items or space >= 1)

        await settles(there, timeout_s=timeout_s, what=f"{count} vectors in the index and its space")

    async def outcome(self, stream: Stream, *, timeout_s: float = 120.0) -> Outcome:
        """Settle, let every user visit once, and read everything back."""
        await self.settled(timeout_s=timeout_s)
        at = max(event.occurred_at for event in stream.events) + timedelta(hours=1)
        await self.send_events(
            [Interaction(event_id=f"probe-{user}", user_id=user, type="visit", occurred_at=at) for user in stream.users]
        )
        await self.settled(timeout_s=timeout_s)
        slates = await self.slates()
        examples, applied = await self._examples()
        return Outcome(
            users=await self.states(stream.users),
            expected=await self.expected_states(),
            items=await self._signals(),
            examples=examples,
            examples_applied=applied,
            slates=slates,
        )

    async def slates(self) -> dict[str, Slate]:
        """The last slate of every user."""
        found: dict[str, Slate] = {}
        async for record in read_to_end(self.settings, self.topics.recommendations):
            user_id, slate = decode_slate(record.key, record.value, record.headers)
            if slate is not None:
                found[user_id] = slate
        return found

    async def expected_states(self) -> dict[str, bytes]:
        """What the users' states must be: the topic as it is, folded here, with nothing in between."""
        fold = Folder(self.settings.event_types, self.settings.users, self.settings.items)
        states: dict[str, UserState] = {}
        async for record in read_to_end(self.settings, self.topics.interactions):
            event = msgspec.json.decode(record.value, type=Interaction)
            state = states.setdefault(event.user_id, UserState(event.user_id))
            fold(
                state,
                event,
                partition=record.partition,
                offset=record.offset,
                appended_s=record.timestamp / 1_000,
            )
        return {user_id: encode_state(state) for user_id, state in states.items()}

    async def states(self, users: Sequence[str]) -> dict[str, bytes]:
        """The users' states in Redis, packed."""
        redis = connect_redis(self.settings)
        try:
            async with redis.pipeline(transaction=False) as pipe:
                for user in users:
                    pipe.hget(f"{self.prefix}:user:{user}", "s")
                states = dict(zip(users, await pipe.execute(), strict=True))
            return {user: state for user, state in states.items() if state is not None}
        finally:
            await redis.aclose()

    def ranking_workers(self) -> list[WorkerProcess]:
        """Those that run and have the interactions role."""
        return [worker for name, worker in self.workers.items() if "interactions" in name and worker.running]

    async def _interactions_committed(self) -> bool:
        committed = await self._committed("interactions", self.topics.interactions)
        return all(committed.get(partition, 0) > offset for partition, offset in self.last_offsets.items())

    async def _committed(self, role: str, topic: str) -> dict[int, int]:
        # A consumer that joins nothing may ask for the group's offsets, on every broker.
        consumer = AIOKafkaConsumer(
            **kafka_options(self.settings), group_id=self.topics.group(role), enable_auto_commit=False
        )
        await consumer.start()
        try:
            partitions = range(self.settings.topics.partitions if topic != self.topics.training_examples else 1)
            return {number: await consumer.committed(TopicPartition(topic, number)) or 0 for number in partitions}
        finally:
            await stop_consumer(consumer)

    async def _ends(self, topic: str) -> dict[int, int]:
        """Where each partition truly ends, by reading it: a broker may state an end that is too low."""
        ends: dict[int, int] = {}
        async for record in read_to_end(self.settings, topic):
            ends[record.partition] = record.offset + 1
        return ends

    async def _signals(self) -> dict[str, ItemSignals]:
        rows: dict[str, ItemSignals] = {}
        async for record in read_to_end(self.settings, self.topics.item_signals):
            item_id, row = decode_item_signals(record.key, record.value)
            if row is not None:
                rows[item_id] = row
        return rows

    async def _examples(self) -> tuple[int, dict[str, int]]:
        examples, applied = 0, {}
        async for record in read_to_end(self.settings, self.topics.ranker_weights):
            _, weights = decode_ranker_weights(record.key, record.value)
            if weights is not None:
                examples, applied = weights.examples, weights.applied
        return examples, applied


@asynccontextmanager
async def _producer(settings: Settings, *, exactly_once: bool) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(**kafka_options(settings), acks="all", enable_idempotence=exactly_once)
    await producer.start()
    try:
        yield producer
    finally:
        await close_client(producer.stop())
