"""Rules on a real broker: a rule changes what is published, standing slates at once, and a bad one does no harm."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.decode import encode
from schemas.messages import Rule, RuleWhere, Slate
from stream_app.settings import Settings
from tests.integration.pipeline import Live, live
from tests.stacks import Stack
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.timeout(240)]


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Live]:
    """A running pipeline whose slates show six of ten items."""
    tuned = settings.model_copy(update={"slate": settings.slate.model_copy(update={"size": 6})})
    async with live(tuned) as running:
        for number in range(10):
            await running.item(f"i{number}", f"A thing with number {number}", brand="x" if number < 5 else "y")
        await running.indexed(10)
        yield running


async def put(shop: Live, rule_id: str, **fields: Any) -> Any:
    rule = Rule(rule_id=rule_id, **fields)
    return await shop.put(shop.topics.rules, rule_id.encode(), encode(rule))


def ids(slate: Slate) -> list[str]:
    return [item.item_id for item in slate.items]


async def visit(shop: Live, user_id: str) -> list[str]:
    return ids(await shop.slate_after(user_id, await shop.event(user_id, None, "visit")))


async def test_rules_change_published_slates(shop: Live, stack: Stack) -> None:
    for user_id in ("ann", "bob"):
        await visit(shop, user_id)
    shown = sorted(set(ids(shop.slates["ann"])) & set(ids(shop.slates["bob"])))
    gone, other, third = shown[:3]

    # What is excluded leaves the standing slates, which say why.
    place = await put(shop, "recall", kind="exclude", where=RuleWhere(item_ids=[gone]))
    for user_id in ("ann", "bob"):
        await eventually(
            lambda u=user_id: gone not in ids(shop.slates[u]), what=f"{gone} leaves the slate of {user_id}"
        )
        trigger = shop.slates[user_id].trigger
        assert (trigger.topic, trigger.partition, trigger.offset) == (place.topic, place.partition, place.offset)
        assert shop.slates[user_id].slate_id.startswith("rules-")
    assert gone not in await visit(shop, "cid")

    # For one user alone.
    await put(shop, "not-for-ann", kind="exclude", where=RuleWhere(item_ids=[other]), users=["ann"])
    await eventually(lambda: other not in ids(shop.slates["ann"]), what=f"{other} leaves the slate of ann")
    assert other in ids(shop.slates["bob"])

    # From an instant on.
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    await put(shop, "later", kind="exclude", where=RuleWhere(item_ids=[third]), starts_at=soon)
    await eventually(lambda: third not in ids(shop.slates["bob"]), what=f"{third} leaves the slate of bob")
    assert datetime.now(UTC) >= soon

    # A bad rule is dead-lettered; the rule that had the id stays.
    await shop.put(shop.topics.rules, b"recall", b'{"rule_id": "recall", "kind": "exclude"}')
    (letter,) = await shop.dead_letters(1)
    assert (letter.topic, letter.reason, letter.stage) == (shop.topics.rules, "missing_field", "catalogue")
    assert gone not in await visit(shop, "bob")

    # A pin and a boost show in the next slates.
    await put(shop, "front", kind="pin", rank=2, where=RuleWhere(item_ids=["i9"]))
    await put(shop, "push", kind="boost", boost=9.0, where=RuleWhere(brands=["y"]))

    async def pinned() -> bool:
        slate = await shop.slate_after("dora", await shop.event("dora", None, "visit"))
        return slate.items[1].item_id == "i9" and slate.items[1].reason.code == "pinned"

    await eventually(pinned, interval_s=0.2, what="i9 at rank 2")

    async def boosted() -> bool:
        return (await visit(shop, "eve"))[0] in {"i5", "i6", "i7", "i8"}

    await eventually(boosted, interval_s=0.2, what="brand y first")

    # Null values delete them.
    for rule_id in ("recall", "front", "push"):
        await shop.put(shop.topics.rules, rule_id.encode(), None)

    async def back() -> bool:
        await shop.event("fred", gone, "click")
        return gone in await visit(shop, "fred")

    await eventually(back, interval_s=0.2, what=f"{gone} shown again")
