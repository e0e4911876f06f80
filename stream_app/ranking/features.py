"""What the ranker sees of a candidate: named numbers, computed for every candidate and scaled within the request.

Scaling within the request (z-scores over its candidates) makes weights mean the same for a user with three events
and one with fifty, and for a catalogue of hundreds and of millions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stream_app.retrieval.links import SCORES
from stream_app.settings import ItemSettings

__all__ = ["RawFeatures", "Scaled", "feature_names", "raw_features", "scale", "start_weights"]

_TEXT = ("text_slow", "text_fast", "text_last", "text_negative", "text_best")
_LINKS = tuple(f"links_{name}" for name in SCORES)
_OWN = ("recency", "cold")
_CROSSED = ("text_slow", "links_symmetric", "popularity_all")
"""Features whose weight may depend on how much is known of the user."""

_CLIP = 6.0
_DAY = 86_400.0
_FULL_HISTORY = 50.0


def feature_names(settings: ItemSettings) -> tuple[str, ...]:
    """Names in the order of the columns."""
    crosses = [f"{name}_x_history" for name in _CROSSED]
    return (*_base_names(settings.half_lives_days), *crosses)


def _base_names(half_lives_days: Sequence[float]) -> tuple[str, ...]:
    popularity = [f"popularity_{days:g}d" for days in half_lives_days]
    return (*_TEXT, *_LINKS, *popularity, "popularity_all", *_OWN)


def start_weights(names: Sequence[str]) -> NDArray[np.float64]:
    """Weights before anything is learned: near the middle of what was learned on two unlike data sets."""
    known = {
        "text_slow": 0.2,
        "text_fast": 0.25,
        "text_last": 0.1,
        "text_negative": -0.2,
        "text_best": 0.1,
        "links_symmetric": 0.4,
        "links_recent": 0.2,
        "links_best": 0.2,
        "links_directed": 0.15,
        "popularity_1d": 0.15,
        "popularity_7d": 0.25,
        "popularity_30d": 0.15,
        "popularity_all": 0.2,
        "recency": 0.1,
    }
    return np.array([known.get(name, 0.0) for name in names])


@dataclass(frozen=True, slots=True)
class RawFeatures:
    """Unscaled features of one request's candidates, without the crosses.

    Attributes:
        values: float64 [k, base features].
        known: bool [k, base features]; False where nothing can be said (no vector, no publication date).
        cold: bool [k], whether the candidate has hardly any events.
        history: from -1 (nothing is known of the user) to 1 (50 events).
    """

    values: NDArray[np.float64]
    known: NDArray[np.bool_]
    cold: NDArray[np.bool_]
    history: float


def raw_features(
    *,
    text: NDArray[np.float32],
    has_vector: NDArray[np.bool_],
    links: NDArray[np.float64],
    counts: NDArray[np.float64],
    published_at: NDArray[np.float64],
    now: float,
    events: int,
    cold_events: float,
) -> RawFeatures:
    """Features of ``k`` candidates.

    Args:
        text: [k, 5], cosines to the interest vectors, and the largest to a single recent item.
        has_vector: [k], whether the cosines say something.
        links: [5, k], transition scores.
        counts: [k, columns], decayed counts at the time of the request, all time last.
        published_at: [k], seconds since 1970, -inf where unknown.
        now: wall clock, seconds since 1970.
        events: entries in the user's history.
        cold_events: an item with fewer events in all is cold.
    """
    size, columns = counts.shape
    first = len(_TEXT) + len(_LINKS)
    values = np.empty((size, first + columns + len(_OWN)))
    known = np.ones(values.shape, np.bool_)
    values[:, : len(_TEXT)] = text
    known[:, : len(_TEXT)] = has_vector[:, None]
    values[:, len(_TEXT) : first] = links.T
    np.log1p(counts, out=values[:, first : first + columns])
    dated = np.isfinite(published_at)
    values[:, -2] = -np.log1p(np.maximum(now - np.where(dated, published_at, now), 0.0) / _DAY)
    known[:, -2] = dated
    cold = counts[:, -1] < cold_events
    values[:, -1] = cold
    history = 2.0 * min(math.log1p(events) / math.log1p(_FULL_HISTORY), 1.0) - 1.0
    return RawFeatures(values, known, cold, history)


@dataclass(frozen=True, slots=True)
class Scaled:
    """Scaled features of a batch, padded to the longest request.

    Attributes:
        values: float64 [requests, k, features]; 0 says average or unknown.
        lengths: int [requests], candidates of each; values beyond are 0.
    """

    values: NDArray[np.float64]
    lengths: NDArray[np.intp]


def scale(raw: Sequence[RawFeatures]) -> Scaled:
    """Features of each request, z-scored over its candidates and clipped to ±6, then the crosses."""
    lengths = np.array([len(part.cold) for part in raw], np.intp)
    columns = raw[0].values.shape[1]
    values = np.zeros((len(raw), int(lengths.max()), columns + len(_CROSSED)))
    base = values[:, :, :columns]
    known = np.zeros(base.shape, np.bool_)
    for place, part in enumerate(raw):
        base[place, : lengths[place]] = part.values
        known[place, : lengths[place]] = part.known
    unknown = ~known
    np.copyto(base, 0.0, where=unknown)
    counted = np.maximum(known.sum(axis=1), 1)
    base -= (base.sum(axis=1) / counted)[:, None, :]
    np.copyto(base, 0.0, where=unknown)
    deviation = np.sqrt(np.einsum("rkf,rkf->rf", base, base) / counted)
    base /= np.where(deviation > 1e-9, deviation, np.inf)[:, None, :]
    np.clip(base, -_CLIP, _CLIP, out=base)
    history = np.array([part.history for part in raw])
    values[:, :, columns:] = base[:, :, _crossed_columns(columns)] * history[:, None, None]
    return Scaled(values, lengths)


@cache
def _crossed_columns(columns: int) -> tuple[int, ...]:
    """Where the crossed features are among ``columns`` base features."""
    names = _base_names(range(columns - len(_TEXT) - len(_LINKS) - len(_OWN) - 1))
    return tuple(names.index(name) for name in _CROSSED)
