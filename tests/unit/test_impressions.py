"""Impressions: what was shown above a choice and not taken, and how often new items were shown, to how many."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrays import pack_float32, unpack_float32
from schemas.decode import decode_item_signals, encode
from schemas.messages import Interaction, Item, ItemVector, Transition, Transitions
from stream_app.items.catalogue import Catalogue
from stream_app.items.signals import Signals
from stream_app.items.statistics import ItemStatistics
from stream_app.ranking.features import in_units
from stream_app.ranking.recommender import RankRequest, Recommender
from stream_app.serving import ServingState
from stream_app.settings import DEFAULT_EVENT_TYPES, ItemSettings, Settings, UserSettings, load_settings
from stream_app.users.fold import Fold, Folder
from stream_app.users.impressions import note_shown, passed_over
from stream_app.users.stage import SourcedEvent, UserStage
from stream_app.users.state import UserState, id_hash
from tests.logs import DAY

START = datetime(2026, 1, 1, tzinfo=UTC)
DEFAULT = UserSettings()


def event(number: int, item: str | None, kind: str = "click", *, s: float | None = None, **more: object) -> Interaction:
    at = START + timedelta(seconds=number if s is None else s)
    return Interaction(event_id=f"e{number}", user_id="u", type=kind, item_id=item, occurred_at=at, **more)


def page(number: int, items: str, *, s: float | None = None) -> Interaction:
    return event(number, None, "impression", s=s, items=list(items))


def run(*events: Interaction, users: UserSettings = DEFAULT) -> tuple[UserState, list[Fold]]:
    state, fold = UserState("u"), Folder(DEFAULT_EVENT_TYPES, users, ItemSettings())
    return state, [fold(state, one, partition=0, offset=offset) for offset, one in enumerate(events)]


def passed(*events: Interaction) -> str:
    """What was passed over for the last event, items of one letter."""
    letters = {id_hash(letter): letter for letter in "abcdefghijklmnopqrstuvwxyz"}
    return "".join(letters[item_hash] for item_hash in run(*events)[1][-1].passed)


class TestPassedOver:
    @pytest.mark.parametrize(
        ("taken", "above"), [("a", ""), ("c", "ab"), ("x", "abcd")], ids=["first", "third", "not shown"]
    )
    def test_is_what_was_shown_above_or_everything_when_the_taken_was_not_shown(self, taken: str, above: str) -> None:
        assert passed(page(0, "abcd"), event(1, taken)) == above

    def test_is_also_what_earlier_impressions_of_the_page_showed(self) -> None:
        assert passed(page(0, "ab"), page(1, "cd"), event(2, "d")) == "abc"

    def test_is_not_what_was_taken_before(self) -> None:
        assert passed(page(0, "abcd"), event(1, "b"), event(2, "d")) == "ac"

    def test_is_what_was_taken_and_shown_again(self) -> None:
        assert passed(page(0, "ab"), event(1, "a"), page(2, "ab"), event(3, "b")) == "a"

    def test_is_neither_what_was_shown_long_before_nor_what_was_shown_after(self) -> None:
        assert passed(page(0, "ab"), event(1, "x", s=3_600)) == ""
        assert passed(page(0, "ab", s=60), event(1, "x", s=30)) == ""

    def test_is_bounded_to_what_is_nearest(self) -> None:
        letters = "abcdefghijklmnopqrstuvwxyz"
        assert passed(page(0, letters), event(1, "z")) == letters[5:25]

    def test_is_nothing_where_nothing_can_be_learned(self) -> None:
        assert passed(page(0, "ab"), event(1, "b", "hide")) == ""


showings = st.lists(
    st.tuples(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8), st.floats(0, 40 * DAY)), max_size=60
)


@given(showings)
def test_one_user_counts_for_an_item_at_most_once_a_week_however_events_come(events):
    state = UserState("u")
    counts = dict.fromkeys("abcdef", 0)
    for items, at in events:
        for item in note_shown(state, items, at, DEFAULT):
            counts[item] += 1
    span = max((at for _, at in events), default=0.0) - min((at for _, at in events), default=0.0)
    assert max(counts.values()) <= 1 + span / (DEFAULT.item_influence_days * DAY)


@given(st.lists(st.floats(0, 5 * DAY), max_size=100))
def test_what_one_user_counts_for_all_items_is_bounded(times):
    users = UserSettings(influence_burst=10.0, influence_per_day=5.0, impressions=4)
    state = UserState("u")
    counted = sum(len(note_shown(state, [f"i{n}", f"j{n}"], at, users)) for n, at in enumerate(times))
    assert counted <= 10 + 5 * (max(times, default=0.0) - min(times, default=0.0)) / DAY + 1e-6
    assert len(state.seen) <= 4


def test_impressions_say_nothing_where_they_are_switched_off():
    state, folds = run(page(0, "ab"), event(1, "b"), users=UserSettings(impressions=0))
    assert folds[0].shown == ()
    assert folds[1].passed == ()
    assert state.seen == {}


def test_an_impression_sent_twice_counts_once():
    state, fold = UserState("u"), Folder(DEFAULT_EVENT_TYPES, DEFAULT, ItemSettings())
    outcomes = [fold(state, page(0, "a"), partition=0, offset=offset) for offset in (0, 0, 1)]
    assert [outcome.shown for outcome in outcomes] == [("a",), (), ()]


def test_looking_costs_nothing_of_what_an_event_says():
    _, folds = run(*(page(number, "a") for number in range(50)), event(50, "a", "purchase"))
    assert folds[-1].share == 1.0


def shown(offset: int, item: str, *, at: float = 0.0) -> Transition:
    return Transition(offset=offset, at=at, item_id=item, count=0, previous=[], symmetric=[], directed=[], shown=1.0)


def taken(offset: int, item: str, previous: str = "", *, at: float = 0.0) -> Transition:
    weights = [1.0] * len(previous)
    return Transition(
        offset=offset, at=at, item_id=item, count=1, previous=list(previous), symmetric=weights, directed=weights
    )


def apply(statistics: ItemStatistics, offset: int, *rows: Transition) -> None:
    statistics.apply(Transitions(source_topic="t", source_partition=0, rows=list(rows)), offset=offset)


class TestStatistics:
    @given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30), st.data())
    def test_are_the_same_whatever_is_replayed_and_wherever_the_owner_changes(self, happened, data):
        rows = [(shown if is_shown else taken)(offset, item) for offset, (item, is_shown) in enumerate(happened)]
        whole = ItemStatistics(0, 1, ItemSettings())
        apply(whole, 0, *rows)
        crash = data.draw(st.integers(0, len(rows)))
        first, second = ItemStatistics(0, 1, ItemSettings()), ItemStatistics(0, 1, ItemSettings())
        apply(first, 0, *rows[:crash])
        for _, signals in first.take(10):
            assert signals is not None
            assert second.restore(signals)
        apply(second, 0, *rows)
        apply(second, 0, *rows)
        ids = sorted(whole.item_ids)
        assert second.stated(ids) == whole.stated(ids)
        counted = {item: sum(is_shown for other, is_shown in happened if other == item) for item in ids}
        assert {one.item_id: one.shown for one in whole.stated(ids)} == counted

    def test_an_impression_is_no_event_of_the_item(self) -> None:
        statistics = ItemStatistics(0, 1, ItemSettings())
        apply(statistics, 0, taken(0, "a", at=100.0), shown(1, "a", at=9e6))
        (row,) = statistics.stated(["a"])
        assert (row.at, row.counts, row.shown) == (100.0, [1.0] * 4, 1.0)

    def test_reach_the_ranking_by_message_and_survive_a_snapshot(self, tmp_path: Path) -> None:
        statistics, signals = ItemStatistics(0, 1, ItemSettings()), Signals(ItemSettings())
        catalogue = Catalogue(unknown_items=9)
        apply(statistics, 0, shown(0, "a"), shown(1, "a"), taken(2, "b"))
        for item_id, row in statistics.take(10):
            assert row is not None
            signals.apply(item_id, decode_item_signals(item_id.encode(), encode(row))[1], catalogue)
        rows = np.array([catalogue.row("a"), catalogue.row("b")], np.int32)
        assert signals.shown(rows).tolist() == [2.0, 0.0]
        signals.save(tmp_path)
        assert Signals.load(tmp_path, ItemSettings()).shown(rows).tolist() == [2.0, 0.0]
        with np.load(tmp_path / "signals.npz") as arrays:
            older = {name: arrays[name] for name in arrays.files if name != "shown"}
        np.savez(tmp_path / "signals.npz", **older)
        assert Signals.load(tmp_path, ItemSettings()).shown(rows).tolist() == [0.0, 0.0]
        signals.apply("a", None, catalogue)
        assert signals.shown(rows).tolist() == [0.0, 0.0]


def make_serving(settings: Settings, count: int = 30) -> ServingState:
    serving = ServingState(settings, space="s", dimensions=8)
    vectors = np.random.default_rng(3).normal(size=(count, 8)).astype(np.float32)
    for number, vector in enumerate(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)):
        item_id = f"i{number}"
        serving.apply_item(item_id, Item(item_id=item_id, title=item_id))
        packed = pack_float32(vector)
        serving.apply_vector(item_id, ItemVector(item_id=item_id, space="s", text_hash="", dimensions=8, vector=packed))
    return serving


def stage_over(serving: ServingState) -> UserStage:
    return UserStage(serving.settings, serving, Recommender(serving.settings, serving))


NOW = START.timestamp() + 100.0


class TestStage:
    def test_notes_are_for_items_that_are_new_and_known(self) -> None:
        serving = make_serving(load_settings())
        statistics = ItemStatistics(0, 1, serving.settings.items)
        apply(statistics, 0, *(taken(offset, "i1") for offset in range(5)))
        serving.apply_statistics(statistics)
        seen = event(7, None, "impression", items=["i0", "i1", "i2", "i0", "unheard of"])
        result = stage_over(serving).process([SourcedEvent(seen, 3, 7)], {"u": UserState("u")}, now=NOW)
        rows = result.transitions[3]
        assert [(row.item_id, row.offset, row.shown, row.count) for row in rows] == [("i0", 7, 1, 0), ("i2", 7, 1, 0)]

    def test_what_was_passed_over_comes_first_among_the_negatives(self) -> None:
        serving = make_serving(load_settings(ranker={"negatives": 2}))
        stage, states = stage_over(serving), {"u": UserState("u")}
        states |= stage.process([SourcedEvent(event(0, "i1"), 0, 0)], states, now=NOW).states
        seen = stage._seen["u"].last
        names = [serving.catalogue.item_id(row) for row in seen.slate.tolist()]
        happened = [event(1, None, "impression", items=names[:3]), event(2, names[2])]
        sourced = [SourcedEvent(one, 0, offset) for offset, one in enumerate(happened, start=1)]
        (example,) = stage.process(sourced, states, now=NOW).examples[0]
        features = unpack_float32(example.features).reshape(example.rows, -1)
        assert seen.values is not None
        place = {row: number for number, row in enumerate(seen.candidates.tolist())}
        above = {in_units(seen.values, np.array([place[row]], np.int32)).tobytes() for row in seen.slate[:2].tolist()}
        assert {row.tobytes() for row in features[1:]} == above


def test_a_new_item_shown_often_and_never_taken_gives_its_reserved_place_to_others():
    serving = make_serving(load_settings(slate={"size": 5, "cold_from_rank": 1, "cold_places": 4, "cold_trials": 5.0}))
    recommender = Recommender(serving.settings, serving)
    statistics = ItemStatistics(0, 1, serving.settings.items)
    apply(statistics, 0, *(taken(offset, f"i{offset // 5}") for offset in range(100)))
    serving.apply_statistics(statistics)
    statistics.taken_are_durable()

    def reserved() -> float:
        """The share of users for whom the item has a place kept for new items."""
        users = [UserState(f"u{number}", events=number) for number in range(100)]
        requests = [RankRequest(user=user, at=NOW, now=NOW, n=5) for user in users]
        row = serving.catalogue.row("i25")
        return float(np.mean([row in ranking.rows[ranking.reserved] for ranking in recommender.rank(requests)]))

    before = reserved()
    apply(statistics, 1, *(shown(offset, "i25") for offset in range(100, 600)))
    serving.apply_statistics(statistics)
    assert before > 0.02
    assert reserved() < before / 4


def test_a_moment_that_never_was_is_kept():
    state, _ = run(page(0, "ab"), event(1, "a"))
    assert state.seen[id_hash("a")][0] == -math.inf
    assert passed_over(state, id_hash("b"), START.timestamp() + 2) == ()
