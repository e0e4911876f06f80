"""What goes wrong, and when: a seed decides all of it, and the same seed decides the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ALL_KINDS", "BROKER", "REDIS", "Fault", "Kind", "make_schedule"]

BROKER, REDIS = "broker", "redis"


class Kind(StrEnum):
    """What can go wrong. All of it heals."""

    KILL = "kill"
    """SIGKILL; the same command starts again."""
    TERMINATE = "terminate"
    """SIGTERM: it hands over; the same command starts again."""
    SUSPEND = "suspend"
    """SIGSTOP, then SIGCONT: for the group it is dead, and then it is back with what it knew."""
    DISK_FULL = "disk-full"
    """Nothing more than a few bytes can be written to a file: snapshots fail in the middle."""
    CLOCK = "clock"
    """The wall clock steps, and back."""
    SLOW_BROKER = "slow-broker"
    """Whatever goes between process and broker comes late."""
    CUT_BROKER = "cut-broker"
    """Connections to the broker end, and new ones are refused."""
    SLOW_REDIS = "slow-redis"
    CUT_REDIS = "cut-redis"
    STALL_REDIS = "stall-redis"
    """Connections to Redis stay open, and nothing comes."""
    BROKER_KILL = "broker-kill"
    BROKER_RESTART = "broker-restart"
    BROKER_SUSPEND = "broker-suspend"
    REDIS_KILL = "redis-kill"
    """SIGKILL; what was acknowledged is in its append-only file."""
    REDIS_RESTART = "redis-restart"
    REDIS_SUSPEND = "redis-suspend"


ALL_KINDS = tuple(Kind)
_OF_BROKER = frozenset({Kind.BROKER_KILL, Kind.BROKER_RESTART, Kind.BROKER_SUSPEND})
_OF_REDIS = frozenset({Kind.REDIS_KILL, Kind.REDIS_RESTART, Kind.REDIS_SUSPEND})
_OF_PROXY = frozenset({Kind.SLOW_BROKER, Kind.CUT_BROKER, Kind.SLOW_REDIS, Kind.CUT_REDIS, Kind.STALL_REDIS})

_SHORT_S, _LONG_S = (0.5, 4.0), (8.0, 12.0)
"""A session ends after 6 s without a heartbeat: one on each side."""
_WEIGHTS = {Kind.KILL: 4.0, Kind.TERMINATE: 2.0, Kind.SUSPEND: 3.0}
"""How often the processes themselves are hit, of one for each other kind."""
_FIRST, _LAST = 0.05, 0.9
"""Shares of the events between which something begins: before the first there is nothing to lose, after the last
nothing would come to show it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: what.
        target: a process by its number (from 0), or ``broker`` or ``redis``.
        after: begins when so many events are sent.
        lasts_s: until it heals (seconds).
        amount: of ``slow-*`` seconds for each piece of data, of ``clock`` seconds of the step; else 0.
    """

    kind: Kind
    target: str
    after: int
    lasts_s: float
    amount: float = 0.0

    def __str__(self) -> str:
        what = {BROKER: "the broker", REDIS: "Redis"}.get(self.target, f"process {self.target}")
        amount = f" by {self.amount:+.3g} s" if self.amount else ""
        return f"{self.kind} of {what}{amount} for {self.lasts_s:.1f} s"


def make_schedule(
    seed: int, *, events: int, processes: int, faults: int, kinds: Sequence[Kind] = ALL_KINDS
) -> tuple[Fault, ...]:
    """What goes wrong in the run of a seed, in order of its beginning.

    Args:
        seed: decides everything.
        events: that are sent.
        processes: that there are; the first one's connections go through proxies.
        faults: how many things go wrong.
        kinds: of which each is one.

    Raises:
        ValueError: without events, processes or kinds.
    """
    if events < 1 or processes < 1 or not kinds:
        raise ValueError(f"{events} events, {processes} processes, {len(kinds)} kinds of faults: at least one of each")
    rng = random.Random(f"{seed} {events} {processes} {faults}")
    chosen = rng.choices(kinds, [_WEIGHTS.get(kind, 1.0) for kind in kinds], k=faults)
    return tuple(
        sorted((_fault(rng, kind, events, processes) for kind in chosen), key=lambda fault: (fault.after, fault.kind))
    )


def _fault(rng: random.Random, kind: Kind, events: int, processes: int) -> Fault:
    target = str(rng.randrange(processes))
    lasts_s, amount = rng.uniform(*_SHORT_S), 0.0
    if kind in _OF_PROXY:
        target = "0"
    elif kind in _OF_BROKER:
        target = BROKER
    elif kind in _OF_REDIS:
        target = REDIS
    if kind is Kind.SUSPEND:
        lasts_s = rng.uniform(*rng.choice((_SHORT_S, _LONG_S)))
    elif kind in {Kind.SLOW_BROKER, Kind.SLOW_REDIS}:
        amount = rng.uniform(0.01, 0.1)
    elif kind in {Kind.DISK_FULL, Kind.CLOCK}:
        lasts_s = rng.uniform(2.0, 10.0)
    if kind is Kind.CLOCK:
        amount = rng.choice((-1, 1)) * rng.uniform(30.0, 7_200.0)
    return Fault(kind, target, max(1, round(events * rng.uniform(_FIRST, _LAST))), lasts_s, amount)
