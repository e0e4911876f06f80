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

from stream_app.compiled import compiled, compiled_sums
from stream_app.rules.book import Cap
from stream_app.settings import SlateSettings

__all__ = ["NO_RULES", "Chosen", "SlateRules", "choose"]

_POOL_EXTRA = 20
"""Candidates beyond the slate's size that diversity may bring in."""
_PLACES_PER = 20
_NEW, _TAIL = 1, 2
_NO_CAPS: NDArray[np.int64] = np.zeros((0, 2), np.int64)


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


NO_RULES = SlateRules()


@dataclass(slots=True)
class Chosen:
    """A slate as places among the candidates.

    Attributes:
        order: int [n], indices of candidates, best first.
        reserved: bool [n], whether the place was kept for a new item.
        pinned: bool [n], whether a rule put the item there.
        explored: bool [n], whether the place was given to a less known item.
    """

    order: NDArray[np.intp]
    reserved: NDArray[np.bool_]
    pinned: NDArray[np.bool_]
    explored: NDArray[np.bool_]


def choose(
    scores: NDArray[np.float64],
    vectors: NDArray[np.float32],
    cold_order: NDArray[np.intp],
    *,
    size: int,
    settings: SlateSettings,
    rules: SlateRules = NO_RULES,
    rows: NDArray[np.int32] | None = None,
    tail_order: NDArray[np.intp] | None = None,
) -> Chosen:
    """Pick and order at most ``size`` candidates.

    Diversity is maximal marginal relevance (Carbonell and Goldstein 1998, doi 10.1145/290941.291025) over the best
    ``size`` + 20 candidates; relevance is the score on a scale from 0 (last of these) to 1 (best).

    Pins come first: they take their rank, or the next free one, whatever caps say, and count for caps from the start.

    Args:
        scores: float64 [k], boosts included, in the order in which ties are decided (smaller index first).
        vectors: float32 [any, dimensions], unit length or zero.
        cold_order: int [c], indices of new items, the one that deserves a reserved place most first.
        size: how many.
        settings: diversity and reserved places.
        rules: business rules on these candidates.
        rows: int32 [k], where each candidate's vector is in ``vectors``; None: in this order.
        tail_order: int [t], indices of less known items, the first of which that is not above takes the place at
            ``slate.explore_rank``, unless a rule or a new item does; None: that place is like any other.
    """
    if rows is None:
        rows = np.arange(len(scores), dtype=np.int32)
    size = min(size, len(scores))
    scores = np.round(scores, 6)
    ranked = np.argsort(-scores, kind="stable")
    ruled = {candidate for candidate, _ in rules.pins}
    first = [(candidate, 1) for candidate in rules.first if candidate not in ruled]
    pins = _pinned_places([*rules.pins, *first], size)
    caps = [*rules.caps, *rules.preferences]
    tail = np.zeros(0, np.intp) if tail_order is None else np.ascontiguousarray(tail_order, np.intp)
    order, kept_for = _fill(
        scores,
        np.ascontiguousarray(vectors, np.float32),
        rows,
        ranked,
        min(size + _POOL_EXTRA, len(ranked)),
        settings.diversity if size > 1 else 0.0,
        pins,
        np.ascontiguousarray(cold_order, np.intp),
        _reserved_places(size, settings) if len(cold_order) else np.zeros(size, np.bool_),
        tail,
        settings.explore_rank - 1,
        np.array([cap.groups for cap in caps], np.int32) if caps else np.zeros((0, len(scores)), np.int32),
        np.array([(cap.at_most, cap.first) for cap in caps], np.int64) if caps else _NO_CAPS,
        len(rules.caps),
    )
    placed = [candidate for candidate in pins.tolist() if candidate in ruled] if ruled else []
    pinned = np.isin(order, placed) if placed else np.zeros(len(order), np.bool_)
    return Chosen(order, kept_for == _NEW, pinned, kept_for == _TAIL)


def _pinned_places(pins: Sequence[tuple[int, int]], size: int) -> NDArray[np.intp]:
    """The pinned candidate of each place, -1 where there is none: int [size]."""
    places = np.empty(size, np.intp)
    places.fill(-1)
    for candidate, rank in pins:
        free = np.flatnonzero(places[rank - 1 :] < 0)
        if len(free):
            places[rank - 1 + free[0]] = candidate
    return places


