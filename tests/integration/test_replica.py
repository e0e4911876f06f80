"""The replica on a real broker: caught up when it says so, quick after a restart, and never another cluster's copy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer

from schemas.arrays import pack_float32, pack_float64
from schemas.decode import encode
from schemas.messages import Item, ItemSignals, ItemVector
from stream_app.delivery.admin import create_topics
from stream_app.errors import TailraceError
from stream_app.metrics import Metrics
from stream_app.ranking.features import feature_names
from stream_app.ranking.softmax import SoftmaxRanker
from stream_app.replicas.replica import ItemChange, Replica
from stream_app.replicas.snapshots import Snapshots
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.topics import TOPICS, Topics
from tests.integration.consuming import quick, sending
from tests.stacks import Stack
from tests.waiting import eventually

DIMENSIONS = 8


@pytest.fixture
async def settings(stack: Stack, topic_prefix: str) -> Settings:
    settings = quick(stack, topic_prefix, topics={"prefix": topic_prefix, "partitions": 2})
    await create_topics(settings)
    return settings


def with_snapshots(settings: Settings, directory: Path) -> Settings:
    replica = settings.replica.model_copy(update={"directory": str(directory)})
    return settings.model_copy(update={"replica": replica})


class Shop:
    """Writes the topics a replica reads."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self.settings = settings
        self.topics = Topics(settings)
        self.producer = producer
        self.sent = 0

    async def put(self, topic: str, key: str, value: bytes | None) -> None:
        await self.producer.send_and_wait(topic, value, key=key.encode())
        self.sent += 1

    async def item(self, item_id: str, **fields: Any) -> None:
        await self.put(self.topics.items, item_id, encode(Item(**{"item_id": item_id, "title": item_id, **fields})))

    async def vector(self, item_id: str, seed: int, space: str = "s") -> None:
        values = np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32)
        packed = pack_float32(values / np.linalg.norm(values))
        message = ItemVector(item_id=item_id, space=space, text_hash="", dimensions=DIMENSIONS, vector=packed)
        await self.put(self.topics.item_vectors, item_id, encode(message))

    async def signals(self, item_id: str, offset: int) -> None:
        message = ItemSignals(
            item_id=item_id,
            at=1.7e9 + offset,
            counts=[1.0 + offset] * (len(self.settings.items.half_lives_days) + 1),
            neighbours=["i1"],
            symmetric=pack_float64(np.ones(1)),
            directed=pack_float64(np.ones(1)),
            applied={"0": offset},
        )
        await self.put(self.topics.item_signals, item_id, encode(message))

    async def weights(self, version: int) -> None:
        model = SoftmaxRanker(feature_names(self.settings.items), self.settings.ranker)
        model.version = version
        model.weights = model.weights + version
        await self.put(self.topics.ranker_weights, "default", encode(model.weights_message()))


@asynccontextmanager
async def shop(settings: Settings) -> AsyncIterator[Shop]:
    async with sending(settings) as producer:
        yield Shop(settings, producer)


@asynccontextmanager
async def replica(settings: Settings, *, ready: bool = True) -> AsyncIterator[Replica]:
    made = Replica(settings, Metrics(), space="s", dimensions=DIMENSIONS)
    await made.start()
    try:
        if ready:
            await asyncio.wait_for(made.ready.wait(), 20)
        yield made
        assert not made.failed.done(), made.failed
    finally:
        await made.stop()


def applied(made: Replica) -> float:
    """Records read in this run."""
    total = 0.0
    for topic in Topics(made.settings).by_full_name:
        total += made.metrics.registry.get_sample_value("tailrace_replica_records_total", {"topic": topic}) or 0.0
    return total


def answers(serving: ServingState, count: int = 12) -> list[Any]:
    """What a serving state says, whatever its rows are numbered."""
    rows = np.array([serving.catalogue.row(f"i{n}") for n in range(count)], np.int32)
    known = [row for row in rows.tolist() if row >= 0 and serving.catalogue.known[row]]
    there = np.array(known, np.int32)
    return [
        [serving.catalogue.facts(row) for row in known],
        serving.index.vectors(there).tolist(),
        serving.signals.popularity(1.7e9, there).tolist(),
        serving.ranker.weights.tolist(),
        serving.ranker.version,
        len(serving.index),
        len(serving.catalogue),
    ]


async def fill(made: Shop, start: int, end: int) -> None:
    for number in range(start, end):
        await made.item(f"i{number}")
        await made.vector(f"i{number}", number)
        await made.signals(f"i{number}", number)
    await made.weights(end)


