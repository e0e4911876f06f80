"""How strongly the user's recent items point to other items: transition scores, summed over the recent items.

The score of item ``i`` given the recent items ``j`` is ``sqrt(sum_j w_j row_j[i] / sqrt(n_j n_i))`` with a weight
``w_j`` for how recent ``j`` is, the decayed neighbour weight ``row_j[i]`` and counts ``n``: cosine-normalised
co-occurrence (Sarwar et al. 2001, doi 10.1145/371920.372071), its square root taken because the sums are
heavy-tailed. Seven views of the same links, because domains differ in which says most:

* ``symmetric``: a long memory (the decay of the slow interest vector);
* ``recent``: a short one;
* ``best``: the strongest single link instead of the sum, without decay;
* ``directed``: what followed the last few items, in this order;
* ``share``: like ``recent``, but without the normalisation by the target (the share of ``j``'s links that lead to
  ``i``), so that the ranker can weigh popularity within the links apart from popularity in general;
* ``last``: what followed the newest item alone, as a share of its links;
* ``count``: how many of the recent items point to ``i``, however strongly.

For compiled callers (arrays in, arrays out; ``stream_app.compiled``)::

    count = add_links(recent, lags, at, rate, arena, slot, rows, sums)
    link_scores(some_rows, slot, sums, arena.scale, scores)
    clear(rows[:count], slot)

* ``recent`` int32 [r], rows of the recent items, distinct, newest first; ``lags`` says how much each counts;
* ``at`` event time (seconds), ``rate`` and ``arena``: ``Signals.transition_rate`` and ``Signals.arena``;
* ``slot`` int32 [rows of the catalogue], -1 everywhere (``Scratch.link_slot``). ``add_links`` leaves in it the place of
  every row pointed to, ``clear`` makes it -1 again;
* ``rows`` int32 and ``sums`` float32 [room, 8]: filled up to ``count`` with the distinct rows, in the order they are
  met, and their sums (columns as in :data:`SCORES`, the last is not used); beyond their room no row is added;
* ``scores`` float64 [7, some rows]: filled with the roots of the sums, normalised, and 0 where nothing points to.

A further view of the links is one more column: a name in :data:`SCORES`, a line in ``add_links`` and one in
``link_scores``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.items.signals import Arena
from stream_app.lanes import LANES, add_scaled
from stream_app.settings import Settings
from stream_app.unowned import on_stack

__all__ = [
    "DIRECTED",
    "SCORES",
    "SYMMETRIC",
    "Lags",
    "Scratch",
    "add_links",
    "clear",
    "lags_of",
    "link_scores",
    "strongest_origins",
]

SCORES = ("symmetric", "recent", "best", "directed", "share", "last", "count")
"""Rows of the scores."""
SYMMETRIC, _RECENT, _BEST, DIRECTED, _SHARE, _LAST, _COUNT = range(len(SCORES))
_NORMALISED = 4
"""The first so many are normalised by their targets."""


class Lags(NamedTuple):
    """What an item counts by the number of distinct items that are newer: ``slow``, ``short`` and ``ahead`` to the
    power of it, and for the directed scores nothing from ``reach`` on."""

    slow: float
    short: float
    ahead: float
    reach: int


def lags_of(settings: Settings) -> Lags:
    """The settings' decays."""
    items = settings.items
    return Lags(settings.users.slow_decay, items.symmetric_decay, items.directed_decay, items.directed_history)


