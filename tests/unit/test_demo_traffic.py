"""The schedule of the demo: every event once, a user's in order, every basket announced by a visit before it."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Interaction
from stream_app.demo.traffic import Basket, baskets, with_visits

START = datetime(2026, 1, 1, tzinfo=UTC)


def purchases(shape: list[tuple[int, int]]) -> list[Interaction]:
    """One basket per entry (user, size), a minute apart."""
    events = []
    for minute, (user, size) in enumerate(shape):
        events += [
            Interaction(
                event_id=f"{minute}-{number}",
                user_id=f"u{user}",
                type="purchase",
                item_id=f"i{number}",
                occurred_at=START + timedelta(minutes=minute),
                session_id=f"s{minute}",
            )
            for number in range(size)
        ]
    return events


shapes = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=40)


def test_consecutive_events_of_a_user_at_one_time_are_a_basket():
    found = list(baskets(purchases([(1, 3), (2, 1), (1, 2)])))
    assert [(basket.number, basket.user_id, len(basket.events)) for basket in found] == [
        (0, "u1", 3),
        (1, "u2", 1),
        (2, "u1", 2),
    ]


def test_a_visit_knows_the_user_and_the_time_and_nothing_of_the_basket():
    (basket,) = baskets(purchases([(1, 2)]))
    visit = basket.visit
    assert (visit.type, visit.user_id, visit.occurred_at) == ("visit", "u1", START)
    assert (visit.item_id, visit.items, visit.text) == (None, [], None)
    assert visit.session_id == "s0"
    assert visit.event_id not in {event.event_id for event in basket.events}


def test_visits_of_different_baskets_are_different_events():
    found = list(baskets(purchases([(1, 1), (2, 1), (1, 1)])))
    assert len({basket.visit.event_id for basket in found}) == 3


@given(shapes, st.integers(1, 30))
def test_every_event_and_every_visit_is_there_exactly_once(shape, ahead):
    events = purchases(shape)
    grouped = list(baskets(events))
    sent = [event for _, event in with_visits(grouped, ahead=ahead)]
    assert sorted(event.event_id for event in sent) == sorted(
        [event.event_id for event in events] + [basket.visit.event_id for basket in grouped]
    )


@given(shapes, st.integers(1, 30))
def test_events_come_with_their_own_basket(shape, ahead):
    for basket, event in with_visits(baskets(purchases(shape)), ahead=ahead):
        assert event is basket.visit or any(event is member for member in basket.events)


@given(shapes, st.integers(1, 30))
def test_baskets_begin_in_the_order_of_the_data(shape, ahead):
    numbers = [basket.number for basket, event in with_visits(baskets(purchases(shape)), ahead=ahead) if event.item_id]
    assert numbers == sorted(numbers)


@given(shapes, st.integers(1, 30))
def test_a_user_s_events_are_in_order_of_time_and_a_visit_is_before_its_basket(shape, ahead):
    by_user: dict[str, list[tuple[Basket, Interaction]]] = defaultdict(list)
    for basket, event in with_visits(baskets(purchases(shape)), ahead=ahead):
        by_user[event.user_id].append((basket, event))
    for sent in by_user.values():
        expected: list[Interaction] = []
        for basket in dict.fromkeys(basket.number for basket, _ in sent):
            own = next(found for found, _ in sent if found.number == basket)
            expected += [own.visit, *own.events]
        assert [event.event_id for _, event in sent] == [event.event_id for event in expected]


@pytest.mark.parametrize("ahead", [1, 10, 50])
def test_a_visit_is_about_as_far_ahead_as_asked(ahead: int):
    """Every user once: nothing but the queue decides."""
    sent = list(with_visits(baskets(purchases([(user, 2) for user in range(200)])), ahead=ahead))
    places = {event.event_id: place for place, (_, event) in enumerate(sent)}
    distances = [
        places[basket.events[0].event_id] - places[basket.visit.event_id]
        for basket, event in sent
        if event is basket.visit and 60 <= basket.number < 120  # once purchases flow, and while they do
    ]
    # Between a visit and its basket lie ``ahead`` purchases and the visits of the baskets behind.
    assert all(ahead <= distance <= 1.5 * ahead + 4 for distance in distances), distances


def test_nothing_gives_nothing():
    assert list(with_visits(baskets([]), ahead=10)) == []
