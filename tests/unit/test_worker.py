"""A worker process is told its settings through the environment, and asked how it is over its metrics endpoint."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stream_app.embedded.worker import WorkerProcess, environment
from stream_app.health.endpoints import serve
from stream_app.metrics import Metrics
from stream_app.settings import MetricsSettings, load_settings
from tests.waiting import eventually

OVERRIDES: dict[str, Any] = {
    "kafka": "127.0.0.1:19092",
    "redis": "redis://:se cret@127.0.0.1:1/0",
    "topics": {"prefix": "t-1", "create": False},
    "connection": {"replication_factor": 1, "fetch_max_wait_ms": 10},
    "items": {"half_lives_days": [1.5, 2]},
    "event_types": {"nap": {"weight": 0.5, "negative_below": None}},
    "replica": {"directory": "/tmp/ü x"},
}


def worker_at(port: int, tmp_path: Path) -> WorkerProcess:
    worker = WorkerProcess(["interactions"], overrides={}, directory=tmp_path)
    worker.port = port
    return worker


def test_settings_come_out_of_the_environment_as_they_went_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    expected = load_settings(**OVERRIDES)
    for name, value in environment(OVERRIDES).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == expected


def test_a_worker_inherits_the_environment_but_none_of_our_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TAILRACE_USERS__HISTORY", "3")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    worker = WorkerProcess(["items", "ranker"], overrides={"kafka": "h:1"}, directory=tmp_path)
    worker.port = 15_001
    command = worker._command()
    assert command.env is not None
    assert command.env["SOMETHING_ELSE"] == "kept"
    assert "TAILRACE_USERS__HISTORY" not in command.env
    assert command.env["TAILRACE_KAFKA"] == "h:1"
    assert "15001" in command.env["TAILRACE_METRICS"]
    assert list(command.argv[-4:]) == ["stream_app.cli", "up", "--role", "items,ranker"]


@contextmanager
def served(metrics: Metrics) -> Iterator[int]:
    endpoints = serve(metrics.registry, MetricsSettings(port=0), lambda probe: (probe != "ready", {"probe": probe}))
    assert endpoints is not None
    try:
        yield endpoints.port
    finally:
        endpoints.close()


async def test_metrics_are_summed_over_their_labels(tmp_path: Path):
    metrics = Metrics()
    metrics.events_in.labels("items").inc(2)
    metrics.events_in.labels("ran ker").inc(3)
    metrics.ready.set(1)
    with served(metrics) as port:
        worker = worker_at(port, tmp_path)
        assert await worker.metric("tailrace_events_in_total") == 5
        assert await worker.metric("tailrace_nothing") is None
        assert await worker._answers()
        metrics.ready.set(0)
        assert not await worker._answers()


async def test_a_proxy_of_the_environment_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # made once, with the proxies of that moment
    with served(Metrics()) as port:
        assert await worker_at(port, tmp_path).metric("tailrace_build") == 1


async def test_a_worker_that_is_not_there_has_no_metrics(tmp_path: Path):
    assert await worker_at(1, tmp_path).metrics() is None
    assert not await worker_at(1, tmp_path)._answers()


@contextmanager
def http_server(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def cut_off(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ntailrace_ready 1")


def not_http(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"what?\r\n\r\n")


def not_found(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_error(404)


def not_metrics(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n<html>hello there</html>\n")


@pytest.mark.parametrize("answer", [cut_off, not_http, not_found, not_metrics])
async def test_an_answer_that_is_cut_off_or_somebody_else_s_is_no_metrics(answer, tmp_path: Path):
    with http_server(answer) as port:
        assert await worker_at(port, tmp_path).metrics() is None


def test_a_worker_that_is_not_running_takes_no_memory(tmp_path: Path):
    assert WorkerProcess(["items"], overrides={}, directory=tmp_path).memory_bytes() == (0, 0)


async def test_health_is_asked_for_whatever_the_answer(tmp_path: Path):
    with served(Metrics()) as port:
        worker = worker_at(port, tmp_path)
        assert await worker.health("live") == (200, {"probe": "live"})
        assert await worker.health("ready") == (503, {"probe": "ready"})
    assert await eventually(lambda: _away(worker))


async def _away(worker: WorkerProcess) -> bool:
    return await worker.health("live") is None


def test_a_process_fails_on_demand_only_where_it_is_told_to(tmp_path: Path):
    for faults, expected in ((None, None), (tmp_path, str(tmp_path))):
        worker = WorkerProcess(["items"], overrides={}, directory=tmp_path, faults=faults)
        worker.port = 15_001
        environment = worker._command().env
        assert environment is not None
        assert environment.get("TAILRACE_FAULTS") == expected
