"""From features to a slate, in one compiled call: scores, who of the new and less known items comes first, places."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.prefetch import prefetch_row
from stream_app.ranking.exploration import thompson_order
from stream_app.ranking.network import score_network
from stream_app.ranking.slate import compose
from stream_app.retrieval.cold import promise
from stream_app.retrieval.tables import Tables
from stream_app.unowned import on_stack

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
    order: NDArray[np.intp],
    kept_for: NDArray[np.int8],
) -> int:
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
        order, kept_for: [as many as pins], overwritten as far as the slate reaches.

    Returns:
        how many are in the slate.
    """
    score_network(values, context, skip, inner, outer, scores)
    for place in range(len(scores)):
        scores[place] = np.rint(scores[place] * 1e6) / 1e6
        if len(boosts):
            scores[place] = np.rint((scores[place] + boosts[place]) * 1e6) / 1e6
    new, tail = on_stack(len(rows), np.int64), on_stack(len(rows), np.int32)
    times = on_stack(len(rows), np.uint32)
    of_new = _new_items(rows, values, cold, closeness, tables, rising, seed, trials, reserved.sum(), new)
    of_tail = _less_known(rows, masks, personal, in_first_ranks, tail, times) if explores else 0
    return compose(
        scores, rows, tables.codes, tables.steps, diversity, pins, new[:of_new], reserved, tail[:of_tail],
        times[:of_tail], tail_place, groups, limits, hard, order, kept_for,
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
    order: NDArray[np.intp],
) -> int:
    """New items among the candidates, the one that deserves a reserved place most first: int64 [k], overwritten as far
    as there are any; how many."""
    counts, shown, all_hashes = tables.counts, tables.shown, tables.hashes
    places = on_stack(len(rows), np.int32)
    count = 0
    for place in range(len(rows)):
        if cold[place]:
            prefetch_row(counts, rows[place])
            places[count] = place
            count += 1
    near, rises = on_stack(count, np.float64), on_stack(count, np.float64)
    taken, passed = on_stack(count, np.float64), on_stack(count, np.float64)
    hashes = on_stack(count, np.int64)
    last = len(tables.rates) - 1
    for at in range(count):
        place = places[at]
        row = rows[place]
        near[at], rises[at] = closeness[place], values[place, rising]
        taken[at] = counts[row, last]
        passed[at] = max(shown[row] - taken[at], 0.0)
        hashes[at] = all_hashes[row]
    promising = on_stack(count, np.float64)
    promise(near, rises, promising)
    found = thompson_order(promising, taken, passed, hashes, seed, trials, wanted, order)
    for at in range(found):
        order[at] = places[order[at]]
    return found


@compiled
def _less_known(
    rows: NDArray[np.int32],
    masks: NDArray[np.uint32],
    personal: np.uint32,
    in_first_ranks: NDArray[np.uint32],
    places: NDArray[np.int32],
    shown: NDArray[np.uint32],
) -> int:
    """Candidates of the user's own interests, and how often each stood in somebody's first ranks: int32, uint32 [k],
    overwritten as far as there are any; how many."""
    count = 0
    for place, row in enumerate(rows):
        if masks[place] & personal:
            places[count] = place
            shown[count] = in_first_ranks[row] if row < len(in_first_ranks) else np.uint32(0)
            count += 1
    return count
