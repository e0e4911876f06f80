"""The user-keyed stage: what it does depends on the events and never on how they are cut into batches."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrays import pack_float32, unpack_float32
from schemas.messages import Interaction, Item, ItemVector, Transitions
from stream_app.bench.parts import in_parts
from stream_app.items.statistics import ItemStatistics
from stream_app.ranking.features import feature_names, in_units
from stream_app.ranking.recommender import Choice, Recommender
from stream_app.serving import ServingState
from stream_app.settings import Settings, load_settings
from stream_app.users.stage import SourcedEvent, SourcedProfile, StageResult, UserStage, _known_to
from stream_app.users.state import HistoryEntry, Profile, UserState, encode_state, id_hash

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START.timestamp() + 7 * 86_400
DIMENSIONS = 8
ITEMS = [f"i{number}" for number in range(30)]


def unit_vector(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


def add_item(serving: ServingState, item_id: str, seed: int, **fields: Any) -> None:
    serving.apply_item(item_id, Item(item_id=item_id, title=item_id, **fields))
    vector = pack_float32(unit_vector(seed))
    serving.apply_vector(
        item_id, ItemVector(item_id=item_id, space="s", text_hash="", dimensions=DIMENSIONS, vector=vector)
    )


def make_serving(settings: Settings, items: Sequence[str] = ITEMS) -> ServingState:
    serving = ServingState(settings, space="s", dimensions=DIMENSIONS)
    for seed, item_id in enumerate(items):
        add_item(serving, item_id, seed)
    return serving


class Recorder(Recommender):
    """A recommender that notes what it was asked to learn from."""

    def __init__(self, settings: Settings, serving: ServingState) -> None:
        super().__init__(settings, serving)
        self.choices: list[Choice] = []

    def examples(self, choices: Sequence[Choice]) -> list[Any]:
        self.choices += choices
        return super().examples(choices)


class Rig:
    """A stage, its states, and everything that came out of it."""

    def __init__(self, serving: ServingState | None = None, settings: Settings | None = None) -> None:
        self.settings = settings or SETTINGS
        self.serving = serving or make_serving(self.settings)
        self.recommender = Recorder(self.settings, self.serving)
        self.stage = UserStage(self.settings, self.serving, self.recommender)
        self.states: dict[str, UserState] = {}
        self.results: list[StageResult] = []

    def process(self, events: Sequence[SourcedEvent]) -> StageResult:
        states = {event.event.user_id: self.state(event.event.user_id) for event in events}
        result = self.stage.process(events, states, now=NOW)
        self.states.update(result.states)
        self.results.append(result)
        return result

    def state(self, user_id: str) -> UserState:
        return self.states.get(user_id) or UserState(user_id)

    def packed_states(self) -> dict[str, bytes]:
        return {user_id: encode_state(state) for user_id, state in self.states.items()}

    def transitions(self) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = defaultdict(list)
        for result in self.results:
            for partition, rows in result.transitions.items():
                found[partition] += rows
        return dict(found)

    def last_slates(self) -> dict[str, tuple[int, list[str]]]:
        """The trigger's offset and the items of each user's last slate."""
        return {
            slate.user_id: (slate.trigger.offset if slate.trigger else -1, [item.item_id for item in slate.items])
            for result in self.results
            for slate in result.slates
        }


SETTINGS = load_settings(users={"history": 6, "recent_event_ids": 4}, slate={"size": 5})
SERVING = make_serving(SETTINGS)
"""Never changed by a test that uses it."""


def event(
    offset: int,
    item: str | None = "i0",
    kind: str = "click",
    *,
    user: str = "u",
    minute: float | None = None,
    partition: int = 0,
    appended_s: float = 0.0,
    **fields: Any,
) -> SourcedEvent:
    interaction = Interaction(
        **{
            "event_id": f"e{offset}",
            "user_id": user,
            "type": kind,
            "item_id": item,
            "occurred_at": START + timedelta(minutes=offset if minute is None else minute),
            **fields,
        }
    )
    return SourcedEvent(interaction, partition, offset, appended_s)


@st.composite
def streams(draw: st.DrawFn) -> list[SourcedEvent]:
    """Events of a few users: new, late and unknown items, baskets, event ids sent twice."""
    count = draw(st.integers(1, 24))
    kinds = st.sampled_from(["click", "purchase", "visit", "impression", "hide", "cart", "dislike", "rating"])
    events = []
    for offset in range(count):
        kind = draw(kinds)
        item = None if kind in ("visit", "impression") else draw(st.sampled_from([*ITEMS[:8], "unknown"]))
        user = draw(st.sampled_from(["u", "v", "w"]))
        fields: dict[str, Any] = {"event_id": f"e{draw(st.integers(max(0, offset - 3), offset))}"}
        if kind == "impression":
            fields["items"] = draw(st.lists(st.sampled_from([*ITEMS[:8], "unknown"]), min_size=1, max_size=6))
        if kind == "rating":
            fields["value"] = draw(st.sampled_from([1.0, 5.0]))
        minute = draw(st.integers(0, 6))
        events.append(event(offset, item, kind, user=user, partition="uvw".index(user) % 2, minute=minute, **fields))
    return events


@st.composite
def streams_and_cuts(draw: st.DrawFn) -> tuple[list[SourcedEvent], list[int]]:
    events = draw(streams())
    cuts = draw(st.lists(st.integers(0, len(events)), max_size=8))
    return events, sorted({0, len(events), *cuts})


def in_batches(rig: Rig, events: Sequence[SourcedEvent], cuts: Sequence[int]) -> Rig:
    for start, end in pairwise(cuts):
        rig.process(events[start:end])
    return rig


@given(streams_and_cuts())
def test_states_transitions_counts_and_last_slates_do_not_depend_on_how_events_are_cut(stream):
    events, cuts = stream
    whole = in_batches(Rig(SERVING), events, [0, len(events)])
    parts = in_batches(Rig(SERVING), events, cuts)
    assert parts.packed_states() == whole.packed_states()
    assert parts.transitions() == whole.transitions()
    assert parts.last_slates() == whole.last_slates()
    skipped = [sum(result.skipped.get("duplicate", 0) for result in rig.results) for rig in (whole, parts)]
    assert skipped[0] == skipped[1]


@given(streams_and_cuts(), st.data())
def test_events_delivered_again_change_nothing_and_cause_nothing(stream, data):
    events, cuts = stream
    rig = in_batches(Rig(SERVING), events, cuts)
    before = rig.packed_states()
    suffix = events[data.draw(st.integers(0, len(events) - 1)) :]
    result = rig.process(suffix)
    assert rig.packed_states() == before
    assert result.states == {}
    assert result.partitions == {}
    assert result.slates == []
    assert not any(result.transitions.values())
    assert not any(result.examples.values())
    assert result.skipped == {"replayed": len(suffix)}


@given(streams_and_cuts())
def test_a_batch_that_was_done_in_part_goes_on_where_it_was(stream):
    """After a crash some users' states were written and others' were not; the whole batch comes again."""
    events, _ = stream
    whole = in_batches(Rig(SERVING), events, [0, len(events)])
    for written in ({"u"}, {"v", "w"}, set()):
        rig = in_batches(Rig(SERVING), events, [0, len(events)])
        rig.states = {user: state for user, state in rig.states.items() if user in written}
        rig.process(events)
        assert rig.packed_states() == whole.packed_states()


@given(streams())
def test_what_is_passed_in_is_not_changed(events):
    rig = Rig(SERVING)
    rig.process(events)
    states = {user: rig.state(user) for user in ("u", "v", "w")}
    before = {user: encode_state(state) for user, state in states.items()}
    packed_events = [msgspec.json.encode(sourced.event) for sourced in events]
    more = [event(100 + offset, "i9", "purchase", user=user) for offset, user in enumerate(["u", "v", "w", "u"])]
    rig.stage.process([*events, *more], states, now=NOW)
    rig.stage.rerank(states, now=NOW)
    assert {user: encode_state(state) for user, state in states.items()} == before
    assert [msgspec.json.encode(sourced.event) for sourced in events] == packed_events


@given(streams_and_cuts())
def test_no_slate_holds_what_is_consumed_hidden_unknown_or_there_twice(stream):
    events, cuts = stream
    rig = Rig(SERVING)
    for start, end in pairwise(cuts):
        result = rig.process(events[start:end])
        for slate in result.slates:
            items = [item.item_id for item in slate.items]
            assert len(set(items)) == len(items)
            assert [item.rank for item in slate.items] == list(range(1, len(items) + 1))
            assert "unknown" not in items
            state = rig.state(slate.user_id)
            assert not [item for item in items if state.excludes(id_hash(item), at=1e12)]


def test_several_events_of_a_user_make_one_slate_caused_by_the_last():
    result = Rig(SERVING).process(
        [event(0, user="u"), event(1, user="v"), event(2, "i1", user="u"), event(3, None, "impression", user="u")]
    )
    slates = {slate.user_id: slate for slate in result.slates}
    assert len(result.slates) == 2
    assert slates["u"].trigger is not None
    assert slates["u"].trigger.offset == 2, "an impression refreshes nothing"
    assert [slate.user_id for slate in result.slates] == ["v", "u"], "in order of the users' last events"


def test_an_impression_alone_moves_the_state_and_makes_no_slate():
    rig = Rig(SERVING)
    result = rig.process([event(0, None, "impression", items=["i1", "i2"])])
    assert result.slates == []
    assert result.states["u"].applied == {0: 0}


def test_an_event_id_seen_before_makes_no_slate_but_its_offset_counts():
    rig = Rig(SERVING)
    rig.process([event(0, event_id="same")])
    result = rig.process([event(1, "i5", event_id="same")])
    assert result.skipped == {"duplicate": 1}
    assert result.slates == []
    assert not any(result.transitions.values())
    assert result.states["u"].applied == {0: 1}, "the write is fenced by it"
    assert result.partitions == {"u": 0}


def test_a_user_without_history_gets_a_full_slate_at_the_first_event():
    (slate,) = Rig(SERVING).process([event(0, None, "visit")]).slates
    assert len(slate.items) == 5


def test_a_batch_in_parts_amounts_to_what_it_does_whole():
    events = [event(number, f"i{number}", user=f"u{number % 3}", partition=number % 3 % 2) for number in range(12)]
    states = {f"u{number}": UserState(f"u{number}") for number in range(3)}
    whole = Rig().stage.process(events, states, now=NOW)
    parts = in_parts(Rig().stage, events, states, now=NOW, size=2)
    assert parts.states == whole.states
    assert parts.partitions == whole.partitions
    assert parts.transitions == whole.transitions
    for slate, expected in zip(parts.slates, whole.slates, strict=True):
        assert (slate.user_id, slate.trigger, slate.items) == (expected.user_id, expected.trigger, expected.items)
        assert slate.known_to == expected.known_to
    for source, examples in whole.examples.items():
        assert [example.offset for example in parts.examples[source]] == [example.offset for example in examples]


def test_an_item_that_is_not_in_the_catalogue_is_kept_and_takes_effect_when_it_comes():
    serving = make_serving(SETTINGS)
    rig = Rig(serving)
    result = rig.process([event(0, "later")])
    assert [entry.item_id for entry in result.states["u"].history] == ["later"]
    assert not any(result.examples.values()), "nothing to learn of an item nobody could be shown"
    assert len(result.transitions[0]) == 1
    ranked_without = rig.last_slates()["u"][1]
    add_item(serving, "later", seed=3)  # where i3 is
    rig.process([event(1, None, "visit")])
    assert rig.last_slates()["u"][1] != ranked_without
    assert "i3" in rig.last_slates()["u"][1]


def test_an_empty_catalogue_gives_an_empty_slate():
    serving = ServingState(SETTINGS, space="s", dimensions=DIMENSIONS)
    (slate,) = Rig(serving).process([event(0)]).slates
    assert slate.items == []


def test_slates_hold_only_what_may_be_served_at_the_time():
    serving = make_serving(SETTINGS, ITEMS[:4])
    gone = datetime.fromtimestamp(NOW - 1, UTC)
    soon = datetime.fromtimestamp(NOW + 1, UTC)
    add_item(serving, "expired", 1, expires_at=gone)
    add_item(serving, "not yet", 2, published_at=soon)
    add_item(serving, "off", 3, available=False)
    add_item(serving, "deleted", 4)
    serving.apply_item("deleted", None)
    (slate,) = Rig(serving).process([event(0)]).slates
    assert {item.item_id for item in slate.items} <= set(ITEMS[:4])


def test_no_events_do_nothing():
    result = Rig(SERVING).process([])
    assert result == StageResult()


def trained(rig: Rig) -> None:
    """Statistics of a few baskets of other users, so that there is something to retrieve."""
    statistics = ItemStatistics(0, 1, rig.settings.items)
    other = Rig(rig.serving, rig.settings)
    result = other.process(
        [event(n, item, "purchase", user=f"o{n % 3}") for n, item in enumerate(["i1", "i2", "i1", "i3", "i2", "i3"])]
    )
    rows = result.transitions[0]
    statistics.apply(Transitions(source_topic="t", source_partition=0, rows=rows), offset=0)
    for item_id, signals in statistics.take(100):
        rig.serving.apply_signals(item_id, signals)


def test_an_example_is_the_taken_item_among_the_candidates_of_the_slate_before():
    rig = Rig()
    trained(rig)
    rig.process([event(0, "i1", "purchase", minute=0)])
    seen = rig.stage._seen["u"].last
    result = rig.process([event(1, "i2", "purchase", minute=5)])
    (example,) = result.examples[0]
    assert (example.offset, example.at) == (1, START.timestamp() + 300)
    features = unpack_float32(example.features).reshape(example.rows, -1)
    assert features.shape[1] == len(feature_names(rig.settings.items))
    assert 2 <= example.rows <= 1 + rig.settings.ranker.negatives
    assert np.isfinite(features).all()
    assert (example.item_id, example.previous) == ("i2", ["i1"])
    taken = seen.candidates.tolist().index(rig.serving.catalogue.row("i2"))
    assert seen.values is not None
    assert np.array_equal(features[:1], in_units(seen.values, np.array([taken], np.int32))), (
        "the features it was ranked by"
    )
    assert example.context == pytest.approx(seen.context.tolist())


def test_of_a_user_of_whom_nothing_is_known_only_the_factors_learn():
    rig = Rig()
    trained(rig)
    rig.process([event(0, None, "visit", minute=0)])
    result = rig.process([event(1, "i2", "purchase", minute=5)])
    (example,) = result.examples[0]
    assert (example.rows, example.features, example.item_id, example.previous) == (0, "", "i2", [])


def test_the_items_of_a_basket_share_what_came_before():
    rig = Rig()
    trained(rig)
    rig.process([event(0, "i1", minute=0), event(1, "i3", minute=1), event(2, "i1", minute=2)])
    result = rig.process([event(3, "i2", minute=5), event(4, "i4", minute=5)])
    assert [example.previous for example in result.examples[0]] == [["i1", "i3"], ["i1", "i3"]]


def test_what_was_shown_above_and_passed_over_comes_first_among_the_negatives():
    rig = Rig(settings=load_settings(ranker={"negatives": 2}))
    trained(rig)
    rig.process([event(0, "i1", minute=0)])
    seen = rig.stage._seen["u"].last
    names = [rig.serving.catalogue.item_id(row) for row in seen.slate.tolist()]
    assert len(names) > 3
    named = event(1, names[2], minute=5)
    acted = msgspec.structs.replace(named.event, slate_id="0-0", position=2)
    result = rig.process([SourcedEvent(acted, named.partition, named.offset)])
    (example,) = result.examples[0]
    features = unpack_float32(example.features).reshape(example.rows, -1)
    assert seen.values is not None
    place = {row: number for number, row in enumerate(seen.candidates.tolist())}
    above = {in_units(seen.values, np.array([place[row]], np.int32)).tobytes() for row in seen.slate[:2].tolist()}
    assert {row.tobytes() for row in features[1:]} == above


def test_a_slate_that_a_profile_or_an_item_caused_is_known_by_the_id_it_was_published_with():
    rig = Rig(settings=load_settings(ranker={"negatives": 2}))
    trained(rig)
    rig.process([event(0, "i1", minute=0)])
    by_profile = SourcedProfile("u", Profile(texts=("lamp",)), 0, 7)
    (slate,) = rig.stage.process_profiles([by_profile], {"u": rig.state("u")}, now=NOW).slates
    assert by_profile.slate_id == "users-0-7"
    acted = event(1, "i2", minute=5, slate_id="users-0-7", position=2).event
    shown = rig.stage._passed_over(acted)
    assert shown is not None
    assert [rig.serving.catalogue.item_id(row) for row in shown.tolist()] == [item.item_id for item in slate.items[:2]]
    (again,) = rig.stage.rerank({"u": rig.state("u")}, now=NOW)
    rig.stage.shown([(again, "items-3-4")])
    assert rig.stage._passed_over(acted) is None, "that slate is not shown any more"
    assert rig.stage._passed_over(event(1, "i2", slate_id="items-3-4", position=1).event) is not None


def test_what_is_remembered_is_forgotten_when_its_rows_were_freed():
    """A row may be another item's by then, which would be learned with the features of the one before."""
    settings = load_settings(users={"history": 6}, slate={"size": 5}, replica={"unknown_items": 2})
    rig = Rig(make_serving(settings), settings)
    trained(rig)
    rig.process([event(0, "i1", minute=0)])
    serving, seen = rig.serving, rig.stage._seen["u"].last
    gone = next(item for item in reversed(ITEMS) if serving.catalogue.row(item) in seen.candidates.tolist())
    row = serving.catalogue.row(gone)
    serving.apply_item(gone, None)
    serving.apply_vector(gone, None)
    newcomers = [f"new{number}" for number in range(6)]
    for name in newcomers:
        serving.apply_item(name, Item(item_id=name, title=name))
        serving.apply_item(name, None)
    reused = [name for name in [*newcomers, "fresh"] if _placed(serving, name) == row]
    assert reused, "the row belongs to another item now"
    add_item(serving, reused[0], 99)
    result = rig.process([event(1, reused[0], "purchase", minute=5)])
    assert rig.recommender.choices[-1].seen is None
    (example,) = result.examples[0]
    at = np.array([seen.candidates.tolist().index(row)], np.int32)
    before = in_units(np.asarray(seen.values), at)[0]
    if example.rows:
        assert not np.array_equal(unpack_float32(example.features).reshape(example.rows, -1)[0], before)


