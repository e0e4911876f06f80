"""Faust as we use it, on a real broker: order, natural batches, and nothing acknowledged but what we acknowledge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stream_app.agents.base import Agent
from stream_app.delivery.connections import kafka_options
from stream_app.delivery.publisher import Publisher
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from tests.integration.consuming import committed, quick, sending
from tests.stacks import Stack
from tests.waiting import eventually


class Probe(Agent):
    """Notes what it is given; acknowledges what it is told to."""

    role = "probe"

    def __init__(self, settings: Settings, wanted: Callable[[int, int], bool] = lambda partition, offset: True) -> None:
        metrics = Metrics()
        super().__init__(settings, Publisher(settings, metrics), metrics)
        self.wanted = wanted
        self.batches: list[list[Any]] = []
        self.rebalances = 0
        self.free = asyncio.Event()
        self.free.set()

    @property
    def topic(self) -> str:
        return f"{self.settings.topics.prefix}.probe"

    @property
    def seen(self) -> list[Any]:
        return [event.message for batch in self.batches for event in batch]

    def of(self, partition: int) -> list[int]:
        return [message.offset for message in self.seen if message.partition == partition]

    async def partitions_changed(self) -> None:
        self.rebalances += 1

    async def handle(self, events: Sequence[Any]) -> None:
        await self.free.wait()
        self.batches.append(list(events))
        for event in events:
            if self.wanted(event.message.partition, event.message.offset):
                event.ack()


@asynccontextmanager
async def running(agent: Probe) -> AsyncIterator[Probe]:
    await agent.start()
    try:
        yield agent
        assert not agent.failed.done(), agent.failed
    finally:
        await agent.stop()


async def make_topic(settings: Settings, partitions: int) -> None:
    admin = AIOKafkaAdminClient(**kafka_options(settings))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(f"{settings.topics.prefix}.probe", partitions, 1)])
    finally:
        await admin.close()


async def produce(settings: Settings, count: int, *, partitions: int = 1, start: int = 0) -> None:
    async with sending(settings) as producer:
        places = [
            await producer.send(f"{settings.topics.prefix}.probe", b"%d" % number, partition=number % partitions)
            for number in range(start, start + count)
        ]
        await asyncio.gather(*places)


def delivered(agent: Probe) -> list[int]:
    """The last offset of each partition that is in the agent's buffer or beyond."""
    return sorted(offset for offset in agent._app.consumer._read_offset.values() if offset is not None)


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    return quick(stack, topic_prefix, delivery={"commit_interval_s": 0.1, "batch": 50})


async def test_each_partition_comes_in_order_once_in_batches_of_what_queued_up(settings: Settings):
    await make_topic(settings, 3)
    await produce(settings, 900, partitions=3)
    agent = Probe(settings)
    agent.free.clear()
    async with running(agent):
        await eventually(lambda: delivered(agent) == [299, 299, 299], what="everything is buffered")
        agent.free.set()
        await eventually(lambda: len(agent.seen) >= 900, what="900 records")
        for partition in range(3):
            assert agent.of(partition) == list(range(300))
        assert max(len(batch) for batch in agent.batches) == 50
        assert len(agent.batches) < 300, "not one by one"
        assert [int(m.value) for m in agent.seen if m.partition == 1] == list(range(1, 900, 3))
        await eventually(lambda: agent.lag() == 0, what="no lag")
        await produce(settings, 1, partitions=3)
        await eventually(lambda: len(agent.seen) == 901, what="a single record is a batch")
        assert len(agent.batches[-1]) == 1


