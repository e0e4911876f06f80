"""From a user's interests to candidates, in one compiled call: links, the pool, every source, and which of them each
candidate is from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.heap import largest
from stream_app.items.signals import decayed_column
from stream_app.retrieval.interests import FAST, SLOW
from stream_app.retrieval.links import Lags, add_links
from stream_app.retrieval.pool import best_of_pool, gather
from stream_app.retrieval.source import Context, first_open
from stream_app.retrieval.sources import FACTORS, FACTORS_FAST, TEXT_FAST, TEXT_SLOW, TRANSITIONS, propose_all
from stream_app.retrieval.tables import Tables
from stream_app.retrieval.transitions import score_links
from stream_app.unowned import on_stack

__all__ = ["find_candidates", "take_own"]

_POOL_LINKS = 400
"""The strongest links that are looked at, and a few of equal strength; never fewer than transitions may propose."""
_HASH_BUCKETS = 256
_HASH_SHIFT = 63 - 8
"""Hashes have 63 bits."""


@compiled
def find_candidates(
    tables: Tables,
    queries: NDArray[np.float32],
    recent: NDArray[np.int32],
    own: NDArray[np.int32],
    own_weights: NDArray[np.float64],
    factors: NDArray[np.float32],
    neighbours: NDArray[np.int32],
    whole: bool,
    rising: int,
    excluded: NDArray[np.int32],
    pinned: NDArray[np.int32],
    searched: NDArray[np.int32],
    search_places: int,
    at: float,
    seed: np.uint64,
    lags: Lags,
    wanted: NDArray[np.int64],
    cold_closeness: NDArray[np.float32],
    slot: NDArray[np.int32],
    link_slot: NDArray[np.int32],
    links: NDArray[np.int32],
    sums: NDArray[np.float32],
    blocked: NDArray[np.int64],
    request: int,
    found: NDArray[np.int32],
    lengths: NDArray[np.int64],
    rows: NDArray[np.int32],
    masks: NDArray[np.uint32],
) -> tuple[int, int]:
    """The candidates of one request, by id hash.

    Args:
        tables: what is known by row.
        queries, recent, own, own_weights, factors: see ``Interests``.
        neighbours: int32, rows near to one of the user's last items, or to words; negative ones are left out.
        whole: everything there is is looked at, whatever ``neighbours`` says.
        rising: the column of counts that says what rises.
        excluded: int32, rows that may not be recommended to this user.
        pinned: int32, rows that rules want in the slate.
        searched: int32, rows close to what the user searched for, nearest first.
        search_places: how many of them are candidates.
        at: event time of the request (seconds).
        seed: a hash of the user.
        lags: how much earlier items count in links.
        wanted: int64 [sources], how many each may propose.
        cold_closeness: float32, see ``Context``.
        slot, link_slot, links, sums, blocked: see ``Scratch``; ``link_slot`` is left with the places of the links.
        request: a number that no request before had.
        found: int32 [sources + 2, enough for each], overwritten: what each source proposed, then the pinned and the
            searched rows.
        lengths: int64 [sources + 2], overwritten: how many; the user's own items are only among those of ``again`` and
            of the last two.
        rows, masks: int32, uint32 [as many as ``lengths`` can add up to], overwritten: the candidates, and for each the
            sources it is from: bit ``i`` stands for source ``i``, the next two for rules and the search.

    Returns:
        how many candidates there are, and how many links.
    """
    for row in excluded:
        blocked[row] = request
    sources, servable = len(wanted), tables.servable
    lengths[sources] = first_open(pinned, servable, blocked, request, len(pinned), found[sources])
    lengths[sources + 1] = first_open(searched, servable, blocked, request, search_places, found[sources + 1])
    own, own_weights = take_own(own, own_weights, servable, blocked, request)
    count = add_links(recent, lags, at, tables.transition_rate, tables.arena, link_slot, links, sums)
    links, sums = links[:count], sums[:count]
    by_links, places = on_stack(count, np.float64), on_stack(count, np.int32)
    score_links(links, sums, tables.arena.scale, servable, blocked, request, by_links)
    looked_at = _strongest(by_links, wanted, places)
    strongest, by_strongest = on_stack(looked_at, np.int32), on_stack(looked_at, np.float64)
    for place in range(looked_at):
        strongest[place], by_strongest[place] = links[places[place]], by_links[places[place]]
    links, by_links = strongest, by_strongest
    near = on_stack((2, max(wanted[TEXT_SLOW], wanted[TEXT_FAST])), np.int32)
    by_factors = on_stack((2, max(wanted[FACTORS], wanted[FACTORS_FAST])), np.int32)
    _look(tables, queries, factors, neighbours, whole, rising, links, blocked, request, slot, near, by_factors)
    cold_counts = on_stack(len(tables.cold), np.float64)
    decayed_column(at, tables.cold, tables.counts, tables.arena.stated, rising, tables.rates[rising], cold_counts)
    context = Context(
        tables, queries, own, own_weights, links, by_links, near, by_factors, cold_counts, cold_closeness,
        blocked, request, seed,
    )  # fmt: skip
    propose_all(context, wanted, found, lengths)
    return _merge(found, lengths, slot, tables.hashes, rows, masks), count


@compiled
def take_own(
    own: NDArray[np.int32],
    own_weights: NDArray[np.float64],
    servable: NDArray[np.bool_],
    blocked: NDArray[np.int64],
    request: int,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Those of the user's own rows that may be recommended again, and their weights; all own rows are blocked now."""
    rows, weights = np.empty(len(own), np.int32), np.empty(len(own))
    count = 0
    for place, row in enumerate(own):
        if servable[row] and blocked[row] != request:
            rows[count], weights[count] = row, own_weights[place]
            count += 1
        blocked[row] = request
    return rows[:count], weights[:count]


