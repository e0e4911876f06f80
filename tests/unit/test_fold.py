"""Folding events into user state: what counts, what repeats, what is remembered, and for how long."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Interaction
from stream_app.errors import NewerVersion
from stream_app.settings import DEFAULT_EVENT_TYPES, EventType, ItemSettings, UserSettings
from stream_app.users.fold import Folder, _transition
from stream_app.users.state import (
    HistoryEntry,
    Latest,
    Profile,
    UserState,
    _history_in_bytes,
    appended,
    decode_state,
    encode_state,
    id_hash,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
FOLD = Folder(DEFAULT_EVENT_TYPES, UserSettings(), ItemSettings())


def event(
    number: int, item: str | None = "a", kind: str = "purchase", minutes: int | None = None, **more
) -> Interaction:
    return Interaction(
        event_id=f"e{number}",
        user_id="u",
        type=kind,
        item_id=item,
        occurred_at=START + timedelta(minutes=number if minutes is None else minutes),
        **more,
    )


def run(events, fold=FOLD):
    state = UserState("u")
    folds = [fold(state, one, partition=0, offset=offset) for offset, one in enumerate(events)]
    return state, folds


def test_a_purchase_moves_history_is_consumed_and_teaches():
    state, [fold] = run([event(1)])
    assert [entry.item_id for entry in state.history] == ["a"]
    assert state.excludes(id_hash("a"), at=1e12)
    assert fold.teaches
    assert fold.refreshes
    assert fold.transition is not None
    assert fold.transition.count == 1
    assert fold.transition.previous == []


def test_a_consumed_item_bought_again_does_not_teach_but_counts():
    _, [_, again] = run([event(1), event(2)])
    assert not again.teaches
    assert again.transition is not None


def test_an_event_id_seen_before_has_no_effect_under_a_new_offset():
    state, folds = run([event(1), event(1, item="b")])
    assert [fold.outcome for fold in folds] == ["applied", "duplicate"]
    assert len(state.history) == 1
    assert state.applied == {0: 1}


def test_a_visit_refreshes_and_leaves_no_trace_in_the_history():
    state, [fold] = run([event(1, item=None, kind="visit")])
    assert fold.refreshes
    assert fold.transition is None
    assert state.history == ()
    assert state.events == 1


def test_hidden_items_are_excluded_for_good_and_say_nothing_about_items():
    state, [fold] = run([event(1, kind="hide")])
    assert state.excludes(id_hash("a"), at=1e12)
    assert fold.transition is None
    assert state.history[0].weight < 0


def test_a_low_rating_is_a_dislike():
    state, [fold] = run([event(1, kind="rating", value=1.0)])
    assert state.history[0].weight < 0
    assert fold.transition is None
    assert not fold.teaches
    state, [fold] = run([event(1, kind="rating", value=5.0)])
    assert state.history[0].weight > 0
    assert fold.teaches


def test_a_search_is_kept_as_shortened_text():
    state, _ = run([event(1, item=None, kind="search", text="  lamp " + "x" * 1_000)])
    assert state.history[0].text.startswith("lamp x")
    assert len(state.history[0].text) == UserSettings().text_history_chars


def test_items_of_one_basket_are_linked_without_direction_and_earlier_ones_with_decay():
    _, folds = run([event(1, "old"), event(2, "x", minutes=9), event(3, "y", minutes=9), event(4, "z", minutes=9)])
    last = folds[-1].transition
    assert last is not None
    assert last.previous == ["y", "x", "old"]
    assert last.symmetric == pytest.approx([1, 1, 0.9])
    assert last.directed == pytest.approx([0, 0, 0.7])


def test_what_the_user_turned_down_is_not_linked():
    _, folds = run([event(1, "a", "click"), event(2, "b", "hide"), event(3, "d", "dislike"), event(4, "c", "click")])
    transition = folds[-1].transition
    assert transition is not None
    assert transition.previous == ["a"]


def test_an_earlier_item_is_linked_once_at_its_latest_place():
    _, folds = run([event(1, "a", "click"), event(2, "b", "click"), event(3, "a", "click"), event(4, "c", "click")])
    transition = folds[-1].transition
    assert transition is not None
    assert transition.previous == ["a", "b"]


def test_everything_kept_is_bounded():
    users = UserSettings(history=5, consumed=3, hidden=2, recent_event_ids=4)
    fold = Folder(DEFAULT_EVENT_TYPES, users, ItemSettings())
    state, _ = run([event(n, f"i{n}", "purchase" if n % 2 else "hide") for n in range(100)], fold)
    assert len(state.history) == 5
    assert len(state.consumed) == 3
    assert len(state.hidden) == 2
    assert len(state.recent_event_ids) == 4
    assert state.excludes(id_hash("i99"), at=1e12)


kinds = st.sampled_from(["view", "click", "purchase", "hide", "search", "visit", "rating", "dislike", "impression"])


def shown(kind: str, item: str) -> list[str]:
    return [item, *"abc"] if kind == "impression" else []


streams = st.lists(
    st.builds(
        lambda number, item, kind, minutes: event(
            number, item, kind, minutes, text="lamp" if kind == "search" else None, value=2.0, items=shown(kind, item)
        ),
        st.integers(0, 30),
        st.sampled_from("abcdef"),
        kinds,
        st.integers(0, 50),
    ),
    max_size=40,
)


@given(streams, st.data())
def test_replaying_any_suffix_changes_nothing(events, data):
    state, _ = run(events)
    expected = encode_state(state)
    start = data.draw(st.integers(0, len(events)))
    for offset in range(start, len(events)):
        assert FOLD(state, events[offset], partition=0, offset=offset).outcome == "replayed"
    assert encode_state(state) == expected


@given(streams, st.data())
def test_a_crash_at_any_moment_and_a_replay_give_the_same_state_and_the_same_outputs(events, data):
    """State is written now and then; after a crash the fold goes on from the last written state."""
    whole, folds = run(events)
    crash = data.draw(st.integers(0, len(events)))
    written = data.draw(st.integers(0, crash))
    state, _ = run(events[:written])
    state = decode_state("u", encode_state(state))
    outputs = [FOLD(state, events[offset], partition=0, offset=offset) for offset in range(written, len(events))]
    assert encode_state(state) == encode_state(whole)
    assert outputs == folds[written:]


def test_offsets_of_different_partitions_are_apart():
    state = UserState("u")
    assert FOLD(state, event(1), partition=0, offset=7).outcome == "applied"
    assert FOLD(state, event(2), partition=1, offset=3).outcome == "applied"
    assert FOLD(state, event(2), partition=1, offset=3).outcome == "replayed"
    assert state.applied == {0: 7, 1: 3}


def test_a_state_of_an_unknown_version_is_refused():
    packed = bytearray(encode_state(UserState("u")))
    packed[0] = 99
    with pytest.raises(ValueError, match="version 99"):
        decode_state("u", bytes(packed))
    with pytest.raises(ValueError, match="version 99"):
        decode_state("u", V3[:1] + b"\x63" + V3[2:])
    for nonsense in (b"", b"\x00nonsense"):
        with pytest.raises(ValueError, match="version 0"):
            decode_state("u", nonsense)


@given(st.data())
def test_damaged_bytes_are_refused_or_are_a_state(data):
    packed = data.draw(st.sampled_from([V1, V2, V3, V4]))
    damaged = bytearray(packed[: data.draw(st.integers(0, len(packed)))])
    for place in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=3)):
        if damaged:
            damaged[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError, NewerVersion):  # whose first byte became a later version's
        assert isinstance(decode_state("u", bytes(damaged)), UserState)


def test_a_state_that_says_it_is_huge_is_refused():
    huge = zstandard.ZstdCompressor(level=1).compress(bytes(100_000_000))
    assert len(huge) < 20_000
    with pytest.raises(ValueError, match="too large"):
        decode_state("u", b"\x04" + huge)


def test_fifty_events_take_less_than_two_kilobytes():
    state = UserState("u")
    for offset in range(50):
        number = offset * 7_919
        happened = event(
            number, f"item-{number % 10_000}", ("view", "click", "click", "purchase")[offset % 4], minutes=offset * 37
        )
        FOLD(state, happened, partition=3, offset=1_000_000 + 41 * offset)
    assert len(state.history) == 50
    assert len(encode_state(state)) < 1_800


class TestContext:
    """A visit may say what the user is after."""

    def folded(self, *events: Interaction) -> tuple[tuple[str, str, float], ...]:
        state = UserState("u")
        for offset, one in enumerate(events):
            FOLD(state, one, partition=0, offset=offset)
        return tuple((entry.item_id, entry.text, entry.weight) for entry in state.history)

    @pytest.mark.parametrize(
        ("fields", "entry"),
        [
            ({"text": "garden  tools"}, ("", "garden tools", 1.0)),
            ({"context": {"query": "garden tools", "category": "Home"}}, ("", "garden tools", 1.0)),
            ({"context": {"category": "Home > Garden"}}, ("", "Home, Garden", 1.0)),
            ({"context": {"category": ["Home", 3, "Garden"]}}, ("", "Home, Garden", 1.0)),
            ({"context": {"item_id": "spade"}}, ("spade", "", 1.0)),
            ({"context": {"item_id": "spade", "category": "Garden"}}, ("spade", "Garden", 1.0)),
        ],
    )
    def test_of_a_visit_counts(self, fields: dict[str, object], entry: tuple[str, str, float]) -> None:
        assert self.folded(event(0, None, "visit", **fields)) == (entry,)

    @pytest.mark.parametrize(
        "context",
        [
            {},
            {"query": 3},
            {"query": " "},
            {"category": {"a": 1}},
            {"item_id": 5},
            {"item_id": ""},
            {"item_id": "x" * 300},
        ],
    )
    def test_that_says_nothing_counts_nothing(self, context: dict[str, object]) -> None:
        assert self.folded(event(0, None, "visit", context=context)) == ()

    def test_said_again_counts_once(self) -> None:
        garden, home = {"category": "Garden"}, {"category": "Home"}
        visits = [event(n, None, "visit", context=one) for n, one in enumerate((garden, garden, home, garden))]
        assert [text for _, text, _ in self.folded(*visits)] == ["Garden", "Home", "Garden"]

    def test_of_other_events_is_the_producers_own(self) -> None:
        context = {"category": "Garden", "item_id": "b", "query": "c"}
        assert self.folded(event(0, "a", "click", context=context)) == (("a", "", 1.0),)
        assert self.folded(event(0, None, "search", text="spade", context=context)) == (("", "spade", 1.0),)
        assert self.folded(event(0, None, "impression", items=["a"], context=context)) == ()


def consumed_with(days: float | None, *events: Interaction) -> UserState:
    types = {**DEFAULT_EVENT_TYPES, "purchase": EventType(weight=4, consumes=True, consumes_for_days=days)}
    return run(events, Folder(types, UserSettings(), ItemSettings()))[0]


def test_an_item_is_consumed_for_as_long_as_its_event_type_says():
    bought = event(1)
    at = bought.occurred_at.timestamp()
    for_ever = consumed_with(None, bought)
    assert for_ever.excludes(id_hash("a"), at + 1e9)
    for_a_week = consumed_with(7.0, bought)
    assert for_a_week.excludes(id_hash("a"), at + 7 * 86_400 - 1)
    assert not for_a_week.excludes(id_hash("a"), at + 7 * 86_400)
    assert for_a_week.excluded(at) == [id_hash("a")]
    assert for_a_week.excluded(at + 7 * 86_400) == []
    assert not consumed_with(0.0, bought).consumed


def test_the_longest_consumption_holds_in_any_order():
    first, second = event(1), event(2, minutes=3 * 24 * 60)
    assert consumed_with(7.0, first, second).consumed == consumed_with(7.0, second, first).consumed


def test_a_state_keeps_how_long_items_are_consumed_and_older_states_are_read():
    state = consumed_with(7.0, event(1))
    state.consumed[id_hash("b")] = math.inf
    assert decode_state("u", encode_state(state)).consumed == state.consumed
    older = msgspec.msgpack.encode([1, state.history, list(state.consumed), [], [], state.applied, state.events])
    assert decode_state("u", older).consumed == {id_hash("a"): math.inf, id_hash("b"): math.inf}


V2 = bytes.fromhex(
    "9b029296a161a5636c69636bcb4059000000000000cb3ff000000000000007a096a0a6736561726368cb4069000000000000cb3ff00000000000"
    "0008a46c616d70920b0c910d920e0f81000802810ccb4072c000000000009591a667617264656e91a162911091a163a27a68810104cb40490000"
    "00000000"
)
"""A state as the release before wrote it."""
V1 = bytes.fromhex(
    "97019296a161a5636c69636bcb4059000000000000cb3ff000000000000007a096a0a6736561726368cb4069000000000000cb3ff00000000000"
    "0008a46c616d70920b0c910d920e0f81000802"
)
V3 = bytes.fromhex(
    "9f039197a161a5636c69636bcb4059000000000000cb3ff000000000000007a0cb3fe0000000000000910c910d910e81000802810ccb4072"
    "c00000000000c0810104cb4049000000000000810b92cb3fe0000000000000cb405900000000000092cb3fe0000000000000cb4059000000"
    "000000810c92cb4056800000000000cbfff000000000000092cb3ff0000000000000cb4056800000000000"
)
V4 = bytes.fromhex(
    "0428b52ffd20b06d030094049e9197a161a5636c69636bcb405900cb3ff00007a0cb3fe000c408000c0dc4060e810008028100cb4072c0"
    "c0810104cb404900810b92810c92cb405680cbff92cb40568000000000000e000d2b6260125fd59a4d02120b3870919733339b07625aca"
    "0533c015d00801d401"
)
HISTORY = (HistoryEntry("a", "click", 100.0, 1.0, 7), HistoryEntry("", "search", 200.0, 1.0, 8, "lamp"))


def test_states_of_older_versions_are_read():
    second = UserState(
        "u",
        HISTORY,
        {11: math.inf, 12: 300.0},
        {13: None},
        {14 >> 15: None},
        {0: 8},
        2,
        Profile(("garden",), ("b",), (16,), ("c",), "zh"),
        {1: 4},
        50.0,
    )
    first = UserState("u", HISTORY, dict.fromkeys((11, 12), math.inf), {13: None}, {14 >> 15: None}, {0: 8}, 2)
    assert decode_state("u", V2) == second
    assert decode_state("u", V1) == first
    # What older releases did not note does not hold the user back.
    assert FOLD(decode_state("u", V2), event(9, "new"), partition=0, offset=9).share == 1.0


def test_a_state_is_written_as_the_golden_bytes():
    state = UserState(
        "u",
        (HistoryEntry("a", "click", 100.0, 1.0, 7, share=0.5),),
        {12: 300.0},
        {13: None},
        {14: None},
        {0: 8},
        2,
        None,
        {1: 4},
        50.0,
        {11: (0.5, 100.0)},
        (0.5, 100.0),
        {12: (90.0, -math.inf)},
        (1.0, 90.0),
    )
    # The compressor may become better at it; what it compresses stays.
    content = zstandard.ZstdDecompressor().decompress
    assert encode_state(state)[:1] == V4[:1]
    assert content(encode_state(state)[1:]) == content(V4[1:])
    assert decode_state("u", V4) == state
    # In 3 hashes were longer.
    older = decode_state("u", V3)
    assert list(older.added) == [11 >> 31]
    assert list(older.recent_event_ids) == [14 >> 15]
    assert replace(older, added=state.added, recent_event_ids=state.recent_event_ids) == state


entries = st.builds(
    HistoryEntry,
    item_id=st.sampled_from(["", *"abcdef"]),
    type=st.just("click"),
    at=st.sampled_from([1.0, 2.0, 3.0, 100.0]),
    weight=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1.0]),
    offset=st.integers(0, 9),
    share=st.sampled_from([0.0, 0.5, 1.0, 1.0, 1.0]),
)


@given(st.lists(entries, max_size=25), st.integers(1, 8), st.integers(0, 25))
def test_the_latest_entries_are_the_same_kept_along_and_found_anew(
    done: list[HistoryEntry], limit: int, found_from: int
):
    state = UserState("u")
    for number, entry in enumerate(done):
        if number == found_from:
            state = decode_state("u", encode_state(state))
        state.append(entry, limit)
        assert state.history == tuple(done[: number + 1][-limit:])
        kept, anew = state.latest(), Latest.of(state.history)
        assert (kept.item_ids, kept.shares) == (anew.item_ids, anew.shares)
        first = kept.next - len(state.history)
        assert [place - first for place in kept.numbers] == anew.numbers.tolist()
        assert kept.newest >= anew.newest
        copied = state.copy()
        copied.append(entry, limit)
        assert state.latest() is kept, "a copy changes nothing of the original"


def test_what_was_appended_to_another_history_is_not_taken_for_it():
    state = UserState("u")
    state.append(HistoryEntry("a", "click", 1.0, 1.0, 0), 5)
    state.history = (HistoryEntry("b", "click", 2.0, 1.0, 1),)
    assert state.latest().item_ids == ("b",)


def linked_the_long_way(history: tuple[HistoryEntry, ...], limit: int) -> tuple[list[str], list[float], int]:
    """Items before "a" at time 100, their shares, and how many are of its basket."""
    basket: list[HistoryEntry] = []
    before: list[HistoryEntry] = []
    seen = {"a", ""}
    for entry in reversed(history):
        if entry.weight > 0 and entry.item_id not in seen:
            seen.add(entry.item_id)
            if entry.share:
                (basket if entry.at == 100.0 else before).append(entry)
    linked = [*basket, *before][:limit]
    return [entry.item_id for entry in linked], [entry.share for entry in linked], min(len(basket), limit)


@given(st.lists(entries, max_size=12), st.integers(1, 8))
def test_a_transition_says_what_the_long_way_does_whatever_the_history(done: list[HistoryEntry], limit: int):
    history = tuple(done)
    items = ItemSettings(transition_history=limit, directed_history=3)
    found = _transition(Latest.of(history), history, "a", at=100.0, offset=9, count=1.0, settings=items)
    previous, shares, together = linked_the_long_way(history, limit)
    lags = range(1, len(previous) - together + 1)
    symmetric = [1.0] * together + [items.symmetric_decay**lag for lag in lags]
    directed = [0.0] * together + [items.directed_decay**lag if lag <= 3 else 0.0 for lag in lags]
    assert found.previous == previous
    assert found.symmetric == pytest.approx([decay * share for decay, share in zip(symmetric, shares, strict=True)])
    assert found.directed == pytest.approx([decay * share for decay, share in zip(directed, shares, strict=True)])


@given(st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=40), st.lists(st.integers(0, 2**48 - 1), unique=True))
def test_hashes_are_kept_in_order_whatever_they_are(hashes: list[int], event_ids: list[int]):
    state = UserState("u", hidden=dict.fromkeys(hashes), recent_event_ids=dict.fromkeys(event_ids))
    decoded = decode_state("u", encode_state(state))
    assert list(decoded.hidden) == hashes
    assert list(decoded.recent_event_ids) == event_ids


@pytest.mark.parametrize("place", [2, 3, 4])
def test_an_older_state_with_a_hash_that_is_none_cannot_be_read(place: int):
    packed: list[object] = [3, [], [1], [2], [3], {0: 5}, 1]
    assert decode_state("u", msgspec.msgpack.encode(packed)).events == 1
    packed[place] = [-1]
    with pytest.raises(ValueError, match="user 'u' cannot be read"):
        decode_state("u", msgspec.msgpack.encode(packed))


def _in_one_go(state: UserState) -> bytes:
    """The state's history as MessagePack writes it."""
    return msgspec.msgpack.encode(state.history)


