"""An item that is withdrawn leaves every slate that shows it, whenever the withdrawal comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from schemas.decode import decode_slate, encode
from schemas.messages import Interaction, Item, Reason, Slate, SlateItem, Trigger, Versions
from stream_app.agents.interactions import InteractionsAgent
from stream_app.ranking.recommender import Recommender
from stream_app.replicas.replica import ItemChange
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.stores.embedding_cache import EmbeddingCache
from stream_app.stores.redis_client import connect_redis
from stream_app.stores.users import UserStore
from stream_app.topics import Topics
from stream_app.users.stage import UserStage
from stream_app.users.state import UserState
from tests.integration.consuming import GatedPublisher, publishing, quick, records, sending
from tests.stacks import Stack
from tests.waiting import eventually
from workers.pool import EncoderPool

ITEMS = [f"i{number}" for number in range(4)]
"""Fewer than a slate has places: every slate shows all of them."""


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    return quick(stack, topic_prefix)


class Rig:
    """An interactions agent over a catalogue without vectors; its encoder is never started."""

    def __init__(self, settings: Settings, agent: InteractionsAgent, serving: ServingState, redis: Any) -> None:
        self.settings = settings
        self.topics = Topics(settings)
        self.agent = agent
        self.serving = serving
        self.redis = redis

    def withdraw(self, item_id: str) -> None:
        """As the replica does it."""
        self.serving.apply_item(item_id, None)
        self.agent.withdraw(ItemChange(item_id, self.topics.items, 0, 77))

    async def slates(self) -> dict[str, Slate]:
        found = {}
        for record in await records(self.settings, self.topics.recommendations):
            user_id, slate = decode_slate(record.key, record.value, record.headers)
            if slate is not None:
                found[user_id] = slate
        return found

    async def shown_without(self, user_id: str, item_id: str) -> Slate:
        """The user's slate, once it does not show the item."""

        async def found() -> Slate | None:
            assert not self.agent.failed.done(), self.agent.failed
            slate = (await self.slates()).get(user_id)
            return slate if slate is not None and item_id not in shown(slate) else None

        slate = await eventually(found, interval_s=0.1, timeout_s=15, what=f"a slate of {user_id} without {item_id}")
        assert slate is not None
        return slate


def shown(slate: Slate) -> set[str]:
    return {item.item_id for item in slate.items}


@asynccontextmanager
async def running(settings: Settings, publisher: GatedPublisher) -> AsyncIterator[Rig]:
    serving = ServingState(settings, space="s", dimensions=8)
    for item_id in ITEMS:
        serving.apply_item(item_id, Item(item_id=item_id, title=item_id))
    redis = connect_redis(settings)
    cache = EmbeddingCache(redis, prefix=settings.topics.prefix, space="s", dimensions=8, ttl_s=60, memory=10)
    metrics = publisher._metrics
    agent = InteractionsAgent(
        settings,
        publisher,
        metrics,
        users=UserStore(redis, settings, metrics),
        stage=UserStage(settings, serving, Recommender(settings, serving)),
        serving=serving,
        pool=EncoderPool(settings.encoder, cache=cache),
    )
    await agent.start()
    try:
        await eventually(lambda: agent.standing_reads and not agent._moved.is_set(), what="the standing slates")
        yield Rig(settings, agent, serving, redis)
        assert not agent.failed.done(), agent.failed
    finally:
        publisher.gate.set()
        await agent.stop()
        await redis.aclose()


async def visit(producer: AIOKafkaProducer, settings: Settings, user_id: str) -> None:
    event = Interaction(event_id="e", user_id=user_id, type="visit", occurred_at=datetime.now(UTC))
    await producer.send_and_wait(Topics(settings).interactions, encode(event), key=user_id.encode())


async def stands(producer: AIOKafkaProducer, settings: Settings, user_id: str) -> None:
    """A slate that another process published."""
    topics = Topics(settings)
    slate = Slate(
        slate_id="s",
        user_id=user_id,
        generated_at=datetime.now(UTC),
        items=[
            SlateItem(item_id=item, rank=rank, score=0.0, sources=[], reason=Reason(code="c"))
            for rank, item in enumerate(ITEMS, 1)
        ],
        trigger=Trigger(topic=topics.interactions, partition=0, offset=0),
        versions=Versions(space="s", index="i", ranker="r"),
    )
    await producer.send_and_wait(topics.recommendations, encode(slate), key=user_id.encode())


async def test_an_item_withdrawn_while_a_slate_with_it_is_on_its_way_leaves_it(settings: Settings):
    async with publishing(settings) as publisher, sending(settings) as producer, running(settings, publisher) as rig:
        publisher.gated_topic = rig.topics.recommendations
        await visit(producer, settings, "u")
        await asyncio.wait_for(publisher.arrived.wait(), 20)
        rig.withdraw("i1")
        await eventually(lambda: not rig.agent._withdrawn, what="the withdrawal was taken up")
        publisher.gate.set()
        slate = await rig.shown_without("u", "i1")
        assert shown(slate) == {"i0", "i2", "i3"}
        assert (slate.trigger.topic, slate.trigger.offset) == (rig.topics.items, 77)


async def test_slates_from_before_this_process_lose_what_was_withdrawn_meanwhile_and_later(settings: Settings):
    async with publishing(settings) as publisher, sending(settings) as producer:
        await stands(producer, settings, "u")
        await producer.send_and_wait(Topics(settings).recommendations, None, key=b"left")
        async with running(settings, publisher) as rig:
            rig.withdraw("i0")
            await rig.shown_without("u", "i0")
            rig.withdraw("i3")
            assert shown(await rig.shown_without("u", "i3")) == {"i1", "i2"}


async def test_slates_of_users_that_another_process_owned_until_now_are_known(settings: Settings):
    async with publishing(settings) as publisher, sending(settings) as producer, running(settings, publisher) as rig:
        await visit(producer, settings, "mine")
        await eventually(lambda: len(rig.agent._showing) == 1, what="my own slate")
        await stands(producer, settings, "theirs")
        await rig.agent.partitions_changed()  # as a rebalance does
        await eventually(lambda: len(rig.agent._showing) == 2, what="the standing slates are read again")
        rig.withdraw("i2")
        for user_id in ("mine", "theirs"):
            await rig.shown_without(user_id, "i2")


async def test_a_user_whose_state_cannot_be_read_does_not_keep_others_from_a_fresh_slate(settings: Settings):
    async with publishing(settings) as publisher, sending(settings) as producer:
        for user_id in ("a", "broken", "z"):
            await stands(producer, settings, user_id)
        async with running(settings, publisher) as rig:
            await rig.redis.hset(f"{settings.topics.prefix}:user:broken", "s", b"\xc1")
            rig.withdraw("i1")
            for user_id in ("a", "z"):
                await rig.shown_without(user_id, "i1")
            rig.withdraw("i2")
            assert shown(await rig.shown_without("z", "i2")) == {"i0", "i3"}


async def test_who_was_forgotten_meanwhile_gets_no_slate_for_a_withdrawal(settings: Settings):
    async with publishing(settings) as publisher, running(settings, publisher) as rig:
        forgotten = UserState("u", applied={0: 3}, forgotten_at=1.0)
        await rig.agent._users.save({"u": forgotten}, partitions={"u": 0})
        # It was decided to rank them again before: the slices of a withdrawal leave room for profiles.
        await rig.agent._replace([("u", "i1"), ("v", "i1")], {"i1": ItemChange("i1", rig.topics.items, 0, 77)})
        assert set(await rig.slates()) == {"v"}
