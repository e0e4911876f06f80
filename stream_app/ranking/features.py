"""What the ranker sees of a candidate: named numbers, computed for every candidate and scaled within the request.

Scaling within the request (z-scores over its candidates) makes weights mean the same for a user with three events
and one with fifty, and for a catalogue of hundreds and of millions. What is known of the request itself is told apart
(:data:`CONTEXT`): it is the same for all candidates, so it can only bend what the features mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled, compiled_sums
from stream_app.factors.kernels import score_rows
from stream_app.items.signals import decayed_counts
from stream_app.prefetch import prefetch_row
from stream_app.retrieval.interests import VECTORS
from stream_app.retrieval.links import SCORES, Links, pick
from stream_app.settings import ItemSettings

__all__ = [
    "CONTEXT",
    "FEATURE_LIMIT",
    "TEXT",
    "Features",
    "candidate_features",
    "context_values",
    "cosines",
    "feature_names",
    "in_steps",
    "in_units",
    "start_weights",
]

TEXT = ("text_slow", "text_fast", "text_last", "text_negative", "text_mean", "text_best")
_LINKS = tuple(f"links_{name}" for name in SCORES)
_OWN = ("since", "factors", "factors_fast", "recency", "cold", "again")

CONTEXT = ("history", "pause", "breadth")
"""Of a request: how much is known of the user, how long since the last event, how many events in all."""

FEATURE_LIMIT = 6.0
"""Scaled features are clipped to this, either way."""

_HOUR_S = 3_600.0
_DAY_S = 86_400.0
_NEVER_HOURS = 20_000.0
"""What "long ago" is cut to (2.3 years), and what never is."""


def feature_names(settings: ItemSettings) -> tuple[str, ...]:
    """Names in the order of the columns."""
    popularity = [f"popularity_{days:g}d" for days in settings.half_lives_days]
    return (*TEXT, *_LINKS, *popularity, "popularity_all", *_OWN)


def start_weights(names: Sequence[str]) -> NDArray[np.float64]:
    """Weights before anything is learned: near the middle of what was learned on two unlike data sets."""
    known = {
        "text_slow": 0.2,
        "text_fast": 0.3,
        "text_last": 0.1,
        "text_negative": -0.2,
        "text_best": 0.2,
        "links_symmetric": 0.25,
        "links_recent": 0.15,
        "links_directed": 0.1,
        "links_last": 0.1,
        "links_count": 0.05,
        "popularity_1d": 0.1,
        "popularity_7d": 0.25,
        "popularity_all": 0.2,
        "since": 0.05,
        "factors": 0.35,
        "factors_fast": 0.25,
        "recency": 0.1,
    }
    return np.array([known.get(name, 0.0) for name in names])


_STEPS = 32_767.0 / FEATURE_LIMIT


def in_steps(values: NDArray[np.float32]) -> NDArray[np.int16]:
    """Scaled features in whole steps of 1/5461, half the memory: int16 of the same shape. As float16 they took ten
    times as long to make, and were a tenth as exact.

    Args:
        values: float32, contiguous, within the limit.
    """
    steps = np.empty(values.shape, np.int16)
    _in_steps(values.reshape(-1), steps.reshape(-1))
    return steps


def in_units(values: NDArray[np.float32] | NDArray[np.int16]) -> NDArray[np.float32]:
    """What :func:`in_steps` was given, to half a step; what never was in steps as it is. float32 of the same shape."""
    units = values.astype(np.float32)
    return units * np.float32(1.0 / _STEPS) if values.dtype == np.int16 else units


@compiled
def _in_steps(values: NDArray[np.float32], steps: NDArray[np.int16]) -> None:
    for place in range(len(values)):
        steps[place] = np.int16(np.rint(values[place] * np.float32(_STEPS)))


@dataclass(slots=True)
class Features:
    """Features of one request's candidates.

    Attributes:
        values: float32 [k, features], z-scored over the candidates and clipped to ±6; 0 says average or unknown.
        cold: bool [k], whether the candidate has hardly any events.
        closeness: float64 [k], its cosine to the slow plus that to the fast interest vector.
    """

    values: NDArray[np.float32]
    cold: NDArray[np.bool_]
    closeness: NDArray[np.float64]


def context_values(*, entries: int, events: int, pause_s: float) -> NDArray[np.float32]:
    """The context of a request: float32 [3], each about -1 to 1.

    Args:
        entries: in the user's history.
        events: of the user, in all.
        pause_s: event time since the last of them (seconds).
    """
    return np.array(
        [
            math.log1p(entries) / 2.0 - 1.0,
            math.log1p(min(max(pause_s, 0.0) / _HOUR_S, _NEVER_HOURS)) / 4.0 - 0.5,
            math.log1p(min(events, 1_000)) / 3.0 - 1.0,
        ],
        np.float32,
    )


@compiled_sums
def cosines(
    rows: NDArray[np.int32], table: NDArray[np.float32], queries: NDArray[np.float32], found: NDArray[np.float32]
) -> None:
    """Products of vectors with queries, two by two: each number that is read is used twice.

    Args:
        rows: int32 [k], of ``table``.
        table: float32 [any, dimensions].
        queries: float32 [q, dimensions].
        found: float32 [k, q], overwritten.
    """
    last, end = len(rows) - 1, len(queries) - 1
    for place in range(0, len(rows), 2):
        # Of odd numbers the last is computed twice.
        following = min(place + 1, last)
        row, next_row = rows[place], rows[following]
        prefetch_row(table, rows[min(place + 2, last)])
        prefetch_row(table, rows[min(place + 3, last)])
        for query in range(0, len(queries), 2):
            other = min(query + 1, end)
            one = two = three = four = np.float32(0.0)
            for column in range(table.shape[1]):
                value, next_value = table[row, column], table[next_row, column]
                asked, also = queries[query, column], queries[other, column]
                one += asked * value
                two += also * value
                three += asked * next_value
                four += also * next_value
            found[place, query], found[place, other] = one, two
            found[following, query], found[following, other] = three, four


def candidate_features(
    rows: NDArray[np.int32],
    *,
    table: NDArray[np.float32],
    has_vector: NDArray[np.bool_],
    queries: NDArray[np.float32],
    links: Links,
    counts: NDArray[np.float64],
    stated: NDArray[np.float64],
    rates: NDArray[np.float64],
    users: NDArray[np.float32],
    target: NDArray[np.float32],
    bias: NDArray[np.float32],
    has_factors: NDArray[np.bool_],
    own: NDArray[np.int32],
    own_weights: NDArray[np.float64],
    published_at: NDArray[np.float64],
    slot: NDArray[np.int32],
    at: float,
    now: float,
    cold_events: float,
) -> Features:
    """Features of the candidates ``rows`` (int32 [k]) from what is known by row, in one compiled call.

    Args:
        table, has_vector: the vectors by row, and which rows have one (``VectorIndex.table``, ``present``).
        queries: float32 [5 + recent items, dimensions], what they are compared with (``Interests.queries``).
        links: transition scores.
        counts, stated, rates: see ``Signals.counts``, ``arena``, ``rates``.
        users: float32 [2, factors], of the user; zeros: nothing is known.
        target, bias, has_factors: see ``Factors``.
        own, own_weights: what the user did with which rows before (``Interests``).
        published_at: float64 by row, seconds since 1970, -inf where unknown.
        slot: int32 by row, -1 everywhere; and again afterwards.
        at: event time of the request (seconds).
        now: wall clock, seconds since 1970.
        cold_events: an item with fewer events in all is cold.
    """
    values = np.empty((len(rows), len(TEXT) + len(_LINKS) + len(rates) + len(_OWN)), np.float32)
    cold = np.empty(len(rows), np.bool_)
    closeness = np.empty(len(rows))
    _compute(
        rows, table, has_vector, queries, links.rows, links.scores, counts, stated, rates, users, target, bias,
        has_factors, own, own_weights, published_at, slot, at, now, cold_events, values, cold, closeness,
    )  # fmt: skip
    return Features(values, cold, closeness)


@compiled
def _compute(
    rows: NDArray[np.int32],
    table: NDArray[np.float32],
    has_vector: NDArray[np.bool_],
    queries: NDArray[np.float32],
    link_rows: NDArray[np.int32],
    link_scores: NDArray[np.float64],
    counts: NDArray[np.float64],
    stated: NDArray[np.float64],
    rates: NDArray[np.float64],
    users: NDArray[np.float32],
    target: NDArray[np.float32],
    bias: NDArray[np.float32],
    has_factors: NDArray[np.bool_],
    own: NDArray[np.int32],
    own_weights: NDArray[np.float64],
    published_at: NDArray[np.float64],
    slot: NDArray[np.int32],
    at: float,
    now: float,
    cold_events: float,
    values: NDArray[np.float32],
    cold: NDArray[np.bool_],
    closeness: NDArray[np.float64],
) -> None:
    count = len(rows)
    products = np.empty((count, len(queries)), np.float32)
    cosines(rows, table, queries, products)
    links = np.zeros((len(link_scores), count))
    pick(link_rows, link_scores, rows, slot, links)
    decayed = np.empty((count, len(rates)))
    decayed_counts(at, rows, counts, stated, rates, decayed)
    factors = np.empty((2, count), np.float32)
    known = False
    for user in users:
        for value in user:
            known = known or value != 0.0
    if known:
        score_rows(users, target, bias, rows, factors)
    for place, row in enumerate(rows):
        if not known or not has_factors[row]:
            factors[:, place] = np.nan
    done = _looked_up(own, own_weights, rows, slot)
    _fill(
        products, has_vector[rows], links, decayed, stated[rows], factors, done, published_at[rows], at, now,
        cold_events, values, cold, closeness,
    )  # fmt: skip
    _scale(values)


@compiled
def _looked_up(
    held: NDArray[np.int32], values: NDArray[np.float64], rows: NDArray[np.int32], slot: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Values of ``rows`` among those of ``held`` rows, 0 of others: float64 [len(rows)]; ``slot`` is -1 everywhere,
    and again afterwards."""
    found = np.zeros(len(rows))
    for place, row in enumerate(held):
        slot[row] = place
    for place, row in enumerate(rows):
        if slot[row] >= 0:
            found[place] = values[slot[row]]
    for row in held:
        slot[row] = -1
    return found


