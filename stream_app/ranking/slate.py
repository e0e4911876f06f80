"""From scores to a slate: business rules, diversity, caps, and places kept for new items.

A slate is filled from the first rank on. A place takes its pinned item; what the user just searched for comes next; a
place reserved for new items takes the new item that deserves it most, unless one got there by its own score; any other
place takes the candidate with the best trade of score and difference from what is above it. No place takes an item
beyond a cap, but for those that are pinned or searched for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.codes import WORD, ZERO, one_product
from stream_app.compiled import compiled
from stream_app.heap import ascending, largest
from stream_app.prefetch import prefetch_row
from stream_app.ranking.exploration import least_shown
from stream_app.rules.book import Cap
from stream_app.settings import SlateSettings
from stream_app.unowned import on_stack

__all__ = ["NEW", "TAIL", "SlateRules", "compose", "pinned_places", "reserved_places"]

_POOL_EXTRA = 20
"""Candidates beyond the slate's size that diversity may bring in."""
_PLACES_PER = 20
_PLACE_BITS = 20
"""Enough for a million candidates, and leaves room for scores up to millions."""
NEW, TAIL = 1, 2
"""What a place was kept for: a new item, or a less known one."""


@dataclass(slots=True)
class SlateRules:
    """Business rules as they bear on the candidates of one request.

    Attributes:
        boosts: float64 [k], added to the scores; None: nothing.
        pins: pairs of a candidate and the rank (from 1) it belongs at, what goes first when two want one rank first.
        caps: hard limits on the first ranks; a slate rather ends early than to break one.
        preferences: caps that give way when nothing else is left.
        first: candidates that come first, in this order, after what is pinned there.
    """

    boosts: NDArray[np.float64] | None = None
    pins: Sequence[tuple[int, int]] = ()
    caps: Sequence[Cap] = ()
    preferences: Sequence[Cap] = ()
    first: Sequence[int] = ()


def pinned_places(pins: Sequence[tuple[int, int]], size: int) -> NDArray[np.intp]:
    """The pinned candidate of each place, -1 where there is none: int [size]. Who comes first gets the rank (from 1),
    the others the next free one."""
    places = np.empty(size, np.intp)
    places.fill(-1)
    for candidate, rank in pins:
        free = np.flatnonzero(places[rank - 1 :] < 0)
        if len(free):
            places[rank - 1 + free[0]] = candidate
    return places


