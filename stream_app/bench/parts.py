"""A batch computed as the interactions agent does: long ones in parts, and each of their users ranked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

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
    if len(events) <= size:
        return stage.process(events, states, now=now)
    whole, known = StageResult(), dict(states)
    for start in range(0, len(events), size):
        result = stage.process(events[start : start + size], known, now=now, refresh=False)
        known.update(result.states)
        whole.states.update(result.states)
        whole.partitions.update(result.partitions)
        for source, transitions in result.transitions.items():
            whole.transitions[source] += transitions
        for source, examples in result.examples.items():
            whole.examples[source] += examples
        for why, count in result.skipped.items():
            whole.skipped[why] = whole.skipped.get(why, 0) + count
        for user_id, sourced in result.due.items():
            whole.due.pop(user_id, None)
            whole.due[user_id] = sourced
    due = iter(whole.due.items())
    while part := dict(islice(due, size)):
        whole.slates += stage.refresh(part, whole.states, now=now)
    return whole