async def test_what_is_not_acknowledged_is_delivered_again_from_there_and_the_rest_is_committed_at_stop(
    settings: Settings,
):
    await make_topic(settings, 2)
    await produce(settings, 40, partitions=2)
    topic = f"{settings.topics.prefix}.probe"
    nothing = Probe(settings, lambda partition, offset: False)
    async with running(nothing):
        await eventually(lambda: len(nothing.seen) == 40)
    assert await committed(settings, topic, "probe", 0) == 0
    assert await committed(settings, topic, "probe", 1) == 0

    # Partition 0 up to offset 12 and, beyond a gap, what must not count; partition 1 whole.
    some = Probe(settings, lambda partition, offset: partition == 1 or offset != 13)
    async with running(some):
        await eventually(lambda: len(some.seen) == 40)
    assert some.of(0) == list(range(20)), "everything is delivered again"
    assert await committed(settings, topic, "probe", 0) == 13
    assert await committed(settings, topic, "probe", 1) == 20

    rest = Probe(settings)
    async with running(rest):
        await eventually(lambda: len(rest.seen) == 7)
        await produce(settings, 2, partitions=2, start=100)
        await eventually(lambda: len(rest.seen) == 9)
    assert rest.of(0) == list(range(13, 21))
    assert rest.of(1) == [20]
    assert await committed(settings, topic, "probe", 0) == 21
    assert await committed(settings, topic, "probe", 1) == 21


async def test_acknowledged_offsets_are_committed_while_running(settings: Settings):
    await make_topic(settings, 1)
    await produce(settings, 10)
    async with running(Probe(settings)):

        async def done() -> bool:
            return await committed(settings, f"{settings.topics.prefix}.probe", "probe") == 10

        await eventually(done, interval_s=0.1)


async def test_a_record_that_makes_the_agent_fail_is_not_acknowledged_and_the_failure_is_told(settings: Settings):
    await make_topic(settings, 1)
    await produce(settings, 5)

    def wanted(partition: int, offset: int) -> bool:
        if offset == 3:
            raise RuntimeError("boom")
        return True

    agent = Probe(settings, wanted)
    await agent.start()
    try:
        done, _ = await asyncio.wait([agent.failed], timeout=20)
        assert done
        with pytest.raises(RuntimeError, match="boom"):
            agent.failed.result()
    finally:
        await agent.stop()
    assert await committed(settings, agent.topic, "probe") <= 3


async def test_two_processes_share_the_partitions_and_one_that_leaves_hands_over_without_loss_or_repetition(
    settings: Settings,
):
    await make_topic(settings, 4)
    await produce(settings, 40, partitions=4)
    one, other = Probe(settings), Probe(settings)
    async with running(one):
        await eventually(lambda: len(one.seen) == 40)
        async with running(other):
            await eventually(
                lambda: len(one.assignment()) == len(other.assignment()) == 2, timeout_s=30, what="two each"
            )
            assert one.assignment() | other.assignment() == {0, 1, 2, 3}
            assert one.rebalances >= 2, "told when partitions were taken and given"
            await produce(settings, 40, partitions=4, start=40)
            await eventually(lambda: len(one.seen) + len(other.seen) >= 80, what="80 records")
        await eventually(lambda: len(one.assignment()) == 4, timeout_s=30, what="all back")
        await produce(settings, 40, partitions=4, start=80)
        await eventually(lambda: len(one.seen) + len(other.seen) >= 120, what="120 records")
        values = sorted(int(message.value) for message in [*one.seen, *other.seen])
        assert values == list(range(120))
        for agent in (one, other):
            for partition in range(4):
                assert agent.of(partition) == sorted(agent.of(partition))


async def test_null_keys_values_and_headers_arrive_as_they_are(settings: Settings):
    await make_topic(settings, 1)
    agent = Probe(settings)
    async with sending(settings) as producer:
        await producer.send_and_wait(agent.topic, b"\xff\xfe", key=None, headers=[("h", b"1"), ("h", b"2")])
        await producer.send_and_wait(agent.topic, None, key=b"\xff")
    async with running(agent):
        await eventually(lambda: len(agent.seen) == 2)
        first, second = agent.seen
        assert (first.key, first.value, list(first.headers)) == (None, b"\xff\xfe", [("h", b"1"), ("h", b"2")])
        assert (second.key, second.value) == (b"\xff", None)
        assert 1.6e9 < first.timestamp < 1e10, "seconds"
