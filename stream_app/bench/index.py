"""What the vector index costs: filling it, searching it, and how much of the truth a search finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_app.bench.shop import clustered
from stream_app.codes import SPARE
from stream_app.index.hnsw import VectorIndex
from stream_app.settings import IndexSettings

__all__ = ["index_figures"]

_QUERIES = 200
_K = 60
_CHANGED = 200
_AT_ONCE = 10_000
_LISTS = 200


def index_figures(
    settings: IndexSettings,
    *,
    sizes: Sequence[int],
    dimensions: int = 384,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> list[dict[str, Any]]:
    """One line per size of the catalogue.

    Vectors lie in groups of 25, as those of texts do; queries are sums of three of them, as interests are.

    Args:
        settings: of the index; ``exact_below`` decides what is searched.
        sizes: vectors.
        dimensions: of each.
        on_progress: told what is being done, how much of it is done, and of how much.

    Returns:
        per size ``kind`` (``scan`` or ``graph``), ``fill_per_s`` (vectors while nothing is searched), ``build_s`` (the
        graph; 0 without one), ``change_us`` (one vector set anew), ``query_us`` and ``query_p99_us`` (one search for
        60), ``recall`` (of the 60 nearest by brute force), ``list_us`` (the kept neighbours of an item, made) and
        ``bytes_per_vector`` (``VectorIndex.memory_bytes``).
    """
    # What is compiled at its first call is not measured.
    _figures(settings, 2 * _K + SPARE, dimensions, seed, lambda _what, _done, _total: None)
    return [_figures(settings, size, dimensions, seed, on_progress) for size in sizes]


def _figures(
    settings: IndexSettings, size: int, dimensions: int, seed: int, told: Callable[[str, int, int], None]
) -> dict[str, Any]:
    vectors = clustered(size, dimensions, seed=seed)
    index = VectorIndex(dimensions, settings)
    what = f"{size:,} vectors"
    began = time.thread_time()
    for start in range(0, size, _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, size), dtype=np.int32)
        index.fill(rows, vectors[rows])
        told(what, start, size)
    filled = time.thread_time() - began
    began = time.perf_counter()
    index.maybe_rebuild()
    built = time.perf_counter() - began
    told(what, size, size)
    rng = np.random.default_rng(seed + 1)
    queries = vectors[rng.integers(0, size, (_QUERIES, 3))].sum(axis=1)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    index.search(queries[:2], _K)
    times = []
    found = np.empty((_QUERIES, min(_K, size)), np.int32)
    for place, query in enumerate(queries):
        began = time.thread_time()
        rows, _ = index.search(query[None, :], found.shape[1])
        times.append(time.thread_time() - began)
        found[place] = rows[0]
    listed = rng.choice(size, min(_LISTS, size), replace=False).astype(np.int32)
    index.neighbours(listed[:1])
    began = time.thread_time()
    for row in listed[1:]:
        index.neighbours(np.array([row], np.int32))
    lists = time.thread_time() - began
    changed = rng.choice(size, min(_CHANGED, size), replace=False).astype(np.int32)
    anew = clustered(len(changed), dimensions, seed=seed + 2)
    began = time.thread_time()
    for place, row in enumerate(changed):
        index.upsert(np.array([row], np.int32), anew[place : place + 1])
    changes = time.thread_time() - began
    return {
        "benchmark": "index",
        "vectors": size,
        "dimensions": dimensions,
        "kind": "scan" if index.exact else "graph",
        "fill_per_s": round(size / filled),
        "build_s": round(0.0 if index.exact else built, 2),
        "change_us": round(1e6 * changes / len(changed), 1),
        "query_us": round(1e6 * float(np.median(times)), 1),
        "query_p99_us": round(1e6 * float(np.percentile(times, 99)), 1),
        "recall": round(_recall(found, vectors, queries), 4),
        "list_us": round(1e6 * lists / max(len(listed) - 1, 1), 1),
        "bytes_per_vector": round(index.memory_bytes / size),
    }


def _recall(found: NDArray[np.int32], vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> float:
    """Share of the truly nearest that were found."""
    k = found.shape[1]
    shares = []
    for rows, query in zip(found, queries, strict=True):
        similarity = vectors @ query
        truth = np.argpartition(-similarity, k - 1)[:k]
        shares.append(len(set(rows.tolist()) & set(truth.tolist())) / k)
    return float(np.mean(shares))
