"""Where topics end, as health asks for it: as they grow, without those that are gone, and when nobody answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka import TopicPartition

from stream_app.delivery.admin import create_topics
from stream_app.embedded import EmbeddedStack
from stream_app.health.ends import Ends
from stream_app.settings import Settings, load_settings
from stream_app.topics import Topics
from tests.integration.consuming import quick, sending
from tests.stacks import Stack
from tests.waiting import eventually


@asynccontextmanager
async def asking(ends: Ends) -> AsyncIterator[Ends]:
    task = asyncio.create_task(ends.watch())
    try:
        yield ends
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def prepared(stack: Stack, prefix: str) -> Settings:
    return quick(stack, prefix, topics={"prefix": prefix, "partitions": 2}, health={"interval_s": 0.05})


async def test_it_knows_the_ends_of_what_is_wanted_now_and_follows_them(stack: Stack, topic_prefix: str):
    settings = prepared(stack, topic_prefix)
    await create_topics(settings)
    topics = Topics(settings)
    items, rules = TopicPartition(topics.items, 0), TopicPartition(topics.rules, 0)
    wanted: set[TopicPartition] = set()
    async with asking(Ends(settings, lambda: wanted)) as ends, sending(settings) as producer:
        wanted |= {items, rules}
        assert await eventually(lambda: ends.known) == {items: 0, rules: 0}
        for _ in range(3):
            await producer.send_and_wait(topics.items, b"{}", key=b"i", partition=0)
        await eventually(lambda: ends.known.get(items) == 3)
        wanted.remove(rules)
        await eventually(lambda: ends.known.keys() == {items})
        assert ends.away == ""


async def test_a_topic_that_is_not_there_costs_the_others_nothing_and_is_not_made(stack: Stack, topic_prefix: str):
    settings = prepared(stack, topic_prefix)
    await create_topics(settings)
    there, not_there = TopicPartition(Topics(settings).items, 1), TopicPartition(f"{topic_prefix}.nothing", 0)
    asked = 0

    def wanted() -> set[TopicPartition]:
        nonlocal asked
        asked += 1
        return {there, not_there}

    async with asking(Ends(settings, wanted)) as ends:
        await eventually(lambda: asked >= 4, what="it asks again and again")
        assert ends.known == {there: 0}
        assert ends.away == ""


async def test_a_broker_that_does_not_answer_is_away_and_asked_again_when_it_is_back(
    own_stack: EmbeddedStack, topic_prefix: str
):
    settings = load_settings(
        **own_stack.settings_overrides(), topics={"prefix": topic_prefix}, health={"interval_s": 0.05}
    )
    async with asking(Ends(settings, set)) as ends:
        own_stack.broker.suspend()
        try:
            await eventually(lambda: ends.away, timeout_s=30, what="it is away")
        finally:
            own_stack.broker.resume()
        await eventually(lambda: ends.away == "", timeout_s=30, what="it answers again")
