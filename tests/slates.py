"""Slates of given candidates, as the recommender makes them of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.codes import Codes
from stream_app.ranking.slate import NEW, TAIL, SlateRules, compose, pinned_places, reserved_places
from stream_app.settings import SlateSettings

__all__ = ["Chosen", "choose", "codes_of"]


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


def codes_of(vectors: NDArray[np.float32]) -> Codes:
    """Codes of vectors, float32 [k, dimensions]."""
    codes = Codes(vectors.shape[1], len(vectors))
    codes.take(np.arange(len(vectors)), np.ascontiguousarray(vectors, np.float32))
    return codes


def choose(
    scores: NDArray[np.float64],
    vectors: NDArray[np.float32],
    cold_order: NDArray[np.intp],
    *,
    size: int,
    settings: SlateSettings,
    rules: SlateRules | None = None,
    tail_order: NDArray[np.intp] | None = None,
) -> Chosen:
    """Pick and order at most ``size`` candidates.

    Args:
        scores: float64 [k], boosts included.
        vectors: float32 [k, dimensions], unit length or zero.
        cold_order, tail_order: int, new and less known items, see ``slate.compose``.
        size: how many.
        settings: diversity and the places that are kept.
        rules: business rules on these candidates.
    """
    rules = rules or SlateRules()
    count = len(scores)
    size = min(size, count)
    ruled = {candidate for candidate, _ in rules.pins}
    pins = pinned_places([*rules.pins, *((one, 1) for one in rules.first if one not in ruled)], size)
    caps = [*rules.caps, *rules.preferences]
    codes = codes_of(vectors)
    tail = np.zeros(0, np.intp) if tail_order is None else tail_order
    order, kept_for = np.empty(size, np.intp), np.empty(size, np.int8)
    found = compose(
        np.rint(scores * 1e6) / 1e6, np.arange(count, dtype=np.int32), codes.values, codes.steps, settings.diversity,
        pins, cold_order,
        reserved_places(size, settings), tail.astype(np.int32), np.arange(len(tail), dtype=np.uint32),
        settings.explore_rank - 1, np.array([cap.groups for cap in caps], np.int32).reshape(len(caps), count),
        np.array([(cap.at_most, cap.first) for cap in caps], np.int64).reshape(-1, 2), len(rules.caps),
        order, kept_for,
    )  # fmt: skip
    order, kept_for = order[:found], kept_for[:found]
    return Chosen(order, kept_for == NEW, np.isin(order, [pin for pin in pins if pin in ruled]), kept_for == TAIL)
