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
        symmetric, directed: float64 [recent items, u], what each recent item adds to the sums, before the lag's weight
            and the target's normalisation.
        symmetric_weights, directed_weights: float64 [recent items], the lag's weights.
    """

    rows: NDArray[np.int32]
    scores: NDArray[np.float64]
    symmetric: NDArray[np.float64]
    directed: NDArray[np.float64]
    symmetric_weights: NDArray[np.float64]
    directed_weights: NDArray[np.float64]

    def at(self, rows: NDArray[np.int32], scratch: Scratch) -> NDArray[np.float64]:
        """Scores of ``rows``, float64 [5, len(rows)]; zero where nothing points to them."""
        if not len(self.rows):
            return np.zeros((len(SCORES), len(rows)))
        place = self._places(rows, scratch)
        found: NDArray[np.float64] = self.scores[:, place]
        found[:, place < 0] = 0.0
        return found

    def strongest_origin(self, rows: NDArray[np.int32], scratch: Scratch) -> tuple[list[int], list[int]]:
        """For each row the recent item that contributes most to its symmetric and to its directed score.

        Returns:
            two lists of indices of ``Interests.recent``; -1 where nothing points to the row.
        """
        if not len(self.rows):
            return [-1] * len(rows), [-1] * len(rows)
        place = self._places(rows, scratch)
        found = []
        for parts, weights in ((self.symmetric, self.symmetric_weights), (self.directed, self.directed_weights)):
            strongest = (parts[:, place] * weights[: len(parts), None]).argmax(axis=0)
            found.append(np.where(place >= 0, strongest, -1).tolist())
        return found[0], found[1]

    def _places(self, rows: NDArray[np.int32], scratch: Scratch) -> NDArray[np.int32]:
        """Where ``rows`` are among ours, -1 where they are not."""
        slot = scratch.slot
        slot[self.rows] = np.arange(len(self.rows), dtype=np.int32)
        place = slot[rows]
        slot[self.rows] = -1
        return place


def link_scores(interests: Interests, signals: Signals, settings: Settings, *, at: float, scratch: Scratch) -> Links:
    """Scores of everything the recent items point to, at event time ``at`` (seconds)."""
    parts = [signals.neighbours(row) for row in interests.recent.tolist()]
    lengths = [len(part.rows) for part in parts]
    total = sum(lengths)
    slow = settings.users.slow_decay**interests.lag
    reach = min(settings.items.directed_history, len(parts))
    ahead = settings.items.directed_decay ** interests.lag[:reach]
    if not total:
        none = np.zeros((0, 0))
        return Links(np.zeros(0, np.int32), np.zeros((len(SCORES), 0)), none, none, slow, ahead)
    rows = np.concatenate([part.rows for part in parts])
    slot = scratch.slot
    places = np.arange(total, dtype=np.int32)
    slot[rows] = places
    distinct = rows[slot[rows] == places]
    size = len(distinct)
    slot[distinct] = places[:size]
    place = slot[rows]
    slot[distinct] = -1

    own_scale = 1.0 / np.sqrt(np.maximum(signals.total(interests.recent), 1.0))
    faded = own_scale * [signals.decay(part.at, at) for part in parts]
    short = settings.items.symmetric_decay**interests.lag
    # One row per recent item, one column per target; each link has one cell.
    cells = np.repeat(np.arange(0, len(parts) * size, size), lengths) + place
    symmetric = np.zeros((len(parts), size))
    symmetric.ravel()[cells] = np.concatenate([part.symmetric for part in parts]) * np.repeat(faded, lengths)
    directed = np.zeros((reach, size))
    near = sum(lengths[:reach])
    following = np.concatenate([part.directed for part in parts[:reach]])
    directed.ravel()[cells[:near]] = following * np.repeat(faded[:reach], lengths[:reach])
    scores = np.empty((len(SCORES), size))
    # Rows of SCORES; the products sum over the recent items in the same order for every target.
    scores[[0, 1, 4]] = np.stack([slow, short, short * own_scale]) @ symmetric
    symmetric.max(axis=0, out=scores[2])
    scores[3] = ahead @ directed
    scores[:4] /= np.sqrt(np.maximum(signals.total(distinct), 1.0))
    np.sqrt(scores, out=scores)
    return Links(distinct, scores, symmetric, directed, slow, ahead)
