"""What the pipeline takes for granted of any broker and Redis: the same on every stack."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis

from stream_app.settings import Settings
from tests.stacks import Stack
from tests.waiting import eventually


async def create_topic(settings: Settings, name: str, *, partitions: int = 1) -> str:
    topic = f"{settings.topics.prefix}.{name}"
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=1)])
    finally:
        await admin.close()
    return topic


async def test_settings_of_a_test_lead_to_the_stack(stack: Stack, settings: Settings) -> None:
    assert settings.kafka == stack.kafka
    assert settings.redis.get_secret_value() == stack.redis


async def test_headers_null_keys_and_null_values_arrive_as_sent(settings: Settings) -> None:
    topic = await create_topic(settings, "anything")
    sent = [
        (b"key", b"value", [("ce_id", b"1"), ("ce_type", b"x"), ("ce_id", b"2")]),
        (b"key", None, [("ce_id", b"3")]),
        (None, b"value", []),
        (b"", b"", [("empty", b"")]),
    ]
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka)
    await producer.start()
    try:
        for key, value, headers in sent:
            await producer.send_and_wait(topic, value, key=key, headers=headers)
    finally:
        await producer.stop()
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=settings.kafka,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=settings.connection.fetch_max_wait_ms,
    )
    await consumer.start()
    try:
        async with asyncio.timeout(20):
            received = [await consumer.getone() for _ in sent]
    finally:
        await consumer.stop()
    assert [(record.key, record.value, list(record.headers)) for record in received] == sent
    assert [record.offset for record in received] == [0, 1, 2, 3]


async def test_a_group_goes_on_where_it_committed(stack: Stack, settings: Settings) -> None:
    # The embedded broker lets a group form after half its session timeout, and a second time after much more;
    # Apache Kafka refuses less than six seconds.
    session_timeout_ms = 6_000 if stack.is_apache_kafka else 1_000
    topic = await create_topic(settings, "committed")
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka)
    await producer.start()
    for number in range(10):
        await producer.send_and_wait(topic, str(number).encode())
    await producer.stop()

    async def read(count: int) -> list[bytes | None]:
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=settings.kafka,
            group_id=f"{settings.topics.prefix}-group",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=session_timeout_ms,
            heartbeat_interval_ms=session_timeout_ms // 5,
            fetch_max_wait_ms=settings.connection.fetch_max_wait_ms,
        )
        await consumer.start()
        try:
            async with asyncio.timeout(30):
                records = [await consumer.getone() for _ in range(count)]
            await consumer.commit({TopicPartition(topic, 0): records[-1].offset + 1})
        finally:
            await consumer.stop()
        return [record.value for record in records]

    assert await read(4) == [b"0", b"1", b"2", b"3"]
    assert await read(6) == [b"4", b"5", b"6", b"7", b"8", b"9"]


async def test_redis_runs_scripts_and_expires(settings: Settings) -> None:
    key = f"{settings.topics.prefix}:key"
    async with Redis.from_url(settings.redis.get_secret_value()) as redis:
        assert await redis.eval("return redis.call('SET', KEYS[1], ARGV[1], 'PX', 50)", 1, key, b"value")

        async def gone() -> bool:
            return not await redis.exists(key)

        await eventually(gone, what="the key expires")


@pytest.mark.kafka
async def test_a_topic_nobody_created_is_an_error(settings: Settings) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka)
    await admin.start()
    try:
        (description,) = await admin.describe_topics([f"{settings.topics.prefix}.undeclared"])
        assert description["error_code"] == 3  # UNKNOWN_TOPIC_OR_PARTITION
    finally:
        await admin.close()
