"""Reading without a group reaches the true end, on every broker; topics are created and compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stream_app.delivery import admin
from stream_app.delivery.admin import TopicState, copartition_difference, create_topics, describe_topics
from stream_app.delivery.connections import kafka_options
from stream_app.delivery.reading import follow, read_at, read_to_end, tail, true_ends
from stream_app.errors import TopicError, Unavailable
from stream_app.settings import Settings, load_settings
from stream_app.topics import TOPICS, Topics

PATIENCE_S = 20.0


@asynccontextmanager
async def producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    client = AIOKafkaProducer(**kafka_options(settings))
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def make_topic(settings: Settings, *, partitions: int = 2) -> str:
    name = f"{settings.topics.prefix}.probe"
    client = AIOKafkaAdminClient(**kafka_options(settings))
    await client.start()
    try:
        await client.create_topics([NewTopic(name, partitions, 1)])
    finally:
        await client.close()
    return name


async def send_batch(client: AIOKafkaProducer, topic: str, partition: int, values: Iterable[bytes]) -> None:
    """One batch, so that the last batch holds more than one record."""
    batch = client.create_batch()
    for value in values:
        assert batch.append(key=b"k", value=value, timestamp=None)
    await (await client.send_batch(batch, topic, partition=partition))


async def values(settings: Settings, topic: str, **options: Any) -> list[bytes]:
    return [record.value async for record in read_to_end(settings, topic, patience_s=PATIENCE_S, **options)]


async def test_the_ends_are_true_though_the_last_batch_is_long(settings: Settings) -> None:
    topic = await make_topic(settings, partitions=3)
    async with producer(settings) as client:
        await send_batch(client, topic, 0, [b"a", b"b", b"c"])
        await send_batch(client, topic, 0, [b"d", b"e"])
        await send_batch(client, topic, 2, [b"f"])
    assert await true_ends(settings, topic, patience_s=PATIENCE_S) == {0: 5, 1: 0, 2: 1}
    with pytest.raises(TopicError, match="is not on Kafka"):
        await true_ends(settings, f"{topic}-nowhere", patience_s=1.0)


async def test_whole_topic_is_read_though_its_last_batch_is_long(settings: Settings) -> None:
    topic = await make_topic(settings)
    sent = [b"%d" % number for number in range(2_000)]
    async with producer(settings) as client:
        await send_batch(client, topic, 0, sent[:1])
        await send_batch(client, topic, 0, sent[1:1_000])
        await send_batch(client, topic, 1, sent[1_000:])
    got = await values(settings, topic)
    assert sorted(got, key=int) == sent
    assert [value for value in got if int(value) < 1_000] == sent[:1_000]
    assert await values(settings, topic, partitions=[1]) == sent[1_000:]


async def test_empty_topic_ends_at_once(settings: Settings) -> None:
    topic = await make_topic(settings)
    assert await values(settings, topic) == []


async def test_topic_that_keeps_growing_ends(settings: Settings) -> None:
    topic = await make_topic(settings, partitions=1)
    async with producer(settings) as client:
        await client.send_and_wait(topic, b"first")

        async def grow() -> None:
            while True:
                await client.send_and_wait(topic, b"more")

        growing = asyncio.create_task(grow())
        try:
            async with asyncio.timeout(PATIENCE_S):
                assert (await values(settings, topic))[0] == b"first"
        finally:
            growing.cancel()
            await asyncio.gather(growing, return_exceptions=True)


async def test_one_record_is_read_at_its_place(settings: Settings) -> None:
    topic = await make_topic(settings)
    async with producer(settings) as client:
        await send_batch(client, topic, 1, [b"a", b"b", b"c"])
    for offset, expected in ((0, b"a"), (2, b"c")):
        record = await read_at(settings, topic, 1, offset)
        assert record is not None
        assert (record.value, record.offset) == (expected, offset)
    assert await read_at(settings, topic, 1, 3) is None
    assert await read_at(settings, topic, 0, 0) is None


async def test_tail_gives_what_comes_after_it_started(settings: Settings) -> None:
    topic = await make_topic(settings, partitions=1)
    async with producer(settings) as client, aclosing(tail(settings, topic, from_start=True)) as records:
        for value in (b"one", b"two"):
            await client.send_and_wait(topic, value)
            async with asyncio.timeout(PATIENCE_S):
                assert (await anext(records)).value == value


async def test_missing_topic_and_partition_are_named(settings: Settings) -> None:
    missing = f"{settings.topics.prefix}.nowhere"
    with pytest.raises(TopicError, match="nowhere"):
        await values(settings, missing)
    topic = await make_topic(settings, partitions=2)
    with pytest.raises(TopicError, match="there is no 7"):
        await read_at(settings, topic, 7, 0)


async def test_absent_broker_is_named_when_patience_runs_out(unused_tcp_port: int) -> None:
    settings = load_settings(kafka=f"127.0.0.1:{unused_tcp_port}")
    with pytest.raises(Unavailable, match=f"no Kafka broker answers at 127.0.0.1:{unused_tcp_port}"):
        async for _ in read_to_end(settings, "any", patience_s=0.1):
            pass
    with pytest.raises(Unavailable, match=str(unused_tcp_port)):
        await create_topics(settings)


async def test_topics_are_created_as_the_registry_has_them(settings: Settings) -> None:
    before = await describe_topics(settings)
    assert [state.partitions for state in before] == [None] * len(TOPICS)
    assert all(state.differences[0].severity == "wrong" for state in before)
    created = await create_topics(settings)
    assert all(state.created for state in created)
    states = await describe_topics(settings)
    assert [state.name for state in states] == list(Topics(settings).by_full_name)
    for state in states:
        assert state.partitions == (state.topic.partitions or settings.topics.partitions)
        assert state.differences == ()
        assert state.config["cleanup.policy"] == ("compact" if state.topic.compacted else "delete")
    assert copartition_difference(states) is None


async def test_creating_topics_again_changes_nothing_and_is_safe_together(settings: Settings) -> None:
    first, second = await asyncio.gather(create_topics(settings), create_topics(settings))
    assert all(state.partitions for state in [*first, *second])
    assert not any(state.created for state in await create_topics(settings))


async def test_following_tells_when_everything_that_was_there_has_come_and_goes_on(settings: Settings) -> None:
    topic = await make_topic(settings)
    async with producer(settings) as client, aclosing(follow(settings, topic)) as followed:
        for number in range(50):
            await client.send_and_wait(topic, str(number).encode(), partition=number % 2)
        seen: list[bytes] = []
        async for records, caught_up in followed:
            seen += [record.value for record in records]
            if caught_up:
                break
        assert sorted(seen, key=int) == [str(number).encode() for number in range(50)]
        await client.send_and_wait(topic, b"later", partition=1)
        async with asyncio.timeout(PATIENCE_S):
            records, caught_up = await anext(followed)
        assert ([record.value for record in records], caught_up) == ([b"later"], True)


async def test_following_an_empty_topic_tells_that_nothing_is_there(settings: Settings) -> None:
    async with aclosing(follow(settings, await make_topic(settings))) as followed, asyncio.timeout(PATIENCE_S):
        async for records, caught_up in followed:
            assert not records
            if caught_up:
                break


async def test_differing_topics_are_left_alone_and_told(settings: Settings, topic_prefix: str) -> None:
    client = AIOKafkaAdminClient(**kafka_options(settings))
    await client.start()
    try:
        await client.create_topics(
            [
                NewTopic(f"{topic_prefix}.items.v1", 1, 1, topic_configs={"cleanup.policy": "delete"}),
                NewTopic(f"{topic_prefix}.transitions.v1", 3, 1, topic_configs={"cleanup.policy": "delete"}),
            ]
        )
    finally:
        await client.close()
    states = {state.topic.name: state for state in await create_topics(settings)}
    items = states["items.v1"]
    assert (items.partitions, items.created) == (1, False)
    assert [(one.severity, one.text.split(" ")[0]) for one in items.differences] == [
        ("wrong", "cleanup.policy"),
        ("differs", "has"),
    ]
    unequal = copartition_difference(states.values())
    assert unequal is not None
    assert "item-signals.v1 has 4 and transitions.v1 has 3" in unequal.text


async def test_a_new_topic_of_users_has_as_many_partitions_as_the_events_that_are_there(
    settings: Settings, topic_prefix: str
) -> None:
    client = AIOKafkaAdminClient(**kafka_options(settings))
    await client.start()
    try:
        await client.create_topics([NewTopic(f"{topic_prefix}.interactions.v1", 7, 1)])
    finally:
        await client.close()
    states = {state.topic.name: state for state in await create_topics(settings)}
    assert states["users.v1"].partitions == 7
    assert copartition_difference(states.values()) is None


async def test_a_topic_the_broker_does_not_show_yet_is_waited_for_before_others_take_its_partitions(
    settings: Settings, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brokers learn of a topic one after the other, and any of them may be asked."""
    name = f"{topic_prefix}.interactions.v1"
    client = AIOKafkaAdminClient(**kafka_options(settings))
    await client.start()
    try:
        await client.create_topics([NewTopic(name, 7, 1)])
    finally:
        await client.close()
    told, asked = admin._describe, 0

    async def late(*args: Any) -> list[TopicState]:
        nonlocal asked
        asked += 1
        states = await told(*args)
        return [replace(state, partitions=None) if state.name == name and asked < 3 else state for state in states]

    monkeypatch.setattr(admin, "_describe", late)
    states = {state.topic.name: state for state in await create_topics(settings)}
    assert states["users.v1"].partitions == 7
    assert (states["interactions.v1"].partitions, states["interactions.v1"].created) == (7, False)
    assert not [state for state in await create_topics(settings) if state.created]


@pytest.mark.kafka
async def test_topic_the_broker_refuses_is_named_with_its_reason(settings: Settings) -> None:
    greedy = settings.model_copy(
        update={"connection": settings.connection.model_copy(update={"replication_factor": 9})}
    )
    with pytest.raises(TopicError, match="InvalidReplicationFactorError"):
        await create_topics(greedy)


@pytest.mark.kafka
async def test_replication_factor_of_the_broker_is_taken(settings: Settings) -> None:
    default = settings.model_copy(
        update={"connection": settings.connection.model_copy(update={"replication_factor": -1})}
    )
    assert all(state.partitions for state in await create_topics(default))