def _placed(serving: ServingState, item_id: str) -> int:
    serving.apply_item(item_id, Item(item_id=item_id, title=item_id))
    return serving.catalogue.row(item_id)


def test_an_example_made_again_knows_how_many_events_the_user_had():
    rig = Rig()
    trained(rig)
    rig.process([event(number, f"i{number % 3}", minute=number) for number in range(5)])
    kept = rig.stage._seen["u"].last.context.tolist()
    rig.stage.forget()
    result = rig.process([event(9, "i3", minute=4.001)])
    (example,) = result.examples[0]
    assert example.context[2] == pytest.approx(kept[2]), "breadth"


def test_whole_rankings_are_kept_of_a_bounded_number_of_users_and_the_others_teach_as_well():
    rig = Rig(settings=load_settings(ranker={"remembered": 1}))
    trained(rig)
    for offset, user in enumerate(["u", "v"]):
        rig.process([event(offset, "i1", user=user, minute=0)])
    assert rig.stage._seen["u"].last.values is None
    assert rig.stage._seen["v"].last.values is not None
    result = rig.process([event(10, "i2", user="u", minute=5), event(11, "i2", user="v", minute=5)])
    assert all(example.rows > 1 for example in result.examples[0])


def test_a_consumed_item_taken_again_is_no_example():
    rig = Rig()
    trained(rig)
    rig.process([event(0, "i2", "purchase")])
    result = rig.process([event(1, "i2", "purchase")])
    assert not any(result.examples.values())


