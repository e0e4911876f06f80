"""What is known of a process from all looks at it: a fold over what each of them showed. No clock, no I/O.

Progress of a consumer is that of offsets: the position of the client in the log, which also passes what is no record
(transaction markers, what compaction removed), and the offset before which everything is acknowledged. How long it has
not moved counts only where records wait, and begins anew while something is away.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

__all__ = ["ReplicaSeen", "RoleSeen", "Seen", "State", "Still", "StreamSeen", "observe", "records_behind", "stopped"]

_PENDING = 256
"""Ends of topics that the replica has not reached yet, at most; more would only say the same more finely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSeen:
    """The records on their way to one agent: those of its topics' partitions that this process has.

    Attributes:
        name: of the consumer.
        unread: records on the broker that the client has not fetched (count, by offsets).
        position: sum of the client's positions (offsets).
        undone: records handed to the agent and not acknowledged (count, by offsets).
        done: sum of the offsets before which everything is acknowledged.
        work: grows with work that shows before it is acknowledged (count).
        busy: long work that records are known to wait for; "" for none.
        patience_s: so long the settings themselves may let records wait unacknowledged (seconds).
    """

    name: str
    unread: int = 0
    position: int = 0
    undone: int = 0
    done: int = 0
    work: int = 0
    busy: str = ""
    patience_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSeen:
    """One consumer group of the process.

    Attributes:
        name: of the role.
        joined: it is a member, and no partitions are being moved.
        dead: what of it has ended though the process runs; "" for nothing.
        streams: one for each of its agents.
        counts: whether the process is there for it: not so for a vector space that is built beside.
    """

    name: str
    joined: bool = False
    dead: str = ""
    streams: tuple[StreamSeen, ...] = ()
    counts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSeen:
    """The local copy.

    Attributes:
        caught_up: it has been once.
        positions: the next offset to be applied, by partition.
        ends: where the partitions end, as the broker said last; None when it did not answer.
    """

    caught_up: bool = False
    positions: Mapping[Hashable, int] = field(default_factory=dict)
    ends: Mapping[Hashable, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look at the process shows.

    Attributes:
        expected: the roles it was started for.
        roles: those there are by now.
        replica: None where no role needs one, or it is not there yet.
        needs_replica: whether a role needs one.
        away: what does not answer, and how it fails.
        encoders: why the encoders that are needed gave up; "" while they work, or there are none.
        complete: every role was started.
        stopping: the process was told to stop.
    """

    expected: tuple[str, ...] = ()
    roles: tuple[RoleSeen, ...] = ()
    replica: ReplicaSeen | None = None
    needs_replica: bool = False
    away: Mapping[str, str] = field(default_factory=dict)
    encoders: str = ""
    complete: bool = False
    stopping: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Still:
    """What did not move, and since when (seconds)."""

    marks: tuple[object, ...]
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is known from all looks at the process. All times are seconds of one clock that never goes back.

    Attributes:
        at: of the last look; looks are taken on the event loop, so it says when that turned last.
        seen: what it showed.
        since: since when something holds, by what.
        reading, acknowledging: by consumer, since when it moves no more though records wait.
        joined: roles that have had partitions, or been told that there are none.
        started: whether the process has started.
        pending: when the broker said where the topics end, and where; of the ends that the replica has not reached, the
            oldest first.
    """

    at: float
    seen: Seen = field(default_factory=Seen)
    since: Mapping[tuple[str, str], float] = field(default_factory=lambda: MappingProxyType({}))
    reading: Mapping[str, Still] = field(default_factory=lambda: MappingProxyType({}))
    acknowledging: Mapping[str, Still] = field(default_factory=lambda: MappingProxyType({}))
    joined: frozenset[str] = frozenset()
    started: bool = False
    pending: tuple[tuple[float, Mapping[Hashable, int]], ...] = ()


def observe(state: State, seen: Seen, now: float) -> State:
    """The state after another look.

    Args:
        state: before.
        seen: what the look showed.
        now: when it was taken (seconds).
    """
    streams = [stream for role in seen.roles for stream in role.streams]
    excused = bool(seen.away)
    reading = {
        one.name: _still(state.reading.get(one.name), _marks(one, one.position), now, free=excused or one.unread <= 0)
        for one in streams
    }
    acknowledging = {
        one.name: _still(state.acknowledging.get(one.name), _marks(one), now, free=excused or one.undone <= 0)
        for one in streams
    }
    joined = state.joined | {role.name for role in seen.roles if role.joined}
    caught_up = not seen.needs_replica or (seen.replica is not None and seen.replica.caught_up)
    return State(
        at=now,
        seen=seen,
        since={condition: state.since.get(condition, now) for condition in _conditions(seen)},
        reading=reading,
        acknowledging=acknowledging,
        joined=joined,
        started=state.started or (seen.complete and caught_up and joined.issuperset(seen.expected)),
        pending=_pending(state.pending, seen.replica, now),
    )


def stopped(state: State) -> State:
    """The same, of a process that was told to stop."""
    return replace(state, seen=replace(state.seen, stopping=True))


def _marks(stream: StreamSeen, *more: int) -> tuple[object, ...]:
    # To begin or to end something long is progress, too.
    return (*more, stream.done, stream.work, stream.busy)


def _still(before: Still | None, marks: tuple[object, ...], now: float, *, free: bool) -> Still:
    if free or before is None or before.marks != marks:
        return Still(marks=marks, since=now)
    return before


def _conditions(seen: Seen) -> Iterable[tuple[str, str]]:
    """What is to be known since when it holds."""
    yield from (("away", what) for what in seen.away)
    yield from (("apart", role.name) for role in seen.roles if not role.joined)
    yield from (("dead", role.name) for role in seen.roles if role.dead)


def _pending(
    before: tuple[tuple[float, Mapping[Hashable, int]], ...], replica: ReplicaSeen | None, now: float
) -> tuple[tuple[float, Mapping[Hashable, int]], ...]:
    if replica is None:
        return ()
    ends = before
    if replica.ends is not None and len(before) < _PENDING and (not before or before[-1][1] != replica.ends):
        ends = (*before, (now, replica.ends))
    return tuple((at, there) for at, there in ends if records_behind(replica.positions, there))


def records_behind(positions: Mapping[Hashable, int], ends: Mapping[Hashable, int]) -> int:
    """Records before the ends that were not applied; partitions that are read no more do not count."""
    return sum(max(0, end - positions.get(place, end)) for place, end in ends.items())
