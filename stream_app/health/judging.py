"""Whether a process is healthy, judged from what is known of it and from the time; no clock, no I/O.

:func:`judge` says what a :class:`~stream_app.health.state.State` amounts to at a time, for three questions:

``live``
    Would ending the process and starting it again help? Yes when its event loop does not turn, when a consumer makes no
    progress through its offsets, when the machinery around an agent has ended. No when a broker or Redis is away: all
    processes would be restarted at once, for nothing. So while something is away no consumer is blamed, and when it is
    back each has its whole time again.
``ready``
    Can the process be counted on now? Not before it has caught up, and not when it has fallen behind or waits.
``started``
    Has every role had its first partitions (or been told that there are none for it), and has the replica caught up?
    Once so, always so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from stream_app.health.state import State, StreamSeen, records_behind
from stream_app.settings import HealthSettings

__all__ = ["PROBES", "Check", "Probe", "judge"]

Probe = Literal["live", "ready", "started"]
PROBES: tuple[Probe, ...] = get_args(Probe)

_NAMED = 3
"""What is away is named so often in a sentence, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: stable; a label of a metric.
        ok: whether it is as it should be.
        detail: a sentence: what is, and where it is wrong what to do.
    """

    name: str
    ok: bool
    detail: str


def judge(
    state: State, limits: HealthSettings, now: float, *, compiling: bool = False
) -> dict[Probe, tuple[Check, ...]]:
    """The checks behind each question. A question is answered with yes when all of its checks are ok.

    Args:
        limits: what is too long, and too far behind.
        now: seconds of the clock of ``state``, later than its last look when the event loop does not turn. What is not
            about the loop is judged as of that look.
        compiling: functions are being compiled at this moment, perhaps on the loop.
    """
    live = (_loop(state, limits, now, compiling=compiling), *_engines(state, limits), *_consumers(state, limits))
    ready = (
        *live,
        _start(state),
        _services(state, limits),
        *_groups(state, limits),
        *_replica(state, limits),
        _encoders(state),
    )
    return {"live": live, "ready": ready, "started": _started(state)}


def _records(count: int) -> str:
    return f"{count} record{'' if count == 1 else 's'}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _loop(state: State, limits: HealthSettings, now: float, *, compiling: bool) -> Check:
    late = max(0.0, now - state.at)
    long_work = compiling or not state.started
    limit = max(limits.loop_s, limits.long_work_s) if long_work else limits.loop_s
    if late <= limit:
        return Check(name="loop", ok=True, detail="The event loop turns.")
    return Check(
        name="loop",
        ok=False,
        detail=f"The event loop has not turned for {_seconds(late)} "
        f"(health.{'long_work_s' if long_work else 'loop_s'} {limit:g}): something computes or waits on it without "
        "end. Start the process again; nothing it holds is lost. py-spy dump --pid says what it does.",
    )


def _engines(state: State, limits: HealthSettings) -> Iterable[Check]:
    for role in state.seen.roles:
        name = f"engine {role.name}"
        dead_s = state.at - state.since.get(("dead", role.name), state.at)
        if role.dead and dead_s >= limits.dead_s:
            yield Check(
                name=name,
                ok=False,
                detail=f"{role.dead}, {_seconds(dead_s)} ago (health.dead_s {limits.dead_s:g}), and nothing has "
                "started it again. Start the process again; the log says why it ended.",
            )
        else:
            yield Check(name=name, ok=True, detail="Its consumer and its agents run.")


def _consumers(state: State, limits: HealthSettings) -> Iterable[Check]:
    for role in state.seen.roles:
        for stream in role.streams:
            yield _consumer(state, stream, limits)


def _consumer(state: State, stream: StreamSeen, limits: HealthSettings) -> Check:
    name = f"consumer {stream.name}"
    limit = limits.long_work_s if stream.busy else limits.stalled_s + stream.patience_s
    stalled = {
        f"{_records(stream.unread)} on the broker, and nothing was fetched": state.reading[stream.name].since,
        f"{_records(stream.undone)} in the process, and nothing was acknowledged": state.acknowledging[
            stream.name
        ].since,
    }
    what, since = min(stalled.items(), key=lambda item: item[1])
    still_s = state.at - since
    if still_s > limit:
        doing = f"It is at {stream.busy} (health.long_work_s {limits.long_work_s:g}). " if stream.busy else ""
        return Check(
            name=name,
            ok=False,
            detail=f"{what} for {_seconds(still_s)}, more than {limit:g} (health.stalled_s {limits.stalled_s:g}), "
            f"though nothing is known to be away. {doing}Start the process again; what waits is delivered again.",
        )
    if state.seen.away and stream.unread + stream.undone > 0:
        detail = f"{_records(stream.unread + stream.undone)} with it for what is away."
    elif stream.busy:
        detail = f"It is at {stream.busy}; records wait meanwhile."
    else:
        detail = "It moves, or nothing waits for it."
    return Check(name=name, ok=True, detail=detail)


def _start(state: State) -> Check:
    if state.seen.stopping:
        return Check(name="running", ok=False, detail="The process was told to stop, and hands over.")
    if not state.started:
        return Check(name="running", ok=False, detail="The process has not started yet; /started says what it lacks.")
    return Check(name="running", ok=True, detail="The process has started.")


def _services(state: State, limits: HealthSettings) -> Check:
    away = {what: state.at - state.since[("away", what)] for what in state.seen.away}
    long = sorted((what for what in away if away[what] >= limits.unready_after_s), key=lambda what: -away[what])
    if not long:
        return Check(name="services", ok=True, detail="Broker and Redis answer.")
    named = "; ".join(f"{what} ({_seconds(away[what])}): {state.seen.away[what]}" for what in long[:_NAMED])
    more = f"; and {len(long) - _NAMED} more" if len(long) > _NAMED else ""
    return Check(
        name="services",
        ok=False,
        detail=f"Waits for {named}{more}. Bring it back; the process goes on by itself, and starting it again does "
        "not help.",
    )


def _groups(state: State, limits: HealthSettings) -> Iterable[Check]:
    for role in state.seen.roles:
        if not role.counts:
            continue
        name = f"group {role.name}"
        apart_s = state.at - state.since.get(("apart", role.name), state.at)
        if role.joined or (role.name in state.joined and apart_s < limits.unready_after_s):
            yield Check(name=name, ok=True, detail="It is a member of its consumer group.")
        else:
            yield Check(
                name=name,
                ok=False,
                detail=f"It has not been a member of its consumer group for {_seconds(apart_s)}. It joins by itself; "
                "where that does not end, look for members that come and go, and at the rights on the group.",
            )


def _replica(state: State, limits: HealthSettings) -> Iterable[Check]:
    if not state.seen.needs_replica:
        return
    replica = state.seen.replica
    if replica is None or not replica.caught_up:
        yield Check(
            name="replica",
            ok=False,
            detail="The local copy of catalogue, vectors and statistics has not caught up yet. It does by itself; "
            "replica.directory keeps a snapshot that makes the next start quick.",
        )
        return
    behind = records_behind(replica.positions, state.pending[-1][1]) if state.pending else 0
    behind_s = state.at - state.pending[0][0] if state.pending else 0.0
    if behind <= limits.replica_records and behind_s <= limits.replica_s:
        yield Check(name="replica", ok=True, detail=f"The local copy is {_records(behind)} behind the topics.")
        return
    yield Check(
        name="replica",
        ok=False,
        detail=f"The local copy is {_records(behind)} and {_seconds(behind_s)} behind the topics "
        f"(health.replica_records {limits.replica_records}, health.replica_s {limits.replica_s:g}): slates may "
        "lack new items and show withdrawn ones. It catches up by itself when the processor "
        "has time; where it does not, start the process again.",
    )


def _encoders(state: State) -> Check:
    if not state.seen.encoders:
        return Check(name="encoders", ok=True, detail="The encoders work, or none is needed.")
    return Check(name="encoders", ok=False, detail=f"The encoders gave up: {state.seen.encoders}")


def _started(state: State) -> tuple[Check, ...]:
    def check(name: str, ok: bool, waits_for: str) -> Check:
        done = state.started or ok
        return Check(name=name, ok=done, detail="Done." if done else waits_for)

    seen = state.seen
    checks = [
        check(
            f"group {role}",
            role in state.joined,
            "It has not joined its consumer group yet: the process connects, reads or compiles before it does.",
        )
        for role in seen.expected
    ]
    if seen.needs_replica:
        caught_up = seen.replica is not None and seen.replica.caught_up
        checks.append(check("replica", caught_up, "The local copy has not caught up yet."))
    waits = f" It waits for {', '.join(sorted(seen.away)[:_NAMED])}." if seen.away else ""
    checks.append(check("roles", seen.complete, f"Not every role has been started yet.{waits}"))
    return tuple(checks)
