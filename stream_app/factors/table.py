"""Factors as ranking reads them: by catalogue row."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from stream_app.codes import Codes
from stream_app.errors import SnapshotError
from stream_app.factors.basis import FactorBasis
from stream_app.factors.kernels import both_memories
from stream_app.settings import FactorSettings

__all__ = ["Factors"]


class Factors:
    """Context and target factors by row; rows that were never learned hold what their text says.

    Memory: ``8 * dimensions + 10`` bytes per row, and codes of ``dimensions`` bytes, filled up to a multiple of 32.

    Args:
        settings: dimensions, decay.

    Attributes:
        basis: where items without learned factors start; None before the learner published one.
        version: grows with every change.
    """

    def __init__(self, settings: FactorSettings) -> None:
        self.settings = settings
        self.basis: FactorBasis | None = None
        self.version = 0
        self._allocate(1_024)

    def _allocate(self, rows: int) -> None:
        self.context = np.zeros((rows, self.settings.dimensions), np.float32)
        self.target = np.zeros((rows, self.settings.dimensions), np.float32)
        self.bias = np.zeros(rows, np.float32)
        self._codes = Codes(self.settings.dimensions, rows)
        self.learned = np.zeros(rows, np.bool_)
        self.has = np.zeros(rows, np.bool_)

    def reserve(self, rows: int) -> None:
        """Make room for as many rows."""
        if rows <= len(self.bias):
            return
        held = (self.context, self.target, self.bias, self.learned, self.has)
        self._allocate(max(rows, 2 * len(self.bias)))
        fresh: tuple[NDArray[Any], ...] = (self.context, self.target, self.bias, self.learned, self.has)
        for old, new in zip(held, fresh, strict=True):
            new[: len(old)] = old
        self._codes.take(np.flatnonzero(self.has), self.target)

    def start(self, rows: NDArray[np.int32], vectors: NDArray[np.float32]) -> None:
        """Encoder vectors (float32 [n, dimensions]) of rows arrived: rows not learned yet start there."""
        if self.basis is None or not len(rows) or vectors.shape[1] != len(self.basis.mean):
            return
        self.reserve(int(rows.max()) + 1)
        fresh = ~self.learned[rows]
        rows = rows[fresh]
        started = self.basis.project(vectors[fresh])
        self.context[rows] = started
        self.target[rows] = started
        self.bias[rows] = 0.0
        self.has[rows] = True
        self.changed(rows)

    def changed(self, rows: NDArray[np.integer[Any]]) -> None:
        """The targets of rows are other ones; to be told of what a learner changes in shared arrays."""
        self._codes.take(rows, self.target)
        self.version += 1

    def apply(
        self,
        rows: NDArray[np.int32],
        context: NDArray[np.float32],
        target: NDArray[np.float32],
        bias: NDArray[np.float32],
    ) -> None:
        """Learned factors of rows: float32 [n, k] twice, float32 [n]."""
        if not len(rows):
            return
        self.reserve(int(rows.max()) + 1)
        self.context[rows], self.target[rows], self.bias[rows] = context, target, bias
        self.learned[rows] = True
        self.has[rows] = True
        self.changed(rows)

    def share(
        self, context: NDArray[np.float32], target: NDArray[np.float32], bias: NDArray[np.float32], rows: int
    ) -> None:
        """Read a learner's arrays themselves from now on: its first ``rows`` rows are ours, and all are learned.

        For one process that learns and ranks in turns, with the same numbering, and no new rows afterwards; it says
        what it :meth:`changed`.
        """
        self.context, self.target, self.bias = context, target, bias
        self.learned = np.arange(len(bias)) < rows
        self.has = self.learned.copy()
        self._codes.reserve(len(bias))
        self.changed(np.arange(rows))

    def put(self, row: int, context: NDArray[np.float32], target: NDArray[np.float32], bias: float) -> None:
        """Learned factors of one row: float32 [k] twice. Half the time of :meth:`apply`."""
        self.reserve(row + 1)
        self.context[row], self.target[row], self.bias[row] = context, target, bias
        self.learned[row] = self.has[row] = True
        self.changed(np.array([row]))

    def forget(self, rows: NDArray[np.int32]) -> None:
        """Rows whose items are gone."""
        rows = rows[rows < len(self.bias)]
        self.context[rows] = 0.0
        self.target[rows] = 0.0
        self.bias[rows] = 0.0
        self.learned[rows] = self.has[rows] = False
        self._codes.clear(rows)
        self.version += 1

    def forget_started(self, rows: NDArray[np.int32]) -> None:
        """Rows whose vectors are gone; what was learned stays."""
        self.forget(rows[(rows >= len(self.bias)) | ~self.learned[np.minimum(rows, len(self.bias) - 1)]])

    def users(self, recent: NDArray[np.int32]) -> NDArray[np.float32]:
        """A user's factors from recent rows, newest first, by a long and by a short memory: float32 [2, k]; zeros when
        none of them has any.

        One model, read in two ways: with ``factors.decay`` it was learned, and with the shorter ``factors.fast_decay``
        it finds what people want right now. Which is better differs: over its first 20,000 events the short one has
        15 % more hits on MovieLens, over its first 100,000 the long one 20 % more on Online Retail.
        """
        out = np.zeros((2, self.settings.dimensions), np.float32)
        if len(recent):
            settings = self.settings
            self.reserve(int(recent.max()) + 1)
            both_memories(
                recent, self.context, self.has, settings.history, settings.decay, settings.fast_decay, settings.norm,
                out,
            )  # fmt: skip
        return out

    @property
    def codes(self) -> Codes:
        """The targets by row in whole numbers; read-only, and good until the next change."""
        return self._codes

    def save(self, directory: Path, rows: int) -> None:
        """Write the first ``rows`` rows into ``directory`` (which exists)."""
        self.reserve(rows)
        arrays: dict[str, Any] = {
            "context": self.context[:rows],
            "target": self.target[:rows],
            "bias": self.bias[:rows],
            "learned": self.learned[:rows],
            "has": self.has[:rows],
        }
        if self.basis is not None:
            arrays |= {"space": self.basis.space, "mean": self.basis.mean, "matrix": self.basis.matrix}
            arrays |= {"origin": self.basis.origin}
        np.savez(directory / "factors.npz", **arrays)

    @classmethod
    def load(cls, directory: Path, settings: FactorSettings) -> Factors:
        """What :meth:`save` wrote.

        Raises:
            SnapshotError: when it cannot be read or has another number of dimensions.
        """
        factors = cls(settings)
        try:
            with np.load(directory / "factors.npz", allow_pickle=False) as arrays:
                rows = len(arrays["bias"])
                if arrays["context"].shape != (rows, settings.dimensions):
                    raise ValueError(f"factors have shape {arrays['context'].shape}")
                factors.reserve(rows)
                for name in ("context", "target", "bias", "learned", "has"):
                    getattr(factors, name)[:rows] = arrays[name]
                factors.changed(np.arange(rows))
                if "mean" in arrays:
                    # Not there in snapshots of releases before a basis could be carried over.
                    origin = str(arrays["origin"]) if "origin" in arrays else ""
                    factors.basis = FactorBasis(str(arrays["space"]), arrays["mean"], arrays["matrix"], origin)
        except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
            raise SnapshotError(f"the factors in {directory} cannot be read: {error}") from error
        return factors
