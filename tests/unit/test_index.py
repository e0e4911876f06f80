"""The vector index: exact when small, HNSW beyond, and no rot under churn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.errors import SnapshotError
from stream_app.index.hnsw import VectorIndex
from stream_app.settings import IndexSettings

DIMENSIONS = 32
GRAPH = IndexSettings(exact_below=0)
SCAN = IndexSettings(exact_below=1_000_000)


def clustered(count: int, *, seed: int, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    """Unit vectors around a few hundred centres, like the texts of a catalogue."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(count // 25, 1), dimensions))
    vectors = centres[rng.integers(len(centres), size=count)] + 0.5 * rng.normal(size=(count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rows(count: int) -> NDArray[np.int32]:
    return np.arange(count, dtype=np.int32)


def recall(
    index: VectorIndex, held: dict[int, NDArray[np.float32]], queries: NDArray[np.float32], k: int = 10
) -> float:
    """Share of the true ``k`` nearest rows that the index finds."""
    ids = np.array(list(held))
    truth = ids[np.argsort(-(queries @ np.stack(list(held.values())).T), axis=1)[:, :k]]
    found, _ = index.search(queries, k)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(truth.tolist(), found.tolist(), strict=True)]))


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return clustered(5_000, seed=1)


def test_graph_finds_nearly_all_nearest_rows(vectors: NDArray[np.float32]) -> None:
    index = VectorIndex(DIMENSIONS, GRAPH)
    index.upsert(rows(5_000), vectors)
    assert index.maybe_rebuild()
    assert not index.exact
    held = dict(enumerate(vectors))
    assert recall(index, held, clustered(200, seed=2)) >= 0.95


def test_graph_stays_good_when_everything_was_replaced_three_times(vectors: NDArray[np.float32]) -> None:
    index = VectorIndex(DIMENSIONS, GRAPH)
    index.upsert(rows(5_000), vectors)
    index.maybe_rebuild()
    for seed in (11, 12, 13):
        vectors = clustered(5_000, seed=seed)
        for start in range(0, 5_000, 500):
            part = rows(5_000)[start : start + 500]
            index.upsert(part, vectors[part])
        while index.maybe_rebuild():
            pass  # What came in while a graph was built may make the next one due.
    assert index.rebuilds > 1
    assert index.churn <= GRAPH.rebuild_churn * len(index)
    assert recall(index, dict(enumerate(vectors)), clustered(200, seed=14)) >= 0.95


def test_scan_finds_all_nearest_rows(vectors: NDArray[np.float32]) -> None:
    index = VectorIndex(DIMENSIONS, SCAN)
    index.upsert(rows(5_000), vectors)
    index.remove(rows(5_000)[::3])
    assert index.exact
    held = {row: vector for row, vector in enumerate(vectors) if row % 3}
    for queries in (1, 2, 50):
        assert recall(index, held, clustered(queries, seed=3)) == 1.0


@pytest.mark.parametrize("settings", [GRAPH, SCAN], ids=["graph", "scan"])
def test_removed_rows_are_never_found(vectors: NDArray[np.float32], settings: IndexSettings) -> None:
    index = VectorIndex(DIMENSIONS, settings)
    index.upsert(rows(2_000), vectors[:2_000])
    index.maybe_rebuild()
    gone = rows(2_000)[:1_900]
    for start in range(0, len(gone), 100):
        assert index.remove(gone[start : start + 100]) == 100
        found, _ = index.search(vectors[gone[: start + 100]][:64], 30)
        assert not np.isin(found, gone[: start + 100]).any()
    assert len(index) == 100
    assert index.remove(gone) == 0


@pytest.mark.parametrize("settings", [GRAPH, SCAN], ids=["graph", "scan"])
def test_asking_for_more_than_there_is_gives_what_there_is(settings: IndexSettings) -> None:
    index = VectorIndex(DIMENSIONS, settings)
    query = clustered(3, seed=5)
    found, similarities = index.search(query, 7)
    assert found.tolist() == [[-1] * 7] * 3
    assert np.isneginf(similarities).all()
    index.upsert(np.array([4, 9, 2], np.int32), clustered(3, seed=6))
    index.maybe_rebuild()
    found, similarities = index.search(query, 7)
    assert [sorted(part[:3]) for part in found.tolist()] == [[2, 4, 9]] * 3
    assert (found[:, 3:] == -1).all()
    assert (np.diff(similarities[:, :3]) <= 0).all()
    assert index.search(query[:0], 7)[0].shape == (0, 7)
    assert index.search(query, 0)[0].shape == (3, 0)


def test_search_works_when_most_of_the_graph_is_deleted() -> None:
    settings = IndexSettings(exact_below=0, rebuild_churn=10.0, ef_search=16)
    index = VectorIndex(DIMENSIONS, settings)
    vectors = clustered(3_000, seed=7)
    index.upsert(rows(3_000), vectors)
    index.maybe_rebuild()
    index.remove(rows(3_000)[50:])
    assert not index.exact
    found, _ = index.search(vectors[100:104], 50)
    assert [sorted(part) for part in found.tolist()] == [list(range(50))] * 4


