"""The health of a process between its event loop and those who ask: since when, in which words, from which thread."""

from __future__ import annotations

import asyncio
import json

import pytest

from stream_app.health import health as module
from stream_app.health.health import Health
from stream_app.health.state import RoleSeen, Seen
from stream_app.settings import HealthSettings

EPOCH = 1_700_000_000.0
WELL = Seen(expected=("items",), roles=(RoleSeen(name="items", joined=True),), complete=True)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(clock: Clock, **limits: float) -> Health:
    return Health(HealthSettings(**limits), clock=clock, wall=lambda: EPOCH + clock.now)


def test_an_answer_says_of_each_check_whether_since_when_and_what():
    clock = Clock()
    health = made(clock, loop_s=30)
    clock.now = 110.0
    health.observe(WELL)
    clock.now = 150.0
    ok, told = health.report("live")
    assert not ok
    assert json.loads(json.dumps(told)) == told
    assert (told["probe"], told["ok"]) == ("live", False)
    assert set(told["checks"]) == {"loop", "engine items"}
    assert told["checks"]["engine items"]["since"] == "2023-11-14T22:15:10+00:00"
    assert told["checks"]["loop"]["since"] == "2023-11-14T22:15:50+00:00"
    assert "has not turned for 40 s" in told["checks"]["loop"]["detail"]
    clock.now = 170.0
    assert health.report("live")[1]["checks"]["loop"]["since"] == "2023-11-14T22:15:50+00:00", "the same red"
    health.observe(WELL)
    ok, told = health.report("live")
    assert ok
    assert told["checks"]["loop"]["since"] == "2023-11-14T22:16:10+00:00"


def test_the_metric_says_the_same():
    clock = Clock()
    health = made(clock, loop_s=30)
    health.observe(WELL)
    assert dict(health.samples())["live", "loop"] == 1.0
    clock.now += 31
    samples = dict(health.samples())
    assert samples["live", "loop"] == samples["ready", "loop"] == 0.0
    assert samples["started", "group items"] == 1.0


def test_long_errors_of_others_are_cut():
    clock = Clock()
    health = made(clock)
    health.observe(Seen(encoders="x" * 10_000))
    assert len(health.report("ready")[1]["checks"]["encoders"]["detail"]) == 600


def test_compiling_is_told_to_the_judge(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    health = made(clock, loop_s=30)
    health.observe(WELL)
    clock.now += 31
    monkeypatch.setattr(module, "compiling", lambda: True)
    assert health.report("live")[0]
    monkeypatch.setattr(module, "compiling", lambda: False)
    assert not health.report("live")[0]


def test_told_to_stop_it_is_not_ready_at_once():
    health = made(Clock())
    health.observe(WELL)
    assert health.report("ready")[0]
    health.stop()
    for _ in range(2):
        assert health.report("live")[0]
        assert not health.report("ready")[0]
        health.observe(WELL)  # It is looked at until it has ended.


async def test_it_looks_again_and_again_and_a_look_that_fails_is_raised():
    looks = []
    health = made(Clock(), interval_s=0.05)

    def look() -> Seen:
        looks.append(WELL)
        if len(looks) == 3:
            raise ValueError("cannot look")
        return WELL

    with pytest.raises(ValueError, match="cannot look"):
        await asyncio.wait_for(health.watch(look), 10)
    assert health.report("started")[0]