async def test_it_is_ready_with_everything_that_was_there_and_then_follows(settings: Settings):
    async with shop(settings) as source:
        await fill(source, 0, 12)
        async with replica(settings) as made:
            assert applied(made) == source.sent
            assert len(made.serving.catalogue) == len(made.serving.index) == 12
            assert made.serving.ranker.version == 12
            await source.item("i0", title="changed")
            await source.put(source.topics.items, "i1", None)
            await eventually(lambda: applied(made) == source.sent)
            facts = made.serving.catalogue.facts(made.serving.catalogue.row("i0"))
            assert facts is not None
            assert facts.title == "changed"
            assert len(made.serving.catalogue) == len(made.serving.index) == 11


async def test_topics_without_a_record_are_caught_up_with(settings: Settings):
    async with replica(settings) as made:
        assert len(made.serving.catalogue) == 0
        assert made.metrics.registry.get_sample_value("tailrace_replica_ready") == 1


async def test_it_becomes_ready_though_the_topics_never_fall_silent(settings: Settings):
    async with shop(settings) as source:
        await fill(source, 0, 3)

        async def chatter() -> None:
            number = 3
            while True:
                await source.signals("i0", number)
                number += 1
                await asyncio.sleep(0.02)

        talking = asyncio.create_task(chatter())
        try:
            async with replica(settings, ready=False) as made:
                await asyncio.wait_for(made.ready.wait(), 10)
                assert len(made.serving.catalogue) == 3
        finally:
            talking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await talking


async def test_a_restart_reads_only_what_came_since_and_holds_the_same(settings: Settings, tmp_path: Path):
    kept = with_snapshots(settings, tmp_path)
    async with shop(settings) as source:
        await fill(source, 0, 6)
        async with replica(kept) as made:
            assert applied(made) == source.sent
        before = source.sent
        await fill(source, 6, 9)
        for topic in (source.topics.items, source.topics.item_vectors):
            await source.put(topic, "i2", None)
        async with replica(kept) as restarted, replica(settings) as fresh:
            assert applied(restarted) == source.sent - before
            assert applied(fresh) == source.sent
            assert answers(restarted.serving) == answers(fresh.serving)
            assert restarted.positions == fresh.positions
        async with replica(kept) as again:
            assert applied(again) == 0


async def test_a_snapshot_of_topics_that_were_made_again_is_not_continued(settings: Settings, tmp_path: Path):
    kept = with_snapshots(settings, tmp_path)
    stale = ServingState(settings, space="s", dimensions=DIMENSIONS)
    stale.apply_item("of before", Item(item_id="of before", title="x", expires_at=datetime(2026, 1, 1, tzinfo=UTC)))
    topics = Topics(settings)
    read = [topics.items, topics.item_vectors, topics.item_signals, topics.ranker_weights]
    probe = Replica(settings, Metrics(), space="s", dimensions=DIMENSIONS)
    snapshots = Snapshots(tmp_path, kept, cluster=await probe._cluster_id())
    partitions = {topics._full(topic): topics.partitions(topic) for topic in TOPICS}
    offsets = {(name, number): 10_000 for name in read for number in range(partitions[name])}
    withdrawn: list[ItemChange] = []
    async with shop(settings) as source:
        await fill(source, 0, 4)
        snapshots.write(stale, offsets, now=datetime.now(UTC).timestamp())
        made = Replica(kept, Metrics(), space="s", dimensions=DIMENSIONS)
        made.on_withdrawn = withdrawn.append
        await made.start()
        try:
            await asyncio.wait_for(made.ready.wait(), 20)
            assert applied(made) == source.sent
            assert made.serving.catalogue.row("of before") < 0
            assert len(made.serving.catalogue) == 4
            await source.item("i9")
            await eventually(lambda: applied(made) == source.sent)
            assert withdrawn == [], "what it held of before is gone, expiry included"
        finally:
            await made.stop()


async def test_a_snapshot_that_cannot_be_used_costs_time_and_nothing_else(settings: Settings, tmp_path: Path):
    kept = with_snapshots(settings, tmp_path)
    async with shop(settings) as source:
        await fill(source, 0, 3)
        async with replica(kept):
            pass
        (folder,) = (tmp_path / settings.topics.prefix).iterdir()
        (folder / "manifest.json").write_bytes(b"{}")
        async with replica(kept) as made:
            assert applied(made) == source.sent
            assert len(made.serving.catalogue) == 3


async def test_it_does_not_go_on_with_topics_made_again_while_it_runs(settings: Settings):
    async with replica(settings) as made:
        with pytest.raises(TailraceError, match="start it again"):
            made._start_over("test")


class Withdrawals:
    """What a replica reported, by item."""

    def __init__(self, made: Replica) -> None:
        self.changes: list[ItemChange] = []
        made.on_withdrawn = self.changes.append

    @property
    def items(self) -> list[str]:
        return [change.item_id for change in self.changes]