def _reserved_places(size: int, settings: SlateSettings) -> NDArray[np.bool_]:
    """Which places are kept for new items: ``cold_places`` per 20 ranks from ``cold_from_rank`` on, evenly spaced."""
    reserved = np.zeros(size, np.bool_)
    if settings.cold_places:
        reserved[settings.cold_from_rank - 1 :: max(1, _PLACES_PER // settings.cold_places)] = True
    return reserved


@compiled
def _fill(
    scores: NDArray[np.float64],
    vectors: NDArray[np.float32],
    rows: NDArray[np.int32],
    ranked: NDArray[np.intp],
    pool: int,
    share: float,
    pins: NDArray[np.intp],
    cold_order: NDArray[np.intp],
    kept_for_cold: NDArray[np.bool_],
    tail_order: NDArray[np.intp],
    tail_place: int,
    groups: NDArray[np.int32],
    limits: NDArray[np.int64],
    hard: int,
) -> tuple[NDArray[np.intp], NDArray[np.int8]]:
    """Fill the places from the first on; candidates in order, and for what their place was kept.

    What a candidate is worth is at most its relevance, and only falls while the slate fills. So candidates are looked
    at in order of relevance, and one whose last known worth is no better than the best so far is not computed anew: the
    result is that of computing all of them for each place.

    Args:
        scores: [k].
        vectors: [any, dimensions].
        rows: [k], of ``vectors``.
        ranked: [k], candidates, best first.
        pool: how many of them diversity may choose from.
        share: of diversity.
        pins: [size], the pinned candidate of each place, or -1.
        cold_order: [c], new items, most deserving first.
        kept_for_cold: [size].
        tail_order: [t], less known items, the first goes first.
        tail_place: the place for one of them.
        groups: [caps, k], what a candidate counts as; -1: not at all.
        limits: [caps, 2], how many there may be among how many first ranks.
        hard: the first so many caps are never broken.
    """
    size, count = len(pins), len(ranked)
    order = np.empty(size, np.intp)
    reserved = np.zeros(size, np.int8)
    if size == 0:
        return order, reserved
    used = np.zeros(count, np.bool_)
    is_cold = np.zeros(count, np.bool_)
    for candidate in cold_order:
        is_cold[candidate] = True
    for candidate in pins:
        if candidate >= 0:
            used[candidate] = True
    floor = scores[ranked[pool - 1]]
    scale = (1.0 - share) / max(scores[ranked[0]] - floor, 1e-9) if share > 0.0 else 1.0
    relevance = (scores - floor) * scale
    worth = relevance.copy()
    likeness = np.zeros(count)
    compared = np.zeros(count, np.intp)
    until = np.zeros((2, count), np.int64)  # the place a cap bars it until: hard caps, the others
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
                        for above in range(compared[candidate], place):
                            likeness[candidate] = max(
                                likeness[candidate], _dot(vectors, rows[order[above]], rows[candidate])
                            )
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
                    reserved[place] = _NEW
                    break
            if place == tail_place and reserved[place] == 0:
                for candidate in tail_order:
                    if used[candidate]:
                        continue
                    _bar(candidate, place, order, pins, groups, limits, hard, until)
                    if until[0, candidate] > place or until[1, candidate] > place:
                        continue
                    if candidate != pick:
                        pick = candidate
                        reserved[place] = _TAIL
                    break
        if pick < 0:
            return _with_pins(order, reserved, place, pins)
        order[place] = pick
        used[pick] = True
        cold_above += is_cold[pick]
    return order, reserved


@compiled
def _with_pins(
    order: NDArray[np.intp], reserved: NDArray[np.int8], length: int, pins: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.int8]]:
    """A slate that ends early: the pins further down move up."""
    for place in range(length, len(pins)):
        if pins[place] >= 0:
            order[length] = pins[place]
            length += 1
    return order[:length], reserved[:length]


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


@compiled_sums
def _dot(vectors: NDArray[np.float32], left: int, right: int) -> np.float32:
    total = np.float32(0.0)
    for column in range(vectors.shape[1]):
        total += vectors[left, column] * vectors[right, column]
    return total