def test_examples_and_transitions_of_a_partition_are_in_order_of_offsets():
    rig = Rig()
    trained(rig)
    users = ["u", "v", "w", "x"]
    rig.process([event(n, None, "visit", user=user, partition=n % 2) for n, user in enumerate(users)])
    result = rig.process(
        [event(10 + n, f"i{n % 4}", user=users[n % 4], partition=n % 2, minute=20 + n) for n in range(12)]
    )
    for rows in (*result.transitions.values(), *result.examples.values()):
        offsets = [row.offset for row in rows]
        assert offsets == sorted(offsets)
        assert len(set(offsets)) == len(offsets)


def candidates_used(rig: Rig) -> list[list[str] | None]:
    return [
        None if choice.seen is None else [rig.serving.catalogue.item_id(row) for row in choice.seen.candidates.tolist()]
        for choice in rig.recommender.choices
    ]


def ranked_for(rig: Rig, user: str = "u") -> list[str]:
    """The candidates of the user's last ranking, as the stage remembers them."""
    return [rig.serving.catalogue.item_id(row) for row in rig.stage._seen[user].last.candidates.tolist()]


def test_the_second_item_of_a_basket_is_compared_with_candidates_that_knew_nothing_of_the_first():
    rig = Rig()
    trained(rig)
    rig.process([event(0, None, "visit", minute=0)])
    before = ranked_for(rig)
    rig.process([event(1, "i1", minute=5)])
    rig.process([event(2, "i2", minute=5)])
    rig.process([event(3, "i3", minute=5)])
    assert candidates_used(rig) == [before, before, before]
    after = ranked_for(rig)
    rig.process([event(4, "i4", minute=6)])
    assert candidates_used(rig)[-1] == after, "the next basket knows this one"


