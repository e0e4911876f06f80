"""The serving state: topics may interleave in any order, spaces never mix, snapshots are whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrays import pack_float32, pack_float64
from schemas.decode import decode_item_signals, encode
from schemas.messages import Item, ItemSignals, ItemVector, Transition, Transitions
from stream_app.errors import SnapshotError
from stream_app.items.statistics import ItemStatistics
from stream_app.ranking.recommender import RankRequest, Recommender
from stream_app.serving import ServingState
from stream_app.settings import ItemSettings, ReplicaSettings, Settings
from stream_app.users.state import HistoryEntry, UserState

DIMENSIONS = 4
SPACE = "test/4/raw"
NAMES = ("a", "b", "c", "d")


def new_state(settings: Settings | None = None) -> ServingState:
    return ServingState(settings or Settings(), space=SPACE, dimensions=DIMENSIONS)


def vector(item_id: str, *values: float, space: str = SPACE) -> ItemVector:
    unit = np.array(values) / np.linalg.norm(values)
    return ItemVector(item_id=item_id, space=space, text_hash="", dimensions=len(values), vector=pack_float32(unit))


def signals(item_id: str, count: float, *neighbours: str, offset: int = 1) -> ItemSignals:
    weights = pack_float64(np.ones(len(neighbours)))
    return ItemSignals(
        item_id=item_id,
        at=0.0,
        counts=[count] * 4,
        neighbours=list(neighbours),
        symmetric=weights,
        directed=weights,
        applied={"0": offset},
    )


def slate(state: ServingState) -> list[tuple[Any, ...]]:
    """A slate as published, for somebody who has seen ``a``."""
    recommender = Recommender(state.settings, state)
    user = UserState("u", (HistoryEntry("a", "click", 0.0, 1.0, 0),))
    items = recommender.slate_items(recommender.rank([RankRequest(user=user, at=1.0, now=1.0, n=10)])[0])
    return [(item.item_id, item.score, item.sources, item.reason) for item in items]


STEPS = [
    *[("item", name) for name in NAMES],
    *[("vector", name) for name in NAMES],
    *[("signals", name) for name in NAMES[:3]],
]


def apply(state: ServingState, step: tuple[str, str]) -> None:
    kind, name = step
    place = NAMES.index(name)
    if kind == "item":
        state.apply_item(name, Item(item_id=name, title=name.upper()))
    elif kind == "vector":
        state.apply_vector(name, vector(name, 1.0, place, place % 2, 0.5))
    else:
        state.apply_signals(name, signals(name, 6.0 - place, *NAMES[place + 1 :]))


@given(st.permutations(STEPS))
def test_topics_may_interleave_in_any_order(order: list[tuple[str, str]]) -> None:
    expected, state = new_state(), new_state()
    for step in STEPS:
        apply(expected, step)
    for step in order:
        apply(state, step)
    assert slate(state) == slate(expected)
    assert {row[0] for row in slate(state)} == set(NAMES)


def test_replaying_a_topic_changes_nothing() -> None:
    state = new_state()
    for step in STEPS:
        apply(state, step)
    before = slate(state)
    for step in STEPS:
        apply(state, step)
    assert slate(state) == before


def test_a_deleted_item_leaves_index_and_slates_at_once() -> None:
    state = new_state()
    for step in STEPS:
        apply(state, step)
    state.apply_item("d", None)
    state.apply_item("never there", None)
    assert len(state.index) == 3
    assert len(state.cold) == 1, "of a, b, c only c has fewer than five events"
    assert "d" not in {row[0] for row in slate(state)}
    state.apply_vector("c", None)
    assert len(state.index) == 2
    assert "c" in {row[0] for row in slate(state)}, "without its vector it is still for sale"


def test_a_vector_that_outlives_its_item_is_not_served() -> None:
    state = new_state()
    apply(state, ("item", "a"))
    apply(state, ("vector", "a"))
    state.apply_item("a", None)
    apply(state, ("vector", "a"))  # the encoder was slower than the deletion
    assert slate(state) == []
    apply(state, ("item", "a"))
    assert [row[0] for row in slate(state)] == ["a"]


def test_vectors_of_another_space_are_ignored() -> None:
    state = new_state()
    state.apply_vector("a", vector("a", 1.0, 2.0, space="other/2/raw"))
    assert len(state.index) == 0
    assert state.counters["vectors_of_other_spaces"] == 1
    with pytest.raises(ValueError, match="shape"):
        state.apply_vector("a", vector("a", 1.0, 2.0))


def test_an_item_is_cold_until_enough_events() -> None:
    state = new_state()
    apply(state, ("item", "a"))
    assert len(state.cold) == 1
    state.apply_signals("a", signals("a", 4.9, offset=1))
    assert len(state.cold) == 1
    state.apply_signals("a", signals("a", 5.0, offset=2))
    assert len(state.cold) == 0
    state.apply_signals("a", None)
    assert len(state.cold) == 1
    state.apply_signals("b", signals("b", 1.0))
    assert len(state.cold) == 1, "an id without an entry is not an item"


def test_rows_nobody_needs_make_room_for_new_ids() -> None:
    state = new_state(Settings(replica=ReplicaSettings(unknown_items=2)))
    for number in range(50):
        name = f"i{number}"
        state.apply_item(name, Item(item_id=name, title=name))
        state.apply_vector(name, vector(name, 1.0, number, 0.0, 0.0))
        state.apply_item(name, None)
        state.apply_signals(f"early{number % 2}", signals(f"early{number % 2}", 1.0, offset=number))
    assert state.catalogue.rows < 10
    apply(state, ("item", "a"))
    assert [row[0] for row in slate(state)] == ["a"]


def test_of_too_many_unknown_ids_the_ones_with_fewest_events_go() -> None:
    state = new_state(Settings(replica=ReplicaSettings(unknown_items=20)))
    for number in range(100):
        name = f"early{number}"
        state.apply_signals(name, signals(name, float(number % 50), f"early{(number + 1) % 100}", offset=number))
        assert state.catalogue.unknown <= 20
    assert state.catalogue.rows <= 21
    assert state.counters["unknown_items_dropped"] > 50
    assert state.catalogue.row("early49") >= 0
    assert state.catalogue.row("early3") == -1


def links_of(state: ServingState) -> dict[str, Any]:
    """Neighbours of every id, as they are held."""
    found = {}
    for row in np.flatnonzero(state.catalogue.id_hash >= 0).tolist():
        held = state.signals.neighbours(row)
        names = [state.catalogue.item_id(other) for other in held.rows.tolist()]
        weights = zip(names, held.symmetric.tolist(), held.directed.tolist(), strict=True)
        found[state.catalogue.item_id(row)] = (held.at, sorted(weights))
    return found


@pytest.mark.parametrize("tracked", [1_000, 12], ids=["all tracked", "some evicted"])
def test_statistics_in_this_process_are_taken_over_as_their_messages_would_be(tracked: int) -> None:
    settings = Settings(items=ItemSettings(neighbours=6, tracked=tracked))
    rng = np.random.default_rng(5)
    names = [f"i{number}" for number in range(40)]
    direct, wired = new_state(settings), new_state(settings)
    for state in (direct, wired):
        for name in names[:30]:
            state.apply_item(name, Item(item_id=name, title=name))
    owners = [ItemStatistics(0, 1, settings.items) for _ in range(2)]
    for offset in range(400):
        chosen = rng.permutation(names)[: int(rng.integers(1, 8))].tolist()
        lags = range(1, len(chosen))
        row = Transition(
            offset=offset,
            at=float(rng.uniform(0, 1e7)),
            item_id=chosen[0],
            count=1.0,
            previous=chosen[1:],
            symmetric=[0.9**lag for lag in lags],
            directed=[0.7**lag for lag in lags],
        )
        for owner in owners:
            owner.apply(
                Transitions(source_topic="interactions", source_partition=offset % 2, rows=[row]), offset=offset
            )
        if offset % 7:
            continue
        direct.apply_statistics(owners[0])
        for item_id, message in owners[1].take(owners[1].waiting):
            wired.apply_signals(item_id, None if message is None else decode_item_signals(*on_the_wire(message))[1])
        for owner in owners:
            owner.taken_are_durable()
    assert links_of(direct) == links_of(wired)
    assert direct.counters == wired.counters
    assert len(direct.cold) == len(wired.cold)
    for name in names:
        rows = [np.array([state.catalogue.row(name)]) for state in (direct, wired)]
        assert np.array_equal(direct.signals.popularity(2e7, rows[0]), wired.signals.popularity(2e7, rows[1]))
    for column in range(4):
        found = [
            [state.catalogue.item_id(row) for row in state.signals.trending(column, state.catalogue.id_hash).tolist()]
            for state in (direct, wired)
        ]
        assert found[0] == found[1]


def on_the_wire(message: ItemSignals) -> tuple[bytes, bytes]:
    return message.item_id.encode(), encode(message)


@pytest.mark.parametrize("unknown_items", [0, 10])
def test_statistics_of_more_unknown_ids_than_there_is_room_for_are_bounded(unknown_items: int) -> None:
    state = new_state(Settings(replica=ReplicaSettings(unknown_items=unknown_items)))
    state.apply_item("known", Item(item_id="known", title="known"))
    statistics = ItemStatistics(0, 1, state.settings.items)
    for offset in range(300):
        previous = ["known", f"i{offset - 1}", f"i{offset - 2}"]
        row = Transition(
            offset=offset, at=0.0, item_id=f"i{offset}", count=1.0, previous=previous, symmetric=[1.0] * 3,
            directed=[1.0] * 3,
        )  # fmt: skip
        message = Transitions(source_topic="interactions", source_partition=0, rows=[row])
        statistics.apply(message, offset=offset)
        state.apply_statistics(statistics)
        statistics.taken_are_durable()
        assert state.catalogue.unknown <= unknown_items
        links = state.signals.neighbours(state.catalogue.row("known"))
        held = {state.catalogue.item_id(other) for other in links.rows.tolist()}
        assert held <= {f"i{number}" for number in range(offset + 1)}


def test_versions_say_what_made_a_slate() -> None:
    state = new_state()
    before = state.versions
    apply(state, ("vector", "a"))
    after = state.versions
    assert before.space == after.space == SPACE
    assert before.index != after.index
    assert after.ranker == "default.0.linear"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    state = new_state()
    for step in STEPS:
        apply(state, step)
    state.apply_signals("early", signals("early", 3.0, "a"))
    state.save(tmp_path / "snapshot")
    return tmp_path / "snapshot"


def test_loaded_from_a_snapshot_it_goes_on_the_same(saved: Path) -> None:
    undisturbed = new_state()
    for step in STEPS:
        apply(undisturbed, step)
    undisturbed.apply_signals("early", signals("early", 3.0, "a"))
    state = ServingState.load(saved, Settings(), space=SPACE, dimensions=DIMENSIONS)
    assert state.versions == undisturbed.versions
    assert slate(state) == slate(undisturbed)
    for later in (state, undisturbed):
        later.apply_item("e", Item(item_id="e", title="E"))
        later.apply_item("b", None)
        later.apply_signals("c", signals("c", 9.0, "e", offset=5))
        assert not later.apply_signals("c", signals("c", 1.0, offset=4))
    assert slate(state) == slate(undisturbed)


def test_a_snapshot_of_another_space_or_settings_is_not_used(saved: Path) -> None:
    with pytest.raises(SnapshotError, match="space"):
        ServingState.load(saved, Settings(), space="other", dimensions=DIMENSIONS)
    with pytest.raises(SnapshotError, match="dimensions"):
        ServingState.load(saved, Settings(), space=SPACE, dimensions=DIMENSIONS + 1)
    other = Settings(items=ItemSettings(half_lives_days=(1.0,)))
    with pytest.raises(SnapshotError, match="half-lives"):
        ServingState.load(saved, other, space=SPACE, dimensions=DIMENSIONS)


@pytest.mark.parametrize("name", ["serving.json", "catalogue.npz", "vectors.npz", "signals.npz", "signals.msgpack"])
def test_an_incomplete_snapshot_is_not_used(saved: Path, name: str) -> None:
    (saved / name).write_bytes(msgspec.json.encode("something else"))
    with pytest.raises(SnapshotError):
        ServingState.load(saved, Settings(), space=SPACE, dimensions=DIMENSIONS)


def held_signals(state: ServingState, names: Sequence[str]) -> list[Any]:
    """What is held of items, whatever their rows."""
    id_of = state.catalogue.item_id
    found = []
    for name in names:
        row = state.catalogue.row(name)
        neighbours = state.signals.neighbours(row)
        weights = zip(map(id_of, neighbours.rows.tolist()), neighbours.symmetric, neighbours.directed, strict=True)
        found.append((name, state.signals.total(np.array([row])).tolist(), sorted(weights), row in state.cold))
    return found


@given(st.data())
def test_signals_applied_together_are_those_applied_one_by_one(data: st.DataObject) -> None:
    names = [f"i{number}" for number in range(6)]
    one, many = new_state(), new_state()
    for state in (one, many):
        for name in names[:4]:
            state.apply_item(name, Item(item_id=name, title=name))
    for offset in range(3):
        chosen = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
        messages = [
            (
                name,
                signals(
                    name,
                    float(data.draw(st.integers(0, 9))),
                    *data.draw(st.lists(st.sampled_from(names), unique=True)),
                    # Sometimes older than what is held.
                    offset=data.draw(st.integers(offset - 1, offset)),
                ),
            )
            for name in chosen
        ]
        for name, message in messages:
            one.apply_signals(name, message)
        many.apply_all_signals(messages)
        assert held_signals(many, chosen) == held_signals(one, chosen)
    assert one.counters == many.counters


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts": [1.0]},
        {"counts": [np.inf] * 4},
        {"symmetric": pack_float64(np.ones(2))},
        {"symmetric": "?"},
        {"applied": {"0": 2**70}},
        {"item_id": "a"},
    ],
)
def test_of_signals_that_cannot_be_applied_together_none_are(wrong: dict[str, Any]) -> None:
    state = new_state()
    for name in ("a", "b", "c"):
        apply(state, ("item", name))
    bad = msgspec.structs.replace(signals("b", 3.0, "c"), **wrong)
    before = held_signals(state, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"counts|number|differ|base64|integer|together"):
        state.apply_all_signals([("a", signals("a", 5.0, "b")), (bad.item_id, bad)])
    assert held_signals(state, ["a", "b", "c"]) == before
    assert not state.counters["signals"]


def test_signals_for_which_room_has_to_be_made_are_not_applied_together() -> None:
    state = new_state(Settings(replica=ReplicaSettings(unknown_items=2)))
    with pytest.raises(ValueError, match="together"):
        state.apply_all_signals([(f"early{number}", signals(f"early{number}", 1.0)) for number in range(9)])
    apply(state, ("item", "a"))
    with pytest.raises(ValueError, match="together"):
        state.apply_all_signals([("a", signals("a", 1.0, *(f"early{number}" for number in range(9))))])
    assert not state.counters["signals"]


def test_neighbours_of_ignored_signals_take_no_places() -> None:
    state = new_state()
    apply(state, ("item", "a"))
    apply(state, ("item", "b"))
    state.apply_signals("a", signals("a", 1.0, offset=5))
    older = signals("a", 2.0, *(f"early{number}" for number in range(9)), offset=1)
    state.apply_all_signals([("a", older), ("b", signals("b", 3.0, "a"))])
    assert state.catalogue.unknown == 0
    assert (state.counters["signals"], state.counters["signals_ignored"]) == (2, 1)
    state.apply_all_signals([("a", older)])
    assert state.counters["signals_ignored"] == 2


def test_the_codes_of_new_items_follow_their_choice_and_their_vectors():
    state = new_state()
    for name in "ab":
        state.apply_item(name, Item(item_id=name, title=name))
    state.apply_vector("a", vector("a", 1, 0, 0, 0))

    def codes() -> dict[str, list[int]]:
        tables = state.tables(0.0, 0)
        assert tables.cold_codes.shape[0] == len(tables.cold_steps) == len(tables.cold)
        named = zip(tables.cold.tolist(), tables.cold_codes.tolist(), strict=True)
        return {state.catalogue.item_id(row): values[:DIMENSIONS] for row, values in named}

    assert codes() == {"a": [127, 0, 0, 0], "b": [0, 0, 0, 0]}
    assert state.tables(0.0, 0).cold_codes is state.tables(0.0, 0).cold_codes, "made once"
    state.apply_vector("b", vector("b", 0, 1, 0, 0))
    state.apply_vector("a", vector("a", 0, 0, -1, 0))
    assert codes() == {"a": [0, 0, -127, 0], "b": [0, 127, 0, 0]}
    state.apply_signals("b", signals("b", 100.0))
    assert codes() == {"a": [0, 0, -127, 0]}, "taken often"
