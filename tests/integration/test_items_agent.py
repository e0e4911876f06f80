"""The item-keyed stage on a real broker: what is taken over, applied once, made durable before it is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from schemas.arrays import unpack_float64
from schemas.decode import decode_item_signals, encode
from schemas.messages import ItemSignals, Transition, Transitions
from stream_app.agents.items import ItemsAgent
from stream_app.delivery.publisher import Publisher
from stream_app.items.statistics import ItemStatistics
from stream_app.settings import Settings
from stream_app.topics import Topics
from tests.integration.consuming import (
    committed,
    committed_reaches,
    crash,
    dead_letters,
    publishing,
    put,
    quick,
    records,
    sending,
)
from tests.stacks import Stack
from tests.waiting import eventually


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    return quick(stack, topic_prefix)


def message(*rows: Transition, source: int = 0) -> Transitions:
    return Transitions(source_topic="t", source_partition=source, rows=list(rows))


def transition(offset: int, item: str, *previous: str) -> Transition:
    return Transition(
        offset=offset,
        at=1_700_000_000.0 + offset,
        item_id=item,
        count=1.0,
        previous=list(previous),
        symmetric=[0.9**lag for lag in range(1, len(previous) + 1)],
        directed=[0.7**lag for lag in range(1, len(previous) + 1)],
    )


MESSAGES = [
    message(transition(0, "a"), transition(1, "b", "a")),
    message(transition(0, "c"), source=1),
    message(transition(2, "a", "b", "c"), transition(5, "c", "a")),
    message(transition(3, "b", "c"), source=1),
]


def expected(messages: Sequence[Transitions], settings: Settings) -> dict[str, ItemSignals | None]:
    statistics = ItemStatistics(0, 1, settings.items)
    for offset, one in enumerate(messages):
        statistics.apply(one, offset=offset)
    return dict(statistics.take(1_000))


async def rows(settings: Settings) -> dict[str, ItemSignals | None]:
    """The last row of each item on the topic: what compaction keeps."""
    return dict(
        decode_item_signals(record.key, record.value)
        for record in await records(settings, Topics(settings).item_signals)
    )


@asynccontextmanager
async def running(settings: Settings, publisher: Publisher) -> AsyncIterator[ItemsAgent]:
    agent = ItemsAgent(settings, publisher, publisher._metrics)
    await agent.start()
    try:
        yield agent
        assert not agent.failed.done(), agent.failed
    finally:
        await agent.stop()


async def sent(producer: AIOKafkaProducer, settings: Settings, messages: Sequence[Transitions]) -> int:
    """Where the topic ends after these messages."""
    place = await put(producer, Topics(settings).transitions, [encode(one) for one in messages])
    return int(place.offset) + 1


async def test_an_owner_goes_on_from_the_rows_of_the_one_before_and_what_comes_twice_counts_once(settings: Settings):
    topics = Topics(settings)
    async with publishing(settings) as publisher, sending(settings) as producer:
        async with running(settings, publisher):
            end = await sent(producer, settings, MESSAGES[:2])
            await committed_reaches(settings, topics.transitions, "items", end)
        assert await rows(settings) == expected(MESSAGES[:2], settings)
        async with running(settings, publisher):
            # As after a crash of the stage before: all of it again, then the rest, of which some again.
            end = await sent(producer, settings, [*MESSAGES[:2], *MESSAGES[2:], *MESSAGES[1:3]])
            await committed_reaches(settings, topics.transitions, "items", end)
        found = await rows(settings)
        wanted = expected(MESSAGES, settings)
        assert set(found) == set(wanted)
        for item_id, row in wanted.items():
            assert_same_row(found[item_id], row)


def assert_same_row(found: ItemSignals | None, wanted: ItemSignals | None) -> None:
    """Equal up to rounding: a row that was broadcast in between had its values moved to the time of that."""
    assert found is not None
    assert wanted is not None
    assert (found.item_id, found.at, found.applied) == (wanted.item_id, wanted.at, wanted.applied)
    assert found.counts == pytest.approx(wanted.counts)
    assert sorted(found.neighbours) == sorted(wanted.neighbours)
    for name in ("symmetric", "directed"):
        values = [
            dict(zip(row.neighbours, unpack_float64(getattr(row, name)).tolist(), strict=True))
            for row in (found, wanted)
        ]
        assert values[0] == pytest.approx(values[1])


async def test_nothing_is_acknowledged_before_its_rows_are_durable_and_a_crash_there_loses_nothing(settings: Settings):
    topics = Topics(settings)
    async with publishing(settings) as publisher, sending(settings) as producer:
        publisher.gated_topic = topics.item_signals
        agent = ItemsAgent(settings, publisher, publisher._metrics)
        await agent.start()
        end = await sent(producer, settings, MESSAGES)
        await asyncio.wait_for(publisher.arrived.wait(), 20)
        await eventually(lambda: agent.lag() == 0, what="everything was read")
        assert await committed(settings, topics.transitions, "items") == 0
        await crash(agent)
        assert await committed(settings, topics.transitions, "items") == 0
        assert await rows(settings) == {}
        publisher.gate.set()
        async with running(settings, publisher):
            await committed_reaches(settings, topics.transitions, "items", end)
        assert await rows(settings) == expected(MESSAGES, settings)


async def test_stopped_in_the_middle_of_a_flush_it_hands_over_every_row(settings: Settings):
    """Rows that were taken for a broadcast that did not happen are broadcast before anything is acknowledged."""
    topics = Topics(settings)
    async with publishing(settings) as publisher, sending(settings) as producer:
        publisher.gated_topic = topics.item_signals
        agent = ItemsAgent(settings, publisher, publisher._metrics)
        await agent.start()
        end = await sent(producer, settings, MESSAGES)
        await asyncio.wait_for(publisher.arrived.wait(), 20)
        await eventually(lambda: agent.lag() == 0, what="everything was read")
        flush = next(task for task in agent._tasks if task.get_name() == "items-flush")
        flush.add_done_callback(lambda _: publisher.gate.set())
        await agent.stop()
        assert await rows(settings) == expected(MESSAGES, settings)
        assert await committed(settings, topics.transitions, "items") == end


async def test_what_cannot_be_decoded_is_dead_lettered_and_the_stream_goes_on(settings: Settings):
    topics = Topics(settings)
    lame = encode(message(transition(9, "a", "b"))).replace(b'"symmetric":[0.9]', b'"symmetric":[]')
    bad: list[bytes | None] = [b"not json", None, b"{}", lame]
    async with publishing(settings) as publisher, sending(settings) as producer:
        async with running(settings, publisher):
            await put(producer, topics.transitions, bad)
            end = await sent(producer, settings, MESSAGES)
            letters = await dead_letters(settings, len(bad))
            await committed_reaches(settings, topics.transitions, "items", end)
        assert [letter.offset for letter in letters] == [0, 1, 2, 3]
        assert [letter.reason for letter in letters] == ["not_json", "null_value", "missing_field", "invalid_field"]
        assert {letter.stage for letter in letters} == {"items"}
        assert {letter.topic for letter in letters} == {topics.transitions}
        assert set(await rows(settings)) == {"a", "b", "c"}


async def test_a_flush_broadcasts_a_bounded_number_of_rows_and_each_item_once(stack: Stack, topic_prefix: str):
    settings = quick(stack, topic_prefix, items={"flush_rows": 3})
    topics = Topics(settings)
    async with publishing(settings) as publisher, sending(settings) as producer:
        async with running(settings, publisher):
            many = [message(*(transition(n, f"i{n % 10}") for n in range(50)))]
            end = await sent(producer, settings, many)
            await committed_reaches(settings, topics.transitions, "items", end)
        sizes = [len(call) for call in publisher.calls if call and call[0].topic == topics.item_signals]
        assert sum(sizes) == 10, "one row per changed item, however often it changed"
        assert max(sizes) == 3
        assert await rows(settings) == expected(many, settings)


def signals_of(found: dict[str, Any], item_id: str) -> ItemSignals:
    row = found[item_id]
    assert isinstance(row, ItemSignals)
    return row


async def test_items_beyond_the_bound_are_forgotten_with_a_tombstone(stack: Stack, topic_prefix: str):
    settings = quick(stack, topic_prefix, items={"tracked": 2})
    topics = Topics(settings)
    async with publishing(settings) as publisher, sending(settings) as producer, running(settings, publisher):
        end = await sent(producer, settings, [message(transition(n, item)) for n, item in enumerate("abc")])
        await committed_reaches(settings, topics.transitions, "items", end)
        found = await rows(settings)
        assert found["a"] is None
        assert signals_of(found, "c").applied == {"0": 2}