def test_baskets_use_the_same_candidates_in_one_batch_and_in_several():
    used = []
    for cuts in ([0, 1, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 3, 6]):
        rig = Rig()
        trained(rig)
        basket = [event(n, f"i{n}", minute=5) for n in range(1, 6)]
        in_batches(rig, [event(0, None, "visit", minute=0), *basket], cuts)
        used.append(candidates_used(rig))
    assert used[0] == used[1] == used[2]


def test_the_first_basket_of_a_user_nobody_ranked_for_is_compared_with_what_retrieval_proposes():
    rig = Rig()
    rig.process([event(0, "i1", minute=5)])
    rig.process([event(1, "i2", minute=5)])
    assert candidates_used(rig) == [None, None]
    for choice in rig.recommender.choices:
        assert choice.request.before == START.timestamp() + 300, "the basket itself is not known"


def test_forgotten_candidates_are_not_used():
    rig = Rig()
    rig.process([event(0, None, "visit")])
    rig.stage.forget()
    rig.process([event(1)])
    assert candidates_used(rig) == [None]


def test_candidates_are_remembered_of_a_bounded_number_of_users_the_most_recent():
    rig = Rig(settings=load_settings(users={"cache": 2}))
    for offset, user in enumerate(["u", "v", "u", "w"]):
        rig.process([event(offset, None, "visit", user=user)])
    assert list(rig.stage._seen) == ["u", "w"]


