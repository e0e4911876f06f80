"""The pure parts of rebuilding: shares of users, states folded to where their owners are, rows in parts, old slates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Interaction, ItemSignals, RebuiltRows
from stream_app.items.rebuilt import StagedRows
from stream_app.rebuild.folding import Refolding, fence, fences
from stream_app.rebuild.items import RowsFromEvents
from stream_app.rebuild.recommendations import Standing
from stream_app.rebuild.shares import EVERYBODY, Share
from stream_app.settings import DEFAULT_EVENT_TYPES, load_settings
from stream_app.users.fold import Folder
from stream_app.users.profiles import fold_profile
from stream_app.users.stage import SourcedEvent, SourcedProfile
from stream_app.users.state import Profile, UserState, decode_state, encode_state

SETTINGS = load_settings()
FOLD = Folder(DEFAULT_EVENT_TYPES, SETTINGS.users, SETTINGS.items)
START = datetime(2026, 11, 1, tzinfo=UTC)


def event(user_id: str, offset: int, item_id: str = "a", *, kind: str = "click", partition: int = 0) -> SourcedEvent:
    at = START + timedelta(minutes=offset)
    made = Interaction(event_id=f"{partition}-{offset}", user_id=user_id, type=kind, item_id=item_id, occurred_at=at)
    return SourcedEvent(made, partition, offset, at.timestamp())


def profile(user_id: str, offset: int, value: Profile | None, *, minute: int) -> SourcedProfile:
    return SourcedProfile(user_id, value, 0, offset, (START + timedelta(minutes=minute)).timestamp())


def folded(user_id: str, *records: SourcedEvent | SourcedProfile) -> UserState:
    state = UserState(user_id)
    for one in records:
        place = {"partition": one.partition, "offset": one.offset, "appended_s": one.appended_s}
        if isinstance(one, SourcedEvent):
            FOLD(state, one.event, **place)
        else:
            fold_profile(state, one.profile, **place)
    return state


@given(st.binary(min_size=1, max_size=20), st.lists(st.booleans(), max_size=32))
def test_every_user_is_in_one_of_two_halves(key: bytes, way: list[bool]) -> None:
    share = EVERYBODY
    assert key in share
    for upper in way:
        halves = share.halves()
        assert sum(half.fraction for half in halves) == share.fraction
        assert [key in half for half in halves].count(True) == (key in share)
        share = halves[upper]
    if share.end - share.begin == 1:
        with pytest.raises(ValueError, match="cannot be divided"):
            share.halves()


def test_an_empty_share_has_nobody() -> None:
    assert b"u" not in Share(5, 5)


def test_records_count_when_they_are_committed_or_the_owner_has_them() -> None:
    records = [event("u", 0), event("u", 3, "b"), event("u", 5, "c"), event("u", 8, "d")]
    folding = Refolding(FOLD, unpacked=10)
    folding.effects_done({"o0": 3})
    folding.begin("u")
    for record in records:
        folding.take(record)
    assert folding.waits("u") == {"o0": 8}
    assert folding.settle("u", {}) == folded("u", *records[:2])
    assert folding.settle("u", {"o0": 5}) == folded("u", *records[:3])
    folding.effects_done({"o0": 2})
    assert folding.settle("u", {"o0": 5}) == folded("u", *records[:3]), "what is done is not undone"
    folding.effects_done({"o0": 9})
    assert folding.waits("u") == {"o0": 8}
    assert folding.settle("u", {"o0": 5}) == folded("u", *records)
    assert folding.waits("u") == {}


def test_a_record_that_waits_does_not_hold_up_those_of_another_topic() -> None:
    wish = Profile(liked=("x",))
    folding = Refolding(FOLD, unpacked=10)
    folding.begin("u")
    for record in (event("u", 0), profile("u", 0, wish, minute=1), event("u", 1)):
        folding.take(record)
    state = folding.settle("u", {"u0": 0})
    assert (state.profile, state.events) == (wish, 0)
    assert fences(state) == {"u0": 0}
    assert folding.waits("u") == {"o0": 1}


def test_an_offset_the_owner_holds_for_a_record_that_is_none_any_more_is_kept() -> None:
    folding = Refolding(FOLD, unpacked=10)
    folding.effects_done({"o0": 9})
    folding.begin("u")
    folding.take(event("u", 2))
    state = folding.settle("u", {"o0": 7, "u1": 4, "o2": 1})
    assert fences(state) == {"o0": 7, "o2": 1, "u1": 4}
    assert state.history == folded("u", event("u", 2)).history


def test_who_was_forgotten_before_what_is_left_of_the_topic_stays_forgotten() -> None:
    folding = Refolding(FOLD, unpacked=10)
    folding.effects_done({"o0": 99})
    folding.begin("u", forgotten_at=(START + timedelta(minutes=5)).timestamp())
    for offset in (1, 5, 6):
        folding.take(event("u", offset, f"item-{offset}"))
    assert [entry.item_id for entry in folding.settle("u", {}).history] == ["item-6"]


def test_states_that_are_packed_meanwhile_are_the_same() -> None:
    users = [f"user-{number}" for number in range(6)]
    records = [event(users[number * 7 % 6], number, f"item-{number % 9}", kind="purchase") for number in range(90)]
    folding = Refolding(FOLD, unpacked=1)
    folding.effects_done({"o0": 99})
    for user_id in users:
        folding.begin(user_id)
    for record in records:
        folding.take(record)
    assert sorted(folding) == users
    assert len(folding) == 6
    for user_id in users:
        own = [record for record in records if record.user_id == user_id]
        assert encode_state(folding.settle(user_id, {})) == encode_state(folded(user_id, *own))
    folding.drop(users[:5])
    assert list(folding) == users[5:]
    with pytest.raises(KeyError, match="has not begun"):
        folding.take(event("user-0", 100))


def test_fences_are_named_as_in_redis() -> None:
    assert fence(event("u", 1, partition=3)) == "o3"
    assert fence(profile("u", 1, None, minute=0)) == "u0"


def test_a_generation_is_beside_the_state_and_follows_its_copies() -> None:
    state = folded("u", event("u", 1))
    state.generation = 7
    assert state.copy().generation == 7
    assert decode_state("u", encode_state(state)) == state
    assert decode_state("u", encode_state(state)).generation == 0


def row(item_id: str, count: float) -> ItemSignals:
    counts = [count] * (len(SETTINGS.items.half_lives_days) + 1)
    return ItemSignals(item_id=item_id, at=1.0, counts=counts, neighbours=[], symmetric="", directed="", applied={})


def part(number: int, parts: int, *rows: ItemSignals) -> RebuiltRows:
    return RebuiltRows(generation=5, begin=0, part=number, parts=parts, rows=list(rows))


def staged() -> StagedRows:
    return StagedRows(part(0, 2), 0, 1, SETTINGS.items, offset=3, now=0.0)


def test_parts_are_complete_when_all_have_come_in_order() -> None:
    rows = staged()
    assert not rows.take(part(0, 2, row("a", 1)))
    assert not rows.take(part(0, 2, row("a", 1))), "published twice"
    assert rows.take(part(1, 2, row("b", 2)))
    assert sorted(rows.statistics.item_ids) == ["a", "b"]
    assert not rows.broken


def test_a_part_that_is_missing_breaks_them() -> None:
    rows = staged()
    assert not rows.take(part(1, 2))
    assert rows.broken


def test_rows_from_events_name_how_far_they_are_complete() -> None:
    made = RowsFromEvents(SETTINGS, 2)
    ends = {"o0": 4, "o1": 2, "o2": 0, "u0": 1}
    made.effects_until(ends)
    made.take([event("u", 0, "lamp"), event("u", 3, "mug"), event("v", 1, "lamp", partition=1)])
    rows = {one.item_id: one for number in range(2) for one in made.rows(number, ends)}
    assert rows.keys() == {"lamp", "mug"}
    assert rows["mug"].neighbours == ["lamp"]
    assert all(one.applied == {"0": 3, "1": 1} for one in rows.values())


def test_a_slate_is_new_from_where_the_topic_ended() -> None:
    standing = Standing({0: 10, 1: 5})
    for key, partition, offset, gone in (
        (b"ann", 0, 1, False),
        (b"bob", 0, 2, False),
        (b"cid", 1, 3, False),
        (b"bob", 0, 4, True),
        (None, 0, 6, False),
        (b"ann", 0, 7, False),
    ):
        standing.take(key, partition, offset, gone=gone)
    assert (standing.old, standing.new) == ({b"ann": (0, 7), b"cid": (1, 3)}, 0)
    standing.take(b"ann", 0, 10, gone=False)
    standing.take(b"ann", 0, 11, gone=False)
    standing.take(b"eve", 0, 12, gone=False)  # had none before
    assert (standing.old, standing.new, standing.users) == ({b"cid": (1, 3)}, 1, 2)
    standing.take(b"cid", 1, 5, gone=True)
    assert (standing.old, standing.new) == ({}, 1)
