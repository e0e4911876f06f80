"""A whole pipeline of real processes, a seeded stream through it, and what it amounts to at the end.

Two runs of one stream are equal when every user's state, every item's statistics, the ranker's count of
examples, and every user's last slate are. The ranker's learning rate is 0 here: with learning on, weights depend
on how events of different partitions interleave, which no two runs share, disturbed or not. That every example
counts exactly once is compared; what the weights become is the subject of other tests.

Slates are compared after things have settled: when every stage has committed everything and the replica has read
everything, each user sends one event without weight (a visit), and the slates those cause are the last ones.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import RecordMetadata

from schemas.arrays import unpack_float64
from schemas.decode import decode_item_signals, decode_ranker_weights, decode_slate, encode
from schemas.messages import Interaction, Item, ItemSignals, Slate
from stream_app.app import ROLES
from stream_app.datasets.online_retail import load_online_retail
from stream_app.delivery.admin import create_topics
from stream_app.delivery.connections import kafka_options
from stream_app.delivery.reading import read_to_end
from stream_app.embedded.worker import WorkerProcess
from stream_app.settings import Settings, load_settings
from stream_app.stores.redis_client import connect_redis
from stream_app.topics import Topics
from stream_app.users.fold import Folder
from stream_app.users.state import UserState, encode_state
from tests.stacks import Stack
from tests.waiting import eventually

__all__ = ["Outcome", "Pipeline", "Stream", "make_stream"]

START = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Stream:
    """A catalogue and events in the order they are produced."""

    items: tuple[Item, ...]
    events: tuple[Interaction, ...]

    @property
    def users(self) -> list[str]:
        return sorted({event.user_id for event in self.events})


_ITEMS = 60


def make_stream(seed: int, *, items: int = _ITEMS, users: int = 40, events: int = 1_200) -> Stream:
    """A seeded stream: real titles, Zipf-like popularity, baskets, repeats, hides, duplicates."""
    rng = random.Random(seed)
    catalogue = tuple(load_online_retail().items[:items])
    weights = [1 / (rank + 1) for rank in range(items)]
    made: list[Interaction] = []
    at = START
    while len(made) < events:
        user = f"user-{rng.randrange(users)}"
        at += timedelta(seconds=rng.randrange(1, 3_600))
        for _ in range(rng.choice([1, 1, 2, 4])):
            kind = rng.choices(["purchase", "click", "view", "hide", "cart"], [4, 4, 3, 0.3, 1])[0]
            item = rng.choices(catalogue, weights)[0].item_id
            made.append(Interaction(event_id=f"e{len(made)}", user_id=user, type=kind, item_id=item, occurred_at=at))
        if rng.random() < 0.02:
            made.append(made[-1])  # sent twice by its producer
    return Stream(catalogue, tuple(made[:events]))


@dataclass
class Outcome:
    """What a run amounts to; see :meth:`differences`."""

    users: dict[str, bytes]
    items: dict[str, ItemSignals]
    examples: int
    examples_applied: dict[str, int]
    slates: dict[str, Slate]

    def differences(self, other: Outcome) -> list[str]:
        """What is not equal, in words; empty when the runs are."""
        users = sorted(self.users.keys() | other.users.keys())
        found = [f"state of {name} differs" for name in users if self.users.get(name) != other.users.get(name)]
        for name in sorted(self.items.keys() | other.items.keys()):
            one, two = self.items.get(name), other.items.get(name)
            if one is None or two is None or not _same_row(one, two):
                found.append(f"statistics of {name} differ: {_brief(one)} / {_brief(two)}")
        if (self.examples, self.examples_applied) != (other.examples, other.examples_applied):
            found.append(f"examples differ: {self.examples} / {other.examples}")
        for name in sorted(self.slates.keys() | other.slates.keys()):
            one_slate, two_slate = self.slates.get(name), other.slates.get(name)
            if one_slate is None or two_slate is None or not _same_slate(one_slate, two_slate):
                found.append(f"slate of {name} differs: {_ids(one_slate)} / {_ids(two_slate)}")
        return found


def _same_row(one: ItemSignals, two: ItemSignals) -> bool:
    def links(row: ItemSignals) -> dict[str, tuple[float, float]]:
        pairs = zip(unpack_float64(row.symmetric), unpack_float64(row.directed), strict=True)
        return dict(zip(row.neighbours, pairs, strict=True))

    left, right = links(one), links(two)
    return (
        one.applied == two.applied
        and bool(np.isclose(one.at, two.at))
        and np.allclose(one.counts, two.counts, rtol=1e-9)
        and left.keys() == right.keys()
        and all(np.allclose(left[name], right[name], rtol=1e-9, atol=1e-12) for name in left)
    )


def _same_slate(one: Slate, two: Slate) -> bool:
    return (
        [item.item_id for item in one.items] == [item.item_id for item in two.items]
        and np.allclose([item.score for item in one.items], [item.score for item in two.items], atol=1e-3)
        and (one.trigger.partition, one.trigger.offset, one.trigger.event_id)
        == (two.trigger.partition, two.trigger.offset, two.trigger.event_id)
    )


def _brief(row: ItemSignals | None) -> str:
    return "none" if row is None else f"counts {row.counts} applied {row.applied} links {len(row.neighbours)}"


def _ids(slate: Slate | None) -> str:
    return "none" if slate is None else f"{[item.item_id[:12] for item in slate.items[:6]]} {slate.trigger.offset}"


@dataclass
class Pipeline:
    """One process per role on a stack, with topics and keys of its own. Use :meth:`close` at the end."""

    stack: Stack
    prefix: str
    directory: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    last_offsets: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.overrides = {
            **self.stack.overrides,
            "topics": {"prefix": self.prefix, "partitions": 2},
            "ranker": {"learning_rate": 0.0, "publish_interval_s": 0.2},
            "factors": {"learning_rate": 0.0, "flush_interval_s": 0.2},
            "items": {"flush_interval_s": 0.2},
            # Fitted to all of them: with the default, to as many as happened to be embedded by then.
            "spaces": {"first_items": _ITEMS},
            "slate": {"explore": 0.0},
            "delivery": {"commit_interval_s": 0.2},
            "replica": {"directory": str(self.directory / "snapshots"), "snapshot_interval_s": 1.0},
            "encoder": {"threads": 1, "precision": "float32"},
            "log": {"level": "info", "format": "text"},
            **self.overrides,
        }
        self.settings: Settings = load_settings(**self.overrides)
        self.topics = Topics(self.settings)

    async def start(self, roles: Sequence[str] = ROLES, *, create: bool = True) -> None:
        """Start one process per entry (a role, or several with commas) and wait until all take events."""
        if create:
            await create_topics(self.settings)
        for role in roles:
            eager = {**self.overrides, "encoder": {**self.overrides["encoder"], "eager": "catalogue" in role}}
            # "interactions#2" is a second process of the role.
            names = role.partition("#")[0].split(",")
            self.workers[role] = WorkerProcess(names, overrides=eager, directory=self.directory)
        await asyncio.gather(*(self.workers[role].start() for role in roles))

    async def close(self) -> None:
        await asyncio.gather(*(worker.kill() for worker in self.workers.values()))

    def logs(self) -> str:
        return "\n".join(f"--- {worker.name}\n{worker.output(60)}" for worker in self.workers.values())

    async def send_items(self, items: Sequence[Item], between: Callable[[int], Awaitable[None]] | None = None) -> None:
        """Produce the catalogue; ``between`` is awaited with the number sent after each."""
        async with _producer(self.settings) as producer:
            for number, item in enumerate(items, start=1):
                await producer.send_and_wait(self.topics.items, encode(item), key=item.item_id.encode())
                if between is not None:
                    await between(number)

    async def send_events(
        self,
        events: Sequence[Interaction],
        *,
        per_s: float = 400.0,
        between: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """Produce events one after the other at a steady rate; ``between`` is awaited with the number sent."""
        loop = asyncio.get_running_loop()
        async with _producer(self.settings) as producer:
            start = loop.time()
            for number, event in enumerate(events, start=1):
                await asyncio.sleep(max(0.0, start + number / per_s - loop.time()))
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

            await eventually(committed, timeout_s=timeout_s, interval_s=0.1, what=f"{role} done: {ends}")
        for topic in (self.topics.items, self.topics.item_vectors, self.topics.item_signals):
            wanted = sum((await self._ends(topic)).values())

            async def tailed(topic: str = topic, wanted: int = wanted) -> bool:
                sample = f'tailrace_replica_position{{topic="{topic}"}}'
                found = [await worker.metrics() or {} for worker in self._ranking_workers()]
                return all(samples.get(sample, 0) >= wanted for samples in found)

            await eventually(tailed, timeout_s=timeout_s, interval_s=0.1, what=f"replica read {topic} ({wanted})")

    async def interactions_done(self, *, timeout_s: float = 120.0) -> None:
        """Wait until every event sent is acknowledged by the interactions role."""
        await eventually(self._interactions_committed, timeout_s=timeout_s, interval_s=0.1, what="interactions done")

    async def embedded(self, count: int, *, timeout_s: float = 120.0) -> None:
        """Wait until the interactions process can find ``count`` vectors, in the space that is fitted to so many."""

        async def there() -> bool:
            found = [await worker.metrics() or {} for worker in self._ranking_workers()]
            items = min(samples.get("tailrace_index_items", 0) for samples in found)
            space = min(samples.get("tailrace_space_version", 0) for samples in found)
            return items >= count and (count < _ITEMS or space >= 1)

        await eventually(there, timeout_s=timeout_s, interval_s=0.1, what=f"{count} vectors in the index and its space")

    async def outcome(self, stream: Stream) -> Outcome:
        """Settle, let every user visit once, and read everything back."""
        await self.settled()
        at = max(event.occurred_at for event in stream.events) + timedelta(hours=1)
        await self.send_events(
            [Interaction(event_id=f"probe-{user}", user_id=user, type="visit", occurred_at=at) for user in stream.users]
        )
        await self.settled()
        slates = await self.slates()
        return Outcome(
            await self._states(stream.users),
            await self._signals(),
            *await self._examples(),
            slates,
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
            fold(state, event, partition=record.partition, offset=record.offset)
        return {user_id: encode_state(state) for user_id, state in states.items()}

    async def states(self, users: Sequence[str]) -> dict[str, bytes]:
        """The users' states in Redis, packed."""
        return await self._states(users)

    def _ranking_workers(self) -> list[WorkerProcess]:
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
            await consumer.stop()

    async def _ends(self, topic: str) -> dict[int, int]:
        """Where each partition truly ends, by reading it: a broker may state an end that is too low."""
        ends: dict[int, int] = {}
        async for record in read_to_end(self.settings, topic):
            ends[record.partition] = record.offset + 1
        return ends

    async def _states(self, users: Sequence[str]) -> dict[str, bytes]:
        redis = connect_redis(self.settings)
        try:
            states = {user: await redis.hget(f"{self.prefix}:user:{user}", "s") for user in users}  # type: ignore[misc]
            return {user: state for user, state in states.items() if state is not None}
        finally:
            await redis.aclose()

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


class _producer:  # noqa: N801 - a context manager, used like a function
    def __init__(self, settings: Settings) -> None:
        self._producer = AIOKafkaProducer(**kafka_options(settings), acks="all")

    async def __aenter__(self) -> AIOKafkaProducer:
        await self._producer.start()
        return self._producer

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()
