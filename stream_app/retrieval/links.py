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

    count = add_links(recent, slow, short, ahead, at, rate, arena, slot, rows, sums)
    finish_links(rows[:count], sums, arena.scale, slot, scores)

* ``recent`` int32 [r], rows of the recent items, distinct, newest first; ``slow`` and ``short`` float64 [r], their
  weights; ``ahead`` float64 [up to r], weights of the newest for the directed score;
* ``at`` event time (seconds), ``rate`` and ``arena``: ``Signals.transition_rate`` and ``Signals.arena``;
* ``slot`` int32 [rows of the catalogue], -1 everywhere (``Scratch.slot``). ``add_links`` leaves in it the place of
  every row pointed to, ``finish_links`` makes it -1 again;
* ``rows`` int32 and ``sums`` float64 [room, 7], at least ``links_of(recent, arena)`` long: filled up to ``count`` with
  the distinct rows, in the order they are met, and their sums (columns as in :data:`SCORES`);
* ``scores`` float64 [7, count]: filled with the roots of the sums, normalised.

A further view of the links is one more column: a name in :data:`SCORES`, a line in ``_add`` and one in
``finish_links``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.items.signals import Arena, Signals
from stream_app.retrieval.interests import Interests
from stream_app.settings import Settings

__all__ = ["SCORES", "Links", "Scratch", "add_links", "finish_links", "link_scores", "links_of", "pick", "strongest_origins"]

SCORES = ("symmetric", "recent", "best", "directed", "share", "last", "count")
"""Columns of :attr:`Links.scores`."""
_COLUMNS = len(SCORES)


class Scratch:
    """Reusable arrays by row, so that a request costs what it touches and not the size of the catalogue.

    ``slot`` int32 [rows], -1 everywhere between uses; ``blocked`` int64 [rows], holds the number of the last
    request that excluded the row; ``links`` int32 [room] and ``sums`` float64
    [room, 7], anything between uses.
    """

    def __init__(self) -> None:
        self.slot: NDArray[np.int32] = np.zeros(0, np.int32)
        self.blocked: NDArray[np.int64] = np.zeros(0, np.int64)
        self.links: NDArray[np.int32] = np.zeros(0, np.int32)
        self.sums: NDArray[np.float64] = np.zeros((0, _COLUMNS))
        self.request = 0

    def reserve(self, rows: int) -> None:
        """Make room for ``rows`` rows; what is blocked stays so."""
        held = len(self.slot)
        if rows <= held:
            return
        size = max(1_024, 2 * rows)
        self.slot = np.full(size, -1, np.int32)
        self.blocked = np.concatenate([self.blocked, np.zeros(size - held, np.int64)])

    def reserve_links(self, links: int) -> None:
        """Make room for the sums of ``links`` links."""
        if links > len(self.links):
            self.links = np.zeros(2 * links, np.int32)
            self.sums = np.zeros((2 * links, _COLUMNS))


@dataclass(slots=True)
class Links:
    """Transition scores from the recent items to others.

    Attributes:
        rows: int32 [u], distinct items pointed to.
        scores: float64 [7, u], one row per name in :data:`SCORES`.
        recent: int32 [r], the recent items.
        symmetric_weights, directed_weights: float64 [r] and [up to r], the lag's weights.
        requested_at: event time (seconds) of the request.
        signals: the links themselves; what is asked of them later is answered from what they are then.
    """

    rows: NDArray[np.int32]
    scores: NDArray[np.float64]
    recent: NDArray[np.int32]
    symmetric_weights: NDArray[np.float64]
    directed_weights: NDArray[np.float64]
    requested_at: float
    signals: Signals

    def strongest_origin(self, rows: NDArray[np.int32], scratch: Scratch) -> tuple[list[int], list[int]]:
        """For each row the recent item that contributes most to its symmetric and to its directed score.

        Args:
            rows: int32 [s], distinct, for example a slate; all links of the recent items are looked at once.

        Returns:
            two lists of indices of ``Interests.recent``, the newest of equals; -1 where nothing adds to the score.
        """
        origins = np.full((2, len(rows)), -1, np.int64)
        strongest_origins(
            self.recent, self.symmetric_weights, self.directed_weights, self.requested_at, self.signals.transition_rate,
            self.signals.arena, rows, scratch.slot, origins,
        )  # fmt: skip
        symmetric, directed = origins.tolist()
        return symmetric, directed


def link_scores(interests: Interests, signals: Signals, settings: Settings, *, at: float, scratch: Scratch) -> Links:
    """Scores of everything the recent items point to, at event time ``at`` (seconds)."""
    recent, lag = interests.recent, interests.lag
    slow = settings.users.slow_decay**lag
    short = settings.items.symmetric_decay**lag
    ahead = settings.items.directed_decay ** lag[: settings.items.directed_history]
    signals.reserve(int(recent.max()) + 1 if len(recent) else 0)
    arena = signals.arena
    # Compiled code does not check its indices: whatever a link can name has a slot.
    scratch.reserve(signals.rows)
    scratch.reserve_links(links_of(recent, arena))
    count = add_links(
        recent, slow, short, ahead, at, signals.transition_rate, arena, scratch.slot, scratch.links, scratch.sums
    )
    rows = scratch.links[:count].copy()
    scores = np.empty((_COLUMNS, count))
    finish_links(rows, scratch.sums, arena.scale, scratch.slot, scores)
    return Links(rows, scores, recent, slow, ahead, at, signals)


