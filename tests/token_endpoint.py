"""A token endpoint on loopback (RFC 6749, client credentials grant), as far as Tailrace speaks to one."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote_plus

__all__ = ["TokenEndpoint", "token_endpoint"]


class TokenEndpoint:
    """What the endpoint knows and was asked; change it while it runs.

    Attributes:
        url: where it is.
        clients: secret by client id.
        made: makes a token, from the number of those made before.
        lives_s: what it says of a token's life; None: nothing.
        raw: answered instead of a token: HTTP status, headers and body.
        asked: the forms of the requests it answered with a token.
    """

    def __init__(self) -> None:
        self.url = ""
        self.clients: dict[str, str] = {}
        self.made: Callable[[int], str] = lambda number: f"token-{number}"
        self.lives_s: float | None = 300.0
        self.raw: tuple[int, dict[str, str], bytes] | None = None
        self.asked: list[dict[str, list[str]]] = []
        self.refused = 0

    def answer(self, authorization: str, form: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a request."""
        if self.raw is not None:
            return self.raw
        _, _, basic = authorization.partition("Basic ")
        client_id, _, secret = base64.b64decode(basic).decode().partition(":")
        if self.clients.get(unquote_plus(client_id)) != unquote_plus(secret):
            self.refused += 1
            return 401, {}, json.dumps({"error": "invalid_client"}).encode()
        token: dict[str, Any] = {"access_token": self.made(len(self.asked)), "token_type": "Bearer"}
        if self.lives_s is not None:
            token["expires_in"] = self.lives_s
        self.asked.append(form)
        return 200, {}, json.dumps(token).encode()


@contextmanager
def token_endpoint() -> Iterator[TokenEndpoint]:
    """An endpoint that answers until the end of the context."""
    endpoint = TokenEndpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            status, headers, body = endpoint.answer(self.headers.get("Authorization", ""), form)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a test's output is its failures."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/token"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
