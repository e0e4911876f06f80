"""Users from their first word: profiles, context, and forgetting, on a real broker and Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stream_app.settings import Settings
from tests.integration.pipeline import Live, live
from tests.integration.test_pipeline import TITLES, ids
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.timeout(240)]


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Live]:
    """A running pipeline with a small catalogue, every item embedded."""
    tuned = settings.model_copy(
        update={
            "slate": settings.slate.model_copy(update={"size": 3, "cold_places": 0}),
            "items": settings.items.model_copy(update={"flush_interval_s": 0.1}),
            "encoder": settings.encoder.model_copy(update={"precision": "float32"}),
        }
    )
    async with live(tuned) as running:
        for item_id, title in TITLES.items():
            await running.item(item_id, title, categories=["Toys"] if "toy" in title else [])
        await running.indexed(len(TITLES))
        yield running


async def test_what_is_known_of_a_user_beyond_events(shop: Live) -> None:
    """One running pipeline: starting it costs more than all of these."""
    # A profile makes the first slate, before any event, in the user's language.
    place = await shop.profile("ann", text="I love knitting and warm winter clothes", language="zh")
    slate = await shop.slate_after("ann", place)
    assert set(ids(slate)) >= {"scarf", "gloves"}
    assert slate.trigger.topic == shop.topics.users
    assert (slate.trigger.offset, slate.trigger.event_id) == (place.offset, None)
    assert not any(item.reason.text.isascii() for item in slate.items)

    # It changes, and so does the slate; the same once more publishes nothing.
    place = await shop.profile("ann", interests=["toys for children"])
    assert set(ids(await shop.slate_after("ann", place))) >= {"dinosaur", "robot"}
    published = shop.published["ann"]
    await shop.profile("ann", interests=["toys for children"])
    place = await shop.profile("ann", interests=["toys for children"], blocked_categories=["toys"])
    slate = await shop.slate_after("ann", place)
    assert not {"dinosaur", "robot"} & set(ids(slate))
    assert shop.published["ann"] == published + 1

    # What is blocked stays blocked when events come.
    place = await shop.event("ann", "lamp")
    assert not {"dinosaur", "robot"} & set(ids(await shop.slate_after("ann", place)))

    # Liked items: what is like them comes first, and they are named.
    place = await shop.profile("bob", liked_items=["scarf"])
    slate = await shop.slate_after("bob", place)
    assert "scarf" not in ids(slate)
    assert ids(slate)[0] == "gloves"
    assert slate.items[0].reason.params["item_id"] == "scarf"

    # A brand-new user's search, and a visit that says what it is after.
    place = await shop.event("cat", None, "search", text="something to drink tea from")
    assert set(ids(await shop.slate_after("cat", place))[:2]) == {"mug", "teapot"}
    place = await shop.event("dan", None, "visit", context={"category": "Toys"})
    assert set(ids(await shop.slate_after("dan", place))[:2]) == {"dinosaur", "robot"}
    place = await shop.event("eve", None, "visit", context={"item_id": "gloves"})
    assert "scarf" in ids(await shop.slate_after("eve", place))[:2]

    # Bad profiles are dead letters, and the stream goes on.
    await shop.put(shop.topics.users, b"x", b"{")
    await shop.put(shop.topics.users, b"x", b'{"user_id": "y"}')
    await shop.put(shop.topics.users, b"x", b'{"user_id": "x", "interests": "jazz"}')
    await shop.put(shop.topics.users, None, b'{"user_id": "x"}')
    letters = await shop.dead_letters(4)
    assert {letter.reason for letter in letters} == {"not_json", "key_mismatch", "invalid_field", "null_key"}
    assert {letter.topic for letter in letters} == {shop.topics.users}


async def test_a_forgotten_user_has_no_slate_and_no_history(shop: Live) -> None:
    place = await shop.event("ann", "scarf", "purchase")
    await shop.slate_after("ann", place)
    place = await shop.profile("ann", text="warm winter clothes")
    await shop.slate_after("ann", place)
    await shop.forget("ann")
    await eventually(lambda: "ann" not in shop.slates, what="a null on recommendations.v1")

    # A new beginning: what was bought is not known any more, nor what was said.
    place = await shop.event("ann", None, "visit", context={"item_id": "gloves"})
    slate = await shop.slate_after("ann", place)
    assert "scarf" in ids(slate)
