"""The composition root: parts start in order, stop whatever happens, and a part that fails ends the process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from stream_app.app import ROLES, Role, Tailrace, stop_on_signals
from stream_app.errors import SettingsError, TailraceError
from stream_app.settings import Settings, load_settings
from tests.waiting import eventually

NOBODY = "127.0.0.1:1"
"""Where nothing listens."""


def make_settings(**overrides: object) -> Settings:
    groups = {"metrics": {"port": 0}, "replica": {"directory": "off"}, "delivery": {"retry_max_s": 0.05}, **overrides}
    return load_settings(kafka=NOBODY, redis=f"redis://{NOBODY}/0", **groups)


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def ask(port: int, probe: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{probe}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, json.load(answer)


def test_roles_are_started_in_the_order_that_feeds_the_others():
    async def ordered() -> list[str]:
        return list(Tailrace(make_settings(), ["interactions", "items", "catalogue"]).roles)

    assert asyncio.run(ordered()) == ["catalogue", "items", "interactions"]
    assert set(ROLES) == {"catalogue", "items", "ranker", "interactions"}


async def test_without_a_broker_it_waits_tells_so_by_its_metrics_and_stops_when_told():
    tailrace, stop = Tailrace(make_settings(), ROLES), asyncio.Event()
    running = asyncio.create_task(tailrace.run(stop))
    port = await eventually(lambda: tailrace.metrics_port, what="the metrics endpoint comes first")
    text = await asyncio.to_thread(scrape, port)
    assert "tailrace_ready 0.0" in text
    await eventually(
        lambda: tailrace.metrics.registry.get_sample_value("tailrace_retries_total", {"what": f"Kafka at {NOBODY}"})
    )
    assert not tailrace.ready.is_set()
    assert not running.done()
    stop.set()
    await asyncio.wait_for(running, 10)
    with pytest.raises((OSError, urllib.error.URLError)):
        await asyncio.to_thread(scrape, port)


async def test_without_a_broker_it_is_alive_not_ready_and_says_why():
    settings = make_settings(health={"interval_s": 0.05, "unready_after_s": 0})
    tailrace, stop = Tailrace(settings, ROLES), asyncio.Event()
    running = asyncio.create_task(tailrace.run(stop))
    port = await eventually(lambda: tailrace.metrics_port)

    async def why() -> Any:
        status, told = await asyncio.to_thread(ask, port, "ready")
        assert (status, told["ok"]) == (503, False)
        return told["checks"] if not told["checks"]["services"]["ok"] else None

    checks = await eventually(why, what="it waits for the broker")
    assert f"Kafka at {NOBODY}" in checks["services"]["detail"]
    assert not checks["running"]["ok"]
    assert await asyncio.to_thread(ask, port, "live") == (200, tailrace.health.report("live")[1])
    status, told = await asyncio.to_thread(ask, port, "started")
    assert status == 503
    assert set(told["checks"]) == {"roles", "replica", *(f"group {role}" for role in ROLES)}
    text = await asyncio.to_thread(scrape, port)
    assert 'tailrace_health{check="services",probe="ready"} 0.0' in text
    assert f'tailrace_waiting_seconds{{what="Kafka at {NOBODY}"}}' in text
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_the_log_says_where_it_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stream_app.app._log", structlog.get_logger())
    tailrace, stop = Tailrace(make_settings(), []), asyncio.Event()
    with structlog.testing.capture_logs() as logs:
        running = asyncio.create_task(tailrace.run(stop))
        port = await eventually(lambda: tailrace.metrics_port)
        stop.set()
        await asyncio.wait_for(running, 10)
    (line,) = [line for line in logs if line["event"] == "health and metrics"]
    for name in ("live", "ready", "started", "metrics"):
        assert line[name] == f"http://127.0.0.1:{port}/{name}"


async def test_a_look_that_fails_ends_the_process_and_says_so(monkeypatch: pytest.MonkeyPatch):
    def fails(**_: object) -> None:
        raise ValueError("cannot look")

    async def works(self: Tailrace) -> None:
        self._watch_health()
        await self._watch(SimpleNamespace(failed=asyncio.get_running_loop().create_future()))

    monkeypatch.setattr("stream_app.app.look", fails)
    monkeypatch.setattr(Tailrace, "_work", works)
    with pytest.raises(TailraceError, match="health cannot be looked at: ValueError: cannot look"):
        await asyncio.wait_for(Tailrace(make_settings(), []).run(asyncio.Event()), 10)


async def test_told_to_stop_before_it_began_it_does_not_begin():
    stop = asyncio.Event()
    stop.set()
    await asyncio.wait_for(Tailrace(make_settings(), ROLES).run(stop), 10)


async def test_a_metrics_port_that_is_taken_is_an_error_that_names_it():
    first, stop = Tailrace(make_settings(), []), asyncio.Event()
    running = asyncio.create_task(first.run(stop))
    port = await eventually(lambda: first.metrics_port)
    second = Tailrace(make_settings(metrics={"port": port}), [])
    try:
        with pytest.raises(TailraceError, match=f"metrics.port.*{port}"):
            await asyncio.wait_for(second.run(asyncio.Event()), 10)
    finally:
        stop.set()
        await asyncio.wait_for(running, 10)


async def test_settings_that_only_show_at_start_end_it_with_their_name():
    settings = make_settings(connection={"security_protocol": "SASL_PLAINTEXT"})
    with pytest.raises(SettingsError, match=r"connection\.username"):
        await asyncio.wait_for(Tailrace(settings, ["items"]).run(asyncio.Event()), 10)


@pytest.mark.parametrize("role", ["catalogue", "interactions"])
@pytest.mark.parametrize("encoder", [{"model": "/models/gone"}, {"adapter": "/models/gone"}])
async def test_a_model_that_is_not_here_is_said_though_no_broker_answers(
    role: Role, encoder: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stream_app.app._log", structlog.get_logger())
    monkeypatch.setattr("stream_app.app._RECORD_WITHIN_S", 0.1)
    with structlog.testing.capture_logs() as logs, pytest.raises(SettingsError, match="/models/gone"):
        await asyncio.wait_for(Tailrace(make_settings(encoder=encoder), [role]).run(asyncio.Event()), 10)
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["event"] == "the encoder's settings cannot be used"
    assert "/models/gone" in line["error"]


async def test_who_embeds_nothing_needs_no_model():
    settings = make_settings(encoder={"model": "/models/gone"})
    tailrace, stop = Tailrace(settings, ["items", "ranker"]), asyncio.Event()
    running = asyncio.create_task(tailrace.run(stop))
    what = {"what": f"Kafka at {NOBODY}"}
    await eventually(lambda: tailrace.metrics.registry.get_sample_value("tailrace_retries_total", what))
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_sigterm_and_sigint_set_the_event():
    stop = asyncio.Event()
    stop_on_signals(stop)
    loop = asyncio.get_running_loop()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 5)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGINT)
