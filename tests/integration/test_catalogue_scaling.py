"""The catalogue role scales by starting more: one group, each process with its own encoders; no Redis, no index."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer
from pydantic import SecretStr

from schemas.decode import decode_dead_letter, decode_item_vector, encode
from schemas.messages import DeadLetter, Item
from stream_app.app import Tailrace
from stream_app.delivery.connections import kafka_options
from stream_app.delivery.reading import read_to_end
from stream_app.settings import Settings
from stream_app.topics import Topics
from tests.integration.consuming import sending
from tests.waiting import eventually


@asynccontextmanager
async def catalogue(settings: Settings) -> AsyncIterator[Tailrace]:
    """A process with the catalogue role, as far as one event loop has several."""
    stop = asyncio.Event()
    tailrace = Tailrace(settings, ["catalogue"])
    running = asyncio.create_task(tailrace.run(stop))
    ready = asyncio.create_task(tailrace.ready.wait())
    try:
        await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED, timeout=60)
        assert ready.done(), "not ready within 60 s"
        yield tailrace
    finally:
        ready.cancel()
        stop.set()
        await running


def partitions(tailrace: Tailrace) -> set[int]:
    return tailrace.agents[0].assignment()


def encoded(tailrace: Tailrace) -> int:
    assert tailrace.pool is not None
    return sum(pool.stats.texts_encoded for pool in (tailrace.encoders.pools if tailrace.encoders else []))


async def test_two_processes_share_the_catalogue_and_one_takes_over(settings: Settings, unused_tcp_port: int) -> None:
    settings = settings.model_copy(update={"redis": SecretStr(f"redis://127.0.0.1:{unused_tcp_port}/0")})
    topics = Topics(settings)

    async def embedded() -> set[str]:
        found = set()
        async for record in read_to_end(settings, topics.item_vectors):
            item_id, vector = decode_item_vector(record.key, record.value)
            if vector is not None:
                found.add(item_id)
        return found

    async def send(producer: AIOKafkaProducer, start: int, end: int) -> None:
        for number in range(start, end):
            item = Item(item_id=f"i{number}", title=f"lamp number {number}")
            await producer.send_and_wait(topics.items, encode(item), key=item.item_id.encode())

    async with catalogue(settings) as first:
        producer = AIOKafkaProducer(**kafka_options(settings))
        await producer.start()
        try:
            async with catalogue(settings) as second:
                await eventually(
                    lambda: partitions(first) and partitions(second) and not partitions(first) & partitions(second),
                    timeout_s=60,
                    what="both have partitions",
                )
                await send(producer, 0, 80)

                async def all_there() -> bool:
                    return len(await embedded()) == 80

                await eventually(all_there, timeout_s=90, interval_s=0.5, what="80 vectors")
                assert encoded(first) > 0
                assert encoded(second) > 0
                assert encoded(first) + encoded(second) == 80
            await eventually(lambda: partitions(first) == {0, 1, 2, 3}, timeout_s=60, what="the first has all")
            await send(producer, 80, 100)

            async def the_rest() -> bool:
                return len(await embedded()) == 100

            await eventually(the_rest, timeout_s=60, interval_s=0.5, what="100 vectors")
        finally:
            await producer.stop()


async def test_an_item_that_ends_every_encoder_is_a_dead_letter_and_the_others_are_embedded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real encoder processes, which really end."""
    monkeypatch.setenv("TAILRACE_ENCODER_FAULTS", '{"exit_on": "poison"}')
    topics = Topics(settings)
    titles = {f"i{number}": "poison" if number == 3 else f"lamp number {number}" for number in range(8)}
    async with catalogue(settings) as tailrace, sending(settings) as producer:
        for item_id, title in titles.items():
            message = encode(Item(item_id=item_id, title=title))
            place = await producer.send_and_wait(topics.items, message, key=item_id.encode())
            if title == "poison":
                poison = place

        async def letters() -> list[DeadLetter]:
            records = [record async for record in read_to_end(settings, topics.dead_letter)]
            return [decode_dead_letter(record.value) for record in records]

        (letter,) = await eventually(letters, timeout_s=120, interval_s=0.5, what="the dead letter")
        assert (letter.topic, letter.partition, letter.offset) == (topics.items, poison.partition, poison.offset)
        assert letter.reason == "not_embeddable"
        assert "'i3'" in letter.detail

        async def embedded() -> bool:
            records = [record async for record in read_to_end(settings, topics.item_vectors)]
            return {record.key.decode() for record in records} == titles.keys() - {"i3"}

        await eventually(embedded, timeout_s=60, interval_s=0.5, what="the other vectors")
        assert tailrace.encoders is not None
        (pool,) = tailrace.encoders.pools
        assert pool.stats.restarts >= 3
