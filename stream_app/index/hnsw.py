"""Nearest items by text vector: an exact scan for small catalogues, an HNSW graph beyond.

The matrix of vectors by row is the truth. A scan reads a copy of it in 8-bit whole numbers, for two queries at once,
which takes a fifth of the time, and then compares the best in full precision. The graph (Malkov and Yashunin 2018,
doi 10.1109/TPAMI.2018.2889473, through hnswlib) is an accelerator that can be thrown away and built again from the
matrix. Up to ``index.exact_below`` vectors no graph is kept: one pass costs as little as a walk through a graph, needs
no building, finds everything, and does not depend on the order of insertion, so two replicas agree to the last item.

hnswlib deletes by marking. Replacing in place repairs the neighbourhood, which takes milliseconds per vector and still
degrades the graph, so a replaced vector is marked and the new one added under a new label. Either way the graph
carries the dead along: when they exceed ``index.rebuild_churn`` of the live ones, a new graph is built in a thread
(hnswlib releases the GIL) from a copy of the matrix, rows touched meanwhile are applied to it, and it takes over at
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import BadZipFile

import hnswlib
import numpy as np
from numpy.typing import NDArray

from stream_app.codes import MAX_COLUMNS, SPARE, Codes, scan_codes
from stream_app.compiled import compiled_sums
from stream_app.errors import SnapshotError
from stream_app.heap import drain, keep_best, largest
from stream_app.index.neighbours import HeldLists, NeighbourLists
from stream_app.logs import get_logger
from stream_app.prefetch import AHEAD, prefetch_row
from stream_app.settings import IndexSettings

__all__ = ["VectorIndex"]

_log = get_logger(__name__)
_START_CAPACITY = 1_024
_NO_LABEL = -1
_NEIGHBOURS = "neighbours.npz"
_AT_ONCE = 4
"""Queries compared with everything in one pass."""
_SAME = np.float32(1e-5)
"""Vectors that differ by no more than this in any component are one vector computed twice."""


class VectorIndex:
    """Unit vectors by row, and the nearest of them to a query by inner product (cosine).

    Not safe for use from several threads; its own builder thread touches nothing but its own graph.

    Args:
        dimensions: length of every vector.
        settings: breadth of the graph, when one is used, and when it is rebuilt.
    """

    def __init__(self, dimensions: int, settings: IndexSettings) -> None:
        self.dimensions = dimensions
        self._settings = settings
        self._matrix = np.zeros((_START_CAPACITY, dimensions), np.float32)
        self._codes = Codes(dimensions, _START_CAPACITY)
        self._present = np.zeros(_START_CAPACITY, np.bool_)
        self._end = 0
        self._live = 0
        self._graph: Any = None
        self._label_of = np.full(_START_CAPACITY, _NO_LABEL, np.int64)
        self._row_of_label: NDArray[np.int32] = np.zeros(0, np.int32)
        self._labels = 0
        self._build: _Build | None = None
        self._held = False
        self._saving: HeldLists | None = None
        self._changes: set[int] | None = None
        self._lists = NeighbourLists(settings.neighbours)
        self.rebuilds = 0
        self.version = 0

    def __len__(self) -> int:
        """How many rows have a vector."""
        return self._live

    @property
    def churn(self) -> int:
        """Vectors deleted or replaced in the graph since it was built; 0 without a graph."""
        return self._labels - self._live if self._graph is not None else 0

    @property
    def exact(self) -> bool:
        """Whether searches scan everything at the moment."""
        return self._graph is None

    @property
    def memory_bytes(self) -> int:
        """What vectors, codes, kept neighbours and the graph take; of the graph what its file would."""
        arrays = (
            self._matrix,
            self._codes.values,
            self._codes.steps,
            self._present,
            self._label_of,
            self._row_of_label,
        )
        graph = int(self._graph.index_file_size()) if self._graph is not None else 0
        return sum(array.nbytes for array in arrays) + self._lists.memory_bytes + graph

    def has(self, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether each row has a vector; rows beyond the matrix and negative ones have none."""
        inside = (rows >= 0) & (rows < len(self._present))
        return inside & self._present[np.where(inside, rows, 0)]

    def vectors(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Vectors of rows, float32 [len(rows), dimensions], a copy; zeros where there is none."""
        if len(rows) and int(rows.max()) >= len(self._matrix):
            self._reserve(int(rows.max()) + 1)
        return self._matrix.take(rows, axis=0)

    def table(self, rows: int) -> NDArray[np.float32]:
        """The vectors by row, float32 [``rows`` or more, dimensions], zeros where there is none; read-only, and good
        until the next change."""
        self._reserve(rows)
        return self._matrix

    @property
    def codes(self) -> Codes:
        """The vectors by row in whole numbers, as many rows as :meth:`table` has; read-only, and good until the next
        change."""
        return self._codes

    @property
    def present(self) -> NDArray[np.bool_]:
        """Whether each row of :meth:`table` has a vector: bool, read-only, and good until the next change."""
        return self._present

    def upsert(self, rows: NDArray[np.int32], vectors: NDArray[np.float32]) -> int:
        """Set vectors of distinct rows; returns how many were new or different.

        Args:
            rows: int32 [r], distinct.
            vectors: float32 [r, dimensions], unit length.

        Raises:
            ValueError: when the shape is wrong or a vector is not finite and of unit length.
        """
        vectors = np.asarray(vectors, np.float32)
        if vectors.shape != (len(rows), self.dimensions):
            raise ValueError(f"vectors have shape {vectors.shape}, expected ({len(rows)}, {self.dimensions})")
        if not len(rows):
            return 0
        norms = np.einsum("rd,rd->r", vectors, vectors)
        if not np.all(np.abs(norms - 1.0) < 1e-2):
            raise ValueError(f"vectors must have unit length; squared lengths are {norms.min()} to {norms.max()}")
        self._reserve(int(rows.max()) + 1)
        different = ~self._present[rows] | np.any(np.abs(self._matrix[rows] - vectors) > _SAME, axis=1)
        rows, vectors = rows[different], vectors[different]
        if not len(rows):
            return 0
        self._set(rows, vectors)
        self._touched(rows)
        return len(rows)

    def fill(self, rows: NDArray[np.int32], vectors: NDArray[np.float32]) -> None:
        """Set vectors (see :meth:`upsert`) while nobody searches yet; :meth:`maybe_rebuild` makes the graph then."""
        if len(rows):
            self._reserve(int(rows.max()) + 1)
            self._set(rows, vectors)

    def _set(self, rows: NDArray[np.int32], vectors: NDArray[np.float32]) -> None:
        replaced = int(np.count_nonzero(self._present[rows]))
        self._matrix[rows] = vectors
        self._codes.take(rows, self._matrix)
        self._present[rows] = True
        self._live += len(rows) - replaced
        self._end = max(self._end, int(rows.max()) + 1)

    def remove(self, rows: NDArray[np.int32]) -> int:
        """Take rows out for good; returns how many had a vector."""
        rows = rows[self.has(rows)]
        if not len(rows):
            return 0
        self._present[rows] = False
        self._matrix[rows] = 0.0
        self._codes.clear(rows)
        self._live -= len(rows)
        self._touched(rows)
        return len(rows)

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The ``k`` rows nearest to each query, best first.

        Args:
            queries: float32 [q, dimensions].
            k: how many, 0 or more; it may exceed the number of vectors.

        Returns:
            rows int32 [q, k] and similarities float32 [q, k]; -1 and -inf where there are fewer than ``k``.
        """
        self._cut_over()
        queries = np.ascontiguousarray(queries, np.float32)
        found = min(k, self._live) if len(queries) else 0
        result = self._search_graph(queries, found) if found and self._graph is not None else None
        if found and result is None:
            result = self._search_exact(queries, found)
        if result is not None and found == k:
            return result
        rows = np.full((len(queries), k), -1, np.int32)
        similarities = np.full((len(queries), k), -np.inf, np.float32)
        if result is not None:
            rows[:, :found], similarities[:, :found] = result
        return rows, similarities

    def neighbours(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """The nearest others of each of ``rows`` (distinct): int32 [rows that have a list, ``index.neighbours``],
        nearest first, -1 where there are fewer. Kept, and not all made at once, see
        :mod:`stream_app.index.neighbours`; some may have lost their vector since."""
        lists, slots = self.neighbour_lists(rows[None, :])
        return lists.take(slots[slots >= 0], axis=0)

    def neighbour_lists(self, rows: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """What :meth:`neighbours` gives for several requests, without a copy.

        Args:
            rows: int32 [requests, any], of a request distinct, negative: none.

        Returns:
            all lists, int32 [any, ``index.neighbours``], read-only and good until the next change; and where among them
            those of the rows are, int32 of their shape, -1 for none.
        """
        slots = self._lists.slots(np.where(self.has(rows), rows, -1), self._around, live=self._live)
        return self._lists.table, slots

    def _around(self, rows: NDArray[np.integer[Any]], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """What is nearest to each of ``rows``, for the lists."""
        return self.search(self._matrix[rows], k)

    def _search_exact(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        rows = np.empty((len(queries), k), np.int32)
        similarities = np.empty((len(queries), k), np.float32)
        for start in range(0, len(queries), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            products = self._products(queries[part], k)
            _nearest(products, queries[part], self._matrix, k + SPARE, rows[part], similarities[part])
        return rows, similarities

    def _products(self, queries: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """Of queries with all rows, -inf where there is no vector: float32 [queries, rows]."""
        products = np.zeros((len(queries), self._end), np.float32)
        # Codes pay where they leave something out.
        if self.dimensions <= MAX_COLUMNS and k + SPARE < self._live:
            scan_codes(queries, self._codes.values, self._codes.steps, products)
        else:
            np.matmul(queries, self._matrix[: self._end].T, out=products)
        if self._live < self._end:
            products[:, ~self._present[: self._end]] = -np.inf
        return products

    def _search_graph(
        self, queries: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        """From the graph; None when it cannot give ``k`` results (too many deleted ones in the way)."""
        graph = self._graph
        breadth = max(self._settings.ef_search, k)
        for wider in (breadth, 4 * breadth):
            graph.set_ef(wider)
            try:
                labels, distances = graph.knn_query(queries, k=k, num_threads=1)
            except RuntimeError:  # "Cannot return the results in a contiguous 2D array"
                continue
            return self._row_of_label[labels], np.float32(1.0) - distances
        return None

    def rows(self) -> NDArray[np.int32]:
        """The rows that have a vector, int32, ascending."""
        return np.flatnonzero(self._present[: self._end]).astype(np.int32)

    def note_changes(self) -> set[int]:
        """A set that every row is put into from now on whose vector is set or removed; a later call's replaces it."""
        self._changes = set()
        return self._changes

    def maybe_rebuild(self, *, wait: bool = True) -> bool:
        """Start a rebuild when one is due, and with ``wait`` see it through; returns whether a graph took over."""
        before = self.rebuilds
        self._start_build_if_due()
        if wait and self._build is not None:
            self._build.thread.join()
        self._cut_over()
        return self.rebuilds > before

    def _reserve(self, capacity: int) -> None:
        if capacity <= len(self._matrix):
            return
        size = len(self._matrix)
        while size < capacity:
            size *= 2
        matrix = np.zeros((size, self.dimensions), np.float32)
        matrix[: self._end] = self._matrix[: self._end]
        self._matrix = matrix
        self._codes.reserve(size)
        self._present = np.concatenate([self._present, np.zeros(size - len(self._present), np.bool_)])
        self._label_of = np.concatenate([self._label_of, np.full(size - len(self._label_of), _NO_LABEL)])

    def _touched(self, rows: NDArray[np.int32]) -> None:
        self.version += 1
        self._cut_over()
        if self._changes is not None:
            self._changes.update(rows.tolist())
        there = self._present[rows]
        self._lists.changed(rows[there])
        self._lists.removed(rows[~there])
        if self._build is not None:
            self._build.touched.update(rows.tolist())
        if self._graph is not None:
            self._apply_to_graph(rows)
        self._start_build_if_due()

    def _apply_to_graph(self, rows: NDArray[np.int32]) -> None:
        """Mark what the graph holds of ``rows`` and add their present vectors under new labels."""
        graph = self._graph
        for label in self._label_of[rows[self._label_of[rows] != _NO_LABEL]].tolist():
            graph.mark_deleted(label)
        self._label_of[rows] = _NO_LABEL
        live = rows[self._present[rows]]
        if not len(live):
            return
        needed = self._labels + len(live)
        if needed > graph.get_max_elements():
            graph.resize_index(max(needed, 2 * graph.get_max_elements()))
        labels = np.arange(self._labels, needed)
        graph.add_items(self._matrix[live], labels, num_threads=1)
        self._label(live, labels)

    def _label(self, rows: NDArray[np.int32], labels: NDArray[np.int64]) -> None:
        """Note that the graph holds ``rows`` under ``labels``, which follow those it has."""
        self._labels = int(labels[-1]) + 1 if len(labels) else self._labels
        if self._labels > len(self._row_of_label):
            grown = np.full(max(_START_CAPACITY, 2 * self._labels), -1, np.int32)
            grown[: len(self._row_of_label)] = self._row_of_label
            self._row_of_label = grown
        self._row_of_label[labels] = rows
        self._label_of[rows] = labels

    def _drop_graph(self) -> None:
        self._graph = None
        self._label_of[:] = _NO_LABEL
        self._labels = 0

    def _start_build_if_due(self) -> None:
        if self._build is not None:
            return
        threshold = self._settings.exact_below
        if self._graph is None:
            due = self._live > threshold
        elif 2 * self._live <= threshold:
            # Small again (with slack, so that a catalogue at the threshold does not flip): scan.
            self._drop_graph()
            due = False
        else:
            due = self.churn > self._settings.rebuild_churn * max(self._live, 1)
        if due:
            rows = np.flatnonzero(self._present[: self._end]).astype(np.int32)
            self._build = _Build(rows, self._matrix[rows], self._settings)

    def _cut_over(self) -> None:
        """Put a finished graph into place; does nothing while it is being built or when there is none."""
        build = self._build
        if build is None or self._held or build.thread.is_alive():
            return
        build.thread.join()
        self._build = None
        if build.error is not None:
            raise build.error
        self._drop_graph()
        self._graph = build.graph
        self._label(build.rows, np.arange(len(build.rows)))
        self.rebuilds += 1
        if build.touched:
            self._apply_to_graph(np.fromiter(sorted(build.touched), np.int32, len(build.touched)))

    @contextmanager
    def held(self) -> Iterator[None]:
        """No new graph takes over inside: what is there may be saved by a thread while others search."""
        self._cut_over()
        self._held, self._saving = True, self._lists.hold()
        try:
            yield
        finally:
            self._held, self._saving = False, None
            self._lists.release()

    def save(self, directory: Path) -> None:
        """Write the index into ``directory`` (which exists): the vectors, kept neighbours, and the graph if any."""
        self._cut_over()
        rows = np.flatnonzero(self._present[: self._end]).astype(np.int32)
        np.savez(
            directory / "vectors.npz",
            dimensions=np.int64(self.dimensions),
            version=np.int64(self.version),
            rows=rows,
            vectors=self._matrix[rows],
            labels=self._label_of[rows],
            label_count=np.int64(self._labels),
            has_graph=np.bool_(self._graph is not None),
        )
        kept: dict[str, Any] = (self._saving or self._lists.hold()).arrays()
        np.savez(directory / _NEIGHBOURS, **kept)
        if self._saving is None:
            self._lists.release()
        graph_file = directory / "graph.hnsw"
        if self._graph is not None:
            self._graph.save_index(str(graph_file))
        else:
            graph_file.unlink(missing_ok=True)

    def _restore_lists(self, path: Path) -> None:
        """Have the kept neighbours of a snapshot. They only save work: whatever is wrong with them costs no more."""
        if not path.exists():
            return  # as in older snapshots
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if arrays["lists"].shape[1:] == (self._lists.size,):
                    self._lists.restore(arrays, self._present)
        except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
            _log.warning("kept neighbours not used, they are looked for again", file=str(path), error=str(error))

    @classmethod
    def load(cls, directory: Path, settings: IndexSettings) -> VectorIndex:
        """The index that :meth:`save` wrote.

        Raises:
            SnapshotError: when files are missing or do not fit together.
        """
        try:
            with np.load(directory / "vectors.npz", allow_pickle=False) as arrays:
                index = cls(int(arrays["dimensions"]), settings)
                rows, vectors, labels = arrays["rows"], arrays["vectors"], arrays["labels"]
                index.version, label_count = int(arrays["version"]), int(arrays["label_count"])
                has_graph = bool(arrays["has_graph"])
            if vectors.shape != (len(rows), index.dimensions) or labels.shape != rows.shape:
                raise ValueError("rows and vectors differ in length")
            if len(rows):
                index._reserve(int(rows.max()) + 1)
                index._matrix[rows] = vectors
                index._codes.take(rows, index._matrix)
                index._present[rows] = True
                index._live = len(rows)
                index._end = int(rows.max()) + 1
            index._restore_lists(directory / _NEIGHBOURS)
            if has_graph:
                graph = hnswlib.Index(space="ip", dim=index.dimensions)
                graph.load_index(str(directory / "graph.hnsw"), max_elements=max(_START_CAPACITY, 2 * label_count))
                if graph.get_current_count() != label_count:
                    raise ValueError("graph and vectors differ in length")
                index._graph = graph
                order = np.argsort(labels)
                index._label(rows[order], labels[order])
                index._labels = label_count
        except (OSError, EOFError, BadZipFile, KeyError, ValueError, RuntimeError) as error:
            raise SnapshotError(f"the index in {directory} cannot be read: {error}") from error
        return index


class _Build:
    """A graph being built in a thread, and the rows that changed meanwhile."""

    def __init__(self, rows: NDArray[np.int32], vectors: NDArray[np.float32], settings: IndexSettings) -> None:
        self.rows = rows
        self.touched: set[int] = set()
        self.graph: Any = None
        self.error: BaseException | None = None
        self._vectors = vectors
        self._settings = settings
        self.thread = Thread(target=self._run, name="index-rebuild", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            graph = hnswlib.Index(space="ip", dim=self._vectors.shape[1])
            graph.init_index(
                max_elements=max(_START_CAPACITY, len(self.rows) + len(self.rows) // 4),
                M=self._settings.m,
                ef_construction=self._settings.ef_construction,
                random_seed=1,
            )
            if len(self.rows):
                graph.add_items(self._vectors, np.arange(len(self.rows)), num_threads=1)
            self.graph = graph
        except BaseException as error:  # handed to the owner at cut-over
            self.error = error


@compiled_sums
def _nearest(
    products: NDArray[np.float32],
    queries: NDArray[np.float32],
    matrix: NDArray[np.float32],
    looked_at: int,
    rows: NDArray[np.int32],
    similarities: NDArray[np.float32],
) -> None:
    """The rows nearest to each query, best first, of equal ones the smaller row.

    Args:
        products: float32 [q, n], about the similarities; -inf leaves a row out.
        queries: float32 [q, dimensions].
        matrix: float32 [n or more, dimensions].
        looked_at: how many of the best are compared in full precision.
        rows, similarities: int32, float32 [q, wanted], overwritten; -1 and -inf where there are fewer.
    """
    near = np.empty(products.shape[1], np.int32)
    ties = np.empty(rows.shape[1], np.int64)
    for query in range(len(queries)):
        kept_rows, kept, asked = rows[query], similarities[query], queries[query]
        found = 0
        count = largest(products[query], looked_at, near)
        for place in range(count):
            prefetch_row(matrix, near[min(place + AHEAD, count - 1)])
            row = near[place]
            similarity = np.float32(0.0)
            for column in range(matrix.shape[1]):
                similarity += asked[column] * matrix[row, column]
            found = keep_best(kept_rows, kept, ties, found, row, similarity, row)
        drain(kept_rows, kept, ties, found)
        kept_rows[found:] = -1
        kept[found:] = -np.inf
