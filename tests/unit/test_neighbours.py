"""Kept neighbours of items, compared with searching anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.index.hnsw import VectorIndex
from stream_app.index.neighbours import NeighbourLists
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
    assert VectorIndex(DIMENSIONS, IndexSettings()).neighbours(rows(3)).shape == (0, 64)


def test_a_new_vector_is_in_the_lists_of_what_is_near_to_it() -> None:
    vectors = unit(400, seed=3)
    index = filled(vectors[:399])
    before = index.neighbours(rows(*range(399)))
    close = vectors[17] + 0.05 * vectors[18]
    vectors[399] = close / np.linalg.norm(close)
    index.upsert(rows(399), vectors[399:])
    assert index.neighbours(rows(17))[0].tolist() == truth(vectors, 17)
    after = index.neighbours(rows(*range(400)))
    assert 399 in after[17]
    assert not (before == 399).any()
    # Wherever it belongs, but for lists of what it is far from itself.
    misplaced = [row for row in range(399) if after[row].tolist() != truth(vectors, row)]
    assert len(misplaced) <= 4
    assert all(399 not in after[row] for row in misplaced)


def test_a_vector_that_moves_leaves_lists_and_enters_others() -> None:
    vectors = unit(300, seed=4)
    index = filled(vectors)
    index.neighbours(rows(*range(300)))
    moved = vectors[200] + 0.05 * vectors[3]
    vectors[40] = moved / np.linalg.norm(moved)
    index.upsert(rows(40), vectors[40:41])
    assert index.neighbours(rows(40))[0].tolist() == truth(vectors, 40)
    found = index.neighbours(rows(200))[0].tolist()
    assert found == truth(vectors, 200)
    assert found.count(40) == 1


def test_changes_wait_their_turn_and_very_many_make_all_lists_again() -> None:
    asked: list[int] = []

    def search(of: NDArray[np.integer[Any]], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        asked.extend(of.tolist())
        return np.tile(np.arange(k, dtype=np.int32), (len(of), 1)), np.tile(
            -np.arange(k, dtype=np.float32), (len(of), 1)
        )

    lists = NeighbourLists(4)
    lists.changed(range(10), live=10_000)
    assert lists.waiting == 0  # nothing is made, so nothing has to know
    lists.of(rows(1, 2), search, capacity=1_000)
    assert (len(lists), asked) == (2, [1, 2])
    lists.of(rows(1, 2), search, capacity=1_000)
    assert asked == [1, 2]
    lists.changed(range(100, 140), live=10_000)
    assert lists.waiting == 40
    lists.of(rows(1), search, capacity=1_000)
    assert lists.waiting == 24
    assert asked[2:] == list(range(100, 116))
    lists.changed(range(300), live=1_000)
    assert (lists.waiting, len(lists)) == (0, 0)
    lists.of(rows(1), search, capacity=1_000)
    assert asked[-1] == 1
    assert len(lists) == 1
