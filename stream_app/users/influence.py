"""How much one user may still say: what everybody's slates learn from one user is bounded, per item and altogether.

Statistics and models are sums over users, so whoever sends most events says most: a script that clicks one item all
day would put it into every slate. Two bounds, both in event time and both part of the user's state, stand in between:

* Per item: a user can add up to ``users.item_influence`` to an item. The nearer to it, the less an event adds,
  ``count * (1 - added / bound)``: the first counts whole, and any number of them never add up to more than the bound.
  What was added is forgotten with the half-life ``users.item_influence_days``.
* Altogether: a bucket of ``users.influence_burst`` that ``users.influence_per_day`` flow back into, evenly (a leaky
  bucket; Turner 1986, doi 10.1109/MCOM.1986.1092946). It is for whoever goes on to other items, of which the state
  remembers only the last ``users.influence_items``.

Time is that of the events and never runs backwards here: a late event finds things as the latest one left them.
"""

from __future__ import annotations

import math

from stream_app.settings import UserSettings
from stream_app.users.state import UserState, short_hash

__all__ = ["DAY_S", "LEAST_SHARE", "granted", "still_spent"]

LEAST_SHARE = 0.1
"""An event left with less than this of what it would say says nothing: whoever goes on for ever causes next to no
traffic. Small, and what flows back into the budget would be passed on drop by drop, with every other event."""
DAY_S = 86_400.0


def granted(state: UserState, item_hash: int, wanted: float, at: float, settings: UserSettings) -> float:
    """How much of ``wanted`` an event may add to an item; noted in ``state`` (in place).

    Over any events of a user, what one item is granted within ``d`` days is at most ``item_influence *
    (1 + ln(2) * d / item_influence_days)`` as long as the user acts on no more than ``influence_items`` items, and what
    all are granted at most ``influence_burst + influence_per_day * d``.

    Args:
        state: of the user.
        item_hash: of the item's id.
        wanted: what the event would add, positive.
        at: event time, seconds since 1970.
        settings: the bounds.

    Returns:
        between 0 and ``wanted``; ``wanted`` for the first event of a user.
    """
    bound = settings.item_influence
    item = short_hash(item_hash)
    added, added_at = state.added.get(item, (0.0, at))
    added *= math.exp2(-max(at - added_at, 0.0) / (settings.item_influence_days * DAY_S))
    spent = still_spent(state.spent, at, settings)
    grant = wanted * (1.0 - added / bound) if wanted <= bound else bound - added
    grant = min(grant, settings.influence_burst - spent)
    if grant < LEAST_SHARE * wanted:
        grant = 0.0
    if grant or item in state.added:
        # Also when nothing is granted: what is still acted on is not forgotten.
        state.added.pop(item, None)
        state.added[item] = (added + grant, max(at, added_at))
    while len(state.added) > settings.influence_items:
        del state.added[next(iter(state.added))]
    state.spent = (spent + grant, max(at, state.spent[1]))
    return grant


def still_spent(spent: tuple[float, float], at: float, settings: UserSettings) -> float:
    """What at event time ``at`` has not come back of a budget, given what was spent and as of when."""
    amount, spent_at = spent
    return max(amount - max(at - spent_at, 0.0) * settings.influence_per_day / DAY_S, 0.0)
