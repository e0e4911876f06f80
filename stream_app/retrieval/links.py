"""How strongly the user's recent items point to other items: transition scores, summed over the recent items.

The score of item ``i`` given the recent items ``j`` is ``sqrt(sum_j w_j row_j[i] / sqrt(n_j n_i))`` with a weight
``w_j`` for how recent ``j`` is, the decayed neighbour weight ``row_j[i]`` and counts ``n``: cosine-normalised
co-occurrence (Sarwar et al. 2001, doi 10.1145/371920.372071), its square root taken because the sums are
heavy-tailed. Five views of the same links, because domains differ in which says most:

* ``symmetric``: a long memory (the decay of the slow interest vector);
* ``recent``: a short one;
* ``best``: the strongest single link instead of the sum, without decay;
* ``directed``: what followed the last few items, in this order;
* ``share``: like ``recent``, but without the normalisation by the target (the share of ``j``'s links that lead to
  ``i``), so that the ranker can weigh popularity within the links apart from popularity in general.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.items.signals import Signals
from stream_app.retrieval.interests import Interests
from stream_app.settings import Settings

__all__ = ["SCORES", "Links", "Scratch", "link_scores"]

SCORES = ("symmetric", "recent", "best", "directed", "share")
"""Columns of :attr:`Links.scores`."""


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
        scores: float64 [5, u], one row per name in :data:`SCORES`.
        entry_rows: int32 [m], every single link's target.
        entry_origin: int32 [m], its recent item, as an index of ``Interests.recent``.
        entry_symmetric, entry_directed: float64 [m], its part of the sums, before the target's normalisation.
    """

    rows: NDArray[np.int32]
    scores: NDArray[np.float64]
    entry_rows: NDArray[np.int32]
    entry_origin: NDArray[np.int32]
    entry_symmetric: NDArray[np.float64]
    entry_directed: NDArray[np.float64]

    def at(self, rows: NDArray[np.int32], scratch: Scratch) -> NDArray[np.float64]:
        """Scores of ``rows``, float64 [5, len(rows)]; zero where nothing points to them."""
        if not len(self.rows):
            return np.zeros((len(SCORES), len(rows)))
        slot = scratch.slot
        slot[self.rows] = np.arange(len(self.rows), dtype=np.int32)
        place = slot[rows]
        slot[self.rows] = -1
        found: NDArray[np.float64] = self.scores[:, place]
        found[:, place < 0] = 0.0
        return found

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
        used = np.flatnonzero(place >= 0)
        place, origin = place[used], self.entry_origin[used]
        parts = np.zeros((2, len(rows), max(origins, 1)))
        parts[0, place, origin] = self.entry_symmetric[used]
        parts[1, place, origin] = self.entry_directed[used]
        symmetric, directed = parts.argmax(axis=2)
        return symmetric, directed


def link_scores(interests: Interests, signals: Signals, settings: Settings, *, at: float, scratch: Scratch) -> Links:
    """Scores of everything the recent items point to, at event time ``at`` (seconds)."""
    parts = [signals.neighbours(row) for row in interests.recent.tolist()]
    lengths = np.array([len(part.rows) for part in parts], np.intp)
    total = int(lengths.sum()) if len(lengths) else 0
    if not total:
        empty = np.zeros(0)
        no_rows = np.zeros(0, np.int32)
        return Links(no_rows, np.zeros((len(SCORES), 0)), no_rows, no_rows, empty, empty)
    rows = np.concatenate([part.rows for part in parts])
    lag = interests.lag
    faded = np.array([signals.decay(part.at, at) for part in parts])
    own_scale = 1.0 / np.sqrt(np.maximum(signals.total(interests.recent), 1.0))
    faded *= own_scale
    directed_weight = np.where(lag < settings.items.directed_history, settings.items.directed_decay**lag, 0.0)
    plain = np.concatenate([part.symmetric for part in parts]) * np.repeat(faded, lengths)
    symmetric = plain * np.repeat(settings.users.slow_decay**lag, lengths)
    short = settings.items.symmetric_decay**lag
    recent = plain * np.repeat(short, lengths)
    share = plain * np.repeat(short * own_scale, lengths)
    directed = np.concatenate([part.directed for part in parts]) * np.repeat(faded * directed_weight, lengths)

    slot = scratch.slot
    places = np.arange(total, dtype=np.int32)
    slot[rows] = places
    distinct = rows[slot[rows] == places]
    size = len(distinct)
    slot[distinct] = places[:size]
    place = slot[rows]
    slot[distinct] = -1
    scores = np.zeros((len(SCORES), size))
    scores[0] = np.bincount(place, weights=symmetric, minlength=size)
    scores[1] = np.bincount(place, weights=recent, minlength=size)
    np.maximum.at(scores[2], place, plain)
    scores[3] = np.bincount(place, weights=directed, minlength=size)
    scores[:4] /= np.sqrt(np.maximum(signals.total(distinct), 1.0))
    scores[4] = np.bincount(place, weights=share, minlength=size)
    np.sqrt(scores, out=scores)
    return Links(
        rows=distinct,
        scores=scores,
        entry_rows=rows,
        entry_origin=np.repeat(np.arange(len(parts), dtype=np.int32), lengths),
        entry_symmetric=symmetric,
        entry_directed=directed,
    )