class Scratch:
    """Reusable arrays, so that a request costs what it touches and not the size of the catalogue.

    ``slot`` and ``link_slot`` int32 [rows], -1 everywhere between uses; ``blocked`` int64 [rows], holds the number of
    the last request that excluded the row; ``links`` int32 [room] and ``sums`` float32 [room, 8], anything between
    uses.
    """

    def __init__(self) -> None:
        self.slot: NDArray[np.int32] = np.zeros(0, np.int32)
        self.link_slot: NDArray[np.int32] = np.zeros(0, np.int32)
        self.blocked: NDArray[np.int64] = np.zeros(0, np.int64)
        self.links: NDArray[np.int32] = np.zeros(0, np.int32)
        self.sums: NDArray[np.float32] = np.zeros((0, LANES), np.float32)
        self.request = 0

    @property
    def arrays(
        self,
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
        """``slot``, ``link_slot``, ``links``, ``sums`` and ``blocked``."""
        return self.slot, self.link_slot, self.links, self.sums, self.blocked

    def clean(self) -> None:
        """As between uses, whatever a use that failed has left; the room stays."""
        self.slot[:] = self.link_slot[:] = -1
        self.blocked[:] = 0

    def reserve(self, rows: int, links: int) -> None:
        """Make room for ``rows`` rows and ``links`` links of one request; what is blocked stays so."""
        if links > len(self.links):
            self.links = np.zeros(links, np.int32)
            self.sums = np.zeros((links, LANES), np.float32)
        held = len(self.slot)
        if rows <= held:
            return
        size = max(1_024, 2 * rows)
        self.slot, self.link_slot = np.full((2, size), -1, np.int32)
        self.blocked = np.concatenate([self.blocked, np.zeros(size - held, np.int64)])


@compiled
def add_links(
    recent: NDArray[np.int32],
    lags: Lags,
    at: float,
    rate: float,
    arena: Arena,
    slot: NDArray[np.int32],
    rows: NDArray[np.int32],
    sums: NDArray[np.float32],
) -> int:
    """Sums over the links of ``recent``; returns how many distinct rows they point to (see the module)."""
    starts, lengths, stated, scales = arena.starts, arena.lengths, arena.stated, arena.scale
    others, symmetric, directed = arena.rows, arena.symmetric, arena.directed
    count, room = 0, len(rows)
    # What the two weights of a link are multiplied with for each column, what is added besides, and of which columns
    # the largest is kept; see lanes.add_scaled.
    by = on_stack((4, LANES), np.float32)
    by[:] = 0.0
    by[2, _COUNT] = by[3, _BEST] = 1.0
    slow = short = ahead = newest = 1.0
    for lag, origin in enumerate(recent):
        scale = scales[origin]
        faded = np.float32(scale * np.exp2(-max(at - stated[origin], 0.0) * rate))
        by[0, SYMMETRIC], by[0, _RECENT], by[0, _SHARE] = slow, short, short * scale
        by[1, DIRECTED], by[1, _LAST] = ahead if lag < lags.reach else 0.0, newest * scale
        start = starts[origin]
        for entry in range(start, start + lengths[origin]):
            row = others[entry]
            # Half of them are new, so that a branch would be guessed wrong every other time.
            place = slot[row]
            fresh = place < 0
            place = count if fresh else place
            if place == room:
                continue
            slot[row] = place
            rows[place] = row
            count += fresh
            add_scaled(sums, place, fresh, by, symmetric[entry] * faded, directed[entry] * faded)
        slow *= lags.slow
        short *= lags.short
        ahead *= lags.ahead
        newest = 0.0
    return count


@compiled
def link_scores(
    rows: NDArray[np.int32],
    slot: NDArray[np.int32],
    sums: NDArray[np.float32],
    scale: NDArray[np.float64],
    scores: NDArray[np.float64],
) -> None:
    """Scores of ``rows`` from the sums: float64 [7, rows], overwritten (see the module)."""
    for target, row in enumerate(rows):
        place = slot[row]
        own = scale[row]
        for column in range(len(scores)):
            total = np.float64(sums[place, column]) if place >= 0 else 0.0
            scores[column, target] = np.sqrt(total * own if column < _NORMALISED else total)


@compiled
def clear(rows: NDArray[np.int32], slot: NDArray[np.int32]) -> None:
    """Make ``slot`` -1 at ``rows``."""
    for row in rows:
        slot[row] = -1


@compiled
def strongest_origins(
    recent: NDArray[np.int32],
    lags: Lags,
    at: float,
    rate: float,
    arena: Arena,
    rows: NDArray[np.int32],
    slot: NDArray[np.int32],
    origins: NDArray[np.int64],
) -> None:
    """For each of ``rows`` (distinct) the index in ``recent`` that adds most to its symmetric and to its directed
    score, the newest of equals: int64 [2, rows], overwritten, -1 where nothing does. ``slot`` is -1 everywhere, and
    again afterwards."""
    starts, lengths, stated, scales = arena.starts, arena.lengths, arena.stated, arena.scale
    others, symmetric, directed = arena.rows, arena.symmetric, arena.directed
    strongest = on_stack((2, len(rows)), np.float64)
    strongest[:] = 0.0
    origins[:] = -1
    for place, row in enumerate(rows):
        slot[row] = place
    slow = ahead = 1.0
    for lag, origin in enumerate(recent):
        start = starts[origin]
        faded = scales[origin] * np.exp2(-max(at - stated[origin], 0.0) * rate)
        for entry in range(start, start + lengths[origin]):
            place = slot[others[entry]]
            if place < 0:
                continue
            added = symmetric[entry] * faded * slow
            if added > strongest[0, place]:
                strongest[0, place] = added
                origins[0, place] = lag
            added = directed[entry] * faded * ahead if lag < lags.reach else 0.0
            if added > strongest[1, place]:
                strongest[1, place] = added
                origins[1, place] = lag
        slow *= lags.slow
        ahead *= lags.ahead
    for row in rows:
        slot[row] = -1
