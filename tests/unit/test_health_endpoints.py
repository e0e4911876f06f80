"""The endpoints: what is answered to whom, with which status, and that nobody holds them up."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stream_app.errors import SettingsError
from stream_app.health.endpoints import Endpoints, serve
from stream_app.health.judging import PROBES, Probe
from stream_app.metrics import Metrics
from stream_app.settings import MetricsSettings
from tests.waiting import eventually_sync


def report(probe: Probe) -> tuple[bool, Mapping[str, Any]]:
    return probe != "ready", {"probe": probe, "checks": {"replica": {"detail": "zurück"}}}


@contextmanager
def served(metrics: Metrics | None = None, **settings: Any) -> Iterator[Endpoints]:
    endpoints = serve((metrics or Metrics()).registry, MetricsSettings(**{"port": 0, **settings}), report)
    assert endpoints is not None
    try:
        yield endpoints
    finally:
        endpoints.close()


def ask(endpoints: Endpoints, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, str, Any]:
    connection = http.client.HTTPConnection(endpoints.host, endpoints.port, timeout=5)
    try:
        connection.request(method, path, body=body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


def test_yes_is_200_and_no_is_503_and_both_say_why():
    with served() as endpoints:
        for probe in PROBES:
            status, body, headers = ask(endpoints, f"/{probe}")
            assert status == (503 if probe == "ready" else 200)
            assert json.loads(body) == report(probe)[1]
            assert headers["Content-Type"] == "application/json; charset=utf-8"
            assert headers["Cache-Control"] == "no-store"


def test_metrics_are_served_as_prometheus_text():
    metrics = Metrics()
    metrics.dead_letters.labels("items", "not_json").inc()
    with served(metrics) as endpoints:
        status, body, _ = ask(endpoints, "/metrics")
    assert status == 200
    families = {family.name for family in text_string_to_metric_families(body)}
    assert {family.name for family in metrics.registry.collect()} <= families


@pytest.mark.parametrize("path", ["/live", "/ready", "/metrics"])
def test_head_is_the_same_without_a_body(path: str):
    with served() as endpoints:
        status, body, _ = ask(endpoints, path, "HEAD")
        assert (status, body) == (ask(endpoints, path)[0], "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_but_get_and_head_is_taken(method: str):
    with served() as endpoints:
        status, _, headers = ask(endpoints, "/live", method, b"x" * 10)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/live/", "/lives", "/metrics/x", "/../live"])
def test_another_path_is_not_found_and_the_answer_says_which_there_are(path: str):
    with served() as endpoints:
        status, body, _ = ask(endpoints, path)
        assert status == 404
        assert body == "there are /live, /ready, /started, /metrics\n"


def test_a_query_changes_nothing():
    with served() as endpoints:
        assert ask(endpoints, "/live?verbose=1")[0] == 200


def test_a_request_without_an_end_is_refused():
    with served() as endpoints, socket.create_connection((endpoints.host, endpoints.port), timeout=5) as client:
        client.sendall(b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n")
        assert b"414" in client.recv(64)


def test_clients_that_say_nothing_are_closed_beyond_a_bound_and_left_in_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stream_app.health.endpoints._AT_ONCE", 2)
    monkeypatch.setattr("stream_app.health.endpoints._Handler.timeout", 0.2)
    with served() as endpoints:
        silent = [socket.create_connection((endpoints.host, endpoints.port), timeout=5) for _ in range(6)]
        try:
            assert all(client.recv(1) == b"" for client in silent), "closed at once, or after their time"
        finally:
            for client in silent:
                client.close()
        eventually_sync(lambda: _status(endpoints) == 200, what="others are answered again")


def _status(endpoints: Endpoints) -> int | None:
    try:
        return ask(endpoints, "/live")[0]
    except OSError:
        return None


def test_nothing_listens_where_it_is_switched_off():
    assert serve(Metrics().registry, MetricsSettings(port=-1), report) is None


def test_nothing_listens_when_it_is_closed():
    with served() as endpoints:
        assert _status(endpoints) == 200
    assert _status(endpoints) is None


def test_an_address_that_cannot_be_listened_on_is_an_error_that_names_the_settings():
    with served() as endpoints, pytest.raises(SettingsError, match=rf"metrics\.port = {endpoints.port}"):
        serve(Metrics().registry, MetricsSettings(port=endpoints.port), report)
    with pytest.raises(SettingsError, match=r"metrics\.host = 'no such host"):
        serve(Metrics().registry, MetricsSettings(port=0, host="no such host.invalid"), report)


def test_the_default_is_the_loopback_interface():
    assert MetricsSettings().host == "127.0.0.1"


def test_addresses_name_every_endpoint_and_bracket_what_has_colons():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with served(host="::1") as endpoints:
        assert endpoints.urls()["live"] == f"http://[::1]:{endpoints.port}/live"
        assert set(endpoints.urls()) == {"metrics", *PROBES}
        assert ask(endpoints, "/live")[0] == 200
