"""The catalogue agent: parts overlap, and what is published and acknowledged keeps its order and its promise."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.decode import encode
from schemas.messages import Item
from stream_app.agents import catalogue as catalogue_module
from stream_app.agents.catalogue import CatalogueAgent
from stream_app.delivery.publisher import OutRecord
from stream_app.errors import EncodeError, PoisonText, Unavailable
from stream_app.metrics import Metrics
from stream_app.settings import Settings, load_settings
from tests.waiting import eventually
from workers.pool import Priority


class Delivered:
    """An event as the engine delivers it; knows whether it was acknowledged."""

    def __init__(self, offset: int, item_id: str, title: str | None) -> None:
        self.topic, self.partition, self.offset = "tailrace.items.v1", 0, offset
        self.key = item_id.encode()
        self.value = None if title is None else encode(Item(item_id=item_id, title=title))
        self.headers: tuple[tuple[str, bytes], ...] = ()
        self.timestamp = 0.0
        self.acked = False

    @property
    def message(self) -> Delivered:
        return self

    def ack(self) -> None:
        self.acked = True


class Pool:
    """Texts that are held up until the test lets them go; ``fails`` is the outcome of texts that contain it."""

    space = "space"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.held: dict[str, asyncio.Event] = {}

    async def encode_items(
        self, texts: Sequence[str], _image_urls: Sequence[str | None]
    ) -> list[NDArray[np.float32] | EncodeError]:
        return await self.encode_each(texts, Priority.CATALOGUE)

    async def encode_each(self, texts: Sequence[str], priority: Priority) -> list[NDArray[np.float32] | EncodeError]:
        assert priority is Priority.CATALOGUE
        self.asked.append(list(texts))
        for word, event in self.held.items():
            if any(word in text for text in texts):
                await event.wait()
        return [PoisonText("it kills") if "poison" in text else np.ones(2, np.float32) for text in texts]


class Broker:
    """What was published, call by call; refuses once ``broken``."""

    def __init__(self) -> None:
        self.published: list[list[OutRecord]] = []
        self.broken = False

    async def publish(self, records: Iterable[OutRecord]) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise Unavailable("gone")
        self.published.append(list(records))

    @property
    def keys(self) -> list[list[str]]:
        return [[(record.key or b"").decode() for record in call] for call in self.published]


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
async def agent(pool: Pool, broker: Broker) -> Any:
    agent = CatalogueAgent(Settings(), broker, Metrics(), pool)  # type: ignore[arg-type]
    yield agent
    await agent.stop()


async def test_the_next_part_is_embedded_while_the_one_before_is_and_published_after_it(
    agent: CatalogueAgent, pool: Pool, broker: Broker
) -> None:
    pool.held["slow"] = asyncio.Event()
    first, second = [Delivered(0, "a", "slow lamp")], [Delivered(1, "a", "lamp"), Delivered(2, "b", "cup")]
    await agent.handle(first)
    await agent.handle(second)
    await eventually(lambda: len(pool.asked) == 2)
    # The newer text of "a" has its vector first. Published now, the older one would come after it, and stay.
    for _ in range(20):
        await asyncio.sleep(0)
    assert broker.published == []
    assert not any(event.acked for event in (*first, *second))
    pool.held["slow"].set()
    await eventually(lambda: second[-1].acked)
    assert broker.keys == [["a"], ["a", "b"]]
    assert first[0].acked


async def test_only_so_many_parts_are_under_way(agent: CatalogueAgent, pool: Pool) -> None:
    pool.held["slow"] = asyncio.Event()
    parts = [[Delivered(number, f"item {number}", f"slow {number}")] for number in range(8)]

    async def deliver() -> None:
        for part in parts:
            await agent.handle(part)

    delivering = asyncio.create_task(deliver())
    await eventually(lambda: len(pool.asked) >= 4)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(pool.asked) == 4  # the others stay in the topic
    pool.held["slow"].set()
    await delivering
    await eventually(lambda: parts[-1][0].acked)
    assert all(event.acked for part in parts for event in part)


async def test_a_part_that_cannot_be_published_fails_the_agent_and_nothing_after_it_is_acknowledged(
    agent: CatalogueAgent, pool: Pool, broker: Broker
) -> None:
    pool.held["slow"] = asyncio.Event()
    first, second = [Delivered(0, "a", "slow lamp")], [Delivered(1, "b", "cup")]
    await agent.handle(first)
    await agent.handle(second)
    broker.broken = True
    pool.held["slow"].set()
    with pytest.raises(Unavailable, match="gone"):
        await asyncio.shield(agent.failed)
    await eventually(lambda: all(part.done() for part in agent._parts))
    assert not first[0].acked
    assert not second[0].acked


async def test_parts_under_way_are_finished_before_the_partitions_move(
    agent: CatalogueAgent, pool: Pool, broker: Broker
) -> None:
    pool.held["slow"] = asyncio.Event()
    old = [Delivered(0, "a", "slow lamp")]
    await agent.handle(old)
    await eventually(lambda: pool.asked)
    moving = asyncio.create_task(agent.before_partitions_move())
    await asyncio.sleep(0)
    assert not moving.done()
    pool.held["slow"].set()
    await moving
    assert broker.keys == [["a"]]
    assert old[0].acked
    assert not agent.failed.done()


async def test_a_part_that_is_not_finished_when_the_partitions_move_is_never_published(
    agent: CatalogueAgent, pool: Pool, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next owner embeds its items again, perhaps from newer texts: ours, coming later, would stay."""
    monkeypatch.setattr(catalogue_module, "_ON_ITS_WAY_S", 0.01)
    pool.held["slow"] = asyncio.Event()
    old, behind = [Delivered(0, "a", "slow lamp")], [Delivered(1, "b", "cup")]
    await agent.handle(old)
    await agent.handle(behind)
    await eventually(lambda: len(pool.asked) == 2)
    await agent.before_partitions_move()
    await agent.partitions_changed()
    pool.held["slow"].set()
    new = [Delivered(5, "a", "lamp")]
    await agent.handle(new)
    await eventually(lambda: new[0].acked)
    assert broker.keys == [["a"]]
    assert not old[0].acked
    assert not behind[0].acked
    assert not agent.failed.done()


