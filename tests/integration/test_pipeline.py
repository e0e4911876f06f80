"""The whole pipeline on a real broker and Redis: what a shop may expect of it, good input and bad."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from aiokafka.errors import KafkaError

from schemas.decode import encode
from schemas.messages import Interaction
from stream_app.agents.interactions import InteractionsAgent
from stream_app.settings import Settings
from tests.integration.pipeline import Live, live
from tests.stacks import Stack
from tests.waiting import eventually
from workers.pool import Priority

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.timeout(240)]

TITLES = {
    "lamp": "Bedside lamp with warm white light",
    "lantern": "White metal lantern for candles",
    "candle": "Scented candle in a glass jar",
    "mug": "Coffee mug made of porcelain",
    "teapot": "Porcelain teapot with two cups",
    "dinosaur": "Plush dinosaur toy for children",
    "robot": "Wind-up robot toy",
    "scarf": "Knitted winter scarf of wool",
    "gloves": "Warm woollen gloves",
    "apron": "Kitchen apron with pockets",
}


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Live]:
    """A running pipeline with a small catalogue, every item embedded."""
    tuned = settings.model_copy(
        update={
            "slate": settings.slate.model_copy(update={"size": 5}),
            "items": settings.items.model_copy(update={"flush_interval_s": 0.1}),
            "encoder": settings.encoder.model_copy(update={"precision": "float32"}),
        }
    )
    async with live(tuned) as running:
        for item_id, title in TITLES.items():
            await running.item(item_id, title)
        await running.indexed(len(TITLES))
        yield running


def by_text(slate) -> list[str]:
    """Items proposed because of what the user's history means."""
    return [item.item_id for item in slate.items if any(source.startswith("text") for source in item.sources)]


def ids(slate) -> list[str]:
    return [item.item_id for item in slate.items]


def asked_of_encoder(shop: Live, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Priority]]:
    """What the interactions role asks its encoder pool for from now on, and how urgently."""
    (agent,) = (agent for agent in shop.tailrace.agents if isinstance(agent, InteractionsAgent))
    pool, asked = agent._pool, []
    encode_each = pool.encode_each

    async def noted(texts: Sequence[str], priority: Priority, **options: Any) -> Any:
        asked.extend((text, priority) for text in texts)
        return await encode_each(texts, priority, **options)

    monkeypatch.setattr(pool, "encode_each", noted)
    return asked


