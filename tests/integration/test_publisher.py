"""Publishing on a real broker: a batch is done when the broker has all of it, whatever happens in between."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stream_app.delivery.connections import kafka_options
from stream_app.delivery.publisher import OutRecord, Publisher, RefusedRecord
from stream_app.delivery.reading import default_partition, read_to_end
from stream_app.embedded import EmbeddedStack
from stream_app.metrics import Metrics
from stream_app.settings import Settings, load_settings
from tests.integration.consuming import publishing, quick
from tests.stacks import Stack

LIMIT = 16_384


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    return quick(stack, topic_prefix, connection={"max_message_bytes": LIMIT})


async def make_topic(settings: Settings, *, partitions: int = 3, **config: str) -> str:
    name = f"{settings.topics.prefix}.probe"
    admin = AIOKafkaAdminClient(**kafka_options(settings))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=config)])
    finally:
        await admin.close()
    return name


async def read(settings: Settings, topic: str) -> list[OutRecord]:
    return [
        OutRecord(topic, record.key, record.value, tuple(record.headers), record.partition)
        async for record in read_to_end(settings, topic, patience_s=20)
    ]


def counted(publisher: Publisher, topic: str) -> float:
    return publisher._metrics.registry.get_sample_value("tailrace_records_out_total", {"topic": topic}) or 0


async def test_keys_values_headers_and_nulls_arrive_where_they_belong(settings: Settings):
    topic = await make_topic(settings)
    sent = [
        OutRecord(topic, b"a", b"value", (("h", b"1"), ("h", b"2"))),
        OutRecord(topic, b"b", None),
        OutRecord(topic, None, b"no key", partition=2),
        OutRecord(topic, b"c", b"", partition=1),
    ]
    async with publishing(settings, topics=False) as publisher:
        assert await publisher.partitions(topic) == 3
        await publisher.publish(iter(sent))
        assert counted(publisher, topic) == 4
    found = {(record.key, record.value): record for record in await read(settings, topic)}
    assert len(found) == 4
    assert list(found[b"a", b"value"].headers) == [("h", b"1"), ("h", b"2")]
    assert found[None, b"no key"].partition == 2
    assert found[b"c", b""].partition == 1
    assert found[b"b", None].partition == default_partition(b"b", 3)


async def test_records_of_one_key_keep_their_order(settings: Settings):
    topic = await make_topic(settings)
    async with publishing(settings, topics=False) as publisher:
        for start in (0, 1_000):
            await publisher.publish(
                OutRecord(topic, b"k%d" % (number % 7), b"%d" % number) for number in range(start, start + 1_000)
            )
    found = await read(settings, topic)
    assert len(found) == 2_000
    for key in {record.key for record in found}:
        numbers = [int(record.value or b"") for record in found if record.key == key]
        assert numbers == sorted(numbers)


async def test_what_is_published_at_once_travels_in_a_few_requests(settings: Settings):
    topic = await make_topic(settings, partitions=1)
    settings = settings.model_copy(
        update={"connection": settings.connection.model_copy(update={"max_message_bytes": 1_048_576})}
    )
    async with publishing(settings, topics=False) as publisher:
        assert publisher._producer is not None
        sender, sent = publisher._producer._sender, []
        send = sender._send_produce_req

        async def counted_send(node_id: int, batches: dict[TopicPartition, object]) -> None:
            sent.append(len(batches))
            await send(node_id, batches)

        sender._send_produce_req = counted_send
        await publisher.publish(OutRecord(topic, b"%d" % number, b"x" * 5_000) for number in range(100))
    assert len(sent) <= 3, "not three records at a time"
    assert len(await read(settings, topic)) == 100


async def test_a_record_that_is_too_large_is_refused_and_all_others_arrive(settings: Settings):
    topic = await make_topic(settings)
    too_large = [OutRecord(topic, b"large %d" % number, b"x" * (LIMIT + number)) for number in range(2)]
    fine = [OutRecord(topic, b"fine %d" % number, b"v") for number in range(4)]
    async with publishing(settings, topics=False) as publisher:
        with pytest.raises(RefusedRecord) as caught:
            await publisher.publish([fine[0], too_large[0], *fine[1:3], too_large[1], fine[3]])
        assert caught.value.record == too_large[0]
        assert f"{LIMIT} bytes for {topic} was refused" in str(caught.value)
        assert counted(publisher, topic) == 4
        await publisher.publish([OutRecord(topic, b"after", b"v")])
    assert sorted(record.key or b"" for record in await read(settings, topic)) == [
        b"after",
        *(record.key for record in fine),
    ]


@pytest.mark.kafka
async def test_a_record_that_only_the_broker_finds_too_large_is_refused_and_its_neighbours_arrive(settings: Settings):
    """The topic takes less than our setting says, and the records travel in one batch."""
    topic = await make_topic(settings, partitions=1, **{"max.message.bytes": "2000"})
    async with publishing(settings, topics=False) as publisher:
        with pytest.raises(RefusedRecord) as caught:
            await publisher.publish(
                [
                    OutRecord(topic, b"a", b"v"),
                    OutRecord(topic, b"large", b"x" * 5_000),
                    OutRecord(topic, b"b", b"v"),
                    *(OutRecord(topic, b"together %d" % number, b"x" * 700) for number in range(9)),
                ]
            )
        assert caught.value.record.key == b"large"
    found = {record.key for record in await read(settings, topic)}
    assert found == {b"a", b"b", *(b"together %d" % number for number in range(9))}


async def test_nothing_to_publish_is_done_at_once(settings: Settings):
    publisher = Publisher(settings, Metrics())
    await asyncio.wait_for(publisher.publish([]), 5)


async def test_before_its_start_a_publisher_says_so(settings: Settings):
    publisher = Publisher(settings, Metrics())
    with pytest.raises(RuntimeError, match="start"):
        await publisher.publish([OutRecord("t", b"k", b"v")])
    await publisher.stop()


async def test_a_broker_that_hangs_is_waited_for_and_everything_arrives_in_order(
    own_stack: EmbeddedStack, topic_prefix: str
):
    settings = load_settings(
        **own_stack.settings_overrides() | {"connection": {"replication_factor": 1, "fetch_max_wait_ms": 10}},
        topics={"prefix": topic_prefix},
    )
    topic = await make_topic(settings, partitions=1)
    async with publishing(settings, topics=False) as publisher:
        await publisher.publish([OutRecord(topic, b"k", b"0")])
        own_stack.broker.suspend()
        try:
            sending = asyncio.create_task(
                publisher.publish([OutRecord(topic, b"k", b"%d" % number) for number in range(1, 200)])
            )
            done, _ = await asyncio.wait([sending], timeout=1.0)
            assert not done, "no acknowledgement, no end"
        finally:
            own_stack.broker.resume()
        await asyncio.wait_for(sending, 30)
    numbers = [int(record.value or b"") for record in await read(settings, topic)]
    assert list(dict.fromkeys(numbers)) == list(range(200))


async def test_a_publisher_waits_for_a_broker_that_is_not_there_yet(own_stack: EmbeddedStack, topic_prefix: str):
    settings = load_settings(
        **own_stack.settings_overrides(), topics={"prefix": topic_prefix}, delivery={"retry_max_s": 0.2}
    )
    await own_stack.broker.stop()
    publisher = Publisher(settings, Metrics())
    starting = asyncio.create_task(publisher.start())
    what = {"what": f"Kafka at {settings.kafka}"}
    async with asyncio.timeout(30):
        while not publisher._metrics.registry.get_sample_value("tailrace_retries_total", what):
            done, _ = await asyncio.wait([starting], timeout=0.05)
            assert not done
    await own_stack.broker.start()
    await asyncio.wait_for(starting, 30)
    topic = await make_topic(settings, partitions=1)
    await publisher.publish([OutRecord(topic, b"k", b"v")])
    await publisher.stop()
    assert [record.value for record in await read(settings, topic)] == [b"v"]
