"""Waiting for a service that is away: unlimited in time, bounded in rate, never silent, never losing the work.

An outage slows consumption (back-pressure); it is no reason to drop or to dead-letter anything.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TypeVar

from stream_app.logs import get_logger
from stream_app.metrics import Metrics
from stream_app.settings import DeliverySettings
from stream_app.waits import Wait

__all__ = ["until_it_works"]

T = TypeVar("T")
_log = get_logger(__name__)
_REPORT_EVERY_S = 5.0


async def until_it_works(
    attempt: Callable[[], Awaitable[T]],
    *,
    what: str,
    transient: tuple[type[BaseException], ...],
    settings: DeliverySettings,
    metrics: Metrics | None = None,
) -> T:
    """The result of ``attempt``, tried again after every ``transient`` error with growing waits and jitter.

    Says at the first failure and then every few seconds what it is waiting for, and when it is over; meanwhile it
    stands in ``metrics.waiting``. Errors that are not transient pass through.
    """
    with nullcontext() if metrics is None else metrics.waiting.waiting() as wait:
        return await _until_it_works(attempt, what, transient, settings, metrics, wait)


async def _until_it_works(
    attempt: Callable[[], Awaitable[T]],
    what: str,
    transient: tuple[type[BaseException], ...],
    settings: DeliverySettings,
    metrics: Metrics | None,
    wait: Wait | None,
) -> T:
    wait_s = settings.retry_min_s
    loop = asyncio.get_running_loop()
    started = reported = 0.0
    while True:
        try:
            result = await attempt()
        except transient as error:
            now = loop.time()
            started = started or now
            if metrics is not None:
                metrics.retries.labels(what).inc()
            if wait is not None:
                wait.failed(what, error)
            if not reported or now - reported >= _REPORT_EVERY_S:
                reported = now
                why = f"{type(error).__name__}: {error}"
                _log.warning("waiting", what=what, for_s=round(now - started, 1), error=why)
        else:
            if reported:
                _log.info("resumed", what=what, after_s=round(loop.time() - started, 1))
            return result
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
        wait_s = min(wait_s * 2, settings.retry_max_s)
