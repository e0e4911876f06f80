"""From features to a slate, in one compiled call: scores, who of the new and less known items comes first, places."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.prefetch import prefetch_row
from stream_app.ranking.exploration import least_shown, thompson_order
from stream_app.ranking.network import score_network
from stream_app.ranking.slate import compose
from stream_app.retrieval.cold import promise
from stream_app.retrieval.tables import Tables

__all__ = ["order_candidates"]


@compiled
def order_candidates(
    rows: NDArray[np.int32],
    masks: NDArray[np.uint32],
    values: NDArray[np.float32],
    cold: NDArray[np.bool_],
    closeness: NDArray[np.float64],
    context: NDArray[np.float32],
    tables: Tables,
    skip: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    boosts: NDArray[np.float64],
    rising: int,
    seed: np.uint64,
    trials: float,
    personal: np.uint32,
    in_first_ranks: NDArray[np.uint32],
    explores: bool,
    diversity: float,
    pins: NDArray[np.intp],
    reserved: NDArray[np.bool_],
    tail_place: int,
    groups: NDArray[np.int32],
    limits: NDArray[np.int64],
    hard: int,
    scores: NDArray[np.float64],
) -> tuple[NDArray[np.intp], NDArray[np.int8]]:
    """The slate as places among the candidates, and for what each was kept; see ``slate.compose``.

    Args:
        rows, masks: int32, uint32 [k], the candidates by id hash, and the sources each is from.
        values, cold, closeness: see ``features.raw_features``, scaled.
        context: float32 [c], of the request.
        tables: what is known by row.
        skip, inner, outer: of the ranker, see ``network.score_network``.
        boosts: float64 [k or 0], what rules add to the scores.
        rising: the feature that says what rises.
        seed: of user and state, for choices that are random but the same every time.
        trials: see ``exploration.thompson_order``.
        personal: the sources that look at the user.
        in_first_ranks: uint32 by row, which may end early: how often each stood in somebody's first ranks.
        explores: whether ``tail_place`` is kept for a less known item.
        diversity, pins, reserved, groups, limits, hard: see ``slate.compose``.
        scores: float64 [k], overwritten: log-odds against each other, boosts included, in steps of 1e-6.
    """
    score_network(values, context, skip, inner, outer, scores)
    for place in range(len(scores)):
        scores[place] = np.rint(scores[place] * 1e6) / 1e6
        if len(boosts):
            scores[place] = np.rint((scores[place] + boosts[place]) * 1e6) / 1e6
    return compose(
        scores, rows, tables.codes, tables.steps, diversity, pins,
        _new_items(rows, values, cold, closeness, tables, rising, seed, trials, reserved.sum()), reserved,
        _less_known(rows, masks, scores, personal, in_first_ranks, explores), tail_place, groups, limits, hard,
    )  # fmt: skip


@compiled
def _new_items(
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
    cold: NDArray[np.bool_],
    closeness: NDArray[np.float64],
    tables: Tables,
    rising: int,
    seed: np.uint64,
    trials: float,
    wanted: int,
) -> NDArray[np.intp]:
    """New items among the candidates, the one that deserves a reserved place most first."""
    places = np.flatnonzero(cold)
    count = len(places)
    near, rises = np.empty(count), np.empty(count)
    taken, passed = np.empty(count), np.empty(count)
    hashes = np.empty(count, np.int64)
    last = len(tables.rates) - 1
    counts, shown, all_hashes = tables.counts, tables.shown, tables.hashes
    for place in places:
        prefetch_row(counts, rows[place])
    for at, place in enumerate(places):
        row = rows[place]
        near[at], rises[at] = closeness[place], values[place, rising]
        taken[at] = counts[row, last]
        passed[at] = max(shown[row] - taken[at], 0.0)
        hashes[at] = all_hashes[row]
    promising = np.empty(count)
    promise(near, rises, promising)
    return places[thompson_order(promising, taken, passed, hashes, seed, trials, wanted)]


@compiled
def _less_known(
    rows: NDArray[np.int32],
    masks: NDArray[np.uint32],
    scores: NDArray[np.float64],
    personal: np.uint32,
    in_first_ranks: NDArray[np.uint32],
    explores: bool,
) -> NDArray[np.intp]:
    """Candidates of the user's own interests, in the order in which one may take the place of a less known item."""
    places = np.flatnonzero(masks & personal if explores else masks & np.uint32(0))
    times, of_them = np.zeros(len(places), np.uint32), np.empty(len(places))
    for at, place in enumerate(places):
        if rows[place] < len(in_first_ranks):
            times[at] = in_first_ranks[rows[place]]
        of_them[at] = scores[place]
    return places[least_shown(times, of_them)]
