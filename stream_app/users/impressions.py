"""What a user was shown: what was passed over for a choice, and how often new items were shown to how many people.

The shop sends ``impression`` events with the items seen, in the order shown. The last ``users.impressions`` of them are
part of the user's state, so that both uses survive a restart and replay alike.

An impression counts for its item once per user and ``users.item_influence_days``, and a user's impressions come out of
a bucket like the one of ``stream_app.users.influence``, of the same size: nobody makes a new item look unwanted by
looking at it all day.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stream_app.settings import UserSettings
from stream_app.users.influence import DAY_S, still_spent
from stream_app.users.state import UserState, id_hash

__all__ = ["note_shown", "note_taken", "passed_over"]

_PAGE_S = 1_800.0
"""What was shown longer than this before a choice (event time) was not passed over for it."""
_MOST_PASSED = 20
"""The nearest above the choice are the surest to have been looked at; the other negatives stay a sample of all."""


def note_shown(state: UserState, items: Sequence[str], at: float, settings: UserSettings) -> tuple[str, ...]:
    """Note an impression event in ``state`` (in place).

    Args:
        state: of the user.
        items: ids in the order shown.
        at: event time, seconds since 1970.
        settings: the bounds.

    Returns:
        the items for which it counts, each once.
    """
    if not settings.impressions:
        return ()
    counted = []
    spent = still_spent(state.seen_spent, at, settings)
    for item_id in dict.fromkeys(items):
        item_hash = id_hash(item_id)
        _, counted_at = state.seen.pop(item_hash, (at, -math.inf))
        if at - counted_at >= settings.item_influence_days * DAY_S and spent + 1.0 <= settings.influence_burst:
            spent, counted_at = spent + 1.0, at
            counted.append(item_id)
        state.seen[item_hash] = (at, counted_at)
    while len(state.seen) > settings.impressions:
        del state.seen[next(iter(state.seen))]
    state.seen_spent = (spent, max(at, state.seen_spent[1]))
    return tuple(counted)


def passed_over(state: UserState, item_hash: int, at: float) -> tuple[int, ...]:
    """Hashes of what was shown above a choice and not taken, at most the nearest 20, in the order shown; everything
    that was shown lately when the taken item was not.

    Args:
        state: of the user, before the choice is noted.
        item_hash: of what is taken.
        at: event time of the choice, seconds since 1970.
    """
    above = []
    for shown, (shown_at, _) in state.seen.items():
        if not 0.0 <= at - shown_at <= _PAGE_S:
            continue
        if shown == item_hash:
            break
        above.append(shown)
    return tuple(above[-_MOST_PASSED:])


def note_taken(state: UserState, item_hash: int) -> None:
    """What was taken is not passed over for what is taken next, unless it is shown again."""
    seen = state.seen.get(item_hash)
    if seen is not None:
        state.seen[item_hash] = (-math.inf, seen[1])
