"""Waiting for what is away: for ever, ever more slowly up to a bound, never in silence, and only for what may pass."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
import structlog

from stream_app.delivery.retry import until_it_works
from stream_app.metrics import Metrics
from stream_app.settings import DeliverySettings

FAST = DeliverySettings(retry_min_s=0.0005, retry_max_s=0.004)


@pytest.fixture(autouse=True)
def fresh_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loggers keep the configuration of their first use, which may have been another test's."""
    monkeypatch.setattr("stream_app.delivery.retry._log", structlog.get_logger())


class Flaky:
    """Fails so many times, then works; notes when it was asked."""

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.failures = failures
        self.error = error or ConnectionError("away")
        self.asked_at: list[float] = []

    async def __call__(self) -> str:
        self.asked_at.append(asyncio.get_running_loop().time())
        if len(self.asked_at) <= self.failures:
            raise self.error
        return "done"


async def wait_for(flaky: Flaky, metrics: Metrics | None = None, settings: DeliverySettings = FAST) -> str:
    return await until_it_works(flaky, what="Redis", transient=(OSError,), settings=settings, metrics=metrics)


async def test_the_result_is_that_of_the_first_try_that_works():
    flaky, metrics = Flaky(7), Metrics()
    assert await wait_for(flaky, metrics) == "done"
    assert len(flaky.asked_at) == 8
    assert metrics.registry.get_sample_value("tailrace_retries_total", {"what": "Redis"}) == 7


async def test_what_works_at_once_is_not_noted():
    metrics = Metrics()
    with structlog.testing.capture_logs() as logs:
        assert await wait_for(Flaky(0), metrics) == "done"
    assert logs == []
    assert metrics.registry.get_sample_value("tailrace_retries_total", {"what": "Redis"}) is None


async def test_an_error_that_does_not_pass_is_raised_at_once():
    flaky = Flaky(5, ValueError("wrong for ever"))
    with pytest.raises(ValueError, match="wrong for ever"):
        await wait_for(flaky)
    assert len(flaky.asked_at) == 1


async def test_waits_grow_to_the_bound_and_not_beyond(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("stream_app.delivery.retry.asyncio.sleep", sleep)
    settings = DeliverySettings(retry_min_s=0.1, retry_max_s=2.0)
    await wait_for(Flaky(12), settings=settings)
    bounds = [min(0.1 * 2**number, 2.0) for number in range(12)]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert len(set(waits[-5:])) > 1, "jitter: many processes must not come back in step"


async def test_it_says_what_it_waits_for_and_when_it_is_over():
    with structlog.testing.capture_logs() as logs:
        await wait_for(Flaky(20))
    assert [line["event"] for line in logs] == ["waiting", "resumed"]
    assert logs[0]["what"] == "Redis"
    assert logs[0]["error"] == "ConnectionError: away"
    assert logs[0]["log_level"] == "warning"


async def test_a_long_outage_is_reported_again_and_again_but_not_at_every_try(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stream_app.delivery.retry._REPORT_EVERY_S", 0.02)
    flaky = Flaky(60)
    with structlog.testing.capture_logs() as logs:
        await wait_for(flaky)
    said = [line["for_s"] for line in logs if line["event"] == "waiting"]
    assert 2 <= len(said) < 30
    assert all(earlier <= later for earlier, later in pairwise(said))


async def test_it_can_be_cancelled_while_it_waits():
    waiting = asyncio.create_task(wait_for(Flaky(10**9)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
