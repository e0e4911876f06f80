"""The replay: what counts as a test, what counts as a hit, and that nothing is learned before it is predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schemas.messages import Interaction, Item
from stream_app.evaluation.metrics import hit_rate
from stream_app.evaluation.prequential import Options, Outcome, Prequential, leave_one_out
from stream_app.settings import Settings, SlateSettings
from tests.logs import buy, catalogue, events, pairs_log

PLAIN = Settings(slate=SlateSettings(diversity=0.0, cold_places=0))


def replay(items: list[Item], happened: list[Interaction], **options: Any) -> Prequential:
    prequential = Prequential(PLAIN, items, {}, space="none", options=Options(**({"train_share": 0.0} | options)))
    prequential.run(happened, len(happened))
    return prequential


def counted(outcome: Outcome) -> int:
    counts = {len(outcome.slates), len(outcome.maturity), len(outcome.at), len(outcome.cold)}
    counts |= {len(found) for found in (*outcome.sources.values(), *outcome.baselines.values())}
    assert len(counts) == 1
    return counts.pop()


def hits(outcome: Outcome, k: int = 10) -> int:
    return int((outcome.slates.values <= k).sum())


def test_only_new_items_of_known_users_are_tests() -> None:
    happened = events(
        ("u", "i0", 1.0),  # the first event of a user: nothing is known
        ("u", "i1", 2.0),  # a test
        ("u", "i0", 3.0),  # bought before
        ("v", "i0", 4.0),
        ("v", "unheard of", 5.0),  # not in the catalogue
        ("v", "i2", 6.0),  # a test
        ("v", "i2", 6.0),  # the same item again in the basket
    )
    outcome = replay(catalogue(4), happened).outcome()
    assert counted(outcome) == 2
    assert outcome.maturity.tolist() == [1, 2]
    assert outcome.at.tolist() == [2.0, 6.0]
    assert outcome.untested == {
        "first events of a user": 2,
        "not new to the user": 2,
        "not wanted, or not in the catalogue": 1,
    }


def test_an_item_seen_before_is_neither_a_test_nor_in_the_way() -> None:
    # Clicks do not consume: live, items clicked before stay in the slate. They are not new, so they take no place.
    clicks = [buy(number, f"v{number}", f"i{number % 12}", float(number), "click") for number in range(60)]
    own = [buy(100 + number, "u", f"i{number}", 100.0 + number, "click") for number in range(11)]
    outcome = replay(catalogue(12), [*clicks, *own, buy(200, "u", "i0", 200.0), buy(201, "u", "i11", 201.0)]).outcome()
    assert outcome.slates.values[-1] == 1.0
    assert outcome.untested["not new to the user"] == 1


def test_what_the_user_did_not_like_is_no_test() -> None:
    happened = [
        buy(0, "u", "i0", 1.0),
        buy(1, "u", "i1", 2.0, "rating", value=1.0),
        buy(2, "u", "i2", 3.0, "dislike"),
        buy(3, "u", "i3", 4.0, "rating", value=5.0),
        buy(4, "u", "i1", 5.0),
        Interaction(event_id="5", user_id="u", type="visit", occurred_at=happened_at(6.0)),
    ]
    assert counted(replay(catalogue(5), happened).outcome()) == 1


def happened_at(at: float) -> Any:
    return buy(0, "u", "i", at).occurred_at


def test_the_first_share_only_trains() -> None:
    happened = events(*[("u", f"i{number}", float(number)) for number in range(10)])
    assert counted(replay(catalogue(10), happened, train_share=0.5).outcome()) == 5


def test_other_items_of_the_basket_do_not_count_against_an_item() -> None:
    items = catalogue(30)
    happened = events(*[("v", f"i{number}", float(number)) for number in range(12)], ("u", "i29", 20.0))
    own = replay(items, happened)
    before = own.outcome()
    earlier = counted(before), hits(before)
    basket = events(*[("u", f"i{number}", 30.0) for number in range(12)])
    own.run(basket, len(basket))
    after = own.outcome()
    # Twelve popular items in one basket: each stands first but for the others, so all are within ten.
    assert (counted(after) - earlier[0], hits(after) - earlier[1]) == (12, 12)


def test_a_basket_is_predicted_before_any_of_it_is_learned() -> None:
    # Two items that nobody has bought yet are bought together, again and again by new users: had the first taught
    # before the second was tested, the second would be found.
    happened = []
    for number in range(12):
        happened += [("u", f"i{2 * number}", float(number)), ("u", f"i{2 * number + 1}", float(number))]
    quiet = replay(catalogue(300), events(("w", "i299", 0.0), *happened))
    outcome = quiet.outcome()
    assert int(outcome.cold.sum()) == counted(outcome) == 22
    learned = quiet.serving.signals.neighbours(quiet.serving.catalogue.row("i0"))
    assert "i1" in {quiet.serving.catalogue.item_id(row) for row in learned.rows.tolist()}


def test_a_visit_announces_each_basket_and_teaches_nothing() -> None:
    quiet = replay(catalogue(30), events(("u", "i1", 0.0), ("u", "i2", 0.0), ("u", "i3", 5.0)))
    state = quiet.state("u")
    assert state.events == 5, "two visits, three purchases"
    assert [entry.item_id for entry in state.history] == ["i1", "i2", "i3"]
    assert quiet.outcome().events == 3


def test_it_finds_what_follows_what() -> None:
    outcome = replay(catalogue(100), pairs_log(), train_share=0.6).outcome()
    assert counted(outcome) == 60
    assert (hit_rate(outcome.slates.values, 10).value or 0) > 0.7
    assert outcome.weights["links_symmetric"] > 0


def test_lag_delays_what_is_served_and_loses_nothing() -> None:
    happened = events(*[(f"u{number % 7}", f"i{number % 23}", float(number)) for number in range(200)])
    at_once, late = replay(catalogue(30), happened), replay(catalogue(30), happened, publish_every=50)
    assert counted(late.outcome()) == counted(at_once.outcome())
    late._publish()
    rows = np.arange(30)
    assert np.array_equal(late.serving.signals.popularity(200.0, rows), at_once.serving.signals.popularity(200.0, rows))


def test_every_source_can_be_scored_alone() -> None:
    happened = events(*[(f"u{number % 7}", f"i{number % 23}", float(number)) for number in range(200)])
    vectors = {f"i{number}": np.eye(30, dtype=np.float32)[number] for number in range(30)}
    options = Options(train_share=0.0, sources=True)
    prequential = Prequential(PLAIN, catalogue(30), vectors, space="test", options=options)
    outcome = prequential.run(happened, len(happened))
    assert set(outcome.sources) == {source.name for source in prequential.recommender.sources}
    assert {"text_slow", "transitions", "trending_7d"} <= set(outcome.sources)
    assert counted(outcome) > 0
    assert (hit_rate(outcome.sources["transitions"].values, 10).value or 0) > 0


def test_leave_one_out_holds_back_the_last_new_item_and_what_came_after_it() -> None:
    happened = events(
        ("u", "i0", 1.0),
        ("v", "i0", 2.0),
        ("u", "i1", 3.0),  # the last new item of u
        ("u", "i0", 4.0),
        ("u", "i1", 5.0),  # names it again
        ("v", "unwanted", 6.0),
    )
    learned, held = leave_one_out(happened, wanted=lambda event: event.item_id != "unwanted")
    assert [event.event_id for event in held] == ["2"]
    assert [event.event_id for event in learned] == ["0", "1", "5"]


def test_leave_one_out_tests_each_user_once_and_learns_nothing_of_it() -> None:
    happened = pairs_log()
    prequential = Prequential(PLAIN, catalogue(100), {}, space="none", options=Options())
    outcome = prequential.run_leave_one_out(happened)
    assert counted(outcome) == 150
    # The odd items were all held back: nobody ever bought one.
    assert outcome.events == 150
    assert int(outcome.cold.sum()) == 150
    assert hits(outcome) < 75
    # Where the second purchase is not the last, it is learned and found.
    longer = [*happened, *(buy(1000 + number, f"u{number}", "i99", 2e9 + number) for number in range(75))]
    prequential = Prequential(PLAIN, catalogue(100), {}, space="none", options=Options())
    outcome = prequential.run_leave_one_out(longer)
    assert counted(outcome) == 150
    assert hits(outcome) > 37  # more than half of the 75 whose item others had bought


def test_a_basket_as_long_as_a_catalogue_is_one_request() -> None:
    items = catalogue(2_000)
    happened = events(("u", "i0", 1.0), *[("u", f"i{number}", 2.0) for number in range(1, 2_000)])
    outcome = replay(items, happened).outcome()
    assert counted(outcome) == 1_999


@pytest.mark.parametrize("count", [0, 1])
def test_logs_that_hold_no_test_give_an_empty_outcome(count: int) -> None:
    outcome = replay(catalogue(1), events(("u", "i0", 1.0))[:count]).outcome()
    assert counted(outcome) == 0
    assert hit_rate(outcome.slates.values, 10).value is None


def test_what_a_user_searches_for_is_known_to_the_next_ranking() -> None:
    items = catalogue(200)
    vectors = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known = {item.item_id: vector for item, vector in zip(items, vectors, strict=True)}
    happened = []
    for number in range(60):
        wanted, user, at = f"i{number * 3}", f"u{number % 6}", 100.0 * number
        happened += [
            buy(2 * number, user, None, at, "search", text=f"the one called {wanted}"),
            buy(2 * number + 1, user, wanted, at + 1.0, "click"),
        ]
    texts = {f"the one called {item_id}": vector for item_id, vector in known.items()}

    def found(texts: dict[str, Any]) -> tuple[int, int]:
        options = Options(train_share=0.0)
        replayed = Prequential(PLAIN, items, known, space="test", options=options, texts=texts)
        outcome = replayed.run(happened, len(happened))
        return hits(outcome, 1), counted(outcome)

    assert found(texts) == (60, 60), "a search counts as an event before: every click is a test"
    assert found({})[0] < 10
