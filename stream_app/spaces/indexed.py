"""The vectors of one model's space in a process: the index, the space they are served in, and a change of it under way.

The one that is served and those that are kept beside it (one being built, one that was served before) are the same
thing; only who looks at them differs, so that taking one for another is one assignment.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from schemas.messages import VectorSpace
from stream_app.index.hnsw import VectorIndex
from stream_app.settings import Settings
from stream_app.spaces.migration import Migration
from stream_app.spaces.served import ServedSpace, adapted, axes_within, describe
from stream_app.spaces.whitening import Statistics, fit

__all__ = ["SpaceIndex"]

_FITTED_ON = 50_000
"""Items a space is fitted on at most, a sample by id hash: more would hardly change it, and cost time."""
_FIT_SLICE = 1_024
"""Vectors taken to or from a space at once."""


class SpaceIndex:
    """Vectors by catalogue row. Not safe for use from several threads.

    Args:
        settings: bounds of the index, and whether spaces are half-whitened.
        space: the model's vector space.
        dimensions: length of its vectors.

    Attributes:
        space: the model's vector space.
        served: the space of the vectors in the index: the model's own, or a half-whitening of it.
        index: the vectors; another object after a change of the served space.
    """

    def __init__(self, settings: Settings, *, space: str, dimensions: int) -> None:
        self.space = space
        self.served = ServedSpace(space)
        self.index = VectorIndex(dimensions, settings.index)
        self._settings = settings
        self._migration: Migration | None = None

    def put(self, row: int, vector: NDArray[np.float32]) -> None:
        """A vector of the model, float32 [dimensions].

        Raises:
            ValueError: when it has the wrong length or is not of unit length.
        """
        self.index.upsert(np.array([row], np.int32), self.served.from_model(vector[None, :]))

    def model_vectors(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """The model's vectors of rows, float32 [n, dimensions], up to rounding; zeros where there is none."""
        return self.served.to_model(self.index.vectors(rows))

    @property
    def migrating(self) -> bool:
        """Whether another served space is being made ready."""
        return self._migration is not None

    @property
    def coming(self) -> ServedSpace:
        """What will be served when the change under way is done; what is served, when there is none."""
        return self.served if self._migration is None else self._migration.target

    def serve(self, message: VectorSpace | None) -> bool:
        """Take the vectors to the space of a record of ``spaces.v1``, None: the model's own; False when they are there.

        They are taken there in the shadow; :meth:`advance` puts the new index in the old one's place.

        Raises:
            ValueError: when it is not a space of our vectors.
        """
        target = ServedSpace(self.space, message)
        if message is not None and message.dimensions != self.index.dimensions:
            raise ValueError(
                f"space {target.name} has {message.dimensions} dimensions, the model {self.index.dimensions}"
            )
        if target.name == self.coming.name:
            return False
        if self._migration is not None:
            self._migration.abandon()
        self._migration = Migration(self.index, self.served, target, self._settings.index)
        return True

    def advance(self, *, wait: bool = False) -> bool:
        """Put the index that was made ready in the old one's place, with ``wait`` as soon as it is; whether that was.

        Not to be called while something reads the index: vectors of two spaces must not meet.
        """
        while (migration := self._migration) is not None:
            if wait:
                migration.wait()
            index = migration.advance()
            if index is not None:
                self._migration = None
                self.index, self.served = index, migration.target
                return True
            if not wait:
                break
        return False

    def give_up(self) -> None:
        """Stay in the space that is served; the change under way came to nothing."""
        if self._migration is not None:
            self._migration.abandon()
            self._migration = None

    def due(self) -> bool:
        """Whether the catalogue has so changed in size that a space has to be fitted (again)."""
        settings, items = self._settings.spaces, len(self.index)
        if not settings.whiten or adapted(self.space) or self._migration is not None or items < settings.first_items:
            return False
        fitted = self.served.items
        return items >= settings.refit_growth * fitted or items * settings.refit_growth <= fitted

    def fit(self, id_hash: NDArray[np.int64]) -> Callable[[], VectorSpace | None]:
        """A fit to the vectors there are now, which the returned function does: in a thread, if its caller likes.

        Vectors that change meanwhile are counted as they were or as they are. The function returns None when the
        message would not fit into ``connection.max_message_bytes``.

        Args:
            id_hash: int64 [rows], of the catalogue's ids.
        """
        index, served, space, items = self.index, self.served, self.space, len(self.index)
        axes = axes_within(self._settings.connection.max_message_bytes, index.dimensions)
        rows = index.rows()
        # In an order that is the same everywhere, whatever the rows: so is the sample.
        rows = rows[np.argsort(id_hash[rows], kind="stable")][:_FITTED_ON]

        def fitted() -> VectorSpace | None:
            if axes < 1:
                return None
            statistics = Statistics(index.dimensions)
            for start in range(0, len(rows), _FIT_SLICE):
                vectors = index.vectors(rows[start : start + _FIT_SLICE])
                statistics.add(served.to_model(vectors[vectors.any(axis=1)]))
            return describe(fit(statistics, axes=axes), model=space, version=served.version + 1, items=items)

        return fitted
