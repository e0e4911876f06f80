"""Kept neighbours of items, compared with searching anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.index.hnsw import VectorIndex
from stream_app.index.neighbours import NeighbourLists, Search
from stream_app.settings import IndexSettings

DIMENSIONS = 24
SIZE = 10


def unit(count: int, *, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, DIMENSIONS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(vectors: NDArray[np.float32], **settings: Any) -> VectorIndex:
    index = VectorIndex(DIMENSIONS, IndexSettings(neighbours=SIZE, **settings))
    index.upsert(np.arange(len(vectors), dtype=np.int32), vectors)
    return index


def truth(vectors: NDArray[np.float32], row: int, *, without: tuple[int, ...] = ()) -> list[int]:
    similarity = vectors @ vectors[row]
    similarity[[row, *without]] = -np.inf
    return np.argsort(-similarity)[:SIZE].tolist()


def rows(*wanted: int) -> NDArray[np.int32]:
    return np.array(wanted, np.int32)


def lists_of(index: VectorIndex, wanted: NDArray[np.int32]) -> NDArray[np.int32]:
    """The lists of all of them: one call makes a few."""
    for start in range(0, len(wanted), 4):
        index.neighbours(wanted[start : start + 4])
    return np.concatenate([index.neighbours(wanted[start : start + 4]) for start in range(0, len(wanted), 4)])


@pytest.mark.parametrize("exact_below", [20_000, 0])
def test_lists_hold_what_a_search_finds(exact_below: int) -> None:
    vectors = unit(600, seed=1)
    index = filled(vectors, exact_below=exact_below)
    index.maybe_rebuild()
    assert index.exact is (exact_below > 0)
    wanted = rows(5, 0, 599, 5 + 100)
    hits = [
        len(set(found) & set(truth(vectors, row))) for row, found in zip(wanted, index.neighbours(wanted), strict=True)
    ]
    assert sum(hits) >= 0.9 * SIZE * len(wanted)
    if exact_below:
        assert index.neighbours(wanted).tolist() == [truth(vectors, row) for row in wanted.tolist()]


def test_rows_without_a_vector_have_no_list_and_a_small_index_has_short_ones() -> None:
    index = filled(unit(4, seed=2))
    found = index.neighbours(rows(0, 77, 3))
    assert found.shape == (2, SIZE)
    assert [sorted(row for row in one if row >= 0) for one in found.tolist()] == [[1, 2, 3], [0, 1, 2]]
    assert index.neighbours(rows()).shape == (0, SIZE)
    assert VectorIndex(DIMENSIONS, IndexSettings()).neighbours(rows(3)).shape == (0, IndexSettings().neighbours)


def test_one_call_makes_a_few_lists_those_asked_for_first() -> None:
    vectors = unit(300, seed=9)
    index = filled(vectors)
    assert index.neighbours(rows(*range(20))).tolist() == [truth(vectors, row) for row in range(8)]
    assert len(index.neighbours(rows(*range(20)))) == 16
    assert len(index.neighbours(rows(*range(20)))) == 20


def test_a_new_vector_is_in_the_lists_of_what_is_near_to_it() -> None:
    vectors = unit(400, seed=3)
    index = filled(vectors[:399])
    before = lists_of(index, rows(*range(399)))
    close = vectors[17] + 0.05 * vectors[18]
    vectors[399] = close / np.linalg.norm(close)
    index.upsert(rows(399), vectors[399:])
    assert index.neighbours(rows(17))[0].tolist() == truth(vectors, 17)
    after = lists_of(index, rows(*range(400)))
    assert 399 in after[17]
    assert not (before == 399).any()
    # Wherever it belongs, but for lists of what it is far from itself.
    misplaced = [row for row in range(399) if after[row].tolist() != truth(vectors, row)]
    assert len(misplaced) <= 4
    assert all(399 not in after[row] for row in misplaced)


def test_a_vector_that_moved_has_its_new_list_at_once_and_enters_others() -> None:
    vectors = unit(300, seed=4)
    index = filled(vectors)
    lists_of(index, rows(*range(300)))
    moved = vectors[200] + 0.05 * vectors[3]
    vectors[40] = moved / np.linalg.norm(moved)
    index.upsert(rows(*range(60, 160)), unit(100, seed=44))  # waiting before it
    vectors[60:160] = unit(100, seed=44)
    index.upsert(rows(40), vectors[40:41])
    assert index.neighbours(rows(40))[0].tolist() == truth(vectors, 40)
    for _ in range(101):
        found = index.neighbours(rows(200))[0].tolist()
    assert found.count(40) == 1


def test_lists_of_what_moved_or_left_are_made_again() -> None:
    """Whoever was near and is not any more does not stand in the way of who is."""
    vectors = unit(600, seed=5)
    index = filled(vectors)
    first = index.neighbours(rows(0))[0]
    index.remove(first)
    gone = tuple(first.tolist())
    assert index.neighbours(rows(0))[0].tolist() == truth(vectors, 0, without=gone)
    # Moved away, and nothing else near to it changed.
    second = index.neighbours(rows(0))[0]
    vectors[second] = -np.tile(vectors[0], (SIZE, 1)) + 0.05 * unit(SIZE, seed=6)
    vectors[second] /= np.linalg.norm(vectors[second], axis=1, keepdims=True)
    index.upsert(second, vectors[second])
    assert index.neighbours(rows(0))[0].tolist() == truth(vectors, 0, without=gone)


def test_a_row_that_left_while_it_waited_comes_back_with_a_list_of_its_own() -> None:
    vectors = unit(300, seed=7)
    index = filled(vectors)
    lists_of(index, rows(*range(300)))
    index.upsert(rows(11), unit(1, seed=70))
    index.remove(rows(11))
    for _ in range(3):
        index.neighbours(rows(12))
    assert index.neighbours(rows(11)).shape == (0, SIZE)
    vectors[11] = unit(1, seed=71)
    index.upsert(rows(11), vectors[11:12])
    assert index.neighbours(rows(11))[0].tolist() == truth(vectors, 11)


def test_everything_is_made_again_after_very_many_changes() -> None:
    """Lists in which a new row belongs, and is not, do not stay so for good."""
    lists, asked = NeighbourLists(4), list[int]()
    search = _noting(asked)
    lists.slots(rows(1)[None], search, live=100)
    for number in range(300):
        lists.changed(rows(1_000 + number))
    asked.clear()
    lists.slots(rows(1)[None], search, live=100)
    assert asked == [1_000 + 44, 1]  # the first that waits, and the old list
    asked.clear()
    lists.slots(rows(1)[None], search, live=100)
    assert asked == [1_000 + 45]


def test_what_waits_is_bounded_and_one_is_brought_at_a_time() -> None:
    lists, asked = NeighbourLists(4), list[int]()
    search = _noting(asked)
    lists.changed(rows(*range(10)))
    assert lists.waiting == 0  # nothing is made, so nothing has to know
    lists.slots(rows(1, 2)[None], search, live=10_000)
    assert (len(lists), asked) == (2, [1, 2])
    lists.slots(rows(1, 2)[None], search, live=10_000)
    assert asked == [1, 2]
    lists.changed(rows(*range(100, 1_100)))
    assert lists.waiting == 256
    lists.removed(rows(1_099))
    assert lists.waiting == 255
    lists.slots(rows(1)[None], search, live=100_000)
    assert (lists.waiting, asked[2:]) == (254, [844])


def test_lists_that_could_not_be_made_are_made_when_next_asked_for() -> None:
    lists, asked = NeighbourLists(4), list[int]()
    search = _noting(asked)
    lists.slots(rows(1)[None], search, live=100)
    for number in range(300):
        lists.changed(rows(1_000 + number))
    lists.removed(rows(*range(1_000, 1_300)))

    def failing(of: NDArray[np.integer[Any]], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        lists.slots(rows(1, 2)[None], failing, live=100)
    asked.clear()
    assert (lists.slots(rows(1, 2)[None], search, live=100) >= 0).all()
    assert sorted(asked) == [1, 2]


def test_requests_of_a_batch_share_what_is_made_for_them() -> None:
    lists, asked = NeighbourLists(4), list[int]()
    search = _noting(asked)
    wanted = np.array([[1, 2, -1], [2, 3, 1], [-1, -1, -1]], np.int32)
    found = lists.slots(wanted, search, live=100)
    assert sorted(asked) == [1, 2, 3]
    assert found[0].tolist() == [found[1, 2], found[1, 0], -1]
    assert found[2].tolist() == [-1, -1, -1]


def _noting(asked: list[int]) -> Search:
    def search(of: NDArray[np.integer[Any]], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        asked.extend(of.tolist())
        near = np.tile(np.arange(k, dtype=np.int32), (len(of), 1))
        return near, -near.astype(np.float32)

    return search


def test_lists_are_there_again_after_a_restart_and_go_on_following_changes(tmp_path: Path) -> None:
    vectors = unit(400, seed=3)
    index = filled(vectors)
    wanted = np.arange(0, 400, 2, dtype=np.int32)
    before = lists_of(index, wanted)
    index.save(tmp_path)
    again = VectorIndex.load(tmp_path, IndexSettings(neighbours=SIZE))
    with patch.object(again, "_around", side_effect=AssertionError("a list was made again")):
        assert np.array_equal(again.neighbours(wanted), before)
    moved = unit(100, seed=4)
    for one in (index, again):
        one.upsert(np.arange(100, dtype=np.int32), moved)
    assert np.array_equal(lists_of(again, wanted), lists_of(index, wanted))
    assert len(again._lists) == len(index._lists)


def test_lists_made_or_changed_while_a_snapshot_is_written_are_left_out_of_it(tmp_path: Path) -> None:
    vectors = unit(300, seed=5)
    index = filled(vectors)
    lists_of(index, np.arange(100, dtype=np.int32))
    with index.held():
        lists_of(index, np.arange(100, 200, dtype=np.int32))  # as ranking does meanwhile
        index._lists._bring(rows(7), index._around)
        index.save(tmp_path)
    again = VectorIndex.load(tmp_path, IndexSettings(neighbours=SIZE))
    kept = np.flatnonzero(again._lists._slot >= 0)
    touched = set(np.argsort(-(vectors @ vectors[7]))[: 2 * SIZE + 1].tolist())
    assert set(kept.tolist()) == set(range(100)) - touched
    assert len(kept) > 50
    for row in kept.tolist():
        assert again._lists.table[again._lists._slot[row]].tolist() == truth(vectors, row)
    assert index._lists._held is None


def test_lists_that_name_what_is_gone_are_kept_as_in_a_process_that_runs_on(tmp_path: Path) -> None:
    vectors = unit(300, seed=6)
    index = filled(vectors)
    wanted = np.arange(200, dtype=np.int32)
    before = lists_of(index, wanted)
    index.remove(rows(150, 299))
    index.save(tmp_path)
    again = VectorIndex.load(tmp_path, IndexSettings(neighbours=SIZE))
    left = np.delete(wanted, 150)
    assert len(again._lists) == 199
    assert np.array_equal(again.neighbours(left), before[left])


def test_changed_vectors_that_were_in_no_list_yet_come_into_them_after_a_restart(tmp_path: Path) -> None:
    vectors = unit(300, seed=8)
    index = filled(vectors[:299])
    lists_of(index, np.arange(299, dtype=np.int32))
    index.upsert(rows(299), vectors[299:])
    assert index._lists.waiting == 1
    index.save(tmp_path)
    again = VectorIndex.load(tmp_path, IndexSettings(neighbours=SIZE))
    assert again._lists.waiting == 1
    near = int(np.argsort(-(vectors[:299] @ vectors[299]))[0])
    for one in (index, again):
        one.neighbours(rows(0))
        assert 299 in one.neighbours(rows(near))[0]


@pytest.mark.parametrize(
    "broken",
    [
        {"rows": [0, 0]}, {"rows": [-1, 1]}, {"rows": [0]}, {"rows": [0.0, 1.0]}, {"made": [1]}, {"changes": []},
        {"lists": [[-2] * SIZE] * 2}, {"lists": [[9] * SIZE] * 2}, {"lists": [-1] * 2}, {"similarity": [[0.0]] * 2},
        {"moved": [[0] * 4]}, {"waiting": [-1]},
    ],
)  # fmt: skip
def test_kept_lists_that_do_not_fit_together_are_an_error_and_change_nothing(broken: dict[str, Any]) -> None:
    arrays: dict[str, Any] = {
        "rows": [0, 1], "lists": [[-1] * SIZE] * 2, "similarity": [[0.0] * SIZE] * 2, "made": [0, 0],
        "moved": [0] * 4, "waiting": [3], "changes": [0],
    }  # fmt: skip
    present = np.ones(4, np.bool_)
    lists = NeighbourLists(SIZE)
    lists.restore({name: np.array(array) for name, array in arrays.items()}, present)
    assert (len(lists), lists.waiting) == (2, 1)
    lists = NeighbourLists(SIZE)
    with pytest.raises(ValueError, match="kept neighbours"):
        lists.restore({name: np.array(array) for name, array in {**arrays, **broken}.items()}, present)
    assert (len(lists), lists.waiting) == (0, 0)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"no archive"])
def test_an_index_is_read_without_kept_lists_that_cannot_be(tmp_path: Path, content: bytes) -> None:
    index = filled(unit(100, seed=9))
    lists_of(index, np.arange(100, dtype=np.int32))
    index.save(tmp_path)
    (tmp_path / "neighbours.npz").write_bytes(content)
    again = VectorIndex.load(tmp_path, IndexSettings(neighbours=SIZE))
    assert (len(again), len(again._lists)) == (100, 0)


def test_a_snapshot_with_lists_of_another_size_or_none_is_read_without_them(tmp_path: Path) -> None:
    index = filled(unit(100, seed=7))
    lists_of(index, np.arange(100, dtype=np.int32))
    index.save(tmp_path)
    assert len(VectorIndex.load(tmp_path, IndexSettings(neighbours=SIZE))._lists) == 100
    assert len(VectorIndex.load(tmp_path, IndexSettings(neighbours=SIZE + 1))._lists) == 0
    (tmp_path / "neighbours.npz").unlink()
    assert len(VectorIndex.load(tmp_path, IndexSettings(neighbours=SIZE))._lists) == 0