async def test_what_a_shop_sees(shop: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream of events in one running pipeline: starting it costs more than all of these."""
    # A user without history gets a slate at the first event, and it explains itself.
    place = await shop.event("ann", "lamp")
    slate = await shop.slate_after("ann", place)
    assert slate.trigger.event_id == "event-1"
    assert (slate.trigger.partition, slate.trigger.offset) == (place.partition, place.offset)
    assert slate.versions.space.startswith("minilm")
    assert len(slate.items) == 5
    assert [item.rank for item in slate.items] == [1, 2, 3, 4, 5]
    assert all(item.reason.text and item.reason.code for item in slate.items)
    assert all(item.sources for item in slate.items)

    # What was bought is not recommended again.
    place = await shop.event("ann", "mug", "purchase")
    assert "mug" not in ids(await shop.slate_after("ann", place))

    # A hidden item is never shown again.
    place = await shop.event("ann", "teapot", "hide")
    assert "teapot" not in ids(await shop.slate_after("ann", place))

    # A search in words finds what was meant, for a user nobody knows. The words pass what histories hold.
    asked = asked_of_encoder(shop, monkeypatch)
    place = await shop.event("bob", None, "search", text="toys for kids")
    assert {"dinosaur", "robot"} <= set(ids(await shop.slate_after("bob", place)))
    assert asked == [("toys for kids", Priority.QUERY)]
    await shop.slate_after("bob", await shop.event("bob", "robot"))
    assert set(asked[1:]) <= {("toys for kids", Priority.EVENT)}

    # Taken together by many: recommended to the next who takes one of them.
    for number in range(12):
        await shop.event(f"u{number}", "scarf", "purchase")
        await shop.event(f"u{number}", "robot", "purchase")

    async def linked() -> bool:
        place = await shop.event("cid", "scarf", "view")
        slate = await shop.slate_after("cid", place)
        return any(item.item_id == "robot" and "transitions" in item.sources for item in slate.items)

    await eventually(linked, timeout_s=20, interval_s=0.3, what="robot recommended with scarf")

    # An event for an item that is not there yet takes effect when the item arrives.
    place = await shop.event("dora", "whistle", "click")
    assert not by_text(await shop.slate_after("dora", place)), "nothing is known of it but its id"
    await shop.item("whistle", "Toy whistle for children")
    await shop.indexed(len(TITLES) + 1)
    place = await shop.event("dora", None, "visit")
    assert by_text(await shop.slate_after("dora", place)), "her interest has a vector now"

    # A deleted item leaves the slates that show it without waiting for their users.
    place = await shop.event("eve", "gloves", "view")
    slate = await shop.slate_after("eve", place)
    gone = next(item for item in ids(slate) if item != "gloves")
    await shop.put(shop.topics.items, gone.encode(), None)
    await eventually(lambda: gone not in ids(shop.slates["eve"]), what=f"{gone} leaves the slate of eve")
    assert shop.slates["eve"].trigger.topic == shop.topics.items
    place = await shop.event("eve", None, "visit")
    assert gone not in ids(await shop.slate_after("eve", place))

    # An item that is deleted between an event and its ranking: the event counts, the slate is made without it.
    place = await shop.event("gil", gone, "click")
    slate = await shop.slate_after("gil", place)
    assert slate.items
    assert gone not in ids(slate)

    # So do one that is not available and one whose time is over.
    taken = [item for item in ids(shop.slates["eve"]) if item in TITLES][:2]
    await shop.item(taken[0], TITLES[taken[0]], available=False)
    await shop.item(taken[1], TITLES[taken[1]], expires_at=datetime.now(UTC) + timedelta(seconds=1.5))
    await eventually(lambda: not set(taken) & set(ids(shop.slates["eve"])), what=f"{taken} leave the slate of eve")

    # And it comes back when it is available again.
    await shop.item(taken[0], TITLES[taken[0]])

    async def back() -> bool:
        place = await shop.event("fred", None, "search", text=TITLES[taken[0]])
        return taken[0] in ids(await shop.slate_after("fred", place))

    await eventually(back, interval_s=0.2, what=f"{taken[0]} available again")

    # A changed price costs no embedding.
    texts = shop.tailrace.pool.stats.texts_encoded if shop.tailrace.pool else 0
    await shop.item("apron", TITLES["apron"], price=9.5)
    await shop.item("umbrella", "A folding umbrella")
    await shop.indexed(len(TITLES) + 1)
    assert shop.tailrace.pool is not None
    assert shop.tailrace.pool.stats.texts_encoded == texts + 1

    # Nothing went wrong on the way.
    assert await shop.dead_letters(0) == []


async def test_a_clock_of_ours_that_is_behind_refuses_nobody(shop: Live, monkeypatch: pytest.MonkeyPatch):
    class Behind:
        """The clock of a machine that was set back by a day."""

        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

        @staticmethod
        def time() -> float:
            return time.time() - 86_400.0

    monkeypatch.setattr("stream_app.agents.interactions.time", Behind())
    slate = await shop.slate_after("gina", await shop.event("gina", "lamp"))
    assert slate.items
    assert await shop.dead_letters(0) == []


def event(**fields) -> bytes:
    base = {
        "event_id": "x",
        "user_id": "ann",
        "type": "click",
        "item_id": "lamp",
        "occurred_at": datetime.now(UTC).isoformat(),
    }
    return orjson.dumps({name: value for name, value in {**base, **fields}.items() if value is not ...})


BAD_EVENTS = {
    "not JSON": (b"ann", b"{nope", "not_json"),
    "an empty value": (b"ann", b"", "not_json"),
    "NaN": (b"ann", b'{"value": NaN}', "not_json"),
    "not UTF-8": (b"ann", b'{"user_id": "\xff\xfe"}', "not_utf8"),
    "a list": (b"ann", b"[1, 2]", "invalid_field"),
    "a number as user id": (b"7", event(user_id=7), "invalid_field"),
    "no user id": (b"ann", event(user_id=...), "missing_field"),
    "an empty user id": (b"ann", event(user_id=""), "invalid_field"),
    "no item id": (b"ann", event(item_id=...), "missing_field"),
    "an empty item id": (b"ann", event(item_id=""), "invalid_field"),
    "1970": (b"ann", event(occurred_at="1970-01-01T00:00:00Z"), "occurred_at_out_of_range"),
    "2099": (b"ann", event(occurred_at="2099-01-01T00:00:00Z"), "occurred_at_out_of_range"),
    "no zone": (b"ann", event(occurred_at="2026-01-01T00:00:00"), "invalid_field"),
    "an unknown type": (b"ann", event(type="teleport"), "unknown_event_type"),
    "a null key": (None, event(), "null_key"),
    "another key": (b"bob", event(), "key_mismatch"),
    "a null value": (b"ann", None, "null_value"),
}
BAD_ITEMS = {
    "not JSON": (b"pan", b"{nope", "not_json"),
    "a negative price": (b"pan", orjson.dumps({"item_id": "pan", "title": "Pan", "price": -1}), "invalid_field"),
    "a NaN price": (b"pan", b'{"item_id": "pan", "title": "Pan", "price": NaN}', "not_json"),
    "no title": (b"pan", orjson.dumps({"item_id": "pan"}), "missing_field"),
    "a null key": (None, orjson.dumps({"item_id": "pan", "title": "Pan"}), "null_key"),
    "a long title": (b"pan", orjson.dumps({"item_id": "pan", "title": "x" * 900_000}), "invalid_field"),
    "a 10 MB title": (b"pan", orjson.dumps({"item_id": "pan", "title": "x" * 10_000_000}), "invalid_field"),
}
BAD_INTERNAL = {
    "transitions": ("transitions", b"nonsense", "not_json"),
    "a null value on transitions": ("transitions", None, "null_value"),
    "examples": ("training_examples", b'{"rows": 1}', "missing_field"),
    "a null value on examples": ("training_examples", None, "null_value"),
    "vectors": ("item_vectors", b"nonsense", None),
    "signals": ("item_signals", b"nonsense", None),
    "a null value of signals": ("item_signals", None, None),
    "weights": ("ranker_weights", b"nonsense", None),
    "a null value of weights": ("ranker_weights", None, None),
}


async def test_bad_input_is_dead_lettered_with_a_reason_and_stops_nothing(shop: Live, stack: Stack) -> None:
    expected = []
    for key, value, reason in BAD_EVENTS.values():
        place = await shop.put(shop.topics.interactions, key, value, [("who", b"test")])
        expected.append((place.topic, place.partition, place.offset, reason))
    place = await shop.put(shop.topics.interactions, b"ann", event(), [("ce_type", b"tailrace.interactions.v9")])
    expected.append((place.topic, place.partition, place.offset, "unsupported_version"))
    for key, value, reason in BAD_ITEMS.values():
        try:
            place = await shop.put(shop.topics.items, key, value)
        except KafkaError:
            # Apache Kafka itself refuses a record without key on a compacted topic, and one above the limit.
            assert stack.is_apache_kafka
            continue
        expected.append((place.topic, place.partition, place.offset, reason))
    for topic, value, reason in BAD_INTERNAL.values():
        place = await shop.put(getattr(shop.topics, topic), b"k", value)
        if reason is not None:
            expected.append((place.topic, place.partition, place.offset, reason))

    letters = await shop.dead_letters(len(expected))
    found = {(letter.topic, letter.partition, letter.offset): letter for letter in letters}
    assert {place: letter.reason for place, letter in found.items()} == {
        (topic, partition, offset): reason for topic, partition, offset, reason in expected
    }
    assert all(letter.detail for letter in letters)
    letter = found[expected[0][:3]]
    assert letter.headers == [("who", "dGVzdA==")]
    assert letter.value == "e25vcGU="
    assert letter.key == "YW5u"
    for letter in letters:
        if letter.value_bytes > 1_000_000:
            # Too large for one message: left where it is, and the letter says where.
            assert letter.truncated
            assert letter.value is None
            assert letter.reason == "invalid_field"

    # The stream goes on, and what may be unusual is not wrong.
    await shop.put(shop.topics.interactions, b"ann", event(event_id="odd", made_up_field=[1, 2], text="x" * 100_000))
    place = await shop.event("ann", None, "search", text="y" * 100_000)
    slate = await shop.slate_after("ann", place)
    assert slate.items
    # An event id seen before changes nothing; its sender gets no second slate.
    twice = Interaction(event_id="twice", user_id="ann", type="click", item_id="mug", occurred_at=datetime.now(UTC))
    first = await shop.put(shop.topics.interactions, b"ann", encode(twice))
    await shop.slate_after("ann", first)
    second = await shop.put(shop.topics.interactions, b"ann", encode(twice))
    last = await shop.event("ann", None, "visit")
    await shop.slate_after("ann", last)
    assert second.offset < last.offset
    skipped = shop.tailrace.metrics.registry.get_sample_value("tailrace_events_skipped_total", {"why": "duplicate"})
    assert skipped == 1
    assert len(await shop.dead_letters(len(expected))) == len(expected)
