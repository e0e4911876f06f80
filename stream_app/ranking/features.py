"""What the ranker sees of a candidate: named numbers, computed for every candidate and scaled within the request.

Scaling within the request (z-scores over its candidates) makes weights mean the same for a user with three events
and one with fifty, and for a catalogue of hundreds and of millions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.retrieval.interests import Interests
from stream_app.settings import ItemSettings

__all__ = ["RawFeatures", "Scaled", "feature_names", "scale", "start_weights"]

_TEXT = ("text_slow", "text_fast", "text_last", "text_negative")
_LINKS = ("symmetric", "directed")
_OWN = ("recency", "cold")
_CROSSED = ("text_slow", "symmetric", "popularity_all")
"""Features whose weight may depend on how much is known of the user."""

_CLIP = 6.0
_DAY = 86_400.0
_FULL_HISTORY = np.log1p(50.0)


def feature_names(settings: ItemSettings) -> tuple[str, ...]:
    """Names in the order of the columns."""
    popularity = [f"popularity_{days:g}d" for days in settings.half_lives_days]
    crosses = [f"{name}_x_history" for name in _CROSSED]
    return (*_TEXT, *_LINKS, *popularity, "popularity_all", *_OWN, *crosses)


def start_weights(names: Sequence[str]) -> NDArray[np.float64]:
    """Weights before anything is learned: what held on every data set measured, at careful strength."""
    known = {
        "text_slow": 0.25,
        "text_fast": 0.25,
        "text_last": 0.05,
        "text_negative": -0.2,
        "symmetric": 0.8,
        "directed": 0.3,
        "popularity_1d": 0.2,
        "popularity_7d": 0.3,
        "popularity_30d": 0.2,
        "recency": 0.1,
    }
    return np.array([known.get(name, 0.0) for name in names])


@dataclass(frozen=True, slots=True)
class RawFeatures:
    """Unscaled features of one request's candidates.

    Attributes:
        text: float32 [k, 4], cosines to the interest vectors.
        has_vector: bool [k], whether the candidate has a vector (its cosines say something).
        symmetric, directed: float64 [k], transition scores.
        counts: float64 [k, columns], decayed counts at the time of the request.
        age_days: float64 [k], since publication, NaN where unknown.
        cold: bool [k].
    """

    text: NDArray[np.float32]
    has_vector: NDArray[np.bool_]
    symmetric: NDArray[np.float64]
    directed: NDArray[np.float64]
    counts: NDArray[np.float64]
    age_days: NDArray[np.float64]
    cold: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scaled:
    """Scaled features of a batch, padded to the longest request.

    Attributes:
        values: float64 [requests, k, features]; 0 says average or unknown.
        lengths: int [requests], candidates of each; values beyond are 0.
    """

    values: NDArray[np.float64]
    lengths: NDArray[np.intp]


def scale(raw: Sequence[RawFeatures], interests: Sequence[Interests]) -> Scaled:
    """Features of each request, z-scored over its candidates and clipped to ±6.

    Args:
        raw: per request.
        interests: per request.
    """
    lengths = np.array([len(part.cold) for part in raw], np.intp)
    columns = len(_TEXT) + len(_LINKS) + raw[0].counts.shape[1] + len(_OWN)
    size = int(lengths.max())
    values = np.zeros((len(raw), size, columns))
    known = np.zeros((len(raw), size, columns), np.bool_)
    for place, part in enumerate(raw):
        block, count = values[place], len(part.cold)
        block[:count, :4] = part.text
        block[:count, 4] = part.symmetric
        block[:count, 5] = part.directed
        block[:count, 6:-2] = np.log1p(part.counts)
        block[:count, -2] = -np.log1p(np.maximum(part.age_days, 0.0))
        block[:count, -1] = part.cold
        seen = known[place]
        seen[:count] = True
        seen[:count, :4] = part.has_vector[:, None]
        seen[:count, -2] = ~np.isnan(part.age_days)
    unknown = ~known
    np.copyto(values, 0.0, where=unknown)
    counted = np.maximum(known.sum(axis=1), 1)
    values -= (values.sum(axis=1) / counted)[:, None, :]
    np.copyto(values, 0.0, where=unknown)
    deviation = np.sqrt(np.einsum("rkf,rkf->rf", values, values) / counted)
    values /= np.where(deviation > 1e-9, deviation, np.inf)[:, None, :]
    np.clip(values, -_CLIP, _CLIP, out=values)
    history = np.array([2.0 * min(np.log1p(part.events) / _FULL_HISTORY, 1.0) - 1.0 for part in interests])
    base = (*_TEXT, *_LINKS)
    crossed = [base.index(name) if name in base else columns - 3 for name in _CROSSED]
    crosses = values[:, :, crossed] * history[:, None, None]
    return Scaled(np.concatenate([values, crosses], axis=2), lengths)
