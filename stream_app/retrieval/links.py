"""How strongly the user's recent items point to other items: transition scores, summed over the recent items.

The score of item ``i`` given the recent items ``j`` is ``sqrt(sum_j w_j row_j[i] / sqrt(n_j n_i))`` with the lag
weight ``w_j``, the decayed neighbour weight ``row_j[i]`` and counts ``n``: cosine-normalised co-occurrence
(Sarwar et al. 2001, doi 10.1145/371920.372071), its square root taken because the sums are heavy-tailed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.items.signals import Signals
from stream_app.retrieval.interests import Interests
from stream_app.settings import ItemSettings

__all__ = ["Links", "Scratch", "link_scores"]


class Scratch:
    """Reusable arrays by row, so that a request costs what it touches and not the size of the catalogue.

    ``slot`` int32 [rows], -1 everywhere between uses; ``blocked`` int64 [rows], holds the number of the last
    request that excluded the row; ``bits`` uint32 [rows], 0 between uses.
    """

    def __init__(self) -> None:
        self.slot: NDArray[np.int32] = np.zeros(0, np.int32)
        self.blocked: NDArray[np.int64] = np.zeros(0, np.int64)
        self.bits: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self.request = 0

    def reserve(self, rows: int) -> None:
        """Make room for ``rows`` rows."""
        if rows <= len(self.slot):
            return
        size = max(1_024, 2 * rows)
        self.slot = np.full(size, -1, np.int32)
        self.blocked = np.zeros(size, np.int64)
        self.bits = np.zeros(size, np.uint32)


@dataclass(frozen=True, slots=True)
class Links:
    """Transition scores from the recent items to others.

    Attributes:
        rows: int32 [u], distinct items pointed to.
        symmetric, directed: float64 [u], their scores.
        entry_rows: int32 [m], every single link's target.
        entry_origin: int32 [m], its recent item, as an index of ``Interests.recent``.
        entry_symmetric, entry_directed: float64 [m], its part before the normalisation of the target.
    """

    rows: NDArray[np.int32]
    symmetric: NDArray[np.float64]
    directed: NDArray[np.float64]
    entry_rows: NDArray[np.int32]
    entry_origin: NDArray[np.int32]
    entry_symmetric: NDArray[np.float64]
    entry_directed: NDArray[np.float64]

    def at(self, rows: NDArray[np.int32], scratch: Scratch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Symmetric and directed scores of ``rows``; zero where nothing points to them."""
        if not len(self.rows):
            return np.zeros(len(rows)), np.zeros(len(rows))
        slot = scratch.slot
        slot[self.rows] = np.arange(len(self.rows), dtype=np.int32)
        place = slot[rows]
        slot[self.rows] = -1
        linked = place >= 0
        return np.where(linked, self.symmetric[place], 0.0), np.where(linked, self.directed[place], 0.0)

    def strongest_origin(
        self, rows: NDArray[np.int32], origins: int, scratch: Scratch
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """For each row the recent item that contributes most to its symmetric and to its directed score.

        Returns:
            two int arrays [len(rows)], indices of ``Interests.recent``; meaningless where the score is zero.
        """
        slot = scratch.slot
        slot[rows] = np.arange(len(rows), dtype=np.int32)
        place = slot[self.entry_rows]
        slot[rows] = -1
        used = place >= 0
        place, origin = place[used], self.entry_origin[used]
        parts = np.zeros((2, len(rows), max(origins, 1)))
        parts[0, place, origin] = self.entry_symmetric[used]
        parts[1, place, origin] = self.entry_directed[used]
        symmetric, directed = parts.argmax(axis=2)
        return symmetric, directed


def link_scores(
    interests: Interests, signals: Signals, settings: ItemSettings, *, at: float, scratch: Scratch
) -> Links:
    """Scores of everything the recent items point to, at event time ``at`` (seconds)."""
    parts = [signals.neighbours(row) for row in interests.recent.tolist()]
    lengths = np.array([len(part.rows) for part in parts], np.intp)
    total = int(lengths.sum()) if len(lengths) else 0
    if not total:
        empty = np.zeros(0)
        no_rows = np.zeros(0, np.int32)
        return Links(no_rows, empty, empty, no_rows, no_rows, empty, empty)
    rows = np.concatenate([part.rows for part in parts])
    counts = np.maximum(signals.total(interests.recent), 1.0)
    faded = np.array([signals.decay(part.at, at) for part in parts]) / np.sqrt(counts)
    symmetric_weight = faded * settings.symmetric_decay**interests.lag
    directed_weight = faded * settings.directed_decay**interests.lag
    directed_weight[interests.lag >= settings.directed_history] = 0.0
    symmetric = np.concatenate([part.symmetric for part in parts]) * np.repeat(symmetric_weight, lengths)
    directed = np.concatenate([part.directed for part in parts]) * np.repeat(directed_weight, lengths)
    origin = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)

    scratch.reserve(int(rows.max()) + 1)
    slot = scratch.slot
    places = np.arange(total, dtype=np.int32)
    slot[rows] = places
    distinct = rows[slot[rows] == places]
    slot[distinct] = places[: len(distinct)]
    place = slot[rows]
    slot[distinct] = -1
    scale = 1.0 / np.sqrt(np.maximum(signals.total(distinct), 1.0))
    return Links(
        rows=distinct,
        symmetric=np.sqrt(np.bincount(place, weights=symmetric, minlength=len(distinct)) * scale),
        directed=np.sqrt(np.bincount(place, weights=directed, minlength=len(distinct)) * scale),
        entry_rows=rows,
        entry_origin=origin,
        entry_symmetric=symmetric,
        entry_directed=directed,
    )
