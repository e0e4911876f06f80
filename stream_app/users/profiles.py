"""Profiles of ``users.v1``: folded into the user's state, and what they mean when the user is ranked for.

A profile speaks before any event does. What it says in words is the prior of the interest vectors; the items it likes
stand before the user's first event, so they count as events that are older than all others, with links and reasons like
any. Both fade as events come.
"""

from __future__ import annotations

from schemas.messages import User
from stream_app.items.catalogue import label
from stream_app.settings import EventType, UserSettings
from stream_app.textify import Textifier
from stream_app.users.state import Flood, HistoryEntry, Profile, UserState, id_hash

__all__ = ["LIKED", "fold_profile", "profile_of", "with_profile"]

LIKED = "like"
"""The event type (built in) whose weight an item liked in the profile has."""


def profile_of(user: User, settings: UserSettings, textifier: Textifier) -> Profile:
    """What ranking needs of a profile."""
    return Profile(
        texts=textifier.profile(user, max_chars=settings.text_chars),
        liked=tuple(dict.fromkeys(user.liked_items)),
        blocked=tuple(dict.fromkeys(map(id_hash, user.blocked_items))),
        blocked_labels=tuple(
            dict.fromkeys(
                [label("category", name) for name in user.blocked_categories]
                + [label("brand", name) for name in user.blocked_brands]
            )
        ),
        language=user.language or "",
    )


def fold_profile(state: UserState, profile: Profile | None, *, partition: int, offset: int, appended_s: float) -> str:
    """Fold a record of ``users.v1`` into ``state`` (in place).

    Args:
        state: the user's state; :meth:`UserState.copy` it first to keep the old one.
        profile: the new profile; None: forget the user. What stays of a forgotten user are offsets and the time, so
            that events from before, delivered again or late, do not bring anything back.
        partition: partition of ``users.v1`` it came from.
        offset: its offset there.
        appended_s: when the broker took it, seconds since 1970.

    Returns:
        ``replayed`` (the offset was applied before), ``unchanged``, ``changed`` or ``forgotten``.
    """
    if offset <= state.profile_applied.get(partition, -1):
        return "replayed"
    state.profile_applied[partition] = offset
    if profile is None:
        state.history = ()
        state.consumed = {}
        state.hidden = {}
        state.recent_event_ids = {}
        state.events = 0
        state.added = {}
        state.spent = (0.0, 0.0)
        state.seen = {}
        state.seen_spent = (0.0, 0.0)
        state.flood = Flood()
        state.profile = None
        state.forgotten_at = max(state.forgotten_at, appended_s)
        return "forgotten"
    changed = profile != state.profile
    state.profile = profile
    return "changed" if changed else "unchanged"


def with_profile(state: UserState, like: EventType, *, history: int) -> UserState:
    """The state as ranking sees it: the liked items before the first event, and neither they nor the blocked items
    ranked. Nothing is copied when there is no profile.

    Args:
        state: of the user; not changed.
        like: what liking an item means.
        history: events looked at; liked items give way to events beyond it.
    """
    profile = state.profile
    if profile is None or not (profile.liked or profile.blocked):
        return state
    room = max(0, history - len(state.history))
    liked = tuple(HistoryEntry(item_id, LIKED, 0.0, like.weight, -1) for item_id in reversed(profile.liked[:room]))
    known = dict.fromkeys((*map(id_hash, profile.liked), *profile.blocked))
    return UserState(
        state.user_id,
        liked + state.history,
        state.consumed,
        state.hidden | known,
        applied=state.applied,
        events=state.events,
        profile=profile,
    )
