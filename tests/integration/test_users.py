"""Users from their first word: profiles, context, and forgetting, on a real broker and Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stream_app.agents.interactions import InteractionsAgent
from stream_app.replicas.replica import ItemChange
from stream_app.settings import Settings
from tests.integration.pipeline import Live, live
from tests.integration.test_pipeline import TITLES, ids
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.timeout(360)]


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
        await running.indexed(len(TITLES), timeout_s=180.0)
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
    (like,) = [item for item in slate.items if item.item_id == "gloves"]
    assert like.reason.params["item_id"] == "scarf"

    # A brand-new user's search, and a visit that says what it is after.
    place = await shop.event("cat", None, "search", text="something to drink tea from")
    assert set(ids(await shop.slate_after("cat", place))) >= {"mug", "teapot"}
    place = await shop.event("dan", None, "visit", context={"category": "Toys"})
    assert set(ids(await shop.slate_after("dan", place))) >= {"dinosaur", "robot"}
    place = await shop.event("eve", None, "visit", context={"item_id": "gloves"})
    assert "scarf" in ids(await shop.slate_after("eve", place))

    # Bad profiles are dead letters, and the stream goes on.
    await shop.put(shop.topics.users, b"x", b"{")
    await shop.put(shop.topics.users, b"x", b'{"user_id": "y"}')
    await shop.put(shop.topics.users, b"x", b'{"user_id": "x", "interests": "jazz"}')
    letters = await shop.dead_letters(3)
    assert {letter.reason for letter in letters} == {"not_json", "key_mismatch", "invalid_field"}
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


def counted(shop: Live, name: str, **labels: str) -> float:
    return shop.tailrace.metrics.registry.get_sample_value(f"tailrace_{name}_total", labels) or 0.0


async def test_a_new_item_reaches_whom_it_suits_without_an_event(shop: Live) -> None:
    await shop.profile("bob", blocked_categories=["Toys"])
    await eventually(lambda: "bob" in shop.slates, what="bob's first slate")
    for user_id, item_id in (("ann", "dinosaur"), ("bob", "scarf")):
        place = await shop.event(user_id, item_id, "purchase")
        slate = await shop.slate_after(user_id, place)
    await eventually(lambda: counted(shop, "new_items", result="taken") == len(TITLES), what="the first items")
    published = dict(shop.published)

    await shop.item("bear", "Plush bear toy for children", categories=["Toys"])
    slate = await eventually(
        lambda: next((slate for slate in [shop.slates["ann"]] if "bear" in ids(slate)), None), what="ann sees the bear"
    )
    assert slate.trigger.topic == shop.topics.item_vectors
    assert (slate.trigger.event_id, slate.trigger.offset >= 0) == (None, True)
    assert len(slate.items) == 3

    # Bob was ranked as well, and his slate is not told again: the bear is not in it.
    await eventually(
        lambda: (
            counted(shop, "new_item_users", result="published") + counted(shop, "new_item_users", result="unchanged")
            == 2
        ),
        what="both were ranked",
    )
    assert "bear" not in ids(shop.slates["bob"])
    assert (shop.published["ann"], shop.published["bob"]) == (published["ann"] + 1, published["bob"])

    # What ann took from that slate is learned from: it was among what she was shown.
    place = await shop.event("ann", "bear", "purchase")
    assert "bear" not in ids(await shop.slate_after("ann", place))

    # A price or another text makes no item new; one that can be had again is.
    taken = counted(shop, "new_items", result="taken")
    await shop.item("bear", "Plush bear toy for children", categories=["Toys"], price=3.0)
    await shop.item("lamp", "Bedside lamp with dimmer")
    await shop.item("gloves", TITLES["gloves"], available=False)
    await eventually(lambda: "gloves" not in ids(shop.slates["bob"]), what="bob sees no gloves")
    place = await shop.item("gloves", TITLES["gloves"])
    await eventually(lambda: counted(shop, "new_items", result="taken") == taken + 1, what="the gloves are back")
    slate = await eventually(
        lambda: next(
            (
                slate
                for slate in [shop.slates["bob"]]
                if "gloves" in ids(slate) and slate.trigger.offset == place.offset
            ),
            None,
        ),
        what="bob sees the gloves again",
    )
    assert slate.trigger.topic == shop.topics.items

    # A burst is one ranking per user, however many items come.
    (agent,) = [agent for agent in shop.tailrace.agents if isinstance(agent, InteractionsAgent)]
    done = sum(counted(shop, "new_item_users", result=result) for result in ("published", "unchanged"))
    for item_id in TITLES:
        agent.arrive(ItemChange(item_id, shop.topics.item_vectors, 0, 1))
    agent.arrive(ItemChange("unheard of", shop.topics.item_vectors, 0, 1))
    await eventually(
        lambda: (
            sum(counted(shop, "new_item_users", result=result) for result in ("published", "unchanged")) == done + 2
        ),
        what="both were ranked once more",
    )

    # Who is forgotten is not found.
    await shop.forget("ann")
    await eventually(lambda: "ann" not in shop.slates, what="ann is forgotten")
    assert "ann" not in agent._nearby
