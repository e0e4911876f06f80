"""Requests of a batch one after the other in one compiled call, instead of a call for each: what a call costs, and what
lies between calls, is paid once.

What belongs to a request lies in flat arrays: those of request ``r`` from ``starts[r]`` to ``starts[r + 1]``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.codes import scan_codes
from stream_app.compiled import compiled
from stream_app.prefetch import prefetch_part, prefetch_row
from stream_app.ranking.exploration import explores
from stream_app.ranking.features import fill_context, raw_features, scale_features
from stream_app.ranking.ordering import order_candidates
from stream_app.ranking.reasons import explain, say
from stream_app.ranking.turns import AT_ONCE, done, take
from stream_app.retrieval.candidates import find_candidates
from stream_app.retrieval.interests import SLOW, VECTORS
from stream_app.retrieval.links import Lags, clear
from stream_app.retrieval.tables import Tables
from stream_app.unowned import borrowed, on_stack

__all__ = ["explain_all", "order_all", "pack_all", "prepare_all"]


@compiled
def prepare_all(
    turns: NDArray[np.int64],
    tables: Tables,
    queries: NDArray[np.float32],
    compared: NDArray[np.int64],
    own: NDArray[np.int32],
    own_weights: NDArray[np.float64],
    entries: NDArray[np.int64],
    owned: NDArray[np.int64],
    recent_items: int,
    factors: NDArray[np.float32],
    lists: NDArray[np.int32],
    slots: NDArray[np.int32],
    near: NDArray[np.int32],
    near_starts: NDArray[np.int64],
    whole: bool,
    rising: int,
    excluded: NDArray[np.int32],
    excluded_starts: NDArray[np.int64],
    pinned: NDArray[np.int32],
    pinned_starts: NDArray[np.int64],
    searched: NDArray[np.int32],
    searched_starts: NDArray[np.int64],
    search_places: int,
    by_text: int,
    at: NDArray[np.float64],
    now: float,
    seeds: NDArray[np.uint64],
    lags: Lags,
    wanted: NDArray[np.int64],
    cold_events: float,
    slot: NDArray[np.int32],
    link_slot: NDArray[np.int32],
    links: NDArray[np.int32],
    sums: NDArray[np.float32],
    blocked: NDArray[np.int64],
    first_request: int,
    found: NDArray[np.int32],
    lengths: NDArray[np.int64],
    rows: NDArray[np.int32],
    masks: NDArray[np.uint32],
    values: NDArray[np.float32],
    cold: NDArray[np.bool_],
    closeness: NDArray[np.float64],
    ends: NDArray[np.int64],
) -> None:
    """Candidates of those requests that it gets, by id hash, and what is known of them, not scaled. :func:`pack_all`
    puts those of all requests together.

    Args:
        turns: see ``stream_app.ranking.turns``.
        tables: what is known by row.
        queries, compared, own, own_weights, entries, owned, recent_items, factors: see ``InterestsOfAll``, whose
            ``starts`` are ``entries``.
        lists, slots: see ``VectorIndex.neighbour_lists``.
        near, near_starts: int32, further rows that are near to each user; negative ones are left out.
        excluded, pinned, searched: int32, of each request, and where they begin; see ``find_candidates``.
        by_text: place of the source that what was searched for counts as.
        at: float64 [requests], event times (seconds).
        seeds: uint64 [requests], hashes of the users.
        cold_events: an item with fewer events in all is cold.
        slot, link_slot, links, sums, blocked: see ``Scratch``.
        first_request: the first of as many numbers as there are requests, that no request before had.
        found, lengths: [requests, sources + 2, ...], overwritten; see ``find_candidates``.
        rows, masks, values, cold, closeness: [requests x room for those of any], overwritten; see ``find_candidates``
            and ``raw_features``. Those of a request begin where its room does.
        ends: int64 [requests], overwritten: where they end.

    The other arguments are those of ``find_candidates``.
    """
    tables, queries, own, own_weights, entries = (
        borrowed(tables), borrowed(queries), borrowed(own), borrowed(own_weights), borrowed(entries)
    )  # fmt: skip
    factors, lists, slots, near = borrowed(factors), borrowed(lists), borrowed(slots), borrowed(near)
    excluded, pinned, searched, wanted = borrowed(excluded), borrowed(pinned), borrowed(searched), borrowed(wanted)
    slot, link_slot, links, sums = borrowed(slot), borrowed(link_slot), borrowed(links), borrowed(sums)
    blocked, found, lengths, rows = borrowed(blocked), borrowed(found), borrowed(lengths), borrowed(rows)
    masks, values, cold, closeness = borrowed(masks), borrowed(values), borrowed(cold), borrowed(closeness)
    searched_bit = np.uint32(1) << np.uint32(len(wanted) + 1)
    text_bit = np.uint32(1) << np.uint32(by_text)
    size, room = lists.shape[1], len(rows) // max(len(at), 1)
    cold_closeness = on_stack((AT_ONCE, len(tables.cold)), np.float32)
    slow = on_stack((AT_ONCE, queries.shape[2]), np.float32)
    longest = 0
    for request in range(len(at)):
        longest = max(longest, near_starts[request + 1] - near_starts[request])
    around_any = on_stack(0 if whole else slots.shape[1] * size + longest, np.int32)
    while True:
        first = take(turns, len(at))
        if first < 0:
            return
        # Of some requests at once, so that the codes of new items are read once for all of them. Not exact: what
        # promises more is a guess to begin with.
        together = min(AT_ONCE, len(at) - first)
        for place in range(together):
            slow[place] = queries[first + place, SLOW]
        scan_codes(slow[:together], tables.cold_codes, tables.cold_steps, cold_closeness[:together])
        for request in range(first, first + together):
            own_start = entries[request]
            of_user = own[own_start : own_start + owned[request]]
            weights = own_weights[own_start : own_start + owned[request]]
            compared_with = queries[request, : VECTORS + compared[request]]
            more = near[near_starts[request] : near_starts[request + 1]]
            around = around_any
            if not whole:
                end = 0
                for held in slots[request]:
                    if held >= 0:
                        around[end : end + size] = lists[held]
                        end += size
                around[end : end + len(more)] = more
                around = around[: end + len(more)]
            if request + 1 < len(at):
                _ask_for_links(tables, own, entries[request + 1], min(owned[request + 1], recent_items))
                for held in slots[request + 1]:
                    if held >= 0:
                        prefetch_row(lists, held)
            start = request * room
            count, linked = find_candidates(
                tables, compared_with, of_user[:recent_items], of_user, weights, factors[request], around, whole,
                rising,
                excluded[excluded_starts[request] : excluded_starts[request + 1]],
                pinned[pinned_starts[request] : pinned_starts[request + 1]],
                searched[searched_starts[request] : searched_starts[request + 1]],
                search_places, at[request], seeds[request], lags, wanted, cold_closeness[request - first], slot,
                link_slot, links, sums, blocked, first_request + request, found[request], lengths[request],
                rows[start:], masks[start:],
            )  # fmt: skip
            end = start + count
            ends[request] = end
            # Closeness in text proposes what was searched for, like the neighbours of what the user did of late.
            for place in range(start, end):
                if masks[place] & searched_bit:
                    masks[place] = (masks[place] & ~searched_bit) | text_bit
            raw_features(
                rows[start:end], tables, compared_with, factors[request], of_user, weights, link_slot, sums, slot,
                at[request], now, cold_events, values[start:end], cold[start:end], closeness[start:end],
            )  # fmt: skip
            clear(links[:linked], link_slot)
        done(turns)


@compiled
def pack_all(
    ends: NDArray[np.int64],
    rows: NDArray[np.int32],
    masks: NDArray[np.uint32],
    values: NDArray[np.float32],
    cold: NDArray[np.bool_],
    closeness: NDArray[np.float64],
    starts: NDArray[np.int64],
) -> None:
    """Put the candidates that :func:`prepare_all` left one after the other.

    Args:
        ends, rows, masks, values, cold, closeness: see there.
        starts: int64 [requests + 1], overwritten: where the candidates of each begin.
    """
    room = len(rows) // max(len(ends), 1)
    start = starts[0] = 0
    for request in range(len(ends)):
        for place in range(request * room, ends[request]):
            rows[start], masks[start], cold[start] = rows[place], masks[place], cold[place]
            closeness[start] = closeness[place]
            if start < place:
                for column in range(values.shape[1]):
                    values[start, column] = values[place, column]
            start += 1
        starts[request + 1] = start


@compiled
def _ask_for_links(tables: Tables, own: NDArray[np.int32], start: int, recent: int) -> None:
    """Ask memory for the links of the next request's recent items: they lie all over it, and there is other work to do
    until they are here."""
    arena = tables.arena
    starts, lengths, rows, symmetric, directed = (
        arena.starts,
        arena.lengths,
        arena.rows,
        arena.symmetric,
        arena.directed,
    )
    for place in range(start, start + recent):
        origin = own[place]
        begin, length = starts[origin], lengths[origin]
        prefetch_part(rows, begin, length)
        prefetch_part(symmetric, begin, length)
        prefetch_part(directed, begin, length)


@compiled
def order_all(
    turns: NDArray[np.int64],
    tables: Tables,
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    masks: NDArray[np.uint32],
    values: NDArray[np.float32],
    cold: NDArray[np.bool_],
    closeness: NDArray[np.float64],
    entries: NDArray[np.int64],
    events: NDArray[np.int64],
    pauses: NDArray[np.float64],
    context: NDArray[np.float32],
    skip: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    boosts: NDArray[np.float64],
    rising: int,
    seeds: NDArray[np.uint64],
    trials: float,
    personal: np.uint32,
    in_first_ranks: NDArray[np.uint32],
    explore: float,
    explore_rank: int,
    diversity: float,
    pins: NDArray[np.intp],
    place_starts: NDArray[np.int64],
    wanted: NDArray[np.int64],
    reserved: NDArray[np.bool_],
    groups: NDArray[np.int32],
    group_starts: NDArray[np.int64],
    limits: NDArray[np.int64],
    limit_starts: NDArray[np.int64],
    hard: NDArray[np.int64],
    scores: NDArray[np.float64],
    order: NDArray[np.intp],
    kept_for: NDArray[np.int8],
    lengths: NDArray[np.int64],
) -> None:
    """The slates of those requests that it gets; see ``ordering.order_candidates``.

    Args:
        turns: see ``stream_app.ranking.turns``.
        starts: int64 [requests + 1], where the candidates of each begin.
        rows, masks, values, cold, closeness: of all candidates; ``values`` are scaled in place.
        entries, events, pauses: int64, int64, float64 [requests], see ``features.context_values``.
        context: float32 [requests, c], overwritten.
        boosts: float64 [candidates or 0].
        seeds: uint64 [requests], of user and state.
        explore, explore_rank: see ``SlateSettings``.
        pins: int [places], candidates of the request, -1: none.
        place_starts: int64 [requests + 1], where the places of each begin; no more than it has candidates.
        wanted: int64 [requests], items wanted.
        reserved: bool [as many as any request has places].
        groups, limits, hard: int32 [caps of a request x its candidates, one request after the other], int64 [caps, 2],
            int64 [requests]; where those of each request begin: int64 [requests + 1] each, or [0] where there are none.
        scores: float64 [candidates], overwritten.
        order, kept_for: [places], overwritten as far as slates reach.
        lengths: int64 [requests], overwritten: of the slates.
    """
    tables, rows, masks, values, cold = (
        borrowed(tables), borrowed(rows), borrowed(masks), borrowed(values), borrowed(cold)
    )  # fmt: skip
    closeness, context, skip, inner = borrowed(closeness), borrowed(context), borrowed(skip), borrowed(inner)
    outer, boosts, in_first_ranks, pins = borrowed(outer), borrowed(boosts), borrowed(in_first_ranks), borrowed(pins)
    reserved, groups, limits, scores = borrowed(reserved), borrowed(groups), borrowed(limits), borrowed(scores)
    order, kept_for = borrowed(order), borrowed(kept_for)
    no_groups, no_limits = on_stack((0, 0), np.int32), limits[:0]
    while True:
        turn = take(turns, len(seeds))
        if turn < 0:
            return
        for request in range(turn, min(turn + AT_ONCE, len(seeds))):
            start, end = starts[request], starts[request + 1]
            first, last = place_starts[request], place_starts[request + 1]
            scale_features(values[start:end])
            fill_context(entries[request], events[request], pauses[request], context[request])
            of_groups, of_limits, of_hard = no_groups, no_limits, 0
            if len(limit_starts):
                of_limits = limits[limit_starts[request] : limit_starts[request + 1]]
                of_groups = groups[group_starts[request] : group_starts[request + 1]]
                of_groups = of_groups.reshape(len(of_limits), end - start)
                of_hard = hard[request]
            of_slate = order[first:last]
            lengths[request] = order_candidates(
                rows[start:end], masks[start:end], values[start:end], cold[start:end], closeness[start:end],
                context[request], tables, skip, inner, outer, boosts[start:end] if len(boosts) else boosts, rising,
                seeds[request], trials, personal, in_first_ranks,
                wanted[request] >= explore_rank and explores(seeds[request], explore), diversity, pins[first:last],
                reserved[: last - first], explore_rank - 1, of_groups, of_limits, of_hard, scores[start:end], of_slate,
                kept_for[first:last],
            )  # fmt: skip
            for place in range(lengths[request]):
                of_slate[place] += start
        done(turns)


@compiled
def explain_all(
    turns: NDArray[np.int64],
    tables: Tables,
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
    context: NDArray[np.float32],
    boosts: NDArray[np.float64],
    pinned: NDArray[np.bool_],
    searched: NDArray[np.bool_],
    place_starts: NDArray[np.int64],
    order: NDArray[np.intp],
    kept_for: NDArray[np.int8],
    lengths: NDArray[np.int64],
    entries: NDArray[np.int64],
    entry_rows: NDArray[np.int32],
    entry_counts: NDArray[np.float64],
    queries: NDArray[np.float32],
    compared: NDArray[np.int64],
    own: NDArray[np.int32],
    owned: NDArray[np.int64],
    recent_items: int,
    rising: int,
    kinds: NDArray[np.int64],
    signs: NDArray[np.float32],
    count: int,
    near_columns: NDArray[np.int64],
    skip: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    lags: Lags,
    at: NDArray[np.float64],
    slot: NDArray[np.int32],
    codes: NDArray[np.int64],
    named: NDArray[np.int32],
) -> None:
    """Why each item is in the slates of those requests that it gets; see ``reasons.explain`` and ``reasons.say``.

    Args:
        boosts, pinned, searched: [candidates or 0].
        entry_rows, entry_counts: int32, float64, of the histories: the row of each event's item, and what the event
            added to the item's count.
        codes, named: int64, int32 [places], overwritten as far as slates reach.

    The other arguments are those of :func:`prepare_all` and :func:`order_all`.
    """
    tables, rows, values, context = borrowed(tables), borrowed(rows), borrowed(values), borrowed(context)
    boosts, kept_for, queries, own = borrowed(boosts), borrowed(kept_for), borrowed(queries), borrowed(own)
    pinned, searched, order = borrowed(pinned), borrowed(searched), borrowed(order)
    entry_rows, entry_counts = borrowed(entry_rows), borrowed(entry_counts)
    kinds, signs, near_columns, skip = borrowed(kinds), borrowed(signs), borrowed(near_columns), borrowed(skip)
    inner, outer, slot, codes, named = (
        borrowed(inner), borrowed(outer), borrowed(slot), borrowed(codes), borrowed(named)
    )  # fmt: skip
    while True:
        turn = take(turns, len(lengths))
        if turn < 0:
            return
        for request in range(turn, min(turn + AT_ONCE, len(lengths))):
            size, start, end = lengths[request], starts[request], starts[request + 1]
            if not size:
                continue
            if request + 1 < len(lengths):
                for candidate in range(end, starts[request + 2]):
                    prefetch_row(values, candidate)
            of_slate = slice(place_starts[request], place_starts[request] + size)
            of_history = slice(entries[request], entries[request + 1])
            recent = own[entries[request] : entries[request] + min(owned[request], recent_items)]
            _explain_one(
                tables, rows, values, start, end, context[request], boosts, pinned, searched, order[of_slate],
                kept_for[of_slate], entry_rows[of_history], entry_counts[of_history],
                queries[request, VECTORS : VECTORS + compared[request]], recent, rising, kinds, signs, count,
                near_columns, skip, inner, outer, lags, at[request], slot, codes[of_slate], named[of_slate],
            )  # fmt: skip
        done(turns)


@compiled
def _explain_one(
    tables: Tables,
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
    start: int,
    end: int,
    context: NDArray[np.float32],
    boosts: NDArray[np.float64],
    pinned: NDArray[np.bool_],
    searched: NDArray[np.bool_],
    order: NDArray[np.intp],
    kept_for: NDArray[np.int8],
    entry_rows: NDArray[np.int32],
    entry_counts: NDArray[np.float64],
    liked: NDArray[np.float32],
    recent: NDArray[np.int32],
    rising: int,
    kinds: NDArray[np.int64],
    signs: NDArray[np.float32],
    count: int,
    near_columns: NDArray[np.int64],
    skip: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    lags: Lags,
    at: float,
    slot: NDArray[np.int32],
    codes: NDArray[np.int64],
    named: NDArray[np.int32],
) -> None:
    """:func:`explain_all` of one slate: ``order`` says which candidates are in it, those of the request lie from
    ``start`` to ``end``."""
    size, features = len(order), values.shape[1]
    slate, of_slate = on_stack(size, np.int32), on_stack((size, features), np.float32)
    added, mine = on_stack(size, np.float64), on_stack(size, np.float64)
    by_rule, asked = on_stack(size, np.bool_), on_stack(size, np.bool_)
    for place in range(size):
        candidate = order[place]
        slate[place] = rows[candidate]
        for column in range(features):
            of_slate[place, column] = values[candidate, column]
        added[place] = boosts[candidate] if len(boosts) else 0.0
        by_rule[place] = pinned[candidate] if len(pinned) else False
        asked[place] = searched[candidate] if len(searched) else False
        mine[place] = 0.0
        slot[slate[place]] = place
    for entry, row in enumerate(entry_rows):
        if row >= 0 and slot[row] >= 0:
            mine[slot[row]] += entry_counts[entry]
    for row in slate:
        slot[row] = -1
    near, origins = on_stack(size, np.bool_), on_stack((3, size), np.int64)
    explain(
        slate, of_slate, values[start:end], context, added, mine, rising, kinds, signs, count, near_columns, skip,
        inner, outer, tables, liked, recent, lags, at, slot, codes, near, origins,
    )  # fmt: skip
    say(codes, near, origins, kept_for, by_rule, asked, recent, named)
