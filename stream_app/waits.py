"""What a process waits for at the moment because it is away: told by whoever waits, read by health and metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = ["Wait", "Waits"]


class Waits(Collector):
    """Open waits by what is waited for, and the metric of them. Safe to use from several threads.

    Args:
        registry: that shows the metric.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, dict[object, tuple[float, str]]] = {}
        registry.register(self)

    @contextmanager
    def waiting(self) -> Iterator[Wait]:
        """Somebody who may have to wait; within the context, :meth:`Wait.failed` says for what."""
        wait = Wait(self)
        try:
            yield wait
        finally:
            self._close(wait)

    def now(self) -> dict[str, str]:
        """What is waited for, and how it failed the last time."""
        with self._lock:
            return {what: next(reversed(waits.values()))[1] for what, waits in self._open.items()}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For Prometheus."""
        family = GaugeMetricFamily(
            "tailrace_waiting_seconds",
            "For how long what is away has been waited for.",
            labels=["what"],
        )
        now = time.monotonic()
        with self._lock:
            for what, waits in self._open.items():
                family.add_metric([what], max(now - began for began, _ in waits.values()))
        yield family

    def _note(self, wait: Wait, what: str, why: str) -> None:
        with self._lock:
            waits = self._open.setdefault(what, {})
            began, _ = waits.pop(wait, (time.monotonic(), ""))
            waits[wait] = began, why

    def _close(self, wait: Wait) -> None:
        with self._lock:
            for what in [what for what, waits in self._open.items() if wait in waits]:
                del self._open[what][wait]
                if not self._open[what]:
                    del self._open[what]


class Wait:
    """One of those who may have to wait."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits

    def failed(self, what: str, error: BaseException) -> None:
        """It is away, and is tried again."""
        self._waits._note(self, what, f"{type(error).__name__}: {error}")