@compiled
def links_of(recent: NDArray[np.int32], arena: Arena) -> int:
    """How many links lead away from ``recent``."""
    count = 0
    for row in recent:
        count += arena.lengths[row]
    return count


@compiled
def _add(
    sums: NDArray[np.float64],
    symmetric: float,
    directed: float,
    slow: float,
    short: float,
    ahead: float,
    newest: float,
    scale: float,
) -> None:
    """Add one link to the sums [7] of the item it points to; its weights are faded and scaled by their origin."""
    sums[0] += slow * symmetric
    sums[1] += short * symmetric
    sums[2] = max(sums[2], symmetric)
    sums[3] += ahead * directed
    sums[4] += short * scale * symmetric
    sums[5] += newest * scale * directed
    sums[6] += 1.0


@compiled
def add_links(
    recent: NDArray[np.int32],
    slow: NDArray[np.float64],
    short: NDArray[np.float64],
    ahead: NDArray[np.float64],
    at: float,
    rate: float,
    arena: Arena,
    slot: NDArray[np.int32],
    rows: NDArray[np.int32],
    sums: NDArray[np.float64],
) -> int:
    """Sums over the links of ``recent``; returns how many distinct rows they point to (see the module)."""
    count = 0
    for lag, origin in enumerate(recent):
        length = arena.lengths[origin]
        if length == 0:
            continue
        scale = arena.scale[origin]
        faded = scale * 2.0 ** (-max(at - arena.stated[origin], 0.0) * rate)
        following = ahead[lag] if lag < len(ahead) else 0.0
        start = arena.starts[origin]
        for entry in range(start, start + length):
            row = arena.rows[entry]
            place = slot[row]
            if place < 0:
                place = count
                slot[row] = place
                rows[place] = row
                sums[place] = 0.0
                count += 1
            _add(
                sums[place], arena.symmetric[entry] * faded, arena.directed[entry] * faded,
                slow[lag], short[lag], following, 1.0 if lag == 0 else 0.0, scale,
            )  # fmt: skip
    return count


@compiled
def finish_links(
    rows: NDArray[np.int32],
    sums: NDArray[np.float64],
    scale: NDArray[np.float64],
    slot: NDArray[np.int32],
    scores: NDArray[np.float64],
) -> None:
    """Scores of ``rows`` from their sums; ``slot`` is cleared (see the module)."""
    for place, row in enumerate(rows):
        slot[row] = -1
        own = scale[row]
        for column in range(4):
            scores[column, place] = np.sqrt(sums[place, column] * own)
        for column in range(4, 7):
            scores[column, place] = np.sqrt(sums[place, column])


@compiled
def pick(
    held: NDArray[np.int32],
    scores: NDArray[np.float64],
    rows: NDArray[np.int32],
    slot: NDArray[np.int32],
    found: NDArray[np.float64],
) -> None:
    """Scores of ``rows`` among those of ``held`` rows (float64 [7, len(held)]): ``found`` float64 [7, len(rows)], zero
    before, and where nothing points to them. ``slot`` is -1 everywhere, and again afterwards."""
    for place, row in enumerate(held):
        slot[row] = place
    for target, row in enumerate(rows):
        place = slot[row]
        if place >= 0:
            for column in range(len(scores)):
                found[column, target] = scores[column, place]
    for row in held:
        slot[row] = -1


@compiled
def strongest_origins(
    recent: NDArray[np.int32],
    slow: NDArray[np.float64],
    ahead: NDArray[np.float64],
    at: float,
    rate: float,
    arena: Arena,
    rows: NDArray[np.int32],
    slot: NDArray[np.int32],
    origins: NDArray[np.int64],
) -> None:
    """For each of ``rows`` the index in ``recent`` that adds most, symmetric and directed: int64 [2, rows], -1 before;
    ``slot`` is -1 everywhere, and again afterwards."""
    strongest = np.zeros((2, len(rows)))
    for place, row in enumerate(rows):
        slot[row] = place
    for lag, origin in enumerate(recent):
        start = arena.starts[origin]
        faded = arena.scale[origin] * 2.0 ** (-max(at - arena.stated[origin], 0.0) * rate)
        for entry in range(start, start + arena.lengths[origin]):
            place = slot[arena.rows[entry]]
            if place < 0:
                continue
            added = arena.symmetric[entry] * faded * slow[lag]
            if added > strongest[0, place]:
                strongest[0, place] = added
                origins[0, place] = lag
            added = arena.directed[entry] * faded * ahead[lag] if lag < len(ahead) else 0.0
            if added > strongest[1, place]:
                strongest[1, place] = added
                origins[1, place] = lag
    for row in rows:
        slot[row] = -1
