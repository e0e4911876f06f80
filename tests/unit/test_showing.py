"""Who is shown what: the newest slate counts, bounded, and only the owner of a user's partition answers."""

from __future__ import annotations

from datetime import UTC, datetime

from schemas.messages import Interaction, Reason, Slate, SlateItem, Trigger, Versions
from stream_app.users.showing import Showing
from stream_app.users.stage import NewSlate, SourcedEvent

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def places(*items: str) -> list[SlateItem]:
    return [
        SlateItem(item_id=item, rank=rank, score=0.0, sources=[], reason=Reason(code="c"))
        for rank, item in enumerate(items, 1)
    ]


def new(user: str, *items: str, partition: int = 0) -> NewSlate:
    event = Interaction(event_id="e", user_id=user, type="visit", occurred_at=NOW)
    return NewSlate(user, places(*items), SourcedEvent(event, partition, 0))


def standing(user: str, *items: str) -> Slate:
    return Slate(
        slate_id="s",
        user_id=user,
        generated_at=NOW,
        items=places(*items),
        trigger=Trigger(topic="t", partition=0, offset=0),
        versions=Versions(space="s", index="i", ranker="r"),
    )


def test_the_newest_slate_of_a_user_counts():
    showing = Showing(limit=10)
    showing.published([new("u", "a", "b")])
    showing.published([new("u", "b", "c")])
    assert showing.items() == {"b", "c"}
    assert showing.showing({"a": None}, partitions={0}) == []
    assert showing.showing({"c": None}, partitions={0}) == [("u", "c")]


def test_only_users_of_the_asked_partitions_are_found():
    showing = Showing(limit=10)
    showing.published([new("u", "a", partition=0), new("v", "a", partition=1)])
    assert showing.showing({"a": None}, partitions={1}) == [("v", "a")]
    assert showing.showing({"a": None}, partitions=set()) == []


def test_a_replaced_slate_keeps_its_owner():
    showing = Showing(limit=10)
    showing.published([new("u", "a", partition=3)])
    showing.replaced([NewSlate("u", places("b"), None)])
    assert showing.showing({"b": None}, partitions={3}) == [("u", "b")]
    assert showing.showing({"a": None}, partitions={3}) == []


def test_a_replaced_slate_of_a_user_whose_owner_is_not_known_is_left_out():
    showing = Showing(limit=10)
    showing.replaced([NewSlate("u", places("b"), None)])
    assert len(showing) == 0


def test_a_slate_without_a_cause_is_not_taken_as_published():
    showing = Showing(limit=10)
    showing.published([NewSlate("u", places("a"), None)])
    assert len(showing) == 0


def test_slates_that_stood_before_give_way_to_those_made_since():
    showing, before = Showing(limit=10), Showing(limit=10)
    showing.published([new("u", "new")])
    before.standing("u", standing("u", "old"), partition=0)
    before.standing("v", standing("v", "old"), partition=0)
    showing.add_older(before)
    assert showing.showing({"old": None}, partitions={0}) == [("v", "old")]
    assert showing.showing({"new": None}, partitions={0}) == [("u", "new")]


def test_a_user_without_a_slate_any_more_shows_nothing():
    showing = Showing(limit=10)
    showing.standing("u", standing("u", "a"), partition=0)
    showing.gone("u")
    showing.gone("never there")
    assert showing.items() == set()


def test_the_users_least_recently_shown_are_forgotten_first():
    showing = Showing(limit=2)
    showing.published([new("u", "a"), new("v", "b")])
    showing.published([new("u", "a"), new("w", "c")])
    assert len(showing) == 2
    assert showing.items() == {"a", "c"}


def test_of_older_and_newer_users_together_the_newer_stay_within_the_limit():
    showing, before = Showing(limit=2), Showing(limit=2)
    showing.published([new("u", "a")])
    before.published([new("v", "b"), new("w", "c")])
    showing.add_older(before)
    assert len(showing) == 2
    assert showing.items() == {"a", "c"}


def test_nothing_shown_is_an_empty_set():
    assert Showing(limit=1).items() == set()


def test_an_item_withdrawn_from_some_users_leaves_only_their_slates() -> None:
    showing = Showing(limit=10)
    showing.published([new("u", "a", "b"), new("v", "a", "c")])
    assert showing.showing({"a": frozenset({"v"})}, partitions={0}) == [("v", "a")]
    assert showing.showing({"a": frozenset({"v"}), "b": None}, partitions={0}) == [("u", "b"), ("v", "a")]
    assert showing.showing({"a": frozenset({"w"})}, partitions={0}) == []