async def test_an_item_that_is_deleted_or_made_unavailable_is_reported_once_with_the_record_that_said_so(
    settings: Settings,
):
    async with shop(settings) as source, replica(settings) as made:
        seen = Withdrawals(made)
        await source.item("deleted")
        await source.item("off", available=True)
        await source.item("never on", available=False)
        await source.put(source.topics.items, "deleted", None)
        await source.put(source.topics.items, "deleted", None)
        await source.put(source.topics.items, "unknown", None)
        for _ in range(2):
            await source.item("off", available=False)
        await source.put(source.topics.items, "off", None)
        await source.item("last")
        await eventually(lambda: applied(made) == source.sent)
        assert sorted(seen.items) == ["deleted", "off"]
        assert {change.topic for change in seen.changes} == {source.topics.items}
        assert all(change.offset >= 0 for change in seen.changes)


async def test_an_item_whose_time_is_over_is_reported_once_and_only_if_it_could_be_recommended(settings: Settings):
    soon = datetime.now(UTC) + timedelta(seconds=2)
    later = soon + timedelta(seconds=0.5)
    gone = datetime.now(UTC) - timedelta(hours=1)
    async with shop(settings) as source, replica(settings) as made:
        seen = Withdrawals(made)
        await source.item("expires", expires_at=soon)
        await source.item("said twice", expires_at=soon)
        await source.item("said twice", expires_at=soon, title="again")
        await source.item("brought forward", expires_at=later + timedelta(hours=1))
        await source.item("brought forward", expires_at=soon)
        await source.item("prolonged", expires_at=soon)
        await source.item("prolonged", expires_at=later + timedelta(hours=1))
        await source.item("for ever", expires_at=soon)
        await source.item("for ever")
        await source.item("off before", expires_at=soon)
        await source.item("off before", expires_at=soon, available=False)
        await source.item("deleted before", expires_at=soon)
        await source.put(source.topics.items, "deleted before", None)
        await source.item("over already", expires_at=gone)
        await source.item("over now")
        await source.item("over now", expires_at=gone)
        await source.item("the last", expires_at=later)
        await eventually(lambda: applied(made) == source.sent)
        assert sorted(seen.items) == ["deleted before", "off before", "over now"], "expiry has not come yet"
        await eventually(lambda: "the last" in seen.items)
        assert sorted(seen.items) == sorted(
            ["deleted before", "off before", "over now", "expires", "said twice", "brought forward", "the last"]
        )


async def test_expiry_is_known_after_a_restart_from_a_snapshot(settings: Settings, tmp_path: Path):
    kept = with_snapshots(settings, tmp_path)
    async with shop(settings) as source:
        await source.item("expires", expires_at=datetime.now(UTC) + timedelta(seconds=2))
        await source.item("off", expires_at=datetime.now(UTC) + timedelta(seconds=1), available=False)
        async with replica(kept):
            pass
        async with replica(kept) as made:
            assert applied(made) == 0
            seen = Withdrawals(made)
            await eventually(lambda: seen.items)
            assert seen.items == ["expires"]


async def test_an_item_that_is_changed_all_the_time_takes_no_more_memory(settings: Settings):
    async with shop(settings) as source, replica(settings) as made:
        value = [
            encode(Item(item_id="i", title="i", expires_at=datetime.now(UTC) + timedelta(days=1, seconds=number)))
            for number in range(3_000)
        ]
        await asyncio.gather(
            *[await source.producer.send(source.topics.items, one, key=b"i", partition=0) for one in value]
        )
        await eventually(lambda: applied(made) == 3_000)
        assert len(made._expiring) < 1_100


async def test_what_cannot_be_read_is_left_out_and_the_rest_applied(settings: Settings):
    async with shop(settings) as source:
        topics = source.topics
        for topic in (topics.items, topics.item_vectors, topics.item_signals, topics.ranker_weights):
            await source.put(topic, "i0", b"not json")
            await source.put(topic, "i0", b"{}")
        await source.vector("i0", 1, space="another")
        await source.put(topics.item_vectors, "i1", b'{"item_id":"i1","space":"s"}')
        short = ItemVector(
            item_id="i2", space="s", text_hash="", dimensions=2, vector=pack_float32(np.array([1.0, 0.0], np.float32))
        )
        await source.put(topics.item_vectors, "i2", encode(short))
        await fill(source, 0, 1)
        async with replica(settings) as made:
            assert applied(made) == source.sent
            assert len(made.serving.catalogue) == len(made.serving.index) == 1
            assert made._left_out == 10, "every bad record, and not the vector of another space"


async def test_it_waits_for_topics_that_are_not_there_yet(stack: Stack, topic_prefix: str):
    settings = quick(stack, topic_prefix, topics={"prefix": topic_prefix, "partitions": 1})
    async with replica(settings, ready=False) as made:
        what = {"what": f"the catalogue topics on Kafka at {settings.kafka}"}
        await eventually(lambda: made.metrics.registry.get_sample_value("tailrace_retries_total", what))
        assert not made.ready.is_set()
        await create_topics(settings)
        await asyncio.wait_for(made.ready.wait(), 20)
