"""Folding one event into a user's state: pure, deterministic, and idempotent by partition offset.

The same function runs in the interactions agent, in evaluation and in the benchmarks. Replaying any suffix of
a partition changes nothing: an event at or below the last applied offset of its partition is skipped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import mul
from typing import Protocol, TypeVar

import msgspec

from schemas.messages import MAX_ID, Interaction, Transition
from stream_app.settings import EventType, ItemSettings, UserSettings
from stream_app.textify import Textifier, default_textifier
from stream_app.users.flood import REASON, metered, told
from stream_app.users.impressions import note_shown, note_taken, passed_over
from stream_app.users.influence import granted
from stream_app.users.state import HistoryEntry, Latest, UserState, event_hash, id_hash, shared_id

__all__ = ["Fold", "Folder", "Placed", "fold", "not_shed"]

T = TypeVar("T")
_DAY_S = 86_400.0
_DIGITS = 6
_UNCOUNTED = 0.3
"""What an event that counts nothing, but that later items are linked to, takes of the user's influence: as a view."""


@dataclass(slots=True)
class Fold:
    """What one event did; not to be changed (it is not frozen because making it would take three times as long).

    Attributes:
        outcome: ``applied``, ``replayed`` (the offset was applied before), ``duplicate`` (the same ``event_id`` was
            seen under another offset), ``forgotten`` (it is from before the user was forgotten) or ``too_many_events``
            (it is shed, see ``stream_app.users.flood``).
        refreshes: whether the user's slate must be made again.
        transition: what the event says about items, or None.
        teaches: whether the event is a choice the ranker can learn from: a positive interaction with an item
            the user had not consumed or hidden before.
        share: how much of what such an event says it may say, 0 to 1: one user's influence is bounded.
        passed: hashes of the items shown above what was taken, when the event teaches (see ``passed_over``).
        shown: items for which an impression event counts.
        untold: of an event that is shed and has a dead letter, how many were shed without one before it; else None.
    """

    outcome: str
    refreshes: bool = False
    transition: Transition | None = None
    teaches: bool = False
    share: float = 1.0
    passed: tuple[int, ...] = ()
    shown: tuple[str, ...] = ()
    untold: int | None = None


_REPLAYED = Fold("replayed")
_DUPLICATE = Fold("duplicate")
_FORGOTTEN = Fold("forgotten")
_SHED = Fold(REASON)


@dataclass(frozen=True, slots=True)
class Folder:
    """The settings of folding, bound once."""

    event_types: Mapping[str, EventType]
    users: UserSettings
    items: ItemSettings
    textifier: Textifier = field(default_factory=default_textifier)

    def __call__(
        self, state: UserState, event: Interaction, *, partition: int, offset: int, appended_s: float = 0.0
    ) -> Fold:
        return fold(
            state,
            event,
            partition=partition,
            offset=offset,
            appended_s=appended_s,
            event_types=self.event_types,
            users=self.users,
            items=self.items,
            textifier=self.textifier,
        )


