"""Statistics of items as ranking reads them: decayed counts and neighbours by dense row.

A replica's copy of ``item-signals.v1``. The item owner decides the values (``stream_app.items.statistics``); here
they are only moved to the time of a request and laid out for arrays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.arrays import unpack_float64
from schemas.messages import ItemSignals
from stream_app.errors import SnapshotError
from stream_app.items.catalogue import Catalogue
from stream_app.items.trending import TopRows
from stream_app.settings import ItemSettings

__all__ = ["Neighbours", "Signals"]

_DAY = 86_400.0
_START_CAPACITY = 1_024


class Neighbours(NamedTuple):
    """Neighbours of one item, stated at event time ``at`` (seconds): three arrays of one length.

    ``rows`` int32, distinct; ``symmetric`` and ``directed`` float32 weights.
    """

    rows: NDArray[np.int32]
    symmetric: NDArray[np.float32]
    directed: NDArray[np.float32]
    at: float


_NONE = Neighbours(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32), 0.0)


class Signals:
    """Counts and neighbours by row of a :class:`Catalogue`.

    Args:
        settings: half-lives; a row with another number of counts is an error.
        top: how many trending rows are kept per half-life.
    """

    def __init__(self, settings: ItemSettings, *, top: int = 256) -> None:
        half_lives = [days * _DAY for days in settings.half_lives_days]
        self._rates = np.array([1.0 / seconds for seconds in half_lives] + [0.0])
        self._transition_rate = 1.0 / (settings.transition_half_life_days * _DAY)
        self._top = [TopRows(top) for _ in self._rates]
        self._neighbours: list[Neighbours] = []
        self._applied: list[dict[str, int]] = []
        self._counts = np.zeros((_START_CAPACITY, len(self._rates)))
        self._at = np.zeros(_START_CAPACITY)
        self._keys = np.full((len(self._rates), _START_CAPACITY), -np.inf)
        self.version = 0

    @property
    def columns(self) -> int:
        """Counts per item: one per half-life, and the one that never decays (the last)."""
        return len(self._rates)

    @property
    def rows(self) -> int:
        """Rows with an entry or before one; rows beyond have counted nothing."""
        return len(self._neighbours)

    def total(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Counts of all time of rows, float64 [len(rows)]."""
        self.reserve(int(rows.max()) + 1 if len(rows) else 0)
        found: NDArray[np.float64] = self._counts[rows, -1]
        return found

    def popularity(self, at: float | NDArray[np.float64], rows: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Counts of rows decayed to ``at`` (event time, seconds): float64 [len(rows), columns].

        ``at`` is one time, or one per row.
        """
        self.reserve(int(rows.max()) + 1 if len(rows) else 0)
        elapsed = np.maximum(at - self._at[rows], 0.0)
        decayed: NDArray[np.float64] = self._counts[rows] * np.exp2(-elapsed[:, None] * self._rates)
        return decayed

    def trending(self, column: int, ties: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rows with the largest decayed counts in ``column``, best first; the order does not depend on the time.

        Args:
            column: index of the half-life; the last is all time.
            ties: int64 by row, the smaller goes first (``Catalogue.id_hash``).
        """
        count = min(self.rows, len(ties))
        return self._top[column].rows(self._keys[column, :count], ties[:count])

    def neighbours(self, row: int) -> Neighbours:
        """Neighbours of a row, as they were stated; empty when there are none."""
        return self._neighbours[row] if row < len(self._neighbours) else _NONE

    def decay(self, stated_at: float, at: float) -> float:
        """What is left at ``at`` of a neighbour weight stated at ``stated_at`` (event times, seconds)."""
        return float(2.0 ** (-max(at - stated_at, 0.0) * self._transition_rate))

    def apply(self, item_id: str, signals: ItemSignals | None, catalogue: Catalogue) -> bool:
        """Take over a row of ``item-signals.v1``; None says its owner has none any more.

        Returns:
            False when the held row is complete through later offsets, or no row is free for the id.

        Raises:
            ValueError: when arrays differ in length, or the number of half-lives is another.
        """
        if signals is None:
            return self._clear(catalogue.row(item_id))
        if len(signals.counts) != self.columns:
            raise ValueError(
                f"signals of item {item_id!r} have {len(signals.counts)} counts, this process expects {self.columns} "
                "(items.half_lives_days differs between processes)"
            )
        symmetric = unpack_float64(signals.symmetric)
        directed = unpack_float64(signals.directed)
        if not len(symmetric) == len(directed) == len(signals.neighbours):
            raise ValueError(f"signals of item {item_id!r}: neighbours and weights differ in length")
        row = catalogue.intern(item_id)
        if row < 0:
            return False
        self.reserve(row + 1)
        held = self._applied[row]
        if any(signals.applied.get(partition, -1) < offset for partition, offset in held.items()):
            return False
        intern = catalogue.intern
        rows = np.array([intern(other) for other in signals.neighbours], np.int32)
        self.reserve(int(rows.max()) + 1 if len(rows) else 0)
        placed = rows >= 0
        self._neighbours[row] = Neighbours(
            rows[placed], symmetric[placed].astype(np.float32), directed[placed].astype(np.float32), signals.at
        )
        self._applied[row] = dict(signals.applied)
        self._state_counts(row, np.asarray(signals.counts), signals.at)
        self.version += 1
        return True

    def _clear(self, row: int) -> bool:
        if not 0 <= row < self.rows:
            return False
        self._neighbours[row] = _NONE
        self._applied[row] = {}
        self._state_counts(row, np.zeros(self.columns), 0.0)
        self.version += 1
        return True

    def _state_counts(self, row: int, counts: NDArray[np.float64], at: float) -> None:
        self._counts[row] = counts
        self._at[row] = at
        with np.errstate(divide="ignore"):
            self._keys[:, row] = np.log2(counts) + at * self._rates
        for top in self._top:
            top.change(row)

    def referenced(self, rows: int) -> NDArray[np.bool_]:
        """Which of the first ``rows`` rows have statistics or are somebody's neighbour: bool [rows]."""
        referenced = np.zeros(rows, np.bool_)
        for row, neighbours in enumerate(self._neighbours[:rows]):
            if self._applied[row]:
                referenced[row] = True
                referenced[neighbours.rows[neighbours.rows < rows]] = True
        return referenced

    def forget(self, rows: NDArray[np.int32]) -> None:
        """Drop the statistics of ``rows`` and every mention of them; looks at all neighbours."""
        gone = np.zeros(max(self.rows, int(rows.max()) + 1 if len(rows) else 0), np.bool_)
        gone[rows] = True
        for row in rows.tolist():
            self._clear(row)
        for row, held in enumerate(self._neighbours):
            kept = ~gone[held.rows]
            if not kept.all():
                self._neighbours[row] = Neighbours(held.rows[kept], held.symmetric[kept], held.directed[kept], held.at)

    def reserve(self, rows: int) -> None:
        """Make room for as many rows; ranking looks at rows of items nobody has touched yet."""
        missing = rows - len(self._neighbours)
        if missing <= 0:
            return
        self._neighbours.extend([_NONE] * missing)
        self._applied.extend({} for _ in range(missing))
        size = len(self._at)
        if rows <= size:
            return
        while size < rows:
            size *= 2
        grown = size - len(self._at)
        self._counts = np.concatenate([self._counts, np.zeros((grown, self.columns))])
        self._at = np.concatenate([self._at, np.zeros(grown)])
        self._keys = np.concatenate([self._keys, np.full((self.columns, grown), -np.inf)], axis=1)

    def save(self, directory: Path) -> None:
        """Write everything into ``directory`` (which exists)."""
        count = self.rows
        lengths = np.array([len(entry.rows) for entry in self._neighbours], np.int64)
        np.savez(
            directory / "signals.npz",
            version=np.int64(self.version),
            counts=self._counts[:count],
            at=self._at[:count],
            neighbours_at=np.array([entry.at for entry in self._neighbours]),
            lengths=lengths,
            rows=_joined([entry.rows for entry in self._neighbours], np.int32),
            symmetric=_joined([entry.symmetric for entry in self._neighbours], np.float32),
            directed=_joined([entry.directed for entry in self._neighbours], np.float32),
        )
        (directory / "signals.msgpack").write_bytes(msgspec.msgpack.encode(self._applied))

    @classmethod
    def load(cls, directory: Path, settings: ItemSettings, *, top: int = 256) -> Signals:
        """What :meth:`save` wrote.

        Raises:
            SnapshotError: when files are missing, do not fit together or were written with other half-lives.
        """
        signals = cls(settings, top=top)
        try:
            applied = msgspec.msgpack.decode((directory / "signals.msgpack").read_bytes(), type=list[dict[str, int]])
            with np.load(directory / "signals.npz", allow_pickle=False) as arrays:
                count = len(arrays["at"])
                if len(applied) != count or arrays["counts"].shape != (count, signals.columns):
                    raise ValueError("tables differ in length, or were written with other half-lives")
                signals.reserve(count)
                signals.version = int(arrays["version"])
                signals._counts[:count] = arrays["counts"]
                signals._at[:count] = arrays["at"]
                ends = np.cumsum(arrays["lengths"])[:-1]
                columns = [np.split(arrays[name], ends) for name in ("rows", "symmetric", "directed")]
                stated = arrays["neighbours_at"].tolist()
        except (OSError, KeyError, ValueError, msgspec.DecodeError) as error:
            raise SnapshotError(f"the signals in {directory} cannot be read: {error}") from error
        if count:
            signals._neighbours = [
                Neighbours(rows, symmetric, directed, at)
                for rows, symmetric, directed, at in zip(*columns, stated, strict=True)
            ]
        signals._applied = applied
        with np.errstate(divide="ignore"):
            signals._keys[:, :count] = (np.log2(signals._counts[:count]) + signals._at[:count, None] * signals._rates).T
        return signals


def _joined(arrays: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)