@compiled_sums
def _fill(
    cosines: NDArray[np.float32],
    has_vector: NDArray[np.bool_],
    links: NDArray[np.float64],
    counts: NDArray[np.float64],
    last_event_at: NDArray[np.float64],
    factors: NDArray[np.float32],
    own: NDArray[np.float64],
    published_at: NDArray[np.float64],
    at: float,
    now: float,
    cold_events: float,
    values: NDArray[np.float32],
    cold: NDArray[np.bool_],
    closeness: NDArray[np.float64],
) -> None:
    """Unscaled features; NaN where nothing can be said."""
    for row in range(len(values)):
        if has_vector[row]:
            for place in range(VECTORS):
                values[row, place] = cosines[row, place]
            best = np.float32(0.0)
            for place in range(VECTORS, cosines.shape[1]):
                if place == VECTORS or cosines[row, place] > best:
                    best = cosines[row, place]
            values[row, VECTORS] = best
            closeness[row] = cosines[row, 0] + cosines[row, 1]
        else:
            for place in range(VECTORS + 1):
                values[row, place] = np.nan
            closeness[row] = 0.0
        column = VECTORS + 1
        for place in range(len(links)):
            values[row, column] = links[place, row]
            column += 1
        for place in range(counts.shape[1]):
            values[row, column] = np.log1p(counts[row, place])
            column += 1
        total = counts[row, counts.shape[1] - 1]
        cold[row] = total < cold_events
        hours = max(at - last_event_at[row], 0.0) / _HOUR_S if total > 0.0 else _NEVER_HOURS
        values[row, column] = -np.log1p(min(hours, _NEVER_HOURS))
        for memory in range(2):
            score = factors[memory, row]
            values[row, column + 1 + memory] = score if score > -np.inf else np.nan
        published = published_at[row]
        values[row, column + 3] = -np.log1p(max(now - published, 0.0) / _DAY_S) if published > -1e300 else np.nan
        values[row, column + 4] = 1.0 if cold[row] else 0.0
        values[row, column + 5] = np.log1p(own[row])


@compiled_sums
def _scale(values: NDArray[np.float32]) -> None:
    """z-scores over what is known in each column, clipped; 0 where nothing is. In place."""
    rows, columns = values.shape
    mean = np.zeros(columns)
    squares = np.zeros(columns)
    count = np.zeros(columns)
    for row in range(rows):
        for column in range(columns):
            value = values[row, column]
            if not np.isnan(value):
                mean[column] += value
                count[column] += 1.0
    for column in range(columns):
        mean[column] /= max(count[column], 1.0)
    for row in range(rows):
        for column in range(columns):
            value = values[row, column]
            if not np.isnan(value):
                squares[column] += (value - mean[column]) ** 2
    for column in range(columns):
        deviation = np.sqrt(squares[column] / max(count[column], 1.0))
        squares[column] = 1.0 / deviation if deviation > 1e-6 else 0.0
    for row in range(rows):
        for column in range(columns):
            value = values[row, column]
            if np.isnan(value):
                values[row, column] = 0.0
            else:
                scaled = (value - mean[column]) * squares[column]
                values[row, column] = min(max(scaled, -FEATURE_LIMIT), FEATURE_LIMIT)
