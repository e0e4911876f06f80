"""A batch computed as the interactions agent does: long ones in parts, and each of their users ranked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stream_app.users.stage import SourcedEvent, StageResult, UserStage
from stream_app.users.state import UserState

__all__ = ["in_parts"]


def in_parts(
    stage: UserStage, events: Sequence[SourcedEvent], states: Mapping[str, UserState], *, now: float, size: int
) -> StageResult:
    """What the events amount to.

    Args:
        stage: of the process.
        events: of any users.
        states: of those users; not changed.
        now: wall clock, seconds since 1970.
        size: events and users computed in one go; ``delivery.batch``.
    """
    whole, known = StageResult(), dict(states)
    last = {sourced.event.user_id: place for place, sourced in enumerate(events)}
    for start in range(0, len(events), size):
        part = events[start : start + size]
        users = {sourced.event.user_id for sourced in part}
        due = {user_id: whole.due.pop(user_id) for user_id in [*whole.due] if user_id in users}
        later = {user_id for user_id in users if last[user_id] >= start + size}
        result = stage.process(part, known, now=now, due=due, later=later)
        known.update(result.states)
        whole.add(result)
    return whole
