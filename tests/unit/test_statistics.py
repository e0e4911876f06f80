"""The item owner's statistics: exactly once per source offset, in any interleaving, through crashes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrays import unpack_float64
from schemas.messages import ItemSignals, Transition, Transitions
from stream_app.errors import InvalidMessage
from stream_app.items.partitions import by_owner, item_partition
from stream_app.items.statistics import ItemStatistics
from stream_app.settings import ItemSettings
from stream_app.users.state import id_hash

DAY = 86_400.0
SETTINGS = ItemSettings()


def transition(offset: int, item: str, previous: str = "", at: float = 0.0, count: float = 1.0) -> Transition:
    return Transition(
        offset=offset,
        at=at,
        item_id=item,
        count=count,
        previous=list(previous),
        symmetric=[0.9**lag for lag in range(1, len(previous) + 1)],
        directed=[0.7**lag for lag in range(1, len(previous) + 1)],
    )


def message(*rows: Transition, source: int = 0) -> Transitions:
    return Transitions(source_topic="interactions", source_partition=source, rows=list(rows))


def rows_of(statistics: ItemStatistics) -> dict[str, tuple]:
    """Every row, decayed to one common time, as plain values."""
    found = {}
    item_ids = sorted(statistics.item_ids)
    for item_id, row in zip(item_ids, statistics.stated(item_ids), strict=True):
        factor = 2.0 ** (-(1_000 * DAY - row.at) / (SETTINGS.transition_half_life_days * DAY))
        lives = [*SETTINGS.half_lives_days, np.inf]
        counts = [c * 2.0 ** (-(1_000 * DAY - row.at) / (h * DAY)) for c, h in zip(row.counts, lives, strict=True)]
        weights = zip(
            row.neighbours, unpack_float64(row.symmetric) * factor, unpack_float64(row.directed) * factor, strict=True
        )
        found[item_id] = (counts, {other: (s, d) for other, s, d in sorted(weights)}, row.applied)
    return found


def assert_equal(left: ItemStatistics, right: ItemStatistics) -> None:
    a, b = rows_of(left), rows_of(right)
    assert a.keys() == b.keys()
    for item_id, (counts, neighbours, applied) in a.items():
        other_counts, other_neighbours, other_applied = b[item_id]
        assert counts == pytest.approx(other_counts, rel=1e-9, abs=1e-300)
        assert applied == other_applied
        assert neighbours.keys() == other_neighbours.keys()
        for other, weights in neighbours.items():
            assert weights == pytest.approx(other_neighbours[other], rel=1e-9, abs=1e-300)


def test_counts_and_links_of_one_event():
    statistics = ItemStatistics(0, 1, SETTINGS)
    statistics.apply(message(transition(5, "c", "ba")), offset=0)
    rows = dict(statistics.take(10))
    assert rows["c"].counts == [1, 1, 1, 1]
    assert rows["c"].neighbours == ["b", "a"]
    assert unpack_float64(rows["c"].symmetric) == pytest.approx([0.9, 0.81])
    assert unpack_float64(rows["c"].directed) == pytest.approx([0, 0])
    assert rows["b"].counts == [0, 0, 0, 0]
    assert unpack_float64(rows["b"].directed) == pytest.approx([0.7])
    assert rows["b"].applied == {"0": 5}


def test_counts_halve_after_a_half_life_of_event_time():
    statistics = ItemStatistics(0, 1, SETTINGS)
    statistics.apply(message(transition(0, "a", at=0.0), transition(1, "a", at=7 * DAY)), offset=0)
    [(_, row)] = statistics.take(1)
    assert row.counts == pytest.approx([1 + 2.0**-7, 1.5, 1 + 2 ** (-7 / 30), 2])


def test_only_owned_items_have_rows():
    partitions = 4
    items = "abcdefgh"
    parts = [ItemStatistics(partition, partitions, SETTINGS) for partition in range(partitions)]
    for part in parts:
        part.apply(message(transition(0, "a", "bcdefgh")), offset=0)
    for part in parts:
        assert set(part.item_ids) == {item for item in items if item_partition(item, partitions) == part.partition}
    assert sum(len(part) for part in parts) == len(items)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sets(st.sampled_from("abcdefghij"))), max_size=8))
def test_owners_need_no_more_than_their_part_of_a_transition(taken: list[tuple[str, set[str]]]):
    partitions = 4
    whole, split = ([ItemStatistics(partition, partitions, SETTINGS) for partition in range(partitions)] for _ in "ab")
    for offset, (item, previous) in enumerate(taken):
        given = transition(offset, item, "".join(sorted(previous - {item})))
        parts = by_owner(given, partitions)
        assert sum(
            len(part.previous) for owner, part in parts.items() if owner != item_partition(item, partitions)
        ) <= len(given.previous)
        for partition in range(partitions):
            whole[partition].apply(message(given), offset=offset)
            if partition in parts:
                split[partition].apply(message(parts[partition]), offset=offset)
    for one, other in zip(whole, split, strict=True):
        assert sorted(one.item_ids) == sorted(other.item_ids)
        for item in one.item_ids:
            assert one.stated([item]) == other.stated([item])


def test_rows_leave_longest_waiting_first_and_offsets_are_safe_only_then():
    statistics = ItemStatistics(0, 1, SETTINGS)
    statistics.apply(message(transition(0, "a")), offset=10)
    statistics.apply(message(transition(1, "b")), offset=11)
    statistics.apply(message(transition(2, "a")), offset=12)
    assert statistics.commit_offset() == 10
    assert [item for item, _ in statistics.take(1)] == ["a"]
    assert statistics.commit_offset() == 10, "taken is not yet durable"
    statistics.taken_are_durable()
    assert statistics.commit_offset() == 11
    statistics.take(5)
    statistics.taken_are_durable()
    assert statistics.commit_offset() == 13


def test_rows_made_again_hold_the_commit_back_until_all_of_them_are_durable():
    statistics = ItemStatistics(0, 1, ItemSettings())
    for offset in range(10, 20):
        statistics.apply(message(transition(offset, f"i{offset}")), offset=offset)
    statistics.broadcast_all(["gone"], 5)  # its first part, however late the last one came
    for left in (8, 5, 2):
        assert statistics.commit_offset() == 5
        statistics.take(3)
        statistics.taken_are_durable()
        assert statistics.waiting
        assert statistics.commit_offset() == 5, left
    statistics.take(100)
    assert statistics.commit_offset() == 5, "on their way"
    statistics.taken_are_durable()
    assert statistics.commit_offset() == 20


def test_neighbours_are_bounded_and_what_is_broadcast_is_what_is_kept():
    statistics = ItemStatistics(0, 1, ItemSettings(neighbours=3))
    statistics.apply(message(transition(0, "z", "abcdef")), offset=0)
    [row] = statistics.stated(["z"])
    assert row.neighbours == ["a", "b", "c"]
    assert statistics.numbered == len(statistics) == 7
    fresh = ItemStatistics(0, 1, ItemSettings(neighbours=3))
    fresh.restore(row)
    for one in (statistics, fresh):
        one.apply(message(transition(1, "z", "d")), offset=1)
    assert statistics.stated(["z"]) == fresh.stated(["z"])


def test_items_are_bounded_and_the_least_recent_leaves_with_a_tombstone():
    statistics = ItemStatistics(0, 1, ItemSettings(tracked=2))
    for offset, item in enumerate("abc"):
        statistics.apply(message(transition(offset, item)), offset=offset)
    assert len(statistics) == 2
    assert ("a", None) in statistics.take(10)


def test_an_evicted_item_holds_the_commit_back_until_its_tombstone_is_durable():
    statistics = ItemStatistics(0, 1, ItemSettings(tracked=1))
    statistics.apply(message(transition(0, "a")), offset=0)
    statistics.take(10)
    statistics.taken_are_durable()
    statistics.apply(message(transition(1, "b")), offset=1)
    statistics.apply(message(transition(2, "b")), offset=2)
    assert statistics.commit_offset() == 1
    assert statistics.take(1) == [("a", None)]
    statistics.taken_are_durable()
    assert statistics.commit_offset() == 1, "b waits as well"


def test_an_evicted_item_that_comes_back_has_a_row_and_no_tombstone():
    statistics = ItemStatistics(0, 1, ItemSettings(tracked=1))
    for offset, item in enumerate("aba"):
        statistics.apply(message(transition(offset, item)), offset=offset)
    taken = statistics.take(10)
    assert [item for item, row in taken if row is None] == ["b"]
    assert [item for item, row in taken if row is not None] == ["a"]


def test_a_row_is_stated_at_one_time_for_counts_and_links():
    statistics = ItemStatistics(0, 1, SETTINGS)
    statistics.apply(message(transition(0, "a", at=0.0)), offset=0)
    statistics.apply(message(transition(1, "b", "a", at=200 * SETTINGS.transition_half_life_days * DAY)), offset=1)
    row = dict(statistics.take(10))["a"]
    assert row.at == 200 * SETTINGS.transition_half_life_days * DAY, "the link's reference moved on"
    assert row.counts[0] == pytest.approx(0.0, abs=1e-12)
    assert row.counts[-1] == 1


def test_a_row_that_does_not_fit_the_settings_is_refused():
    row = ItemSignals(item_id="a", at=0, counts=[1], neighbours=[], symmetric="", directed="", applied={})
    with pytest.raises(ValueError, match="half_lives_days"):
        ItemStatistics(0, 1, SETTINGS).restore(row)


def test_an_older_row_does_not_replace_a_newer_one():
    statistics = ItemStatistics(0, 1, SETTINGS)
    statistics.apply(message(transition(0, "a")), offset=0)
    [(_, old)] = statistics.take(1)
    statistics.apply(message(transition(1, "a")), offset=1)
    [(_, new)] = statistics.take(1)
    fresh = ItemStatistics(0, 1, SETTINGS)
    assert fresh.restore(new)
    assert not fresh.restore(old), "a paused owner's late row"
    assert rows_of(fresh)["a"][0][-1] == pytest.approx(2)


def test_years_of_events_do_not_overflow():
    statistics = ItemStatistics(0, 1, SETTINGS)
    for year in range(60):
        statistics.apply(message(transition(year, "a", "b", at=year * 365 * DAY)), offset=year)
    statistics.apply(message(transition(60, "a", "b", at=-1e10)), offset=60)
    [row] = statistics.stated(["a"])
    assert np.isfinite(row.counts).all()
    assert unpack_float64(row.symmetric)[0] == pytest.approx(0.9, rel=0.02)


items = st.sampled_from("abcde")
raw = st.lists(st.tuples(items, st.lists(items, max_size=4, unique=True), st.floats(0, 1_000 * DAY)), max_size=25)


def as_transitions(events) -> list[Transition]:
    return [
        transition(offset, item, "".join(o for o in previous if o != item), at)
        for offset, (item, previous, at) in enumerate(events)
    ]


@given(raw, raw, st.data())
def test_the_interleaving_of_source_partitions_does_not_matter(first, second, data):
    sources = [(0, row) for row in as_transitions(first)], [(1, row) for row in as_transitions(second)]
    one, other = ItemStatistics(0, 1, SETTINGS), ItemStatistics(0, 1, SETTINGS)
    for offset, (source, row) in enumerate(itertools.chain(*sources)):
        one.apply(message(row, source=source), offset=offset)
    queues = [list(part) for part in sources]
    offset = 0
    while any(queues):
        source, row = data.draw(st.sampled_from([queue for queue in queues if queue])).pop(0)
        other.apply(message(row, source=source), offset=offset)
        offset += 1
    assert_equal(one, other)


@given(raw, st.data())
def test_a_crash_at_any_moment_gives_the_same_rows(events, data):
    """Rows are flushed now and then, some twice; a new owner reads them back and the topic from the commit."""
    log = as_transitions(events)
    undisturbed = ItemStatistics(0, 1, SETTINGS)
    for offset, row in enumerate(log):
        undisturbed.apply(message(row), offset=offset)
    broadcast: dict[str, ItemSignals] = {}
    owner, committed, position = ItemStatistics(0, 1, SETTINGS), 0, 0
    while position < len(log):
        owner.apply(message(log[position]), offset=position)
        position += 1
        action = data.draw(st.sampled_from(["go on", "flush", "flush without commit", "crash in flush", "crash"]))
        if action.startswith("flush") or action == "crash in flush":
            taken = owner.take(data.draw(st.integers(1, 5)))
            arrived = taken[: len(taken) // 2] if action == "crash in flush" else taken
            broadcast.update({item_id: row for item_id, row in arrived if row is not None})
            if action == "flush":
                owner.taken_are_durable()
                committed = owner.commit_offset() or 0
        if "crash" in action:
            owner, position = ItemStatistics(0, 1, SETTINGS), committed
            for row in broadcast.values():
                owner.restore(row)
    assert_equal(undisturbed, owner)


@given(raw, st.integers(0, 24), st.integers(0, 24))
def test_two_owners_of_a_source_overlapping_for_a_while_count_nothing_twice(events, start, end):
    log = as_transitions(events)
    one, other = ItemStatistics(0, 1, SETTINGS), ItemStatistics(0, 1, SETTINGS)
    for row in log:
        one.apply(message(row), offset=row.offset)
    # The new owner starts at or before what the old one did last, and both go on in order.
    for offset, row in enumerate([*log[: max(start, end)], *log[min(start, end) :]]):
        other.apply(message(row), offset=offset)
    assert_equal(one, other)


def test_equal_links_are_cut_by_id_and_not_by_the_order_they_came_in():
    kept = []
    for order in ("abcdef", "fedcba"):
        statistics = ItemStatistics(0, 1, ItemSettings(neighbours=3))
        for offset, other in enumerate(order):
            statistics.apply(message(transition(offset, "z", other)), offset=offset)
        kept.append(sorted(statistics.stated(["z"])[0].neighbours))
    assert kept[0] == kept[1] == sorted(sorted("abcdef", key=id_hash)[:3])


def test_what_nothing_refers_to_is_not_held():
    statistics = ItemStatistics(0, 1, ItemSettings(neighbours=3, tracked=5))
    held = []
    for offset in range(3_000):
        previous = [f"i{offset - lag}" for lag in range(1, 5)]
        statistics.apply(
            message(
                Transition(
                    offset=offset,
                    at=float(offset),
                    item_id=f"i{offset}",
                    count=1.0,
                    previous=previous,
                    symmetric=[1.0] * 4,
                    directed=[0.5] * 4,
                )
            ),
            offset=offset,
        )
        statistics.take(statistics.waiting)
        statistics.taken_are_durable()
        held.append((statistics.numbered, len(statistics._rows), len(statistics._neighbours)))
    assert len(statistics) == 5
    assert max(numbered for numbered, _, _ in held) <= 5 * (1 + 6)
    assert held[100][1:] == held[-1][1:], "arrays stop growing"
    # What is held is exactly the rows and their neighbours.
    named = {other for row in statistics.stated(statistics.item_ids) for other in row.neighbours}
    assert set(statistics._number_of) == named | set(statistics.item_ids)


def test_a_row_never_holds_more_than_twice_its_neighbours():
    statistics = ItemStatistics(0, 1, ItemSettings(neighbours=4))
    for offset in range(100):
        statistics.apply(message(Transition(
            offset=offset, at=0.0, item_id="z", count=1.0, previous=[f"i{offset}"],
            symmetric=[float(offset + 1)], directed=[0.0],
        )), offset=offset)  # fmt: skip
        assert statistics._rows[statistics._number_of["z"]]["length"] <= 8
    [row] = statistics.stated(["z"])
    assert sorted(row.neighbours) == ["i96", "i97", "i98", "i99"]


def test_an_offset_beyond_64_bits_is_refused_and_nothing_is_applied():
    statistics = ItemStatistics(0, 1, SETTINGS)
    with pytest.raises(InvalidMessage):
        statistics.apply(message(transition(0, "a", "b"), transition(2**70, "a", "b")), offset=0)
    assert (len(statistics), statistics.numbered, statistics.waiting) == (0, 0, 0)


class _Model:
    """Every event of every count and link, undecayed and uncut."""

    def __init__(self, settings: ItemSettings) -> None:
        self.half_lives = [days * DAY for days in settings.half_lives_days]
        self.half_life = settings.transition_half_life_days * DAY
        self.counts: dict[str, list[tuple[float, float]]] = {}
        self.links: dict[str, dict[str, list[tuple[float, float, float]]]] = {}

    def apply(self, row: Transition) -> None:
        self.counts.setdefault(row.item_id, []).append((row.at, row.count))
        for other, symmetric, directed in zip(row.previous, row.symmetric, row.directed, strict=True):
            self.links.setdefault(row.item_id, {}).setdefault(other, []).append((row.at, symmetric * row.count, 0.0))
            back = self.links.setdefault(other, {}).setdefault(row.item_id, [])
            back.append((row.at, symmetric * row.count, directed * row.count))


@given(raw)
def test_values_are_the_sums_of_the_decayed_events(events):
    statistics, model = ItemStatistics(0, 1, SETTINGS), _Model(SETTINGS)
    for row in as_transitions(events):
        statistics.apply(message(row), offset=row.offset)
        model.apply(row)
    assert set(statistics.item_ids) == set(model.counts) | set(model.links)
    for item_id, row in zip(statistics.item_ids, statistics.stated(statistics.item_ids), strict=True):
        for column, half_life in enumerate([*model.half_lives, np.inf]):
            expected = sum(count * 2.0 ** ((at - row.at) / half_life) for at, count in model.counts.get(item_id, []))
            assert row.counts[column] == pytest.approx(expected, rel=1e-9, abs=1e-300)
        found = dict(
            zip(
                row.neighbours,
                zip(unpack_float64(row.symmetric), unpack_float64(row.directed), strict=True),
                strict=True,
            )
        )
        links = model.links.get(item_id, {})
        assert found.keys() == links.keys()
        for other, parts in links.items():
            for column in (1, 2):
                expected = sum(part[column] * 2.0 ** ((part[0] - row.at) / model.half_life) for part in parts)
                assert found[other][column - 1] == pytest.approx(expected, rel=1e-9, abs=1e-300)
