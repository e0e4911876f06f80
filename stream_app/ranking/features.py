"""What the ranker sees of a candidate: named numbers, computed for every candidate and scaled within the request.

Scaling within the request (z-scores over its candidates) makes weights mean the same for a user with three events
and one with fifty, and for a catalogue of hundreds and of millions. What is known of the request itself is told apart
(:data:`CONTEXT`): it is the same for all candidates, so it can only bend what the features mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream_app.codes import code_products
from stream_app.compiled import compiled, compiled_sums
from stream_app.factors.kernels import score_rows
from stream_app.items.signals import decayed_counts
from stream_app.prefetch import prefetch_row
from stream_app.retrieval.interests import VECTORS
from stream_app.retrieval.links import SCORES, link_scores
from stream_app.retrieval.tables import Tables
from stream_app.settings import ItemSettings
from stream_app.unowned import on_stack

__all__ = [
    "CONTEXT",
    "FEATURE_LIMIT",
    "TEXT",
    "context_values",
    "feature_names",
    "fill_context",
    "in_steps",
    "in_units",
    "raw_features",
    "scale_features",
    "start_weights",
]

TEXT = ("text_slow", "text_fast", "text_last", "text_negative", "text_mean", "text_best")
_LINKS = tuple(f"links_{name}" for name in SCORES)
_OWN = ("since", "factors", "factors_fast", "recency", "cold", "again")

CONTEXT = ("history", "pause", "breadth")
"""Of a request: how much is known of the user, how long since the last event, how many events in all."""

FEATURE_LIMIT = 6.0
"""Scaled features are clipped to this, either way."""

_APART, _CODES_APART = 1e-6, 1e-3
"""Standard deviations from which on values differ, and cosines of codes."""
_HOUR_S = 3_600.0
_DAY_S = 86_400.0
_ROOT_OF_HALF = np.int32(0x3F3504F3)
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
        # What the user had is nearest to all the user did, and would fill the slate before anybody chose anything.
        "again": -0.6,
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


def in_units(values: NDArray[np.float32] | NDArray[np.int16], places: NDArray[np.int32]) -> NDArray[np.float32]:
    """What :func:`in_steps` was given at some places, to half a step; what never was in steps as it is. float32
    [places, features]."""
    units = np.empty((len(places), values.shape[1]), np.float32)
    _take(values, places, np.float32(1.0 / _STEPS if values.dtype == np.int16 else 1.0), units)
    return units


@compiled
def _take(
    values: NDArray[np.float32] | NDArray[np.int16],
    places: NDArray[np.int32],
    step: np.float32,
    units: NDArray[np.float32],
) -> None:
    for at, place in enumerate(places):
        for column in range(values.shape[1]):
            units[at, column] = np.float32(values[place, column]) * step


@compiled
def _in_steps(values: NDArray[np.float32], steps: NDArray[np.int16]) -> None:
    for place in range(len(values)):
        steps[place] = np.int16(np.rint(values[place] * np.float32(_STEPS)))


def context_values(*, entries: int, events: int, pause_s: float) -> NDArray[np.float32]:
    """The context of a request: float32 [3], each about -1 to 1.

    Args:
        entries: in the user's history.
        events: of the user, in all.
        pause_s: event time since the last of them (seconds).
    """
    context = np.empty(len(CONTEXT), np.float32)
    fill_context(entries, events, pause_s, context)
    return context


@compiled
def fill_context(entries: int, events: int, pause_s: float, context: NDArray[np.float32]) -> None:
    """:func:`context_values`, overwriting ``context``."""
    context[0] = np.log(1.0 + entries) / 2.0 - 1.0
    context[1] = np.log(1.0 + min(max(pause_s, 0.0) / _HOUR_S, _NEVER_HOURS)) / 4.0 - 0.5
    context[2] = np.log(1.0 + min(events, 1_000)) / 3.0 - 1.0


@compiled
def raw_features(
    rows: NDArray[np.int32],
    tables: Tables,
    queries: NDArray[np.float32],
    factors: NDArray[np.float32],
    own: NDArray[np.int32],
    own_weights: NDArray[np.float64],
    link_slot: NDArray[np.int32],
    sums: NDArray[np.float32],
    slot: NDArray[np.int32],
    at: float,
    now: float,
    cold_events: float,
    values: NDArray[np.float32],
    cold: NDArray[np.bool_],
    closeness: NDArray[np.float64],
) -> None:
    """What is known of one request's candidates, by feature, not scaled.

    Args:
        rows: int32 [k], the candidates.
        tables: what is known by row.
        queries: float32 [5 + recent items, dimensions], what they are compared with (``Interests.queries``).
        factors: float32 [2, factors], of the user; zeros: nothing is known.
        own, own_weights: what the user did with which rows before (``Interests``).
        link_slot, sums: of the links, see :mod:`stream_app.retrieval.links`.
        slot: int32 by row, -1 everywhere; and again afterwards.
        at: event time of the request (seconds).
        now: wall clock, seconds since 1970.
        cold_events: an item with fewer events in all is cold.
        values: float32 [k, features], overwritten; NaN where nothing can be said.
        cold: bool [k], overwritten: whether the candidate has hardly any events.
        closeness: float64 [k], overwritten: its cosine to the slow plus that to the fast interest vector, to the error
            of codes.
    """
    count = len(rows)
    held, target = tables.counts, tables.target
    for row in rows:
        # Needed after the products, which take long enough for it to be here by then.
        prefetch_row(held, row)
        prefetch_row(target, row)
    products = on_stack((count, len(queries)), np.float32)
    code_products(rows, tables.codes, tables.steps, queries, products)
    links = on_stack((len(_LINKS), count), np.float64)
    link_scores(rows, link_slot, sums, tables.arena.scale, links)
    decayed = on_stack((count, len(tables.rates)), np.float64)
    decayed_counts(at, rows, tables.counts, tables.arena.stated, tables.rates, decayed)
    scores, done = on_stack((2, count), np.float32), on_stack(count, np.float64)
    known = False
    for user in factors:
        for value in user:
            known = known or value != 0.0
    if known:
        score_rows(factors, tables.target, tables.bias, rows, scores)
    has_factors = tables.has_factors
    for place, row in enumerate(rows):
        if not known or not has_factors[row]:
            scores[:, place] = np.nan
    _look_up(own, own_weights, rows, slot, done)
    _fill(rows, tables, products, links, decayed, scores, done, at, now, cold_events, values, cold, closeness)


@compiled
def _look_up(
    held: NDArray[np.int32],
    values: NDArray[np.float64],
    rows: NDArray[np.int32],
    slot: NDArray[np.int32],
    found: NDArray[np.float64],
) -> None:
    """Values of ``rows`` among those of ``held`` rows, 0 of others: float64 [len(rows)], overwritten; ``slot`` is -1
    everywhere, and again afterwards."""
    found[:] = 0.0
    for place, row in enumerate(held):
        slot[row] = place
    for place, row in enumerate(rows):
        if slot[row] >= 0:
            found[place] = values[slot[row]]
    for row in held:
        slot[row] = -1


@compiled
def _log1p_all(values: NDArray[np.float32]) -> None:
    """``log(1 + value)`` of numbers from 0 on, in place, to 3e-7; what is below 0 counts as 0.

    Many at once, which the library's logarithm is not: exponent and fraction are taken apart, and the fraction goes
    through the polynomial of Cephes' logf (Moshier 1992). The same on every processor.
    """
    count = len(values)
    moved = on_stack(count, np.float32)
    for place in range(count):
        moved[place] = np.float32(1.0) + (values[place] if values[place] > np.float32(0.0) else np.float32(0.0))
    bits, fraction_bits = moved.view(np.int32), on_stack(count, np.int32)
    exponents = on_stack(count, np.float32)
    for place in range(count):
        # Fractions from the root of a half to the root of two.
        exponent = np.int32(np.int32(bits[place] - _ROOT_OF_HALF) >> np.int32(23))
        exponents[place] = np.float32(exponent)
        fraction_bits[place] = np.int32(bits[place] - np.int32(exponent << np.int32(23)))
    fractions = fraction_bits.view(np.float32)
    for place in range(count):
        x = fractions[place] - np.float32(1.0)
        square = x * x
        y = np.float32(7.0376836292e-2)
        y = y * x - np.float32(1.1514610310e-1)
        y = y * x + np.float32(1.1676998740e-1)
        y = y * x - np.float32(1.2420140846e-1)
        y = y * x + np.float32(1.4249322787e-1)
        y = y * x - np.float32(1.6668057665e-1)
        y = y * x + np.float32(2.0000714765e-1)
        y = y * x - np.float32(2.4999993993e-1)
        y = y * x + np.float32(3.3333331174e-1)
        y = y * x * square - np.float32(0.5) * square
        values[place] = x + y + exponents[place] * np.float32(0.6931471805599453)


@compiled
def _fill(
    rows: NDArray[np.int32],
    tables: Tables,
    cosines: NDArray[np.float32],
    links: NDArray[np.float64],
    counts: NDArray[np.float64],
    factors: NDArray[np.float32],
    own: NDArray[np.float64],
    at: float,
    now: float,
    cold_events: float,
    values: NDArray[np.float32],
    cold: NDArray[np.bool_],
    closeness: NDArray[np.float64],
) -> None:
    """Unscaled features; NaN where nothing can be said."""
    present, stated, published_at = tables.present, tables.arena.stated, tables.published_at
    kinds = counts.shape[1]
    logs = on_stack((len(rows), kinds + 3), np.float32)
    for place, row in enumerate(rows):
        for kind in range(kinds):
            logs[place, kind] = counts[place, kind]
        hours = max(at - stated[row], 0.0) / _HOUR_S if counts[place, kinds - 1] > 0.0 else _NEVER_HOURS
        logs[place, kinds] = min(hours, _NEVER_HOURS)
        logs[place, kinds + 1] = max(now - published_at[row], 0.0) / _DAY_S if published_at[row] > -1e300 else 0.0
        logs[place, kinds + 2] = own[place]
    _log1p_all(logs.reshape(-1))
    for place, row in enumerate(rows):
        if present[row]:
            for vector in range(VECTORS):
                values[place, vector] = cosines[place, vector]
            best = np.float32(0.0)
            for vector in range(VECTORS, cosines.shape[1]):
                if vector == VECTORS or cosines[place, vector] > best:
                    best = cosines[place, vector]
            values[place, VECTORS] = best
            closeness[place] = cosines[place, 0] + cosines[place, 1]
        else:
            for vector in range(VECTORS + 1):
                values[place, vector] = np.nan
            closeness[place] = 0.0
        column = VECTORS + 1
        for link in range(len(links)):
            values[place, column] = links[link, place]
            column += 1
        for kind in range(kinds):
            values[place, column] = logs[place, kind]
            column += 1
        cold[place] = counts[place, kinds - 1] < cold_events
        values[place, column] = -logs[place, kinds]
        for memory in range(2):
            score = factors[memory, place]
            values[place, column + 1 + memory] = score if score > -np.inf else np.nan
        values[place, column + 3] = -logs[place, kinds + 1] if published_at[row] > -1e300 else np.nan
        values[place, column + 4] = 1.0 if cold[place] else 0.0
        values[place, column + 5] = logs[place, kinds + 2]


@compiled_sums
def scale_features(values: NDArray[np.float32]) -> None:
    """z-scores over what is known in each column of ``values``, float32 [k, features], clipped to ±6, in place; 0 says
    average or unknown (NaN before)."""
    rows, columns = values.shape
    mean, squares, count = (
        on_stack(columns, np.float64), on_stack(columns, np.float64), on_stack(columns, np.float64)
    )  # fmt: skip
    mean[:], squares[:], count[:] = 0.0, 0.0, 0.0
    # Without a branch in the inner loops, many columns are counted at once.
    for row in range(rows):
        for column in range(columns):
            value = np.float64(values[row, column])
            known = value == value
            mean[column] += value if known else 0.0
            count[column] += 1.0 if known else 0.0
    for column in range(columns):
        mean[column] /= max(count[column], 1.0)
    for row in range(rows):
        for column in range(columns):
            value = np.float64(values[row, column])
            away = value - mean[column] if value == value else 0.0
            squares[column] += away * away
    for column in range(columns):
        deviation = np.sqrt(squares[column] / max(count[column], 1.0))
        # What the rounding of codes does to cosines that are all the same is no difference.
        least = _CODES_APART if column < len(TEXT) else _APART
        squares[column] = 1.0 / deviation if deviation > least else 0.0
    for row in range(rows):
        for column in range(columns):
            value = np.float64(values[row, column])
            scaled = (value - mean[column]) * squares[column] if value == value else 0.0
            values[row, column] = min(max(scaled, -FEATURE_LIMIT), FEATURE_LIMIT)