def reserved_places(size: int, settings: SlateSettings) -> NDArray[np.bool_]:
    """Which places are kept for new items: ``cold_places`` per 20 ranks from ``cold_from_rank`` on, evenly spaced."""
    reserved = np.zeros(size, np.bool_)
    if settings.cold_places:
        reserved[settings.cold_from_rank - 1 :: max(1, _PLACES_PER // settings.cold_places)] = True
    return reserved


@compiled
def _rank(scores: NDArray[np.float64], places: NDArray[np.int32], ranked: NDArray[np.int64]) -> None:
    """Some indices by score in steps of 1e-6, the largest first, then by index: int64 [len(places)], overwritten.
    Whole numbers that hold both are sorted."""
    for at, place in enumerate(places):
        ranked[at] = (-np.int64(np.rint(scores[place] * 1e6)) << _PLACE_BITS) | place
    ascending(ranked)
    for at in range(len(ranked)):
        ranked[at] &= (1 << _PLACE_BITS) - 1


@compiled
def compose(
    scores: NDArray[np.float64],
    rows: NDArray[np.int32],
    codes: NDArray[np.int8],
    steps: NDArray[np.float32],
    diversity: float,
    pins: NDArray[np.intp],
    cold_order: NDArray[np.intp],
    reserved: NDArray[np.bool_],
    less_known: NDArray[np.int32],
    shown: NDArray[np.uint32],
    tail_place: int,
    groups: NDArray[np.int32],
    limits: NDArray[np.int64],
    hard: int,
    order: NDArray[np.intp],
    kept_for: NDArray[np.int8],
) -> int:
    """Pick and order as many candidates as there are places, fewer when nothing may follow.

    Diversity is maximal marginal relevance (Carbonell and Goldstein 1998, doi 10.1145/290941.291025) over the best
    ``size`` + 20 candidates; relevance is the score on a scale from 0 (last of these) to 1 (best).

    Pins come first: they take their place whatever caps say, and count for caps from the start.

    Args:
        scores: float64 [k], boosts included, in steps of 1e-6, in the order in which ties are decided (smaller index
            first).
        rows: int32 [k], where each candidate's vector is:
        codes, steps: unit vectors or zeros in whole numbers (:class:`stream_app.codes.Codes`).
        diversity: its share.
        pins: int [size], see :func:`pinned_places`; ``size`` is at most ``k``.
        cold_order: int [c], new items, the one that deserves a reserved place most first.
        reserved: bool [size], places kept for them.
        less_known, shown: int32, uint32 [t], less known items, and how often each was shown: the first that is not
            above (see ``exploration.least_shown``) takes the place ``tail_place``, unless a rule or a new item does;
            without any that place is like any other.
        groups: int32 [caps, k], what a candidate counts as; -1: not at all.
        limits: int64 [caps, 2], how many of a group there may be, and among how many first ranks.
        hard: the first so many caps are never broken: a slate rather ends early. The others give way when nothing else
            is left.
        order, kept_for: int, int8 [size], overwritten as far as the slate reaches: candidates, best first; and for what
            their places were kept: :data:`NEW`, :data:`TAIL` or 0.

    Returns:
        how many are in the slate.
    """
    size = min(len(pins), len(scores))
    pool = min(size + _POOL_EXTRA, len(scores))
    places = on_stack(len(scores), np.int32)
    # Without caps nothing beyond the pool is ever taken for its score.
    found = largest(scores, pool, places) if 0 < pool < len(scores) and not len(limits) else 0
    if found < pool:  # Fewer are numbers.
        found = len(scores)
        for place in range(found):
            places[place] = place
    ranked = on_stack(found, np.int64)
    _rank(scores, places[:found], ranked)
    for candidate in ranked[:pool]:
        prefetch_row(codes, rows[candidate])
    return _fill(
        scores, codes, steps, rows, ranked, pool, diversity if size > 1 else 0.0,
        pins[:size], cold_order, reserved, less_known, shown, tail_place, groups, limits, hard, order,
        kept_for,
    )  # fmt: skip


@compiled
def _fill(
    scores: NDArray[np.float64],
    codes: NDArray[np.int8],
    steps: NDArray[np.float32],
    rows: NDArray[np.int32],
    ranked: NDArray[np.intp],
    pool: int,
    share: float,
    pins: NDArray[np.intp],
    cold_order: NDArray[np.intp],
    kept_for_cold: NDArray[np.bool_],
    less_known: NDArray[np.int32],
    shown: NDArray[np.uint32],
    tail_place: int,
    groups: NDArray[np.int32],
    limits: NDArray[np.int64],
    hard: int,
    order: NDArray[np.intp],
    kept_for: NDArray[np.int8],
) -> int:
    """Fill the places from the first on: candidates in order, and for what their place was kept; how many.

    What a candidate is worth is at most its relevance, and only falls while the slate fills. So candidates are looked
    at in order of relevance, and one whose last known worth is no better than the best so far is not computed anew: the
    result is that of computing all of them for each place.

    Args:
        scores: [k].
        codes, steps: by row.
        rows: [k], of the candidates.
        ranked: [pool or more], candidates, best first; without caps those of the pool are enough.
        pool: how many of them diversity may choose from.
        share: of diversity.
        pins: [size], the pinned candidate of each place, or -1.
        cold_order: [c], new items, most deserving first.
        kept_for_cold: [size].
        less_known, shown: [t], less known items, and how often each was shown.
        tail_place: the place for one of them.
        groups: [caps, k], what a candidate counts as; -1: not at all.
        limits: [caps, 2], how many there may be among how many first ranks.
        hard: the first so many caps are never broken.
        order, kept_for: [size], overwritten.
    """
    size, count = len(pins), len(ranked)
    candidates = len(scores)
    if size == 0:
        return 0
    kept_for[:size] = 0
    used, is_cold = on_stack(candidates, np.bool_), on_stack(candidates, np.bool_)
    used[:], is_cold[:] = False, False
    for candidate in cold_order:
        is_cold[candidate] = True
    for candidate in pins:
        if candidate >= 0:
            used[candidate] = True
    floor = scores[ranked[pool - 1]]
    scale = (1.0 - share) / max(scores[ranked[0]] - floor, 1e-9) if share > 0.0 else 1.0
    relevance, worth = on_stack(candidates, np.float64), on_stack(candidates, np.float64)
    likeness, compared = on_stack(candidates, np.float64), on_stack(candidates, np.int64)
    for candidate in range(candidates):
        relevance[candidate] = worth[candidate] = (scores[candidate] - floor) * scale
        likeness[candidate], compared[candidate] = 0.0, 0
    # Codes of what is in the slate, for products with those of candidates.
    words = on_stack((size, codes.shape[1]), WORD)
    until = on_stack((2, candidates), np.int64)  # the place a cap bars it until: hard caps, the others
    until[:] = 0
    of_tail, tried = on_stack(len(less_known), np.float64), on_stack(len(less_known), np.bool_)
    start = 0
    cold_above = 0
    cold_wanted = 0
    for place in range(size):
        pick = pins[place]
        if kept_for_cold[place]:
            cold_wanted += 1
        if pick < 0:
            while start < count and used[ranked[start]]:
                start += 1
            for attempt in range(3):
                # The pool; then all candidates; then also what only preferences speak against.
                limit = pool if attempt == 0 else count
                pick, best_worth = -1, -np.inf
                for position in range(start, limit):
                    candidate = ranked[position]
                    if relevance[candidate] <= best_worth:
                        break  # and so are all that follow
                    if used[candidate] or until[0, candidate] > place or worth[candidate] <= best_worth:
                        continue
                    if attempt < 2 and until[1, candidate] > place:
                        continue
                    if share > 0.0:
                        row = rows[candidate]
                        for above in range(compared[candidate], place):
                            product = one_product(codes, row, words[above])[0] * steps[row] * steps[rows[order[above]]]
                            likeness[candidate] = max(likeness[candidate], product)
                        compared[candidate] = place
                        worth[candidate] = relevance[candidate] - share * likeness[candidate]
                        if worth[candidate] <= best_worth:
                            continue
                    if _bar(candidate, place, order, pins, groups, limits, hard, until) and (
                        until[0, candidate] > place or attempt < 2
                    ):
                        continue
                    pick, best_worth = candidate, worth[candidate]
                if pick >= 0:
                    break
            if kept_for_cold[place] and cold_above < cold_wanted and not (pick >= 0 and is_cold[pick]):
                for candidate in cold_order:
                    if used[candidate]:
                        continue
                    _bar(candidate, place, order, pins, groups, limits, hard, until)
                    if until[0, candidate] > place or until[1, candidate] > place:
                        continue
                    pick = candidate
                    kept_for[place] = NEW
                    break
            if place == tail_place and kept_for[place] == 0:
                for at in range(len(less_known)):
                    of_tail[at], tried[at] = scores[less_known[at]], used[less_known[at]]
                for _ in range(len(less_known)):
                    first = least_shown(shown, of_tail, tried)
                    if first < 0:
                        break
                    candidate, tried[first] = less_known[first], True
                    _bar(candidate, place, order, pins, groups, limits, hard, until)
                    if until[0, candidate] > place or until[1, candidate] > place:
                        continue
                    if candidate != pick:
                        pick = candidate
                        kept_for[place] = TAIL
                    break
        if pick < 0:
            return _with_pins(order, kept_for, place, pins)
        order[place] = pick
        for column in range(words.shape[1]):
            words[place, column] = np.int16(codes[rows[pick], column]) + ZERO
        used[pick] = True
        cold_above += is_cold[pick]
    return size


@compiled
def _with_pins(order: NDArray[np.intp], kept_for: NDArray[np.int8], length: int, pins: NDArray[np.intp]) -> int:
    """A slate that ends early: the pins further down move up; how long it is."""
    for place in range(length, len(pins)):
        if pins[place] >= 0:
            order[length], kept_for[length] = pins[place], 0
            length += 1
    return length


@compiled
def _bar(
    candidate: int,
    place: int,
    order: NDArray[np.intp],
    pins: NDArray[np.intp],
    groups: NDArray[np.int32],
    limits: NDArray[np.int64],
    hard: int,
    until: NDArray[np.int64],
) -> bool:
    """Note how long caps bar a candidate; True when one does at ``place``."""
    barred = False
    for cap in range(len(limits)):
        group = groups[cap, candidate]
        at_most, first = limits[cap]
        if place >= first or group < 0:
            continue
        held = 0
        for above in range(place):
            held += groups[cap, order[above]] == group
        for below in range(place, min(first, len(pins))):
            held += pins[below] >= 0 and groups[cap, pins[below]] == group
        if held >= at_most:
            kind = 0 if cap < hard else 1
            until[kind, candidate] = max(until[kind, candidate], first)
            barred = True
    return barred