@pytest.mark.parametrize("limit", [3, 15, 16, 50])
def test_a_history_written_entry_by_entry_is_what_is_written_in_one_go(limit: int) -> None:
    rng = np.random.default_rng(limit)
    state = UserState("u")
    for step in range(120):
        for _ in range(int(rng.choice([0, 1, 1, 2, 5, 12]))):
            text = "x" * int(rng.choice([0, 0, 300]))
            entry = HistoryEntry(f"i{rng.integers(30)}", "click", float(rng.integers(9)), 1.0, step, text)
            state.append(entry, limit)
        if step == 50:
            state.history = ()
        if step % 7 == 0:
            state = state.copy()
        assert _history_in_bytes(state) == _in_one_go(state)
        assert decode_state("u", encode_state(state)).history == state.history


@pytest.mark.parametrize("entries", [0, 1, 15, 16, 65_535, 65_536])
def test_histories_of_every_length_are_written(entries: int) -> None:
    state = UserState("u", tuple(HistoryEntry("i", "click", 0.0, 1.0, number) for number in range(entries)))
    assert _history_in_bytes(state) == _in_one_go(state)


def test_entries_taken_out_or_put_in_between_are_noticed() -> None:
    entries = tuple(HistoryEntry("i", "click", float(number), 1.0, number) for number in range(6))
    for after, more in (
        (entries, 0),
        (entries[1:], 0),
        ((*entries, entries[0]), 1),
        (entries[2:] + entries[:1], 1),
        (entries[:2] + entries[3:], -1),
        (entries[:-1], -1),
        ((*entries[:2], entries[4], *entries[3:]), -1),
        ((entries[0], entries[2], entries[1], *entries[3:]), -1),
        ((entries[3], *entries), -1),
        ((), -1),
    ):
        assert appended(entries, after) == more, after
        state = UserState("u", entries)
        _history_in_bytes(state)
        state.history = after
        assert _history_in_bytes(state) == _in_one_go(state)
    assert appended((), entries) == -1