@compiled
def _strongest(by_links: NDArray[np.float64], wanted: NDArray[np.int64], places: NDArray[np.int32]) -> int:
    """Places of the links that are looked at, int32, overwritten; how many they are."""
    most = max(_POOL_LINKS, wanted[TRANSITIONS])
    if len(by_links) > most:
        return largest(by_links, most, places)
    for place in range(len(places)):
        places[place] = place
    return len(places)


@compiled
def _look(
    tables: Tables,
    queries: NDArray[np.float32],
    factors: NDArray[np.float32],
    neighbours: NDArray[np.int32],
    whole: bool,
    rising: int,
    links: NDArray[np.int32],
    blocked: NDArray[np.int64],
    request: int,
    slot: NDArray[np.int32],
    near: NDArray[np.int32],
    by_factors: NDArray[np.int32],
) -> None:
    """What of the pool is nearest to the interest vectors, and what has the largest scores by factors; see
    ``Context``."""
    near[:], by_factors[:] = -1, -1
    if whole:
        neighbours = np.arange(len(tables.servable)).astype(np.int32)
    last = len(tables.top_counts) - 1
    popular = tables.top_counts[rising]
    others = on_stack(len(links) + popular + tables.top_counts[last], np.int32)
    others[: len(links)] = links
    others[len(links) : len(links) + popular] = tables.tops[rising, :popular]
    others[len(links) + popular :] = tables.tops[last, : tables.top_counts[last]]
    if whole:
        others = others[:0]
    pool = on_stack(len(neighbours) + len(others), np.int32)
    first, count = gather(neighbours, others, tables.servable, blocked, request, slot, pool)
    asked = on_stack(2, np.bool_)
    asked[:] = False
    for memory in range(2):
        for value in queries[SLOW + memory]:
            asked[memory] = asked[memory] or value != 0.0
    nothing = on_stack(0, np.float32)
    if near.shape[1] and (asked[0] or asked[1]):
        best_of_pool(
            pool[:first], queries[SLOW : FAST + 1], tables.codes, tables.steps, nothing, tables.present,
            tables.hashes, queries[:0], near,
        )  # fmt: skip
        for memory in range(2):
            if not asked[memory]:
                near[memory] = -1
    known = False
    for user in factors:
        for value in user:
            known = known or value != 0.0
    # Without a user's factors they say nothing: what comes of zeros is the items' biases.
    if by_factors.shape[1] and known:
        best_of_pool(
            pool[:count], factors, tables.factor_codes, tables.factor_steps, tables.bias, tables.has_factors,
            tables.hashes, tables.target, by_factors,
        )  # fmt: skip


@compiled
def _merge(
    found: NDArray[np.int32],
    lengths: NDArray[np.int64],
    slot: NDArray[np.int32],
    hashes: NDArray[np.int64],
    distinct: NDArray[np.int32],
    masks: NDArray[np.uint32],
) -> int:
    """Distinct rows of several sources, by id hash, and which sources each is from; how many there are.

    Args:
        found: int32 [sources, any], of each source the first so many rows:
        lengths: int64 [sources].
        slot: int32 by row, -1 everywhere; and again afterwards.
        hashes: int64 by row.
        distinct, masks: int32, uint32 [as many as there are], overwritten; bit ``i`` stands for source ``i``.
    """
    most = lengths.sum()
    met, bits = on_stack(most, np.int32), on_stack(most, np.uint32)
    keys, order = on_stack(most, np.int64), on_stack(most, np.int32)
    bits[:] = 0
    count = 0
    for source, length in enumerate(lengths):
        for row in found[source, :length]:
            place = slot[row]
            if place < 0:
                place = count
                slot[row] = place
                met[place] = row
                keys[place] = hashes[row]
                count += 1
            bits[place] |= np.uint32(1) << np.uint32(source)
    _by_hash(keys[:count], order[:count])
    for place in range(count):
        held = order[place]
        distinct[place] = met[held]
        masks[place] = bits[held]
        slot[met[held]] = -1
    return count


@compiled
def _by_hash(hashes: NDArray[np.int64], order: NDArray[np.int32]) -> None:
    """Places in the order of their hashes: int32 [n], overwritten.

    Hashes are spread evenly, so their first bits put nearly all of them where they belong, and few are moved
    afterwards. A quarter of the time of sorting; where they are not spread, the result is the same.
    """
    ends = on_stack(_HASH_BUCKETS + 1, np.int32)
    ends[:] = 0
    for value in hashes:
        ends[_hash_bucket(value) + 1] += 1
    for bucket in range(_HASH_BUCKETS):
        ends[bucket + 1] += ends[bucket]
    for place, value in enumerate(hashes):
        bucket = _hash_bucket(value)
        order[ends[bucket]] = place
        ends[bucket] += 1
    for place in range(1, len(order)):
        moved = order[place]
        value = hashes[moved]
        at = place
        while at > 0 and hashes[order[at - 1]] > value:
            order[at] = order[at - 1]
            at -= 1
        order[at] = moved


@compiled
def _hash_bucket(value: int) -> int:
    """The first bits of a hash, within bounds whatever it is: compiled code does not check indices."""
    return (value >> _HASH_SHIFT) & (_HASH_BUCKETS - 1)
