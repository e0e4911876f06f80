"""The health of a process: looked at on its event loop, asked for from any thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from stream_app.compiled import compiling
from stream_app.health.judging import PROBES, Check, Probe, judge
from stream_app.health.state import Seen, State, observe, stopped
from stream_app.settings import HealthSettings

__all__ = ["Health"]

_DETAIL_CHARS = 600
"""What an answer says of a check, at most: errors of others are in it."""


class Health:
    """Folds looks at the process, and answers what they amount to.

    Args:
        limits: what is too long, and too far behind.
        clock: seconds of a clock that never goes back.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        limits: HealthSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._wall = wall
        # Replaced as a whole: other threads see the one before or the one after.
        self._state = State(at=clock())
        self._stopping = False
        self._lock = threading.Lock()
        self._changed: dict[tuple[Probe, str], tuple[bool, float]] = {}

    def observe(self, seen: Seen) -> None:
        """Take what a look on the event loop showed."""
        state = observe(self._state, seen, self._clock())
        self._state = stopped(state) if self._stopping else state
        self._checks()

    def stop(self) -> None:
        """The process was told to stop: nobody should count on it any more."""
        self._stopping = True
        self._state = stopped(self._state)

    async def watch(self, look: Callable[[], Seen]) -> None:
        """Look at the process for ever."""
        while True:
            self.observe(look())
            await asyncio.sleep(self._limits.interval_s)

    def report(self, probe: Probe) -> tuple[bool, dict[str, Any]]:
        """Whether the question is answered with yes, and the answer in words, for JSON."""
        checks = self._checks()[probe]
        ok = all(check.ok for check, _ in checks)
        told = {check.name: _told(check, since) for check, since in checks}
        return ok, {"probe": probe, "ok": ok, "checks": told}

    def samples(self) -> Iterator[tuple[tuple[str, str], float]]:
        """Each check of each question, with 1 or 0 for a metric."""
        for probe, checks in self._checks().items():
            for check, _ in checks:
                yield (probe, check.name), float(check.ok)

    def _checks(self) -> dict[Probe, list[tuple[Check, datetime]]]:
        """Every check, and since when it is so."""
        with self._lock:
            now = self._clock()
            judged = judge(self._state, self._limits, now, compiling=compiling())
            before, self._changed = self._changed, {}
            for probe in PROBES:
                for check in judged[probe]:
                    key = probe, check.name
                    was = before.get(key)
                    self._changed[key] = was if was is not None and was[0] == check.ok else (check.ok, now)
            ahead = self._wall() - now
            return {
                probe: [
                    (check, datetime.fromtimestamp(self._changed[probe, check.name][1] + ahead, UTC))
                    for check in judged[probe]
                ]
                for probe in PROBES
            }


def _told(check: Check, since: datetime) -> dict[str, Any]:
    return {"ok": check.ok, "since": since.isoformat(timespec="seconds"), "detail": check.detail[:_DETAIL_CHARS]}