def test_the_same_vector_again_changes_nothing() -> None:
    index = VectorIndex(DIMENSIONS, GRAPH)
    vectors = clustered(20, seed=8)
    assert index.upsert(rows(20), vectors) == 20
    index.maybe_rebuild()
    version = index.version
    assert index.upsert(rows(20), vectors) == 0
    assert (index.version, index.churn) == (version, 0)
    vectors[3] = vectors[4]
    assert index.upsert(rows(20), vectors) == 1


def test_a_removed_row_can_come_back() -> None:
    index = VectorIndex(DIMENSIONS, GRAPH)
    vectors = clustered(50, seed=9)
    index.upsert(rows(50), vectors)
    index.maybe_rebuild()
    index.remove(rows(50)[:5])
    assert not index.has(rows(50)[:5]).any()
    index.upsert(rows(50)[:5], vectors[:5])
    assert index.search(vectors[2:3], 1)[0].tolist() == [[2]]


def test_rows_touched_during_a_rebuild_are_in_the_new_graph() -> None:
    index = VectorIndex(DIMENSIONS, GRAPH)
    vectors = clustered(4_000, seed=10)
    index.upsert(rows(4_000)[:3_000], vectors[:3_000])
    # The build of the first graph is under way or just done; either way nothing may get lost.
    index.remove(rows(4_000)[:10])
    index.upsert(rows(4_000)[3_000:], vectors[3_000:])
    index.upsert(np.array([20], np.int32), vectors[3_999:])
    index.maybe_rebuild()
    assert not index.exact
    assert len(index) == 3_990
    found, _ = index.search(vectors[3_500:3_510], 1)
    assert found[:, 0].tolist() == list(range(3_500, 3_510))
    assert set(index.search(vectors[3_999:], 2)[0][0].tolist()) == {20, 3_999}
    assert not np.isin(index.search(vectors[:10], 5)[0], rows(10)).any()


def test_a_catalogue_that_shrinks_is_scanned_again() -> None:
    index = VectorIndex(DIMENSIONS, IndexSettings(exact_below=100))
    vectors = clustered(150, seed=15)
    index.upsert(rows(150), vectors)
    index.maybe_rebuild()
    assert not index.exact
    index.remove(rows(150)[40:])
    index.maybe_rebuild()
    assert index.exact
    assert index.search(vectors[7:8], 1)[0].tolist() == [[7]]


def test_vectors_give_zeros_where_there_is_none() -> None:
    index = VectorIndex(DIMENSIONS, SCAN)
    vectors = clustered(2, seed=16)
    index.upsert(np.array([1, 5_000], np.int32), vectors)
    got = index.vectors(np.array([5_000, 0, 90_000, 1]))
    assert np.array_equal(got, np.stack([vectors[1], np.zeros(DIMENSIONS), np.zeros(DIMENSIONS), vectors[0]]))
    assert index.has(np.array([5_000, 0, 900_000, 1])).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((1, DIMENSIONS), np.float32),
        np.full((1, DIMENSIONS), np.nan, np.float32),
        np.ones((1, DIMENSIONS), np.float32),
        np.ones((1, DIMENSIONS - 1), np.float32),
    ],
    ids=["zero", "nan", "long", "wrong dimensions"],
)
def test_what_is_not_a_unit_vector_is_refused(vectors: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="vectors"):
        VectorIndex(DIMENSIONS, SCAN).upsert(np.array([0], np.int32), vectors)


@pytest.mark.parametrize("settings", [GRAPH, SCAN], ids=["graph", "scan"])
def test_saved_and_loaded_it_answers_the_same(tmp_path: Path, settings: IndexSettings) -> None:
    index = VectorIndex(DIMENSIONS, settings)
    vectors = clustered(500, seed=17)
    index.upsert(rows(500), vectors)
    index.maybe_rebuild()
    index.remove(rows(500)[::7])
    index.save(tmp_path)
    loaded = VectorIndex.load(tmp_path, settings)
    assert (len(loaded), loaded.version, loaded.churn, loaded.exact) == (
        len(index),
        index.version,
        index.churn,
        index.exact,
    )
    queries = clustered(20, seed=18)
    for ours, theirs in zip(index.search(queries, 30), loaded.search(queries, 30), strict=True):
        assert np.array_equal(ours, theirs)
    loaded.upsert(np.array([0, 800], np.int32), vectors[:2])
    assert loaded.search(vectors[1:2], 2)[0][0].tolist()[0] in (1, 800)


def test_a_damaged_snapshot_is_an_error(tmp_path: Path) -> None:
    index = VectorIndex(DIMENSIONS, GRAPH)
    index.upsert(rows(50), clustered(50, seed=19))
    index.maybe_rebuild()
    index.save(tmp_path)
    (tmp_path / "graph.hnsw").write_bytes(b"not a graph")
    with pytest.raises(SnapshotError, match="cannot be read"):
        VectorIndex.load(tmp_path, GRAPH)
    (tmp_path / "vectors.npz").unlink()
    with pytest.raises(SnapshotError, match="cannot be read"):
        VectorIndex.load(tmp_path, GRAPH)


def test_an_odd_number_of_queries_is_searched_like_each_alone(vectors: NDArray[np.float32]) -> None:
    index = VectorIndex(DIMENSIONS, IndexSettings())
    index.upsert(rows(1_000), vectors[:1_000])
    found, _ = index.search(vectors[:5], 12)
    alone = np.concatenate([index.search(vectors[place : place + 1], 12)[0] for place in range(5)])
    assert np.array_equal(found, alone)
