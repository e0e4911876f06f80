"""Another model takes over while events come: no slate is lost or mixed, and whoever is killed starts in one space."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.arrays import pack_float32
from schemas.decode import encode
from schemas.messages import ItemVector, ModelSpace, SpaceControl
from stream_app.adapters.file import AdapterFile
from stream_app.delivery.admin import create_topics
from stream_app.delivery.publisher import OutRecord
from stream_app.delivery.reading import read_to_end
from stream_app.errors import SpaceError, TailraceError
from stream_app.images.pool import FusedPool
from stream_app.replicas.spaces import write_control
from stream_app.settings import Settings
from stream_app.space_comparison import compare_spaces
from stream_app.space_operations import (
    Progress,
    build_space,
    cut_over_to,
    delete_left_over,
    follow_build,
    hindrances,
    left_over,
    present_control,
    retire_space,
    roll_back_space,
)
from stream_app.topics import Topics
from tests.checkpoints import make_bert
from tests.integration.consuming import publishing
from tests.integration.pipeline import Live, live
from tests.unit.test_adapted_pool import TRAINING, an_adapter
from tests.waiting import eventually
from workers.models import describe_model

WORDS = ("lamp", "rope", "cup", "novel", "drill", "violin", "tent", "bread", "scarf", "clock")
ITEMS = 60


@pytest.fixture(name="settings")
def _settings(settings: Settings) -> Settings:
    # More than half of the items: so the space is fitted once, however soon the first vectors come.
    spaces = settings.spaces.model_copy(update={"first_items": ITEMS // 2 + 10, "check_interval_s": 0.05})
    return settings.model_copy(update={"spaces": spaces})


@pytest.fixture(name="other", scope="module")
def _other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "other")


def served(pipeline: Live) -> str:
    assert pipeline.tailrace.replica is not None
    return pipeline.tailrace.replica.serving.versions.space


async def complete(settings: Settings, space: ModelSpace) -> Progress:
    """How far the space is when it has everything that it needs to be served."""
    async with asyncio.timeout(90), aclosing(follow_build(settings, space)) as told:
        async for progress in told:
            if progress.complete and progress.items and not await hindrances(settings, space):
                return progress
    raise AssertionError("never complete")


@asynccontextmanager
async def shop(settings: Settings) -> AsyncIterator[Live]:
    async with live(settings) as pipeline:
        for number in range(ITEMS):
            await pipeline.item(f"i{number}", f"{WORDS[number % 10]} {WORDS[number // 10]}")
        await pipeline.indexed(ITEMS)
        await eventually(lambda: "+w" in served(pipeline), timeout_s=60, what="a fitted space")
        for number in range(12):  # so that factors are learned
            place = await pipeline.event(f"u{number % 3}", f"i{number}")
        await pipeline.slate_after("u2", place)
        yield pipeline


async def test_a_model_is_built_beside_served_rolled_back_and_retired(settings: Settings, other: Path) -> None:
    topics = Topics(settings)
    async with shop(settings) as pipeline:
        first = served(pipeline)
        space = await build_space(settings, {"model": str(other)})
        assert (space.number, space.dimensions) == (1, 32)
        with pytest.raises(SpaceError, match="there already"):
            await build_space(settings, {"model": str(other)})
        progress = await complete(settings, space)
        assert progress.items == ITEMS
        assert served(pipeline) == first
        compared = await compare_spaces(settings, space, count=1_000, show=2)
        assert compared.items == ITEMS
        assert 0.0 < compared.overlap < 1.0
        # While it is built and afterwards, what changes in the catalogue changes in both.
        await pipeline.item("i3", "an entirely other thing")
        await pipeline.put(topics.items, b"i4", None)
        assert (await complete(settings, space)).items in (ITEMS, ITEMS - 1)

        await cut_over_to(settings, space.space)
        await eventually(lambda: served(pipeline).startswith(space.space), timeout_s=60, what="the cut-over")
        assert "+w" in served(pipeline), "it was fitted before"
        replica = pipeline.tailrace.replica
        assert replica is not None
        assert replica.serving.index.dimensions == 32
        slate = await pipeline.slate_after("u0", await pipeline.event("u0", "i7", kind="search", text="a warm light"))
        assert slate.versions.space == served(pipeline)
        assert slate.items
        learned = replica.serving.factors.learned.sum()
        assert learned > 0, "what was learned is there still"
        # New items are embedded in the new space, and learning goes on.
        await pipeline.item("fresh", "violin bread")
        row = await eventually(lambda: replica.serving.catalogue.row("fresh") + 1, what="the new item")
        await eventually(lambda: replica.serving.index.has(row - 1).all(), timeout_s=60, what="its vector")
        place = await pipeline.event("u1", "fresh")
        await pipeline.slate_after("u1", place)
        await eventually(lambda: replica.serving.factors.learned[row - 1], timeout_s=60, what="its factors")
        assert replica.serving.frame == first.partition("+")[0]

        back = await roll_back_space(settings)
        assert first.startswith(back.serving)
        await eventually(lambda: served(pipeline).startswith(back.serving), timeout_s=60, what="the way back")
        await eventually(lambda: len(replica.serving.index) == ITEMS, timeout_s=60, what="the new item, here too")
        assert replica.serving.factors.learned[row - 1]
        with pytest.raises(SpaceError, match="is served"):
            await retire_space(settings, "0")
        await retire_space(settings, "1")
        await eventually(lambda: not replica.serving.beside, what="it is gone here")
        slate = await pipeline.slate_after("u2", await pipeline.event("u2", "i9"))
        assert slate.versions.space == served(pipeline)
        with pytest.raises(TailraceError, match=r"vectors\.v1\.1"):
            async for _ in read_to_end(settings, topics.vectors_of(1), patience_s=2.0):
                pass
        again = await build_space(settings, {"model": str(other)})
        assert again.number == 2
        await complete(settings, again)
        assert not await pipeline.dead_letters(0)


async def test_who_starts_after_the_cut_over_starts_in_the_new_space(settings: Settings, other: Path) -> None:
    async with shop(settings):
        space = await build_space(settings, {"model": str(other)})
        await complete(settings, space)
    # Nobody runs when it is said.
    await cut_over_to(settings, space.space)
    async with live(settings) as pipeline:
        await pipeline.indexed(ITEMS)
        assert served(pipeline).startswith(space.space)
        slate = await pipeline.slate_after("v", await pipeline.event("v", "i7"))
        assert slate.versions.space == served(pipeline)
        assert slate.items
    # From its snapshot.
    async with live(settings) as pipeline:
        assert served(pipeline).startswith(space.space)
        slate = await pipeline.slate_after("w", await pipeline.event("w", "i8"))
        assert slate.items
    # The first space goes: the catalogue is checked as before, and vectors are made in the other one alone.
    await retire_space(settings, "0")
    async with live(settings) as pipeline:
        await pipeline.put(pipeline.topics.items, b"bad", b"{}")
        (letter,) = await pipeline.dead_letters(1)
        assert letter.reason == "missing_field"
        await pipeline.item("late", "cup of bread")
        await pipeline.indexed(ITEMS + 1)
    # The record counts, and not what the settings still name.
    gone = settings.encoder.model_copy(update={"model": "/models/gone"})
    async with live(settings.model_copy(update={"encoder": gone})) as pipeline:
        await pipeline.indexed(ITEMS + 1)
        assert served(pipeline).startswith(space.space)


class Stopped(Exception):
    """Where a test ends an operation between two steps."""


async def stopped(*_: object, **__: object) -> None:
    raise Stopped


async def test_a_build_that_was_ended_before_its_record_leaves_what_nobody_takes_over(
    settings: Settings, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = Topics(settings)
    await create_topics(settings)
    with monkeypatch.context() as patch:
        patch.setattr("stream_app.space_operations.write_control", stopped)
        with pytest.raises(Stopped):
            await build_space(settings, {"model": str(other)})
    assert await left_over(settings) == [1]
    stale = ItemVector(item_id="i0", space="s", text_hash="h", dimensions=1, vector=pack_float32(np.ones(1)))
    async with publishing(settings, topics=False) as publisher:
        await publisher.publish([OutRecord(topics.vectors_of(1), b"i0", encode(stale))])
    space = await build_space(settings, {"model": str(other)})
    assert space.number == 2
    assert not [record async for record in read_to_end(settings, topics.vectors_of(2), patience_s=20)]
    assert await left_over(settings) == [1]
    monkeypatch.setattr("stream_app.space_operations._RECORDED_WITHIN_S", 0.5)
    await delete_left_over(settings, 1)
    assert await left_over(settings) == []
    with pytest.raises(SpaceError, match="space 2 is kept"):
        await delete_left_over(settings, 2)


async def test_a_build_that_goes_on_keeps_its_topic(
    settings: Settings, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_topics(settings)
    writing, goes_on = asyncio.Event(), asyncio.Event()

    async def later(*arguments: Any, **named: Any) -> None:
        writing.set()
        await goes_on.wait()
        await write_control(*arguments, **named)

    monkeypatch.setattr("stream_app.space_operations.write_control", later)
    building = asyncio.create_task(build_space(settings, {"model": str(other)}))
    await writing.wait()

    async def looked(settings: Settings) -> tuple[SpaceControl, int]:
        found = await present_control(settings)
        goes_on.set()
        return found

    monkeypatch.setattr("stream_app.space_operations._RECORDED_WITHIN_S", 60.0)
    monkeypatch.setattr("stream_app.space_operations.present_control", looked)
    deleting = asyncio.create_task(delete_left_over(settings, 1))
    assert (await building).number == 1
    with pytest.raises(SpaceError, match="space 1 is kept"):
        await deleting


async def test_what_a_retirement_that_was_ended_after_its_record_leaves_can_be_deleted(
    settings: Settings, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = Topics(settings)
    await create_topics(settings)
    space = await build_space(settings, {"model": str(other)})
    key, vector = space.space.encode(), pack_float32(np.ones(space.dimensions))
    message = ItemVector(item_id="i0", space=space.space, text_hash="h", dimensions=space.dimensions, vector=vector)
    async with publishing(settings, topics=False) as publisher:
        await publisher.publish(
            [OutRecord(topics.vectors_of(1), b"i0", encode(message)), OutRecord(topics.spaces, key, b"{}")]
        )
    with monkeypatch.context() as patch:
        patch.setattr("stream_app.space_operations._forget", stopped)
        with pytest.raises(Stopped):
            await retire_space(settings, "1")
    with pytest.raises(SpaceError, match="none of the spaces"):
        await retire_space(settings, "1")
    assert await left_over(settings) == [1]
    monkeypatch.setattr("stream_app.space_operations._RECORDED_WITHIN_S", 0.5)
    await delete_left_over(settings, 1)
    assert await left_over(settings) == []
    fits = [record async for record in read_to_end(settings, topics.spaces, patience_s=20)]
    assert [(record.key, record.value) for record in fits][-1] == (key, None), "built again it is fitted again"
    assert (await build_space(settings, {"model": str(other)})).number == 2


async def test_while_the_model_is_built_and_served_every_event_has_its_slate(settings: Settings, other: Path) -> None:
    async with shop(settings) as pipeline:
        before = served(pipeline)
        stop = asyncio.Event()
        spaces: dict[str, list[str]] = {f"v{number}": [] for number in range(5)}

        async def shoppers() -> int:
            count = 0
            while not stop.is_set():
                places = [(user, await pipeline.event(user, f"i{count % ITEMS}")) for user in spaces]
                for user, place in places:
                    slate = await pipeline.slate_after(user, place)
                    assert slate.items
                    spaces[user].append(slate.versions.space)
                    count += 1
            return count

        shopping = asyncio.create_task(shoppers())
        space = await build_space(settings, {"model": str(other)})
        await complete(settings, space)
        await cut_over_to(settings, space.space)
        await eventually(lambda: served(pipeline).startswith(space.space), timeout_s=60, what="the cut-over")
        seen = len(spaces["v4"])
        await eventually(lambda: len(spaces["v4"]) > seen + 2 or shopping.done(), what="slates in the new space")
        stop.set()
        assert await shopping == sum(map(len, spaces.values())) > 20
        # Of each user: partitions are ranked and published beside each other, and are not ordered among themselves.
        for names in spaces.values():
            models = [name.partition("+")[0] for name in names]
            changes = [pair for pair in pairwise(models) if pair[0] != pair[1]]
            assert changes == [(before.partition("+")[0], space.space)], "once, and not back and forth"


async def test_a_model_that_is_not_here_stops_nothing(settings: Settings, other: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.symlink_to(other)
    async with shop(settings) as pipeline:
        before = served(pipeline)
        space = await build_space(settings, {"model": str(gone)})
        await complete(settings, space)
        replica, encoders = pipeline.tailrace.replica, pipeline.tailrace.encoders
        assert replica is not None
        assert encoders is not None
        refused = asyncio.Event()
        prepare = replica.prepare

        async def tried(wanted: ModelSpace) -> None:
            assert prepare is not None
            try:
                await prepare(wanted)
            except TailraceError:
                refused.set()
                raise

        replica.prepare = tried
        await encoders._end(space.space)
        gone.unlink()
        await cut_over_to(settings, space.space)
        async with asyncio.timeout(60):
            await refused.wait()
        slate = await pipeline.slate_after("u0", await pipeline.event("u0", "i7"))
        assert slate.versions.space == before
        gone.symlink_to(other)
        await eventually(lambda: served(pipeline).startswith(space.space), timeout_s=60, what="it is here again")


async def test_an_adapter_is_served_and_no_text_is_embedded_for_it(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    AdapterFile(adapter=an_adapter(), base_space=describe_model("minilm").space, training=TRAINING).save(path)
    async with shop(settings) as pipeline:
        space = await build_space(settings, {"adapter": str(path)})
        await complete(settings, space)
        assert pipeline.tailrace.encoders is not None
        pool = pipeline.tailrace.encoders.pool(space, "test")
        assert pool.space == space.space
        assert (pool.text.stats if isinstance(pool, FusedPool) else pool.stats).texts_encoded == 0
        await cut_over_to(settings, space.space)
        await eventually(lambda: served(pipeline) == space.space, timeout_s=60, what="the cut-over")
        slate = await pipeline.slate_after("u0", await pipeline.event("u0", "i7", kind="search", text="a warm light"))
        assert slate.versions.space == space.space
        assert slate.items