def test_a_catalogue_that_grew_since_the_last_slate_does_not_stop_learning():
    """Arrays by row are reserved when something is ranked; an event may be learned from before the next ranking."""
    serving = make_serving(SETTINGS)
    rig = Rig(serving)
    rig.process([event(0, None, "visit"), event(1, "late 4999", "purchase")])
    for number in range(5_000):
        serving.apply_item(f"late {number}", Item(item_id=f"late {number}", title="late"))
    result = rig.process([event(2, "i1", "purchase")])
    assert len(result.slates) == 1
    assert len(rig.recommender.choices) == 1


def test_rerank_leaves_a_withdrawn_item_out_and_names_no_event():
    serving = make_serving(SETTINGS)
    rig = Rig(serving)
    rig.process([event(0, "i1"), event(1, "i2", user="v")])
    shown = rig.last_slates()["u"][1]
    serving.apply_item(shown[0], None)
    slates = rig.stage.rerank({user: rig.state(user) for user in ("v", "u")}, now=NOW)
    assert [slate.user_id for slate in slates] == ["v", "u"]
    for slate in slates:
        assert slate.trigger is None
        assert shown[0] not in [item.item_id for item in slate.items]
        assert len(slate.items) == 5


def test_rerank_of_nothing_that_changed_gives_the_same_slate():
    rig = Rig(SERVING)
    rig.process([event(0, "i1"), event(1, "i4", "purchase")])
    (slate,) = rig.stage.rerank({"u": rig.state("u")}, now=NOW)
    assert [item.item_id for item in slate.items] == rig.last_slates()["u"][1]


