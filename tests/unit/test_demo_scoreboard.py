"""What the demo counts is what it says it counts: hit rate by its definition, freshness, and no event forgotten."""

from __future__ import annotations

import itertools
import json
import math
import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Interaction, Reason, Slate, SlateItem, Trigger, Versions
from stream_app.demo.scoreboard import HitRate, Popularity, Scoreboard
from stream_app.demo.traffic import Basket

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 86_400.0


def purchase(user: str, item: str, at: datetime = START, number: int = 0) -> Interaction:
    return Interaction(event_id=f"{user}-{item}-{number}", user_id=user, type="purchase", item_id=item, occurred_at=at)


def basket(number: int, user: str, *items: str, days: float = 0.0) -> Basket:
    at = START + timedelta(days=days)
    visit = Interaction(event_id=f"v{number}", user_id=user, type="visit", occurred_at=at)
    return Basket(number, visit, tuple(purchase(user, item, at, place) for place, item in enumerate(items)))


def slate(user: str, *items: str, offset: int = 0, partition: int = 0, by_item: bool = False) -> Slate:
    trigger = Trigger(
        topic="t.items.v1" if by_item else "t.interactions.v1",
        partition=partition,
        offset=offset,
        event_id=None if by_item else "e",
        occurred_at=None if by_item else START,
    )
    return Slate(
        slate_id="s",
        user_id=user,
        generated_at=START,
        items=[
            SlateItem(item_id=item, rank=rank, score=0.0, sources=[], reason=Reason(code="c"))
            for rank, item in enumerate(items, 1)
        ],
        trigger=trigger,
        versions=Versions(space="s", index="i", ranker="r"),
    )


ITEMS = [f"i{number}" for number in range(14)]


@given(
    st.lists(st.sampled_from(ITEMS), min_size=1, max_size=5, unique=True), st.permutations(ITEMS), st.integers(0, 14)
)
def test_hit_rate_is_that_of_the_list_without_the_rest_of_the_basket(taken, ranked, length):
    ranked = ranked[:length]
    counted = HitRate(k=3)
    counted.add(taken, ranked, [])
    hits = gain = 0.0
    for item in taken:
        others = set(taken) - {item}
        shown = [candidate for candidate in ranked if candidate not in others][:3]
        if item in shown:
            hits += 1
            gain += 1 / math.log2(shown.index(item) + 2)
    assert counted.tests == len(taken)
    assert counted.slates == hits / len(taken)
    assert counted.ndcg == pytest.approx(gain / len(taken))
    assert counted.popularity == 0


def test_nothing_tested_is_a_rate_of_zero():
    assert (HitRate().slates, HitRate().popularity, HitRate().ndcg) == (0.0, 0.0, 0.0)


def test_popularity_halves_after_a_half_life():
    popularity = Popularity(half_life_days=7)
    for _ in range(3):
        popularity.add("old", 0.0)
    popularity.add("new", 7 * DAY)
    popularity.add("new", 7 * DAY)
    assert popularity.top(2, set()) == ["new", "old"]
    assert popularity.top(2, {"new"}) == ["old"]


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 40)), min_size=1, max_size=40),
    st.sets(st.sampled_from("abcde")),
)
def test_popularity_is_the_sum_of_decayed_counts(bought, without):
    """Also over spans that make the inner scale move, and with events that come late."""
    popularity = Popularity(half_life_days=0.1)
    for item, day in bought:
        popularity.add(item, day * DAY)
    last = max(day for _, day in bought)
    scores = {item: 0.0 for item, _ in bought}
    for item, day in bought:
        scores[item] += 2.0 ** (-(last - day) / 0.1)
    found = popularity.top(5, without)
    assert set(found) == set(scores) - without
    for better, worse in itertools.pairwise(found):
        assert scores[better] >= scores[worse] * (1 - 1e-9)


def test_the_slate_that_stood_before_the_basket_is_tested_and_only_for_users_who_were_there_before():
    score = Scoreboard(train=0)
    score.received(slate("u", "a", "b"), at=0, since_start=0)
    score.basket_begins(basket(0, "u", "a"))
    assert score.hit_rate.tests == 0, "a first basket is no test"
    score.received(slate("u", "b", "c"), at=0, since_start=0)
    score.basket_begins(basket(1, "u", "c"))
    score.received(slate("u", "d"), at=0, since_start=0)
    assert (score.hit_rate.tests, score.hit_rate.hits) == (1, 1)


def test_a_basket_is_counted_when_it_begins_and_not_at_each_of_its_events():
    score = Scoreboard(train=0)
    score.basket_begins(basket(0, "u", "a"))
    two = basket(1, "u", "b", "c")
    for _ in two.events:
        score.basket_begins(two)
    assert score.hit_rate.tests == 2


def test_items_the_user_had_already_are_neither_tests_nor_in_the_way():
    score = Scoreboard(train=0)
    score.basket_begins(basket(0, "u", *[f"had{number}" for number in range(12)]))
    score.received(slate("u", *[f"had{number}" for number in range(12)], "new"), at=0, since_start=0)
    score.basket_begins(basket(1, "u", "had0", "new"))
    assert (score.hit_rate.tests, score.hit_rate.hits) == (1, 1)


def test_events_of_the_training_part_are_not_tested():
    score = Scoreboard(train=5)
    score.basket_begins(basket(0, "u", "a"))
    score.basket_begins(basket(1, "u", "b"))
    assert score.hit_rate.tests == 0
    for offset in range(5):
        score.sent(purchase("u", "x", number=offset), partition=0, offset=offset, at=0)
    score.basket_begins(basket(2, "u", "c"))
    assert score.hit_rate.tests == 1


