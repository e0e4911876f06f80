"""From scores to a slate: diversity, and places kept for new items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.settings import SlateSettings

__all__ = ["Chosen", "choose"]

_POOL_EXTRA = 20
"""Candidates beyond the slate's size that diversity may bring in."""
_PLACES_PER = 20


@dataclass(frozen=True, slots=True)
class Chosen:
    """A slate as places among the candidates.

    Attributes:
        order: int [n], indices of candidates, best first.
        reserved: bool [n], whether the place was kept for a new item.
    """

    order: NDArray[np.intp]
    reserved: NDArray[np.bool_]


def choose(
    scores: NDArray[np.float64],
    vectors: NDArray[np.float32],
    cold_order: NDArray[np.intp],
    *,
    size: int,
    settings: SlateSettings,
) -> Chosen:
    """Pick and order at most ``size`` candidates.

    Args:
        scores: float64 [k], in the order in which ties are decided (smaller index first).
        vectors: float32 [k, dimensions], unit length or zero.
        cold_order: int [c], indices of new items, the one that deserves a reserved place most first.
        size: how many.
        settings: diversity and reserved places.
    """
    size = min(size, len(scores))
    ranked = np.argsort(-np.round(scores, 6), kind="stable")
    if settings.diversity > 0.0 and size > 1:
        ranked = _diversified(scores, vectors, ranked, size, settings.diversity)
    else:
        ranked = ranked[:size]
    return _with_reserved(ranked, cold_order, size, settings)


def _diversified(
    scores: NDArray[np.float64], vectors: NDArray[np.float32], ranked: NDArray[np.intp], size: int, share: float
) -> NDArray[np.intp]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998, doi 10.1145/290941.291025) over the best candidates.

    Relevance is the score on a scale from 0 (last of the pool) to 1 (best).
    """
    pool = ranked[: size + _POOL_EXTRA]
    relevance = scores[pool] - scores[pool[-1]]
    relevance *= (1.0 - share) / max(relevance[0], 1e-9)
    near = vectors[pool]
    likeness = (near @ near.T).astype(np.float64)
    likeness *= -share
    penalty = np.zeros(len(pool))
    worth = np.empty(len(pool))
    picked = np.empty(size, np.intp)
    for place in range(size):
        np.add(relevance, penalty, out=worth)
        pick = int(np.argmax(worth))
        picked[place] = pick
        relevance[pick] = -np.inf
        np.minimum(penalty, likeness[pick], out=penalty)
    return pool[picked]


def _with_reserved(
    ranked: NDArray[np.intp], cold_order: NDArray[np.intp], size: int, settings: SlateSettings
) -> Chosen:
    """Put new items into their places: ``cold_places`` per 20 ranks, from ``cold_from_rank`` on, evenly spaced.

    A new item that earned a rank at or before a reserved place fills it already.
    """
    reserved = np.zeros(size, np.bool_)
    if not settings.cold_places or not len(cold_order):
        return Chosen(ranked, reserved)
    order = ranked.tolist()
    cold = cold_order.tolist()
    is_cold = set(cold)
    step = max(1, _PLACES_PER // settings.cold_places)
    for wanted, place in enumerate(range(settings.cold_from_rank - 1, size, step), start=1):
        before = set(order[: place + 1])
        if len(before & is_cold) >= wanted:
            continue
        pick = next((candidate for candidate in cold if candidate not in before), None)
        if pick is None:
            break
        if pick in order:
            order.remove(pick)
        order.insert(place, pick)
        del order[size:]
    final = np.array(order, np.intp)
    moved = final != ranked
    reserved[:] = [bool(changed) and candidate in is_cold for changed, candidate in zip(moved, order, strict=True)]
    return Chosen(final, reserved)
