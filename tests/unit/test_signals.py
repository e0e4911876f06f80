"""Statistics by row: decay, order, trending and what is ignored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrays import pack_float64
from schemas.messages import ItemSignals
from stream_app.errors import SnapshotError
from stream_app.items.catalogue import Catalogue
from stream_app.items.signals import Signals
from stream_app.items.trending import TopRows
from stream_app.settings import ItemSettings

DAY = 86_400.0
SETTINGS = ItemSettings(half_lives_days=(1.0, 7.0), transition_half_life_days=10.0)


def message(
    item_id: str,
    counts: list[float],
    *,
    at: float = 0.0,
    links: dict[str, tuple[float, float]] | None = None,
    applied: dict[str, int] | None = None,
) -> ItemSignals:
    links = links or {}
    return ItemSignals(
        item_id=item_id,
        at=at,
        counts=counts,
        neighbours=list(links),
        symmetric=pack_float64(np.array([symmetric for symmetric, _ in links.values()])),
        directed=pack_float64(np.array([directed for _, directed in links.values()])),
        applied=applied or {"0": 1},
    )


def test_counts_decay_by_their_half_lives_and_the_last_never() -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=10)
    assert signals.apply("a", message("a", [8.0, 8.0, 8.0], at=100.0), catalogue)
    row = np.array([catalogue.row("a")])
    assert signals.popularity(100.0, row).tolist() == [[8.0, 8.0, 8.0]]
    assert signals.popularity(100.0 + 7 * DAY, row)[0] == pytest.approx([8 / 128, 4.0, 8.0])
    assert signals.popularity(50.0, row).tolist() == [[8.0, 8.0, 8.0]], "an earlier time does not inflate"
    assert signals.total(row).tolist() == [8.0]


def test_rows_without_signals_have_zeros() -> None:
    signals = Signals(SETTINGS)
    assert signals.popularity(0.0, np.array([0, 5_000])).tolist() == [[0.0] * 3] * 2
    assert signals.total(np.array([], np.int32)).tolist() == []
    assert len(signals.neighbours(9_999).rows) == 0


def test_neighbours_are_rows_even_before_their_items_are_known() -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=2)
    links = {"b": (2.0, 1.0), "c": (1.0, 0.0)}
    signals.apply("a", message("a", [1.0] * 3, at=50.0, links=links), catalogue)
    neighbours = signals.neighbours(catalogue.row("a"))
    assert [catalogue.item_id(row) for row in neighbours.rows.tolist()] == ["b"], "the third id found no place"
    assert (neighbours.symmetric.tolist(), neighbours.directed.tolist(), neighbours.at) == ([2.0], [1.0], 50.0)
    assert signals.decay(50.0, 50.0 + 10 * DAY) == pytest.approx(0.5)
    assert signals.decay(50.0, 0.0) == 1.0


def test_a_row_that_holds_less_is_ignored() -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=10)
    assert signals.apply("a", message("a", [5.0] * 3, applied={"0": 5, "1": 2}), catalogue)
    row = np.array([catalogue.row("a")])
    for older in ({"0": 4, "1": 2}, {"0": 5}, {"0": 9, "1": 1}):
        assert not signals.apply("a", message("a", [1.0] * 3, applied=older), catalogue)
    assert signals.total(row).tolist() == [5.0]
    assert signals.apply("a", message("a", [6.0] * 3, applied={"0": 5, "1": 3}), catalogue)
    assert signals.total(row).tolist() == [6.0]


def test_an_evicted_row_counts_nothing_and_may_start_again() -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=10)
    signals.apply("a", message("a", [5.0] * 3, links={"b": (1.0, 1.0)}, applied={"0": 5}), catalogue)
    assert signals.apply("a", None, catalogue)
    assert not signals.apply("never there", None, catalogue)
    row = catalogue.row("a")
    assert signals.total(np.array([row])).tolist() == [0.0]
    assert len(signals.neighbours(row).rows) == 0
    assert signals.trending(0, catalogue.id_hash).tolist() == []
    assert signals.apply("a", message("a", [1.0] * 3, applied={"0": 1}), catalogue)


def test_forgotten_rows_are_nobodys_neighbours() -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=10)
    signals.apply("a", message("a", [5.0] * 3, links={"b": (1.0, 0.0), "c": (2.0, 1.0)}), catalogue)
    signals.apply("b", message("b", [3.0] * 3, links={"a": (1.0, 0.0)}), catalogue)
    signals.forget(np.array([catalogue.row("b")], np.int32))
    assert signals.neighbours(catalogue.row("a")).rows.tolist() == [catalogue.row("c")]
    assert signals.neighbours(catalogue.row("a")).symmetric.tolist() == [2.0]
    assert signals.total(np.array([catalogue.row("b")])).tolist() == [0.0]
    assert signals.referenced(catalogue.rows).tolist() == [True, False, True]


def test_arrays_that_do_not_fit_are_refused() -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=10)
    with pytest.raises(ValueError, match="half_lives"):
        signals.apply("a", message("a", [1.0] * 2), catalogue)
    broken = ItemSignals(item_id="a", at=0.0, counts=[1.0] * 3, neighbours=["b"], symmetric="", directed="", applied={})
    with pytest.raises(ValueError, match="length"):
        signals.apply("a", broken, catalogue)


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.floats(0.25, 64.0), st.integers(0, 200), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
def test_trending_is_what_sorting_everything_gives(updates: list[tuple[int, float, int, bool]]) -> None:
    signals, catalogue = Signals(SETTINGS, top=5), Catalogue(unknown_items=100)
    for number, (name, count, day, ask) in enumerate(updates):
        counts = [count, 2 * count, float(number)]
        signals.apply(f"i{name}", message(f"i{name}", counts, at=day * DAY, applied={"0": number}), catalogue)
        if not ask:
            continue
        rows = np.arange(catalogue.rows)
        now = 200.0 * DAY
        for column in range(3):
            found = signals.trending(column, catalogue.id_hash)
            counted = signals.popularity(now, rows)[:, column]
            best = np.sort(counted[counted > 0])[::-1][:5]
            assert signals.popularity(now, found)[:, column] == pytest.approx(best)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12), st.integers(0, 40), st.sampled_from(["apply", "apply", "apply", "evict", "forget"])
        ),
        max_size=60,
    )
)
def test_neighbours_are_those_last_stated_whatever_came_in_between(steps: list[tuple[int, int, str]]) -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=100)
    stated: dict[str, dict[str, tuple[float, float]]] = {}
    for number, (name, size, step) in enumerate(steps):
        item = f"i{name}"
        if step == "apply":
            links = {f"i{(name + 1 + other) % 50}": (number + other + 0.5, float(other % 3)) for other in range(size)}
            signals.apply(item, message(item, [1.0] * 3, links=links, applied={"0": number}), catalogue)
            stated[item] = links
        elif step == "evict":
            signals.apply(item, None, catalogue)
            stated.pop(item, None)
        elif catalogue.row(item) >= 0:
            signals.forget(np.array([catalogue.row(item)], np.int32))
            stated.pop(item, None)
            for links in stated.values():
                links.pop(item, None)
    for row in range(catalogue.rows):
        held = signals.neighbours(row)
        found = {
            catalogue.item_id(other): (symmetric, directed)
            for other, symmetric, directed in zip(
                held.rows.tolist(), held.symmetric.tolist(), held.directed.tolist(), strict=True
            )
        }
        assert found == stated.get(catalogue.item_id(row), {})


def test_room_for_neighbours_is_used_again() -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=3_000)
    offset = 0
    sizes = []
    for _ in range(6):
        for name in range(60):
            links = {f"o{other}": (1.0, 0.0) for other in range(100 + name % 100)}
            offset += 1
            signals.apply(f"i{name}", message(f"i{name}", [1.0] * 3, links=links, applied={"0": offset}), catalogue)
        sizes.append(len(signals.arena.rows))
        for name in range(60):
            signals.apply(f"i{name}", None, catalogue)
    assert len(set(sizes)) == 1


def test_a_snapshot_that_was_damaged_is_not_used(tmp_path: Path) -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=10)
    signals.apply("a", message("a", [1.0, 2.0, 3.0], links={"b": (1.5, 0.5)}), catalogue)
    signals.save(tmp_path)
    with np.load(tmp_path / "signals.npz") as arrays:
        held = {name: arrays[name] for name in arrays.files}
    for name, value in (("lengths", -1), ("rows", -7)):
        np.savez(tmp_path / "signals.npz", **{**held, name: np.full_like(held[name], value)})
        with pytest.raises(SnapshotError):
            Signals.load(tmp_path, SETTINGS)


def test_trending_is_not_sorted_anew_for_every_update() -> None:
    signals, catalogue = Signals(SETTINGS, top=10), Catalogue(unknown_items=1_000)
    rng = np.random.default_rng(0)
    totals: dict[str, float] = {}
    for offset in range(2_000):
        name = f"i{int(rng.pareto(1.0) * 5) % 500}"
        totals[name] = totals.get(name, 0.0) + 1.0
        signals.apply(name, message(name, [totals[name]] * 3, at=float(offset), applied={"0": offset}), catalogue)
        signals.trending(2, catalogue.id_hash)
    assert signals._top.scans <= 2 * signals.columns
    assert totals[catalogue.item_id(int(signals.trending(2, catalogue.id_hash)[0]))] == max(totals.values())


def test_the_tops_are_what_trends_by_each_count_also_after_changes() -> None:
    signals, other, catalogue = Signals(SETTINGS, top=10), Signals(SETTINGS, top=10), Catalogue(unknown_items=1_000)
    rng = np.random.default_rng(1)

    def tops() -> list[list[int]]:
        rows, counts = signals.tops(catalogue.id_hash)
        found = [of_column[:count].tolist() for of_column, count in zip(rows, counts, strict=True)]
        # Another one too: it is asked for nothing else.
        for each in (signals, other):
            assert found == [each.trending(column, catalogue.id_hash).tolist() for column in range(3)]
        return found

    assert tops() == [[], [], []]
    for offset in range(300):
        name = f"i{rng.integers(0, 25)}"
        counts, at = rng.integers(0, 9, 3).astype(float).tolist(), float(rng.integers(0, 30)) * DAY
        change = message(name, counts, at=at, applied={"0": offset}) if rng.random() < 0.6 else None
        for each in (signals, other):
            each.apply(name, change, catalogue)
        tops()
    before = tops()
    # An item without events is one more row.
    catalogue.intern("quiet")
    assert tops() == before
    gone = before[2][:3]
    for each in (signals, other):
        each.forget(np.array(gone, np.int32))
    assert not set(gone) & {row for rows in tops() for row in rows}


def test_equal_counts_are_ordered_by_the_tie_break_and_not_by_row() -> None:
    keys = np.zeros((1, 4))
    for ties, expected in (([4, 3, 2, 1], [3, 2]), ([1, 2, 3, 4], [0, 1])):
        top, counts = TopRows(1, 2).rows(keys, np.array(ties), 4)
        assert top[0, : counts[0]].tolist() == expected


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=10)
    signals.apply("a", message("a", [1.0, 2.0, 3.0], at=5.0, links={"b": (1.5, 0.5), "c": (2.5, 0.0)}), catalogue)
    signals.apply("c", message("c", [2.0, 1.0, 4.0], at=9.0, applied={"0": 7}), catalogue)
    signals.save(tmp_path)
    loaded = Signals.load(tmp_path, SETTINGS)
    rows = np.arange(catalogue.rows)
    assert loaded.version == signals.version
    assert np.array_equal(loaded.popularity(99.0, rows), signals.popularity(99.0, rows))
    for row in rows.tolist():
        for ours, theirs in zip(signals.neighbours(row), loaded.neighbours(row), strict=True):
            assert np.array_equal(ours, theirs)
    assert loaded.trending(0, catalogue.id_hash).tolist() == signals.trending(0, catalogue.id_hash).tolist()
    assert not loaded.apply("c", message("c", [0.0] * 3, applied={"0": 6}), catalogue)


def test_an_empty_state_can_be_saved_and_loaded(tmp_path: Path) -> None:
    Signals(SETTINGS).save(tmp_path)
    assert Signals.load(tmp_path, SETTINGS).rows == 0


def test_a_snapshot_with_other_half_lives_is_not_used(tmp_path: Path) -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=10)
    signals.apply("a", message("a", [1.0, 2.0, 3.0]), catalogue)
    signals.save(tmp_path)
    with pytest.raises(SnapshotError, match="half-lives"):
        Signals.load(tmp_path, ItemSettings())


@pytest.mark.parametrize("wild", [float("inf"), float("nan"), 1e300])
def test_numbers_that_cannot_be_are_refused(wild: float) -> None:
    signals, catalogue = Signals(SETTINGS), Catalogue(unknown_items=10)
    for bad in (
        message("a", [1.0, wild, 3.0]),
        message("a", [1.0, 2.0, 3.0], at=wild),
        message("a", [1.0, 2.0, 3.0], links={"b": (wild, 0.0)}),
        message("a", [1.0, 2.0, 3.0], links={"b": (1.0, wild)}),
    ):
        with pytest.raises(ValueError, match="item 'a': a number is not finite"):
            signals.apply("a", bad, catalogue)
    assert signals.version == 0