def test_freshness_is_from_when_the_event_was_due_to_its_slate():
    score = Scoreboard()
    score.sent(purchase("u", "a"), partition=0, offset=0, at=10.0)
    score.received(slate("u", "b", offset=0), at=10.25, since_start=1.0)
    assert score.freshness() == (250.0, 250.0)
    assert score.first_slate_s == 1.0
    assert score.last_shown is not None
    assert score.last_shown.after_ms == 250.0


def test_a_slate_may_be_read_before_its_event_is_acknowledged():
    score = Scoreboard()
    score.received(slate("u", "b", offset=0), at=10.25, since_start=1.0)
    score.sent(purchase("u", "a"), partition=0, offset=0, at=10.0)
    assert score.freshness() == (250.0, 250.0)
    assert score.uncovered == 0


def test_a_later_slate_of_the_user_covers_earlier_events():
    score = Scoreboard()
    for offset in (3, 5, 9):
        score.sent(purchase("u", "a", number=offset), partition=1, offset=offset, at=0)
    score.sent(purchase("v", "a"), partition=1, offset=4, at=0)
    assert score.uncovered == 4
    score.received(slate("u", "b", partition=1, offset=5), at=0, since_start=0)
    assert score.uncovered == 2, "the user's later event, and the other user's"
    score.received(slate("u", "b", partition=1, offset=9), at=0, since_start=0)
    score.received(slate("v", "b", partition=1, offset=4), at=0, since_start=0)
    assert score.uncovered == 0


def test_an_event_acknowledged_after_a_later_event_s_slate_is_covered():
    score = Scoreboard()
    score.received(slate("u", "b", offset=7), at=0, since_start=0)
    score.sent(purchase("u", "a"), partition=0, offset=6, at=0)
    assert score.uncovered == 0


def test_a_slate_that_an_item_change_caused_covers_no_event():
    score = Scoreboard()
    score.sent(purchase("u", "a"), partition=0, offset=2, at=0)
    score.received(slate("u", "b", partition=0, offset=900, by_item=True), at=0, since_start=0)
    assert score.uncovered == 1
    assert len(score.freshness_ms) == 0
    assert score.slates_out == 1


def test_a_slate_of_another_partition_covers_nothing():
    score = Scoreboard()
    score.sent(purchase("u", "a"), partition=0, offset=0, at=0)
    score.received(slate("u", "b", partition=1, offset=9), at=0, since_start=0)
    assert score.uncovered == 1


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_uncovered_is_every_event_without_an_equal_or_later_slate_whatever_comes_first(seed, count):
    """Events and slates of a few users in any interleaving the two connections allow."""
    random_ = random.Random(seed)
    events = [(f"u{random_.randrange(3)}", offset) for offset in range(count)]
    covering = [event for event in events if random_.random() < 0.5]
    score = Scoreboard()
    sends, receives = list(events), list(covering)
    while sends or receives:
        if sends and (not receives or random_.random() < 0.5):
            user, offset = sends.pop(0)
            score.sent(purchase(user, "a", number=offset), partition=0, offset=offset, at=0)
        else:
            user, offset = receives.pop(0)
            score.received(slate(user, "b", offset=offset), at=0, since_start=0)
    last = {user: max((o for u, o in covering if u == user), default=-1) for user, _ in events}
    assert score.uncovered == sum(offset > last[user] for user, offset in events)


def test_lost_events_are_still_counted_when_there_are_more_than_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stream_app.demo.scoreboard._MAX_WAITING", 10)
    score = Scoreboard()
    for offset in range(25):
        score.sent(purchase(f"u{offset}", "a"), partition=0, offset=offset, at=0)
    assert score.uncovered == 25


def test_the_summary_is_json_and_has_what_is_promised_even_before_anything_happened():
    empty = json.loads(json.dumps(Scoreboard().summary(), allow_nan=False))
    assert empty["first_slate_s"] is None
    assert empty["freshness_ms"] == {"p50": None, "p99": None}
    assert empty["hit_rate_at_10"] == {"slates": 0.0, "popularity": 0.0}
    assert (empty["events_in"], empty["slates_out"], empty["events_lost"], empty["tests"]) == (0, 0, 0, 0)


def test_percentiles_are_those_of_the_samples():
    score = Scoreboard()
    for offset in range(100):
        score.sent(purchase("u", "a", number=offset), partition=0, offset=offset, at=0.0)
        score.received(slate("u", "b", offset=offset), at=(offset + 1) / 1000, since_start=0)
    p50, p99 = score.freshness()
    assert p50 == pytest.approx(50.5)
    assert p99 == pytest.approx(99.01)


def test_it_knows_which_event_caused_the_slate_that_stands():
    score = Scoreboard()
    event = Interaction(event_id="e", user_id="u", type="visit", occurred_at=START)
    assert not score.knows(event)
    score.received(slate("u", "a"), at=0, since_start=0)
    assert score.knows(event)
    score.received(slate("u", "a", by_item=True), at=0, since_start=0)
    assert not score.knows(event)


def test_baskets_of_different_users_count_in_whatever_order_they_begin():
    board = Scoreboard()
    for number, user in ((0, "a"), (1, "b"), (3, "b"), (2, "a")):
        board.basket_begins(basket(number, user, f"item-{number}"))
    assert board.hit_rate.tests == 2, "the second basket of each"
