"""``/live``, ``/ready``, ``/started`` and ``/metrics`` of a process, answered by threads of their own.

The event loop takes no part in it: that it does not turn is what ``/live`` is there to say. Bounded: so many answers at
a time, so many seconds for a client to ask, nothing is read but a request's head (whose size the standard library
bounds). Plain HTTP without access control: it listens on the loopback interface unless it is told otherwise.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication

from prometheus_client import CollectorRegistry, make_wsgi_app

from stream_app.errors import SettingsError
from stream_app.health.judging import PROBES, Probe
from stream_app.settings import MetricsSettings

__all__ = ["Endpoints", "Report", "serve"]

Report = Callable[[Probe], tuple[bool, Mapping[str, Any]]]
"""Whether a question is answered with yes, and the answer, which JSON can hold. Called from any thread."""

_AT_ONCE = 16
"""Requests answered at a time; what comes beyond is closed unanswered."""
_CLIENT_S = 5.0
"""A client that says nothing for so long is left."""


class Endpoints:
    """A server that listens.

    Attributes:
        host, port: where.
    """

    def __init__(self, server: WSGIServer, host: str) -> None:
        self._server = server
        self.host = host
        self.port = int(server.server_port)
        self._thread = threading.Thread(target=server.serve_forever, name="endpoints", daemon=True)
        self._thread.start()

    def urls(self) -> dict[str, str]:
        """Where each question is asked, by its name."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return {name: f"http://{host}:{self.port}/{name}" for name in ("metrics", *PROBES)}

    def close(self) -> None:
        """Listen no more; answers under way are finished by their threads."""
        # shutdown() waits for the serving thread, up to half a second: nobody else has to.
        threading.Thread(target=self._server.shutdown, daemon=True).start()
        self._server.server_close()


def serve(registry: CollectorRegistry, settings: MetricsSettings, report: Report) -> Endpoints | None:
    """Listen on the configured address; None when it is switched off.

    Args:
        registry: what ``/metrics`` shows.
        settings: where to listen.
        report: answers the questions.

    Raises:
        SettingsError: when the address cannot be listened on.
    """
    if settings.port < 0:
        return None
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        server = make_server(
            str(address[0]),
            settings.port,
            _application(registry, report),
            _SERVERS.get(family, _Server),
            handler_class=_Handler,
        )
    except OSError as error:
        raise SettingsError(
            f"metrics.port = {settings.port}, metrics.host = {settings.host!r}: cannot listen there: {error}; "
            "0 takes a free port, -1 serves none"
        ) from error
    return Endpoints(server, settings.host)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of our errors."""


class _Server6(_Server):
    address_family = socket.AF_INET6


_SERVERS: dict[int, type[_Server]] = {socket.AF_INET6: _Server6}


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: probes and scrapes come every few seconds."""


def _application(registry: CollectorRegistry, report: Report) -> WSGIApplication:
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]

        def answer(status: str, text: str, kind: str, *more: tuple[str, str]) -> Iterable[bytes]:
            body = text.encode()
            headers = [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body)))]
            start_response(status, [*headers, ("Cache-Control", "no-store"), *more])
            return [] if method == "HEAD" else [body]

        if method not in ("GET", "HEAD"):
            return answer("405 Method Not Allowed", "only GET and HEAD\n", "text/plain", ("Allow", "GET, HEAD"))
        if path == "/metrics":
            body = metrics({**environ, "REQUEST_METHOD": "GET"}, start_response)
            return [] if method == "HEAD" else body
        for probe in PROBES:
            if path == f"/{probe}":
                ok, told = report(probe)
                status = "200 OK" if ok else "503 Service Unavailable"
                return answer(status, json.dumps(told, indent=1) + "\n", "application/json")
        known = ", ".join(f"/{name}" for name in (*PROBES, "metrics"))
        return answer("404 Not Found", f"there are {known}\n", "text/plain")

    return application