def fold(
    state: UserState,
    event: Interaction,
    *,
    partition: int,
    offset: int,
    event_types: Mapping[str, EventType],
    users: UserSettings,
    items: ItemSettings,
    textifier: Textifier,
    appended_s: float = 0.0,
) -> Fold:
    """Fold ``event`` into ``state`` (in place).

    Args:
        state: the user's state; :meth:`UserState.copy` it first to keep the old one.
        event: a valid interaction of this user.
        partition: partition of ``interactions.v1`` it came from.
        offset: its offset there.
        event_types: meaning of each type; ``event.type`` is one of its keys.
        users: bounds of the state.
        items: how far transitions reach back, and their weights per lag.
        textifier: what is kept of the event's words.
        appended_s: when the broker took it, seconds since 1970.
    """
    at = event.occurred_at.timestamp()
    refused = _refused(state, event, partition, offset, appended_s, at, users)
    if refused is not None:
        return refused
    kind = event_types[event.type]
    polarity = kind.polarity
    if kind.negative_below is not None and event.value is not None and event.value < kind.negative_below:
        polarity = -1
    item_id = event.item_id
    weight = kind.weight * polarity
    visits = item_id is None and not weight and not polarity and kind.refreshes
    place = shared_id(item_id) if item_id else ""
    if visits:  # Where it led, or what it says, is all there may be to go by.
        weight, place = users.context_weight, _landing(event)
    text = textifier.said(event, max_chars=users.text_history_chars)
    entry = None
    if weight and not event.items and (place or text):
        entry = HistoryEntry(place, event.type, at, weight, offset, text)
        if visits and _repeats(state.history, entry):
            entry = None
    transition = None
    teaches = False
    passed: tuple[int, ...] = ()
    shown = note_shown(state, event.items, at, users) if event.items else ()
    share = 1.0
    if place and not event.items:
        item_hash = id_hash(place)
        count = kind.count if polarity > 0 and not visits else 0.0
        says = count or (_UNCOUNTED if entry is not None and weight > 0 else 0.0)
        if says:
            share = granted(state, item_hash, says, at, users) / says
        if count > 0 and share > 0:
            teaches = kind.weight > 0 and not state.excludes(item_hash, at)
            passed = passed_over(state, item_hash, at) if teaches else ()
            transition = _transition(
                state.latest(), state.history, place, at=at, offset=offset, count=count * share, settings=items
            )
    if item_id is not None and not event.items:
        item_hash = id_hash(item_id)
        if polarity > 0:
            note_taken(state, item_hash)
        if kind.hides:
            _remember(state.hidden, item_hash, None, users.hidden)
        if kind.consumes and kind.consumes_for_days != 0:
            days = kind.consumes_for_days
            until = math.inf if days is None else at + days * _DAY_S
            # The longest holds, in whatever order events come.
            until = max(until, state.consumed.get(item_hash, until))
            _remember(state.consumed, item_hash, until, users.consumed)
    if entry is not None:
        if share < 1:
            entry = msgspec.structs.replace(entry, share=share)
        state.append(entry, users.history)
    return Fold("applied", kind.refreshes, transition, teaches, share, passed, shown)


def _refused(
    state: UserState,
    event: Interaction,
    partition: int,
    offset: int,
    appended_s: float,
    at: float,
    users: UserSettings,
) -> Fold | None:
    """Why an event has no effect, noted in ``state``; None: it has."""
    if offset <= state.applied.get(partition, -1):
        return _REPLAYED
    state.applied[partition] = offset
    if state.forgotten_at and appended_s <= state.forgotten_at:
        return _FORGOTTEN
    event_id = event_hash(event.event_id)
    if event_id in state.recent_event_ids:
        return _DUPLICATE
    before = state.flood
    state.flood, shed = metered(before, appended_s=appended_s, occurred_s=at, settings=users)
    if shed:
        # Its id is not remembered: it may be replayed when the flood is over.
        untold = told(before, state.flood)
        return _SHED if untold is None else Fold(REASON, untold=untold)
    _remember(state.recent_event_ids, event_id, None, users.recent_event_ids)
    state.events += 1
    return None


class Placed(Protocol):
    """An event and where it was in ``interactions.v1``."""

    event: Interaction
    partition: int
    offset: int
    appended_s: float


P = TypeVar("P", bound=Placed)


def not_shed(events: Sequence[P], states: Mapping[str, UserState], users: UserSettings) -> Sequence[P]:
    """Those of ``events`` that will not be shed when they are folded in order: nothing is to be prepared for others.

    Args:
        events: of any users; those of one user in the order of their offsets.
        states: of those users; not changed.
        users: the bounds.
    """
    if not users.events_per_s:
        return events
    counts = Counter([placed.event.user_id for placed in events])
    # Who has room for all of them is nearly everybody, and not looked at further.
    copies = {
        user_id: states[user_id].copy()
        for user_id, count in counts.items()
        if states[user_id].flood.events + count > users.events_burst
    }
    if not copies:
        return events
    kept = []
    for placed in events:
        state = copies.get(placed.event.user_id)
        if state is not None:
            at = placed.event.occurred_at.timestamp()
            refused = _refused(state, placed.event, placed.partition, placed.offset, placed.appended_s, at, users)
            if refused is not None and refused.outcome == REASON:
                continue
        kept.append(placed)
    return kept


