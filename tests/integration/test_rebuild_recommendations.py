"""``tailrace rebuild recommendations`` with owners on a real broker and Redis."""

from __future__ import annotations

import asyncio

import pytest

from schemas.decode import decode_slate
from schemas.messages import Slate, User
from stream_app.delivery.admin import create_topics
from stream_app.delivery.reading import read_to_end
from stream_app.rebuild.recommendations import remake_slates
from stream_app.settings import Settings
from stream_app.stores.requests import SlateRebuild, SlateRebuilds
from stream_app.stores.users import connect_redis
from stream_app.topics import Topics
from tests.integration.pipeline import live
from tests.integration.test_rebuild_users import caught_up, make_events, produce
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.timeout(180)]


async def slates(settings: Settings) -> dict[str, Slate]:
    found: dict[str, Slate] = {}
    async for record in read_to_end(settings, Topics(settings).recommendations):
        user_id, slate = decode_slate(record.key, record.value, record.headers)
        if slate is None:
            found.pop(user_id, None)  # perhaps forgotten before there was one
        else:
            found[user_id] = slate
    return found


async def test_every_standing_slate_is_made_again_by_its_owner(settings: Settings) -> None:
    settings = settings.model_copy(
        update={
            "delivery": settings.delivery.model_copy(update={"commit_interval_s": 0.2}),
            "encoder": settings.encoder.model_copy(update={"eager": False}),
            "users": settings.users.model_copy(update={"cache": 2, "unpacked": 1}),
        }
    )
    await create_topics(settings)
    redis = connect_redis(settings)
    rebuilds = SlateRebuilds(redis, settings)
    told: list[tuple[int, int]] = []

    async def remake(quiet_s: float, **options: bool) -> tuple[int, list[str]]:
        return await remake_slates(
            settings, rebuilds, users_per_s=1_000, quiet_s=quiet_s, tell=lambda *now: told.append(now), **options
        )

    try:
        async with live(settings, ["interactions"]) as running:
            await produce(settings, [*make_events(1, 9, 60), User(user_id="new", language="zh"), "user-3"])
            await caught_up(settings)
            before = await slates(settings)
            assert len(before) == 9
            new, old = await remake(30.0, dry_run=True)
            assert (new, set(old)) == (0, before.keys())
            assert await rebuilds.asked() is None

            assert await remake(30.0) == (9, [])
            assert told[-1] == (9, 9)
            after = await slates(settings)
            assert after.keys() == before.keys()
            for user_id, slate in after.items():
                assert slate.slate_id == f"rebuilt-{slate.trigger.partition}-{slate.trigger.offset}"
                assert slate.trigger.topic == Topics(settings).recommendations
                assert slate.generated_at > before[user_id].generated_at
            assert await rebuilds.asked() is None
            assert running.tailrace.metrics.registry.get_sample_value("tailrace_slates_rebuilt_total") == 9

            # Whose state is lost keeps the slate. Two who ask at once are asking for one thing.
            await redis.delete(f"{settings.topics.prefix}:user:user-1")
            (one, two) = await asyncio.gather(remake(6.0), remake(6.0))
            assert one == two == (8, ["user-1"])
            assert (await slates(settings))["user-1"] == after["user-1"]
            assert await rebuilds.take_back()
            assert not await rebuilds.take_back()

            # A request nobody understands harms nobody.
            await redis.set(f"{settings.topics.prefix}:rebuild:recommendations", b'{"of": "a later release"}')
            assert await rebuilds.asked() is None
            await produce(settings, make_events(3, 2, 4))
            await caught_up(settings)
            assert running.tailrace.agents[0].failed.done() is False
    finally:
        await redis.aclose()


async def test_owners_take_it_up_after_they_start(settings: Settings) -> None:
    settings = settings.model_copy(update={"encoder": settings.encoder.model_copy(update={"eager": False})})
    await create_topics(settings)
    redis = connect_redis(settings)
    rebuilds = SlateRebuilds(redis, settings)
    try:
        async with live(settings, ["interactions"]):
            await produce(settings, make_events(1, 4, 20))
            await caught_up(settings)
        before = await slates(settings)
        ends = dict.fromkeys(range(settings.topics.partitions), 1_000)
        await rebuilds.ask(SlateRebuild("asked-before", ends, 100.0))
        async with live(settings, ["interactions"]):

            async def made_again() -> bool:
                now = await slates(settings)
                return all(now[user_id].generated_at > slate.generated_at for user_id, slate in before.items())

            await eventually(made_again, timeout_s=30, interval_s=0.2, what="new slates")
    finally:
        await redis.aclose()
