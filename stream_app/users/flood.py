"""How many events of one user count per second; what comes on top is shed, and told of in few words.

A script or a producer that repeats itself can send in a second what a person does in a year. Others must not wait for
that, so each user has a bucket of ``users.events_burst`` events that ``users.events_per_s`` flow out of (a leaky bucket
as a meter; Turner 1986, doi 10.1109/MCOM.1986.1092946). An event that finds it full is shed.

Two clocks empty the bucket, whichever is further on: the broker's append time, and the events' own. Of a replay after
an outage both are old and go on as they did, so it is as if the events came live. Of an import, all of it is appended
within seconds, but the events lie days apart, and nothing of it is shed. Of a flood both stand still. Whoever may
choose ``occurred_at`` freely could pretend to be an import; that is for who lets them write to the topic to prevent.

All of it follows from the records and the user's state, never from when or where they are processed: a record that is
delivered again, or read by another owner, is decided upon alike. Seconds are whole, so nothing depends on rounding.

Not every event that is shed has a dead letter, or the letters were the flood. In each minute of append time the first
:data:`LETTERS` have one, then the 16th, 32nd, 64th and so on, each with how many had none since the one before.
"""

from __future__ import annotations

from stream_app.settings import UserSettings
from stream_app.users.state import Flood

__all__ = ["LETTERS", "MINUTE_S", "REASON", "metered", "told"]

LETTERS = 10
"""Events shed in a minute that have a letter each; beyond, those whose number is a power of two."""
MINUTE_S = 60
REASON = "too_many_events"
"""Of the letters, and of the events in the metric of those without effect."""


def metered(flood: Flood, *, appended_s: float, occurred_s: float, settings: UserSettings) -> tuple[Flood, bool]:
    """What is held of a user after one more event, and whether it is shed.

    Over any events of a user, at most ``events_burst + 2 * events_per_s * s`` are let through while both clocks advance
    by ``s`` seconds: each may give back its own.

    Args:
        flood: what was held before.
        appended_s: when the broker took the event, seconds since 1970.
        occurred_s: event time, seconds since 1970.
        settings: the bounds.
    """
    rate = settings.events_per_s
    if not rate:
        return flood, False
    events, appended_before, occurred_before, shed, untold = (
        flood.events,
        flood.appended_s,
        flood.occurred_s,
        flood.shed,
        flood.untold,
    )
    # Clocks of a user never run backwards: a late record finds things as the latest one left them.
    appended, occurred = max(int(appended_s), appended_before), max(int(occurred_s), occurred_before)
    events = max(events - rate * max(appended - appended_before, occurred - occurred_before), 0)
    if shed and appended // MINUTE_S != appended_before // MINUTE_S:
        shed = 0
    full = events >= settings.events_burst
    if full:
        shed += 1
        untold = 0 if _has_letter(shed) else untold + 1
    else:
        events += 1
    return Flood(events, appended, occurred, shed, untold), full


def told(before: Flood, after: Flood) -> int | None:
    """Of an event that was shed between the two: how many were shed without a letter since the last one that had one,
    when this one has; else None."""
    return before.untold if _has_letter(after.shed) else None


def _has_letter(number: int) -> bool:
    return number <= LETTERS or number & (number - 1) == 0