def _landing(event: Interaction) -> str:
    """The item a visit began with, by its context; empty when it does not say."""
    item_id = event.context.get("item_id")
    return item_id if isinstance(item_id, str) and 0 < len(item_id) <= MAX_ID else ""


def _repeats(history: tuple[HistoryEntry, ...], entry: HistoryEntry) -> bool:
    """Whether a visit says what the newest entry says: every page of a site may send one."""
    if not history:
        return False
    newest = history[-1]
    return (newest.item_id, newest.type, newest.text) == (entry.item_id, entry.type, entry.text)


def _remember(seen: dict[int, T], key: int, value: T, limit: int) -> None:
    """Put into a dict in order of insertion that forgets its oldest beyond ``limit``. A key seen again is new."""
    seen.pop(key, None)
    seen[key] = value
    while len(seen) > limit:
        del seen[next(iter(seen))]


def _transition(
    latest: Latest,
    history: tuple[HistoryEntry, ...],
    item_id: str,
    *,
    at: float,
    offset: int,
    count: float,
    settings: ItemSettings,
) -> Transition:
    """Links from the user's last items to ``item_id``.

    An item of the same basket (same event time) counts 1 symmetrically and has no direction; an earlier one
    counts ``symmetric_decay ** lag`` and, over the first lags, ``directed_decay ** lag``. Each earlier item
    counts once, at its latest place, and no more than that event's share.
    """
    limit = settings.transition_history
    previous, shares, together = [*latest.item_ids[: limit + 1]], [*latest.shares[: limit + 1]], 0
    if at <= latest.newest or 0.0 in shares:
        previous, shares, together = _earlier(latest, history, item_id, at, limit)
    elif item_id in previous:
        place = previous.index(item_id)
        del previous[place], shares[place]
    del previous[limit:], shares[limit:]
    lag = len(previous) - together
    symmetric, directed = _by_lag(settings.symmetric_decay, settings.directed_decay, settings.directed_history, limit)
    symmetric, directed = [1.0] * together + symmetric[:lag], [0.0] * together + directed[:lag]
    if shares.count(1.0) < len(shares):
        symmetric, directed = list(map(mul, symmetric, shares)), list(map(mul, directed, shares))
    return Transition(
        offset=offset,
        at=at,
        item_id=item_id,
        count=count,
        previous=previous,
        symmetric=symmetric,
        directed=directed,
    )


def _earlier(
    latest: Latest, history: tuple[HistoryEntry, ...], item_id: str, at: float, limit: int
) -> tuple[list[str], list[float], int]:
    """The items before, those of the same basket first and then the newest, their shares, and how many are of the
    basket. An event that came late belongs to the basket, wherever it stands."""
    basket: list[int] = []
    if at <= latest.newest:
        first = latest.next - len(history)
        basket = [place for place, number in enumerate(latest.numbers) if history[number - first].at == at]
    of_basket = set(basket)
    places = [
        place
        for place in [*basket, *(place for place in range(len(latest.shares)) if place not in of_basket)]
        if latest.shares[place] and latest.item_ids[place] != item_id
    ][:limit]
    together = sum(place in of_basket for place in places)
    return [latest.item_ids[place] for place in places], [latest.shares[place] for place in places], together


@cache
def _by_lag(symmetric_decay: float, directed_decay: float, reach: int, limit: int) -> tuple[list[float], list[float]]:
    """Weights of the lags from 1 to ``limit``, rounded: their digits would be half of what an event has published."""
    lags = range(1, limit + 1)
    symmetric = [round(symmetric_decay**lag, _DIGITS) for lag in lags]
    return symmetric, [round(directed_decay**lag, _DIGITS) if lag <= reach else 0.0 for lag in lags]