async def test_nothing_is_begun_while_the_partitions_move(
    agent: CatalogueAgent, pool: Pool, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faust's own task goes on to hand out records for a while: what it begins would escape."""
    monkeypatch.setattr(catalogue_module, "_ON_ITS_WAY_S", 0.05)
    pool.held["slow"] = asyncio.Event()
    parts = [[Delivered(number, "x", f"slow {number}")] for number in range(8)]

    async def deliver() -> None:
        for part in parts:
            await agent.handle(part)

    delivering = asyncio.create_task(deliver())
    await eventually(lambda: len(pool.asked) == 4)
    moving = asyncio.create_task(agent.before_partitions_move())
    await asyncio.sleep(0)
    await moving
    await agent.partitions_changed()
    await delivering
    pool.held["slow"].set()
    again = [Delivered(0, "x", "lamp")]
    await agent.handle(again)
    await eventually(lambda: again[0].acked)
    assert broker.keys == [["x"]]
    assert not any(event.acked for part in parts for event in part)


async def test_nothing_is_begun_or_published_when_the_agent_stops(pool: Pool, broker: Broker) -> None:
    agent = CatalogueAgent(
        load_settings(connection={"session_timeout_s": 3}),
        broker,  # type: ignore[arg-type]
        Metrics(),
        pool,  # type: ignore[arg-type]
    )
    pool.held["slow"] = asyncio.Event()
    parts = [[Delivered(number, f"item {number}", f"slow {number}")] for number in range(8)]

    async def deliver() -> None:
        for part in parts:
            await agent.handle(part)

    delivering = asyncio.create_task(deliver())  # as Faust's own task, which ends later
    await eventually(lambda: len(pool.asked) == 4)
    await agent.stop()
    pool.held["slow"].set()
    await delivering
    assert broker.published == []
    assert not any(event.acked for part in parts for event in part)


async def test_one_part_has_vectors_tombstones_and_letters_the_last_change_of_an_item_counts(
    agent: CatalogueAgent, pool: Pool, broker: Broker
) -> None:
    refused = Delivered(4, "e", "x")
    refused.value = b"{"
    events = [
        Delivered(0, "a", "lamp"),
        Delivered(1, "b", "cup"),
        Delivered(2, "a", None),
        Delivered(3, "c", "poison"),
        refused,
    ]
    await agent.handle(events)
    await eventually(lambda: events[-1].acked)
    (out,) = broker.published
    by_topic = [(record.topic.partition(".")[2], record.key, record.value is None) for record in out]
    assert sorted(by_topic) == [
        ("dead-letter.v1", b"c", False),
        ("dead-letter.v1", b"e", False),
        ("item-vectors.v1", b"a", True),
        ("item-vectors.v1", b"b", False),
    ]
    assert len(pool.asked[0]) == 2  # that of "a" was not embedded
    assert all(event.acked for event in events)


async def test_a_pool_that_is_closed_fails_the_agent_unless_no_vectors_are_wanted_any_more(
    agent: CatalogueAgent, pool: Pool, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def closed(*_: Any, **__: Any) -> Any:
        pool.asked.append([])
        await held.wait()
        raise Unavailable("the encoder pool is closed")

    held = asyncio.Event()
    monkeypatch.setattr(pool, "encode_each", closed)
    event = Delivered(0, "a", "lamp")
    await agent.handle([event])
    await eventually(lambda: pool.asked, what="it is with the pool")
    agent.pool = None
    held.set()
    await eventually(lambda: event.acked, what="it is acknowledged")
    assert broker.keys == [[]]
    agent.pool = pool  # type: ignore[assignment]
    again = Delivered(1, "a", "lamp")
    await agent.handle([again])
    await eventually(agent.failed.done, what="the agent fails")
    assert isinstance(agent.failed.exception(), Unavailable)
    assert not again.acked


async def test_when_no_vectors_are_wanted_any_more_what_is_under_way_is_finished(
    agent: CatalogueAgent, pool: Pool, broker: Broker
) -> None:
    pool.held["slow"] = asyncio.Event()
    first = Delivered(0, "a", "slow")
    await agent.handle([first])
    await eventually(lambda: pool.asked, what="it is with the pool")
    leaving = asyncio.create_task(agent.without_vectors())
    await asyncio.sleep(0)
    assert not leaving.done()
    pool.held["slow"].set()
    await leaving
    assert broker.keys == [["a"]]
    assert first.acked
    second = Delivered(1, "b", "lamp")
    await agent.handle([second])
    await eventually(lambda: second.acked, what="it is acknowledged")
    assert not agent.failed.done()
    assert broker.keys == [["a"], []]
