"""Where OAUTHBEARER tokens come from: a file that somebody else renews, or a token endpoint.

aiokafka asks for the token at every new connection, from whichever event loop the connection is on.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from threading import Lock
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote_plus, urlencode

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from stream_app.secret_files import SecretFile

__all__ = ["ClientCredentials", "TokenFile"]

_RENEW_AT = 0.8
"""Share of a token's life after which another one is asked for."""
_TIMEOUT_S = 10.0
_MOST_BYTES = 65_536


class TokenFile(AbstractTokenProvider):  # type: ignore[misc] # aiokafka is not typed for us
    """The token that a file holds at the moment."""

    def __init__(self, file: SecretFile) -> None:
        self._file = file

    async def token(self) -> str:
        """The token, without white space around it."""
        return self._file.current().strip()


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens of a token endpoint, by the client credentials grant (RFC 6749, section 4.4).

    A token is used for four fifths of its life (``expires_in``), or until the client secret is another one; where the
    endpoint does not tell its life, for one connection. Safe for use from several threads and event loops.

    Args:
        url: of the token endpoint; not followed to another place, for the secret goes with the request.
        client_id: ours.
        secret: gives the client secret as it is now.
        scope: asked for; None: the endpoint's default.
        context: gives the SSL context for an ``https`` endpoint.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        url: str,
        client_id: str,
        secret: Callable[[], str],
        scope: str | None,
        context: Callable[[], ssl.SSLContext],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._client_id = client_id
        self._secret = secret
        self._scope = scope
        self._context = context
        self._clock = clock
        self._lock = Lock()
        self._held: tuple[str, str, float] | None = None

    async def token(self) -> str:
        """A token that has not expired.

        Raises:
            KafkaConnectionError: when the endpoint gives none; connecting is tried again, as if a broker were away.
        """
        return await asyncio.to_thread(self._current)

    def _current(self) -> str:
        with self._lock:  # one asks, and the others wait for the answer
            secret = self._secret()
            if self._held is None or self._held[0] != secret or self._clock() >= self._held[2]:
                asked_at = self._clock()
                token, lives_s = self._ask(secret)
                self._held = (secret, token, asked_at + _RENEW_AT * lives_s)
            return self._held[1]

    def _ask(self, secret: str) -> tuple[str, float]:
        """A new token and its life in seconds, 0 where it is not told."""
        form = {"grant_type": "client_credentials", **({"scope": self._scope} if self._scope else {})}
        # Section 2.3.1: both are form-encoded before they become user and password.
        basic = base64.b64encode(f"{quote_plus(self._client_id)}:{quote_plus(secret)}".encode()).decode()
        request = urllib.request.Request(  # noqa: S310 - http or https, the settings see to it
            self._url,
            data=urlencode(form).encode(),
            headers={"Authorization": f"Basic {basic}", "Accept": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=self._context()), _NoRedirects)
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                body = answer.read(_MOST_BYTES)
        except HTTPError as error:
            with error:
                said = _error_code(error.read(_MOST_BYTES))
            raise KafkaConnectionError(f"token endpoint {self._url} refused: HTTP {error.code}{said}") from None
        except (OSError, HTTPException) as error:
            raise KafkaConnectionError(f"token endpoint {self._url} does not answer: {error}") from error
        answered = _document(body)
        token, lives_s = answered.get("access_token"), answered.get("expires_in", 0)
        if not isinstance(token, str) or not token or not isinstance(lives_s, int | float):
            # Not what it said instead: that may be most of a token.
            raise KafkaConnectionError(f"token endpoint {self._url} answered without an access_token")
        return token, float(lives_s)

    def __repr__(self) -> str:
        return f"ClientCredentials({self._url!r}, client_id={self._client_id!r})"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """A redirect is an error: urllib would send our secret on to wherever it leads."""


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _error_code(body: bytes) -> str:
    """The code of an error response (RFC 6749, section 5.2), to be appended; empty where there is none."""
    code = _document(body).get("error")
    return f", {code[:100]}" if isinstance(code, str) else ""
