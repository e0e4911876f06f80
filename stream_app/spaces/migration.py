"""From one served space to another: an index of all vectors is built in the shadow and takes over at once.

A thread takes the vectors from the old index in slices (numpy and hnswlib release the GIL in what takes long) and
builds the whole new index, graph included, while the old one is searched and changed. Rows that change meanwhile are
noted; when the thread is done, a further one does those, until so few are left that the owner can do them itself and
cut over, between two records, with nothing missing.

No raw vectors are kept: a whitening can be inverted for vectors of unit length, up to rounding of float32. Beside the
old index there is a second one while this runs, and a copy of its vectors while the graph is built.
"""

from __future__ import annotations

from threading import Thread

import numpy as np
from numpy.typing import NDArray

from stream_app.index.hnsw import VectorIndex
from stream_app.settings import IndexSettings
from stream_app.spaces.served import ServedSpace

__all__ = ["Migration"]

_SLICE = 1_024
_AT_ONCE = 64
"""Changed rows that are done at the cut-over itself: with a graph, about half a millisecond each."""


class Migration:
    """One change of space under way. Its threads touch nothing but the shadow, and read the old index.

    Args:
        index: the index of ``source``; searched and changed by its owner meanwhile.
        source: the space of its vectors.
        target: the space to take them to.
        settings: of the new index.
    """

    def __init__(self, index: VectorIndex, source: ServedSpace, target: ServedSpace, settings: IndexSettings) -> None:
        self.target = target
        self._index = index
        self._source = source
        self._shadow = VectorIndex(index.dimensions, settings)
        self._changed = index.note_changes()
        self._error: BaseException | None = None
        self._abandoned = False
        self._thread = self._started(index.rows(), first=True)

    def wait(self) -> None:
        """Until the thread at work is done; :meth:`advance` may start another."""
        self._thread.join()

    def abandon(self) -> None:
        """Another target came: stop at the next slice."""
        self._abandoned = True

    def advance(self) -> VectorIndex | None:
        """The index of the new space when it is complete, to be used from now on; None while it is not.

        Called by the owner of the old index, between two changes of it.

        Raises:
            BaseException: what ended the thread.
        """
        if self._thread.is_alive():
            return None
        if self._error is not None:
            raise self._error
        changed = np.fromiter(sorted(self._changed), np.int32, len(self._changed))
        if len(changed) > _AT_ONCE:
            self._changed = self._index.note_changes()
            self._thread = self._started(changed, first=False)
            return None
        self._move(changed)
        self._shadow.version = self._index.version + 1
        return self._shadow

    def _started(self, rows: NDArray[np.int32], *, first: bool) -> Thread:
        thread = Thread(target=self._run, args=(rows, first), name="space-migration", daemon=True)
        thread.start()
        return thread

    def _run(self, rows: NDArray[np.int32], first: bool) -> None:
        try:
            for start in range(0, len(rows), _SLICE):
                if self._abandoned:
                    return
                part = rows[start : start + _SLICE]
                if first:
                    self._shadow.fill(*self._moved(part))
                else:
                    self._move(part)
            if first:
                self._shadow.maybe_rebuild(wait=True)
        except BaseException as error:  # handed to the owner
            self._error = error

    def _move(self, rows: NDArray[np.int32]) -> None:
        kept, vectors = self._moved(rows)
        self._shadow.upsert(kept, vectors)
        self._shadow.remove(np.setdiff1d(rows, kept))

    def _moved(self, rows: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Of ``rows`` those that have a vector, and these in the new space."""
        vectors = self._index.vectors(rows)
        # By the vectors, not by ``has``: a row may be removed between the two looks, and is noted as changed then.
        present = vectors.any(axis=1)
        return rows[present], self.target.from_model(self._source.to_model(vectors[present]))
