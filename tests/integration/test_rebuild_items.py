"""``tailrace rebuild items`` with owners and traffic on a real broker and Redis."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping

import msgspec
import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.arrays import unpack_float64
from schemas.decode import decode_item_signals, encode
from schemas.messages import ItemSignals, RebuiltRows, Transitions
from stream_app.delivery.admin import create_topics
from stream_app.delivery.connections import kafka_options
from stream_app.delivery.reading import read_to_end
from stream_app.errors import TailraceError
from stream_app.items.partitions import by_owner, item_partition
from stream_app.items.statistics import ItemStatistics
from stream_app.rebuild.items import rebuild_items
from stream_app.settings import Settings
from stream_app.stores.users import connect_redis
from stream_app.topics import Topics
from stream_app.users.fold import Folder
from stream_app.users.sources import Sources
from stream_app.users.state import UserState
from tests.integration.consuming import sending
from tests.integration.pipeline import live
from tests.integration.test_rebuild_users import as_record, caught_up, make_events, produce
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "topics": settings.topics.model_copy(update={"partitions": 2}),
            "items": settings.items.model_copy(update={"flush_interval_s": 0.1}),
            "delivery": settings.delivery.model_copy(update={"commit_interval_s": 0.2}),
            "encoder": settings.encoder.model_copy(update={"eager": False}),
        }
    )


async def settled(settings: Settings) -> None:
    """Wait until all events are processed, and what they say of items is durable."""
    await caught_up(settings)
    topics, ends = Topics(settings), dict[TopicPartition, int]()
    async for record in read_to_end(settings, topics.transitions):
        ends[TopicPartition(record.topic, record.partition)] = record.offset + 1

    async def done() -> bool:
        consumer = AIOKafkaConsumer(**kafka_options(settings), group_id=topics.group("items"), enable_auto_commit=False)
        await consumer.start()
        try:
            return all([(await consumer.committed(place) or 0) >= end for place, end in ends.items()])
        finally:
            await consumer.stop()

    await eventually(done, timeout_s=60, interval_s=0.1, what="items done")


async def rows(settings: Settings) -> dict[str, ItemSignals]:
    found: dict[str, ItemSignals] = {}
    async for record in read_to_end(settings, Topics(settings).item_signals):
        item_id, row = decode_item_signals(record.key, record.value)
        if row is None:
            found.pop(item_id, None)
        else:
            found[item_id] = row
    return found


async def expected(settings: Settings) -> dict[str, ItemSignals]:
    """What all events say, one after the other."""
    sources = Sources(settings)
    folder = Folder(settings.event_types, settings.users, settings.items)
    states: dict[str, UserState] = {}
    owners = [ItemStatistics(number, 2, settings.items) for number in range(2)]
    async for record in read_to_end(settings, Topics(settings).interactions):
        event = sources.event(as_record(record), record.timestamp / 1_000).event
        state = states.setdefault(event.user_id, UserState(event.user_id))
        fold = folder(state, event, partition=record.partition, offset=record.offset)
        if fold.transition is not None:
            for owner, part in by_owner(fold.transition, 2).items():
                message = Transitions(source_topic="", source_partition=record.partition, rows=[part])
                owners[owner].apply(message, offset=0)
    return {row.item_id: row for owner in owners for row in owner.stated(owner.item_ids)}


def differences(one: Mapping[str, ItemSignals], two: Mapping[str, ItemSignals]) -> list[str]:
    found = [f"only on one side: {name}" for name in one.keys() ^ two.keys()]
    for name in one.keys() & two.keys():
        left, right = one[name], two[name]
        same = (
            left.at == right.at
            and np.allclose(left.counts, right.counts, rtol=1e-9)
            and links(left).keys() == links(right).keys()
            and all(np.allclose(links(left)[other], links(right)[other], rtol=1e-9) for other in links(left))
        )
        if not same:
            found.append(f"{name}: {left.counts} / {right.counts}")
    return found


def links(row: ItemSignals) -> dict[str, tuple[float, float]]:
    pairs = zip(unpack_float64(row.symmetric), unpack_float64(row.directed), strict=True)
    return dict(zip(row.neighbours, pairs, strict=True))


@pytest.mark.model
async def test_wrong_statistics_are_made_again_while_owners_and_traffic_go_on(settings: Settings) -> None:
    await create_topics(settings)
    topics = Topics(settings)
    async with live(settings, ["items", "interactions"]):
        await produce(settings, make_events(1, 12, 250))
        await settled(settings)
    right = await rows(settings)
    assert differences(right, await expected(settings)) == []
    async with sending(settings) as producer:  # a defect of an earlier release, say
        ghost = msgspec.structs.replace(next(iter(right.values())), item_id="ghost")
        for row in [*right.values(), ghost]:
            wrong = msgspec.structs.replace(row, counts=[10 * count + 1 for count in row.counts])
            partition = item_partition(row.item_id, 2)
            await producer.send_and_wait(
                topics.item_signals, encode(wrong), key=row.item_id.encode(), partition=partition
            )
    async with live(settings, ["items", "interactions"]) as running:
        await produce(settings, make_events(2, 12, 20))
        await settled(settings)
        assert "ghost" in await rows(settings)
        assert differences(await rows(settings), await expected(settings)) != []
        outcome = await rebuild_items(settings, dry_run=True)
        assert (outcome.items, outcome.waiting) == (len(await expected(settings)), ())

        traffic = asyncio.create_task(produce(settings, make_events(3, 12, 700)))
        outcome = await rebuild_items(settings)
        assert outcome.waiting == ()
        assert not traffic.done(), "it is to be done beside traffic"
        await traffic
        await settled(settings)
        assert differences(await rows(settings), await expected(settings)) == []
        assert not any(agent.failed.done() for agent in running.tailrace.agents)

        # Again, with nothing wrong: nothing counts twice.
        outcome = await rebuild_items(settings)
        await settled(settings)
        assert differences(await rows(settings), await expected(settings)) == []
    # What the owners go on with is what is on the topic.
    async with live(settings, ["items", "interactions"]):
        await produce(settings, make_events(4, 12, 60))
        await settled(settings)
        assert differences(await rows(settings), await expected(settings)) == []


@pytest.mark.model
async def test_rows_that_are_incomplete_or_nonsense_change_nothing(settings: Settings) -> None:
    await create_topics(settings)
    topics = Topics(settings)
    async with live(settings, ["items", "interactions"]) as running, sending(settings) as producer:
        await produce(settings, make_events(1, 5, 60))
        await settled(settings)
        right = await rows(settings)
        by_partition: dict[int, list[ItemSignals]] = defaultdict(list)
        for row in right.values():
            wrong = msgspec.structs.replace(row, counts=[10 * count + 1 for count in row.counts])
            by_partition[item_partition(row.item_id, 2)].append(wrong)

        async def put(partition: int, generation: int, part: int, of: int, offered: list[ItemSignals]) -> None:
            rebuilt = RebuiltRows(generation=generation, begin=0, part=part, parts=of, rows=offered)
            message = Transitions(source_topic="", source_partition=0, rows=[], rebuilt=rebuilt)
            await producer.send_and_wait(topics.transitions, encode(message), partition=partition)

        for partition, wrong_rows in by_partition.items():
            await put(partition, 1, 0, 3, wrong_rows)
            await put(partition, 1, 2, 3, [])  # part 1 never came
            await put(partition, 2, 0, 2, [msgspec.structs.replace(wrong_rows[0], symmetric="")])
            await put(partition, 2, 1, 2, [])
        await produce(settings, make_events(2, 5, 60))
        await settled(settings)
        assert differences(await rows(settings), await expected(settings)) == []
        assert not any(agent.failed.done() for agent in running.tailrace.agents)


async def test_a_second_rebuild_is_refused(settings: Settings) -> None:
    redis = connect_redis(settings)
    await redis.set(f"{settings.topics.prefix}:rebuild:items", "process 1", ex=30)
    try:
        with pytest.raises(TailraceError, match="a rebuild of items is under way: process 1"):
            await rebuild_items(settings)
    finally:
        await redis.aclose()
