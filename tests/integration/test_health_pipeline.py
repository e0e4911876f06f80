"""A whole pipeline that works is green, whatever it did: nothing is left that looks as if it waited."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from aiokafka import AIOKafkaProducer

from schemas.decode import encode
from schemas.messages import Interaction, Item
from stream_app.app import Tailrace
from stream_app.delivery.connections import kafka_options
from stream_app.health.judging import PROBES
from stream_app.health.state import StreamSeen
from stream_app.settings import Settings
from tests.integration.pipeline import Live, live
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

CONSUMERS = {"catalogue", "items", "ranker", "interactions", "interactions users.v1"}


def streams(tailrace: Tailrace) -> dict[str, StreamSeen]:
    return {stream.name: stream for role in tailrace._look().roles for stream in role.streams}


async def nothing_waits(running: Live) -> dict[str, StreamSeen]:
    """What is seen of every consumer once all is done: a look that finds nothing waiting."""

    def done() -> dict[str, StreamSeen] | None:
        seen = streams(running.tailrace)
        waits = [one for one in seen.values() if one.unread or one.undone]
        return None if waits else seen

    found = await eventually(done, timeout_s=30, interval_s=0.1, what=f"nothing waits: {streams(running.tailrace)}")
    assert found is not None
    return found


def green(tailrace: Tailrace) -> bool:
    return all(tailrace.health.report(probe)[0] for probe in PROBES)


@pytest.mark.model
async def test_every_role_is_green_while_it_works_and_nothing_waits_in_the_end(settings: Settings) -> None:
    settings = settings.model_copy(update={"health": settings.health.model_copy(update={"interval_s": 0.1})})
    async with live(settings) as running:
        await eventually(lambda: green(running.tailrace), what="green from the start")
        assert streams(running.tailrace).keys() == CONSUMERS
        for number in range(5):
            await running.item(f"i{number}")
        await running.put(running.topics.items, b"broken", b"not json")
        await running.put(running.topics.rules, b"broken", b"not json")
        await running.indexed(5, timeout_s=150)
        # Of topics that are apart, either may come first: the last slate is to be the purchase's.
        await running.slate_after("ann", await running.profile("ann", interests=["lamps"]))
        for number in range(5):
            await running.event("ann", f"i{number}")
        await running.put(running.topics.interactions, b"ann", b"not json")
        place = await running.event("ann", "i0", "purchase")
        await running.slate_after("ann", place)
        await nothing_waits(running)
        await eventually(
            lambda: all(stream.done > 0 for stream in streams(running.tailrace).values()),
            what="each has acknowledged something",
        )
        assert green(running.tailrace)
        ok, told = running.tailrace.health.report("ready")
        assert ok
        assert "0 records behind" in told["checks"]["replica"]["detail"]


async def test_a_process_that_stands_by_without_partitions_is_ready_and_one_that_leaves_is_not(
    settings: Settings,
) -> None:
    settings = settings.model_copy(update={"health": settings.health.model_copy(update={"interval_s": 0.1})})
    async with live(settings, ["ranker"]) as one, live(settings, ["ranker"]) as other:
        both = (one.tailrace, other.tailrace)
        await eventually(lambda: all(map(green, both)), timeout_s=60, what="both are green")

        def partitions() -> list[int]:
            return sorted(len(tailrace.agents[0].places()) for tailrace in both)

        await eventually(lambda: partitions() == [0, 1], what="one of them has the partition")
        await eventually(lambda: all(map(green, both)), timeout_s=60, what="both are green with that")
    assert not green(one.tailrace)
    assert not one.tailrace.health.report("ready")[0]


@pytest.mark.kafka
async def test_the_markers_of_a_producers_transactions_are_not_taken_for_records_that_wait(settings: Settings) -> None:
    settings = settings.model_copy(update={"health": settings.health.model_copy(update={"interval_s": 0.1})})
    async with live(settings, ["interactions"]) as running:
        producer = AIOKafkaProducer(**kafka_options(settings), transactional_id=settings.topics.prefix)
        await producer.start()
        try:
            async with producer.transaction():
                event = Interaction(
                    event_id="e", user_id="ann", type="click", item_id="i", occurred_at=datetime.now(UTC)
                )
                place = await producer.send_and_wait(running.topics.interactions, encode(event), key=b"ann")
                await producer.send_and_wait(running.topics.items, encode(Item(item_id="i", title="lamp")), key=b"i")
        finally:
            await producer.stop()
        await running.slate_after("ann", place)
        await eventually(
            lambda: running.tailrace._ends.known.get(place.topic_partition) == place.offset + 2,
            what="the marker is the last offset of the partition, and the broker has said so",
        )
        await nothing_waits(running)
        replica = running.tailrace.replica
        assert replica is not None
        await eventually(lambda: len(replica.serving.catalogue) == 1, what="the item is there")
        await eventually(lambda: not running.tailrace.health._state.pending, what="the replica is not behind")
        assert green(running.tailrace)
