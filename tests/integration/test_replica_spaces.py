"""A replica and its spaces: it cuts over to what it has read, and to nothing else, whatever topics come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.arrays import pack_float32
from schemas.decode import encode
from schemas.messages import FactorBasis, ItemVector, SpaceControl
from stream_app.delivery.admin import create_vectors_topic, delete_topic, group_lag
from stream_app.delivery.connections import kafka_options
from stream_app.delivery.reading import read_to_end
from stream_app.errors import SettingsError
from stream_app.metrics import Metrics
from stream_app.replicas.replica import Replica
from stream_app.settings import Settings
from stream_app.spaces.control import cut_over, first_control, retire, with_space
from tests.integration.consuming import sending
from tests.integration.test_replica import DIMENSIONS, Shop
from tests.integration.test_replica import settings as settings
from tests.waiting import eventually

AT = datetime(2026, 11, 27, tzinfo=UTC)
ITEMS = 40
FIRST = first_control("s", DIMENSIONS)
OTHER = 6


def built() -> SpaceControl:
    return with_space(FIRST, "other", OTHER, {}, at=AT)


class Spaces(Shop):
    """A shop that writes vectors of another space too."""

    async def other(self, number: int, topic: int = 1) -> None:
        values = np.random.default_rng(number).normal(size=OTHER).astype(np.float32)
        packed = pack_float32(values / np.linalg.norm(values))
        message = ItemVector(item_id=f"i{number}", space="other", text_hash="", dimensions=OTHER, vector=packed)
        await self.put(self.topics.vectors_of(topic), f"i{number}", encode(message))


@asynccontextmanager
async def shop(settings: Settings) -> AsyncIterator[Spaces]:
    async with sending(settings) as producer:
        made = Spaces(settings, producer)
        for number in range(ITEMS):
            await made.item(f"i{number}")
            await made.vector(f"i{number}", number)
        yield made


@asynccontextmanager
async def replica(settings: Settings, control: SpaceControl = FIRST) -> AsyncIterator[Replica]:
    made = Replica(settings, Metrics(), space="s", dimensions=DIMENSIONS, control=control)
    await made.start()
    try:
        await asyncio.wait_for(made.ready.wait(), 30)
        yield made
        assert not made.failed.done(), made.failed
    finally:
        await made.stop()


async def test_told_of_a_space_and_to_serve_it_in_one_it_reads_it_first(settings: Settings) -> None:
    async with shop(settings) as source, replica(settings) as made:
        assert await create_vectors_topic(settings, 1)
        assert not await create_vectors_topic(settings, 1), "it is somebody else's number"
        for number in range(ITEMS):
            await source.other(number)
        made.spaces_changed(cut_over(built(), "other", at=AT))
        await eventually(lambda: made.live.space == "other", timeout_s=30, what="the cut-over")
        assert len(made.serving.index) == ITEMS


async def test_a_basis_that_is_there_when_it_cuts_over_is_in_force_then(settings: Settings) -> None:
    async with shop(settings) as source, replica(settings) as made:
        await create_vectors_topic(settings, 1)
        await source.other(0)
        size = settings.factors.dimensions
        for space, dimensions, frame in (("s", DIMENSIONS, ""), ("other", OTHER, "s")):
            basis = FactorBasis(
                space=space,
                dimensions=dimensions,
                factors=size,
                mean=pack_float32(np.zeros(dimensions)),
                matrix=pack_float32(np.ones(dimensions * size)),
                frame=frame,
            )
            await source.put(source.topics.factor_basis, space, encode(basis))
        made.spaces_changed(cut_over(built(), "other", at=AT))
        await eventually(lambda: made.live.space == "other", timeout_s=30, what="the cut-over")
        assert made.serving.factors.basis is not None
        assert made.serving.frame == "s"


async def test_a_topic_that_is_deleted_does_not_keep_the_others_from_being_read(settings: Settings) -> None:
    async with shop(settings) as source, replica(settings) as made:
        await create_vectors_topic(settings, 1)
        for number in range(ITEMS):
            await source.other(number)
        made.spaces_changed(built())
        await eventually(
            lambda: len(getattr(made.serving.beside.get("other"), "index", ())) == ITEMS, what="it is read"
        )
        # Another build begins while the first is retired: the replica connects again, and the topic is gone.
        await create_vectors_topic(settings, 2)
        await delete_topic(settings, source.topics.vectors_of(1))
        again = with_space(built(), "third", OTHER, {}, at=AT)
        made.spaces_changed(again)
        await eventually(lambda: "third" in made.serving.beside, what="the next one is kept")
        made.spaces_changed(retire(again, "other", at=AT))
        await source.item("late")
        await eventually(lambda: made.serving.catalogue.row("late") >= 0, timeout_s=30, what="the late item")
        await eventually(lambda: "other" not in made.serving.beside, what="it is kept no longer")


async def test_one_that_cannot_serve_the_next_space_goes_on_when_its_own_is_retired(settings: Settings) -> None:
    async with shop(settings) as source:
        await create_vectors_topic(settings, 1)
        await source.other(0)
        served = cut_over(built(), "other", at=AT)
        async with replica(settings, served) as made:
            await create_vectors_topic(settings, 2)

            here = asyncio.Event()

            async def prepare(_: object) -> None:
                if not here.is_set():
                    raise SettingsError("the model is not here")

            made.prepare = prepare
            third = cut_over(with_space(served, "third", OTHER, {}, at=AT), "third", at=AT)
            made.spaces_changed(third)
            await eventually(lambda: "third" in made.serving.beside, what="it is kept")
            made.spaces_changed(retire(third, "other", at=AT))
            await delete_topic(settings, source.topics.vectors_of(1))
            await source.item("late")
            await eventually(lambda: made.serving.catalogue.row("late") >= 0, timeout_s=30, what="the late item")
            assert made.live.space == "other"
            here.set()
            await eventually(lambda: made.live.space == "third", timeout_s=30, what="it can be served now")


async def test_the_lag_of_a_group_is_what_it_has_not_committed(settings: Settings) -> None:
    async with shop(settings) as source:
        place = TopicPartition(source.topics.items, 0)
        ends: dict[int, int] = {}
        async for record in read_to_end(settings, place.topic):
            ends[record.partition] = record.offset + 1
        there = sum(ends.values())
        assert ends[0] > 1
        # A broker may say that a partition ends one record too early.
        assert await group_lag(settings, "nobody", place.topic) in {there, there - len(ends)}
        consumer = AIOKafkaConsumer(**kafka_options(settings), group_id="somebody", enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign([place])
            await consumer.commit({place: 1})
        finally:
            await consumer.stop()
        assert await group_lag(settings, "somebody", place.topic) in {there - 1, there - 1 - len(ends)}


@pytest.mark.parametrize("number", [1, 7])
async def test_deleting_a_topic_that_is_not_there_is_nothing(settings: Settings, number: int) -> None:
    await delete_topic(settings, f"{settings.topics.prefix}.item-vectors.v1.{number}")