def test_rerank_of_users_without_events_and_of_nobody():
    rig = Rig(SERVING)
    (slate,) = rig.stage.rerank({"new": UserState("new")}, now=NOW)
    assert len(slate.items) == 5
    assert rig.stage.rerank({}, now=NOW) == []


@pytest.mark.parametrize("kind", ["search", "review"])
def test_free_text_moves_the_slate_when_its_vector_is_there_and_does_no_harm_when_not(kind: str):
    item = None if kind == "search" else "unknown"
    text = event(0, item, kind, text="red lamp")

    def items(vectors: Mapping[str, Any]) -> list[str]:
        rig = Rig(SERVING)
        (slate,) = rig.stage.process([text], {"u": UserState("u")}, now=NOW, text_vectors=vectors).slates
        return [place.item_id for place in slate.items]

    with_text = items({"red lamp": unit_vector(7)})
    assert "i7" in with_text
    assert len(items({})) == 5


def test_what_parts_amount_to_is_added_up() -> None:
    first, second = StageResult(), StageResult()
    for result, number in ((first, 1), (second, 2)):
        result.states[f"u{number}"] = result.states["both"] = UserState(f"of {number}")
        result.partitions["both"] = number
        result.forgotten.append(f"gone {number}")
        result.skipped.update({"replayed": number, f"only {number}": 1})
    first.add(second)
    assert {user: state.user_id for user, state in first.states.items()} == {"u1": "of 1", "both": "of 2", "u2": "of 2"}
    assert first.partitions == {"both": 2}
    assert first.forgotten == ["gone 1", "gone 2"]
    assert first.skipped == {"replayed": 3, "only 1": 1, "only 2": 1}


@pytest.mark.parametrize("asked", [False, True])
def test_what_is_known_of_a_user_reaches_to_the_newest_event_that_is_kept(asked: bool) -> None:
    """Also where it came before others, or has left the history."""
    for times, limit, newest in (
        ([1.0, 2.0, 3.0], 9, 3.0),
        ([1.0, 3.0, 2.0], 9, 3.0),
        ([9.0, 1.0, 2.0], 2, 2.0),
        ([2.0, 2.0], 9, 2.0),
        ([], 9, -math.inf),
    ):
        state = UserState("u")
        for at in times:
            state.append(HistoryEntry("i", "click", at, 1.0, 0), limit)
        if not asked:
            state.latest_of = None
        assert _known_to(state) == newest
