"""One look at a process: what :mod:`~stream_app.health.state` is told. On the event loop; quick, and asks nobody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stream_app.agents.base import Agent
from stream_app.health.ends import Ends
from stream_app.health.state import ReplicaSeen, Seen
from stream_app.replicas.replica import Replica
from stream_app.waits import Waits
from workers.vector_pool import VectorPool

__all__ = ["look"]


def look(
    *,
    expected: Sequence[str],
    agents: Iterable[Agent],
    beside: Iterable[Agent],
    replica: Replica | None,
    pool: VectorPool | None,
    ends: Ends,
    waits: Waits,
    broker: str,
    complete: bool,
) -> Seen:
    """What can be seen now.

    Args:
        expected: the roles the process was started for.
        agents: of these, those there are.
        beside: agents of vector spaces that are kept beside.
        replica: of the interactions role.
        pool: the encoders of the served space.
        ends: where topics end, and whether the broker answers.
        waits: what is waited for.
        broker: its name where it does not answer.
        complete: every role was started.
    """
    roles = [agent.seen(ends.known) for agent in agents]
    roles += [agent.seen(ends.known, counts=False) for agent in beside]
    seen_replica = None
    if replica is not None:
        positions = replica.read_through()
        known = None if ends.away else {place: end for place, end in ends.known.items() if place in positions}
        seen_replica = ReplicaSeen(caught_up=replica.ready.is_set(), positions=positions, ends=known)
    away = waits.now()
    if ends.away:
        away.setdefault(broker, ends.away)
    error = None if pool is None else pool.error
    return Seen(
        expected=tuple(expected),
        roles=tuple(roles),
        replica=seen_replica,
        needs_replica="interactions" in expected,
        away=away,
        encoders="" if error is None else str(error),
        complete=complete,
    )
