"""Nobody decides alone what others see: what one user adds to the statistics is bounded, and comes back with time."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Interaction
from stream_app.evaluation.prequential import Options, Prequential
from stream_app.ranking.recommender import RankRequest
from stream_app.settings import DEFAULT_EVENT_TYPES, ItemSettings, Settings, SlateSettings, UserSettings
from stream_app.users.fold import Fold, Folder
from stream_app.users.influence import LEAST_SHARE, granted
from stream_app.users.state import UserState, id_hash, short_hash
from tests.logs import DAY, buy, catalogue

START = datetime(2026, 1, 1, tzinfo=UTC)
DEFAULT = UserSettings()
UNBOUNDED = UserSettings(item_influence=math.inf, influence_burst=math.inf)
SMALL = UserSettings(item_influence=4.0, item_influence_days=7.0, influence_burst=10.0, influence_per_day=5.0)


def event(number: int, item: str | None, kind: str = "click", *, s: float | None = None, **more: object) -> Interaction:
    at = START + timedelta(seconds=number if s is None else s)
    return Interaction(event_id=f"e{number}", user_id="u", type=kind, item_id=item, occurred_at=at, **more)


def run(events: list[Interaction], users: UserSettings = DEFAULT) -> tuple[UserState, list[Fold]]:
    state, fold = UserState("u"), Folder(DEFAULT_EVENT_TYPES, users, ItemSettings())
    return state, [fold(state, one, partition=0, offset=offset) for offset, one in enumerate(events)]


def added(folds: list[Fold], item: str) -> float:
    """What the events add to the count of an item."""
    return sum(fold.transition.count for fold in folds if fold.transition and fold.transition.item_id == item)


def linked(folds: list[Fold], item: str) -> float:
    """What the events add to the symmetric links of an item, as the item stage multiplies them."""
    total = 0.0
    for fold in folds:
        one = fold.transition
        if one is not None:
            weights = dict(zip(one.previous, one.symmetric, strict=True))
            total += one.count * (sum(weights.values()) if one.item_id == item else weights.get(item, 0.0))
    return total


def hash_of(item: int) -> int:
    return id_hash(str(item))


wanted = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([0.3, 1.0, 3.0, 50.0]), st.floats(0, 30 * DAY)), max_size=200
)


@given(wanted)
def test_whatever_the_events_what_is_granted_is_bounded_per_item_and_altogether(events):
    state = UserState("u")
    per_item, times = dict.fromkeys(range(6), 0.0), [at for _, _, at in events]
    for item, amount, at in events:
        grant = granted(state, hash_of(item), amount, at, SMALL)
        assert 0.0 <= grant <= amount
        per_item[item] += grant
    days = (max(times) - min(times)) / DAY if times else 0.0
    bound = SMALL.item_influence * (1 + math.log(2) * days / SMALL.item_influence_days)
    assert max(per_item.values()) <= bound * (1 + 1e-9)
    assert sum(per_item.values()) <= SMALL.influence_burst + SMALL.influence_per_day * days + 1e-6


@given(st.lists(st.floats(-DAY, 0), max_size=50))
def test_time_that_runs_backwards_refills_nothing(late):
    state = UserState("u")
    for item in range(20):
        granted(state, hash_of(item), 1.0, 0.0, SMALL)
    assert [granted(state, hash_of(100 + number), 1.0, at, SMALL) for number, at in enumerate(late)] == [0.0] * len(
        late
    )
    # Nor does going there and coming back.
    assert granted(state, hash_of(1_000), 1.0, 0.0, SMALL) == 0.0
    assert granted(state, hash_of(1_000), 1.0, DAY, SMALL) == 1.0


def test_the_first_event_says_everything_and_each_repetition_less():
    counts = [fold.transition.count if fold.transition else 0.0 for fold in run([event(n, "a") for n in range(30)])[1]]
    assert counts[:3] == pytest.approx([1.0, 0.75, 0.75**2], rel=1e-4)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0.0
    assert sum(counts) <= UserSettings().item_influence


def test_an_event_says_as_much_again_after_a_while():
    long = 10 * UserSettings().item_influence_days * DAY
    _, folds = run([*(event(n, "a") for n in range(100)), event(100, "a", s=long)])
    assert folds[99].transition is None
    assert folds[100].transition is not None
    assert folds[100].transition.count == pytest.approx(1.0, abs=1e-2)


def test_who_looks_takes_and_buys_still_says_more_than_who_only_looks():
    kinds = ["view", "click", "cart", "purchase"]
    _, folds = run([event(number, "a", kind) for number, kind in enumerate(kinds)])
    assert added(folds, "a") == pytest.approx(2.44, abs=0.01)
    assert added(folds[:1], "a") == 0.3


def test_five_hundred_different_items_in_an_hour_all_count_whole():
    _, folds = run([event(number, f"i{number}", "purchase") for number in range(500)])
    assert [fold.share for fold in folds] == [1.0] * 500
    assert all(fold.teaches for fold in folds)


def test_links_of_a_hammered_item_are_bounded_too():
    # Every second event is the item, so it would be the predecessor of all others.
    events = [event(number, "bad" if number % 2 else f"i{number}") for number in range(1_000)]
    _, folds = run(events)
    _, unbounded = run(events, UNBOUNDED)
    assert linked(unbounded, "bad") > 1_000
    assert linked(folds, "bad") < 100


@pytest.mark.parametrize("kind", ["visit", "click"])
def test_what_leads_to_others_is_bounded_however_it_is_said(kind):
    def lead(number: int) -> Interaction:
        if kind == "visit":
            return event(number, None, "visit", context={"item_id": "bad"})
        return event(number, "bad", kind)

    events = [lead(number) if number % 2 else event(number, f"i{number}") for number in range(1_000)]
    assert linked(run(events)[1], "bad") < 200
    assert linked(run(events, UNBOUNDED)[1], "bad") > 400


def test_a_visit_said_again_takes_nothing():
    visits = [event(number, None, "visit", context={"item_id": "a"}) for number in range(50)]
    _, folds = run([*visits, event(50, "a", "purchase")])
    assert folds[-1].share == pytest.approx(1 - 0.3 / 4, abs=1e-4)


def test_what_is_said_against_an_item_costs_nothing_of_it():
    _, folds = run([*(event(number, "a", "remove") for number in range(50)), event(50, "a", "purchase")])
    assert folds[-1].share == 1.0


def test_what_is_remembered_is_bounded():
    state, _ = run([event(number, f"i{number}") for number in range(1_000)], UserSettings(influence_items=10))
    assert list(state.added) == [short_hash(id_hash(f"i{number}")) for number in range(990, 1_000)]


def test_a_copy_is_one():
    state, _ = run([event(1, "a")])
    copied = state.copy()
    assert copied == state
    granted(copied, hash_of(1), 1.0, 0.0, SMALL)
    assert copied != state
    assert short_hash(hash_of(1)) not in state.added


def test_shares_below_the_least_are_nothing():
    state = UserState("u")
    grants = [granted(state, hash_of(1), 1.0, 0.0, UserSettings()) for _ in range(1_000)]
    assert min(grant for grant in grants if grant) >= LEAST_SHARE
    assert grants.index(0.0) < 50


def test_who_has_spent_everything_causes_next_to_no_traffic():
    # What comes back in a second must not be passed on each second.
    _, folds = run([event(number, f"i{number}") for number in range(12_000)])
    passed = [fold for fold in folds if fold.transition is not None]
    days = len(folds) / DAY
    assert len(passed) <= DEFAULT.influence_burst + DEFAULT.influence_per_day * days / LEAST_SHARE + 1
    assert sum(fold.teaches for fold in folds[3_000:]) < 1_000


SHOPPERS, ITEMS = 60, 300


def shop_with_a_bot(users: UserSettings, *, clicks: int) -> float:
    """Ordinary users, then a script that clicks one item again and again; the share of the others who see it in the
    first ten that are new to them. (That people come back to what they had is learned from the script as well, and what
    they had would hide it.)"""
    rng = np.random.default_rng(5)
    happened, at = [], 1e9
    for number in range(1_200):
        user = int(rng.integers(SHOPPERS))
        # People of a kind want items of a kind; nobody has touched the last item.
        item = (user % 3) * (ITEMS // 3) + int(rng.integers(ITEMS // 3 - 1))
        happened.append(buy(number, f"u{user}", f"i{item}", at, "click"))
        at += 600.0
    bot = [buy(10_000 + number, "bot", f"i{ITEMS - 1}", at + number // 20, "click") for number in range(clicks)]
    settings = Settings(users=users, slate=SlateSettings(cold_places=0))
    replay = Prequential(settings, catalogue(ITEMS), {}, space="none", options=Options(train_share=1.0))
    replay.run([*happened, *bot], len(happened) + len(bot))
    row = replay.serving.catalogue.row(f"i{ITEMS - 1}")
    shoppers = [replay.state(f"u{number}") for number in range(SHOPPERS)]
    now = at + 3_600.0
    rankings = replay.recommender.rank([RankRequest(user=state, at=now, now=now, n=100) for state in shoppers])
    new = [ranking.rows[~np.isin(ranking.rows, ranking.interests.own)] for ranking in rankings]
    return float(np.mean([row in rows[:10] for rows in new]))


def test_a_script_that_hammers_one_item_is_not_in_the_slates_of_others():
    assert shop_with_a_bot(DEFAULT, clicks=5_000) <= 0.05
    # Without the bounds half of that puts it into all of them.
    assert shop_with_a_bot(UNBOUNDED, clicks=2_500) >= 0.9
