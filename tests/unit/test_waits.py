"""What is away stands in the waits while somebody waits for it, and not a moment longer."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from stream_app.delivery.retry import until_it_works
from stream_app.metrics import Metrics
from stream_app.settings import DeliverySettings
from stream_app.waits import Waits
from tests.waiting import eventually

SETTINGS = DeliverySettings(retry_min_s=0.001, retry_max_s=0.001)


def seconds(registry: CollectorRegistry, what: str) -> float | None:
    return registry.get_sample_value("tailrace_waiting_seconds", {"what": what})


def test_nothing_is_waited_for_until_it_has_failed():
    waits = Waits(CollectorRegistry())
    with waits.waiting():
        assert waits.now() == {}


def test_it_stands_there_with_its_last_failure_until_the_last_who_waits_has_left():
    registry = CollectorRegistry()
    waits = Waits(registry)
    with waits.waiting() as one:
        one.failed("Redis", OSError("refused"))
        with waits.waiting() as other:
            other.failed("Redis", OSError("no route"))
            one.failed("Redis", OSError("refused again"))
            assert waits.now() == {"Redis": "OSError: refused again"}
        assert waits.now() == {"Redis": "OSError: refused again"}
        held = seconds(registry, "Redis")
        assert held is not None
        assert held >= 0
    assert waits.now() == {}
    assert seconds(registry, "Redis") is None


def test_who_waits_for_one_thing_after_the_other_leaves_both():
    waits = Waits(CollectorRegistry())
    with waits.waiting() as one:
        one.failed("Kafka", OSError("a"))
        one.failed("Redis", OSError("b"))
        assert set(waits.now()) == {"Kafka", "Redis"}
    assert waits.now() == {}


async def test_until_it_works_tells_of_what_it_waits_for_and_of_the_end_of_it():
    metrics, works = Metrics(), asyncio.Event()

    async def attempt() -> str:
        if not works.is_set():
            raise OSError("refused")
        return "there"

    waiting = asyncio.create_task(
        until_it_works(attempt, what="Redis", transient=(OSError,), settings=SETTINGS, metrics=metrics)
    )
    assert await eventually(metrics.waiting.now) == {"Redis": "OSError: refused"}
    works.set()
    assert await waiting == "there"
    assert metrics.waiting.now() == {}


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_nothing_is_left_when_the_waiting_is_given_up(how: str):
    metrics, fails = Metrics(), asyncio.Event()

    async def attempt() -> None:
        if fails.is_set():
            raise ValueError("for good")
        raise OSError("for now")

    waiting = asyncio.create_task(
        until_it_works(attempt, what="Redis", transient=(OSError,), settings=SETTINGS, metrics=metrics)
    )
    await eventually(metrics.waiting.now)
    if how == "cancelled":
        waiting.cancel()
    else:
        fails.set()
    with pytest.raises((asyncio.CancelledError, ValueError)):
        await waiting
    assert metrics.waiting.now() == {}
