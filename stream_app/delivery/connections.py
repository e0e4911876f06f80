"""From settings to the arguments every aiokafka client shares: where the broker is and how to speak to it.

aiokafka takes a password and an SSL context when a client is made, and keeps them for as long as it lives. Where they
come from files, its connections are given :class:`~stream_app.secret_files.SecretFile` and
:class:`~stream_app.delivery.certificates.Certificates` in their place, and ask these each time they connect
(:class:`FreshConnection`). ``tests/unit/test_connections.py`` fails when aiokafka makes its connections another way.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from aiokafka import conn
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import IllegalSaslStateError, SaslAuthenticationFailed, UnsupportedSaslMechanismError
from pydantic import SecretStr

from stream_app.delivery.certificates import Certificates
from stream_app.delivery.tokens import ClientCredentials, TokenFile
from stream_app.errors import SettingsError, Unavailable
from stream_app.secret_files import SecretFile
from stream_app.settings import KafkaSettings, Settings

__all__ = ["CLIENT_ID", "FreshConnection", "close_client", "kafka_options", "no_broker", "stop_consumer"]

CLIENT_ID = "tailrace"
"""How Tailrace's clients name themselves to the broker (quotas and request logs)."""
_REFUSED = (SaslAuthenticationFailed, UnsupportedSaslMechanismError, IllegalSaslStateError)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_TLS_ONLY = ("ca_file", "certificate_file", "key_file", "key_password", "key_password_file")
_PASSWORD_ONLY = ("username", "password", "password_file")
_OAUTH_ONLY = tuple(name for name in KafkaSettings.model_fields if name.startswith("oauth_"))


class FreshConnection(conn.AIOKafkaConnection):  # type: ignore[misc] # aiokafka is not typed
    """A connection that proves who we are with what files hold at the moment."""

    refusals: ClassVar[dict[str, str]] = {}
    """Why brokers (``host:port``) did not let us in when they were last tried: aiokafka logs it, and its errors say no
    more than that there is no connection."""
    _ssl_context: Any
    _sasl_plain_password: Any

    async def connect(self) -> Any:
        """Connect and authenticate."""
        broker = f"{self.host}:{self.port}"
        if isinstance(self._ssl_context, Certificates):
            self._ssl_context = self._ssl_context.current()
        if isinstance(self._sasl_plain_password, SecretFile):
            self._sasl_plain_password = self._sasl_plain_password.current()
        try:
            connected = await super().connect()
        except (*_REFUSED, ssl.SSLError) as error:
            self.refusals[broker] = f"{type(error).__name__}: {error}"
            raise
        self.refusals.pop(broker, None)
        return connected


# Every client of aiokafka makes its connections in conn.create_conn(), by this name.
conn.AIOKafkaConnection = FreshConnection


def kafka_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for aiokafka's producer, consumer and admin client alike.

    Raises:
        SettingsError: when what proves who we are is not set, cannot be read, or does not go together.
    """
    connection = settings.connection
    return {
        "bootstrap_servers": [server.strip() for server in settings.kafka.split(",")],
        "client_id": CLIENT_ID,
        "request_timeout_ms": int(connection.request_timeout_s * 1_000),
        "metadata_max_age_ms": int(connection.metadata_max_age_s * 1_000),
        "security_protocol": connection.security_protocol,
        **_credentials(connection),
    }


def no_broker(settings: Settings, error: BaseException) -> Unavailable:
    """The error that says that no broker answers, or why those that do did not let us in."""
    servers = [server.strip() for server in settings.kafka.split(",")]
    refused = [f"{server}: {why}" for server in servers if (why := FreshConnection.refusals.get(server))]
    hint = "is it running, and is the address right (setting kafka, TAILRACE_KAFKA, --kafka)?"
    return Unavailable(f"no Kafka broker answers at {settings.kafka}: {error}; {'; '.join(refused) or hint}")


@lru_cache(maxsize=16)
def _credentials(connection: KafkaSettings) -> dict[str, Any]:
    """What proves who we are. The same for the same settings: clients share a token, and certificates that are read."""
    protocol = connection.security_protocol
    tls, sasl = protocol in ("SSL", "SASL_SSL"), protocol.startswith("SASL")
    oauth = sasl and connection.sasl_mechanism == "OAUTHBEARER"
    # What was meant to protect or to authenticate, and would be left out in silence.
    if not tls:
        _refuse(connection, _TLS_ONLY, f"security_protocol {protocol}, without TLS,")
    if not sasl or oauth:
        _refuse(connection, _PASSWORD_ONLY, f"sasl_mechanism {connection.sasl_mechanism}" if oauth else protocol)
    if not oauth:
        _refuse(connection, _OAUTH_ONLY, f"sasl_mechanism {connection.sasl_mechanism}" if sasl else protocol)
    options: dict[str, Any] = {}
    if tls:
        options["ssl_context"] = _certificates(connection)
    if sasl:
        options["sasl_mechanism"] = connection.sasl_mechanism
    if oauth:
        options["sasl_oauth_token_provider"] = _tokens(connection)
    elif sasl:
        options["sasl_plain_username"] = _needed(connection, "username")
        options["sasl_plain_password"] = _password(connection)
    return options


def _certificates(connection: KafkaSettings) -> Certificates:
    for name, other in (("certificate_file", "key_file"), ("key_file", "certificate_file")):
        if getattr(connection, name) is not None and getattr(connection, other) is None:
            raise SettingsError(f"connection.{other} is not set; connection.{name} needs it")
    if connection.key_file is None:
        _refuse(connection, ("key_password", "key_password_file"), "the connection, without key_file,")
    return Certificates(
        ca_file=connection.ca_file,
        certificate_file=connection.certificate_file,
        key_file=connection.key_file,
        key_password=_secret(connection, "key_password"),
    )


def _password(connection: KafkaSettings) -> str | SecretFile:
    _one_of(connection, "password", "password_file")
    if connection.password_file is not None:
        return SecretFile("connection.password_file", connection.password_file)
    assert connection.password is not None  # noqa: S101 - one of them
    return connection.password.get_secret_value()


def _tokens(connection: KafkaSettings) -> AbstractTokenProvider:
    _one_of(connection, "oauth_token_file", "oauth_token_url")
    if connection.oauth_token_file is not None:
        unused = [name for name in _OAUTH_ONLY if name != "oauth_token_file"]
        _refuse(connection, unused, "oauth_token_file")
        return TokenFile(SecretFile("connection.oauth_token_file", connection.oauth_token_file))
    url = str(connection.oauth_token_url)
    if url.startswith("http:") and urlsplit(url).hostname not in _LOOPBACK:
        raise SettingsError(
            f"connection.oauth_token_url = {url}: the client secret would go over the net in the clear; use https"
        )
    client_id = _needed(connection, "oauth_client_id")
    _one_of(connection, "oauth_client_secret", "oauth_client_secret_file")
    secret = _secret(connection, "oauth_client_secret")
    assert secret is not None  # noqa: S101 - one of them
    return ClientCredentials(
        url=url,
        client_id=client_id,
        secret=secret,
        scope=connection.oauth_scope,
        context=Certificates(ca_file=connection.oauth_ca_file, prefix="connection.oauth_").current,
    )


def _secret(connection: KafkaSettings, name: str) -> Callable[[], str] | None:
    """What gives a secret that is in a setting, or in the file that ``<setting>_file`` names; None: in neither."""
    given: SecretStr | None = getattr(connection, name)
    path: Path | None = getattr(connection, f"{name}_file")
    if given is not None and path is not None:
        _one_of(connection, name, f"{name}_file")
    if path is not None:
        return SecretFile(f"connection.{name}_file", path).current
    return None if given is None else given.get_secret_value


def _needed(connection: KafkaSettings, name: str) -> str:
    value: str | None = getattr(connection, name)
    if not value:
        raise SettingsError(f"connection.{name} is not set; {_how(connection)} needs it")
    return value


def _one_of(connection: KafkaSettings, first: str, second: str) -> None:
    given = [name for name in (first, second) if getattr(connection, name) is not None]
    if not given:
        raise SettingsError(f"connection.{first} is not set, nor is {second}; {_how(connection)} needs one of them")
    if len(given) == 2:
        raise SettingsError(f"connection.{first} and connection.{second} are both set; which is meant?")


def _refuse(connection: KafkaSettings, names: tuple[str, ...] | list[str], what: str) -> None:
    """Settings that ``what`` does not use must not be set."""
    for name in names:
        if getattr(connection, name) is not None:
            raise SettingsError(f"connection.{name} is set, and {what} does not use it; is another one meant?")


def _how(connection: KafkaSettings) -> str:
    sasl = connection.security_protocol.startswith("SASL")
    return f"security_protocol {connection.security_protocol}" + (
        f" with sasl_mechanism {connection.sasl_mechanism}" if sasl else ""
    )


async def stop_consumer(consumer: Any) -> None:
    """End a consumer; see :func:`close_client`."""
    await close_client(consumer.stop())


async def close_client(closing: Awaitable[Any]) -> None:
    """Wait until one of aiokafka's clients has ended, and be cancelled meanwhile only if somebody cancels us.

    aiokafka waits for tasks that it has cancelled. Where the broker went away it lets their
    :class:`asyncio.CancelledError` through, which would end whoever only wanted to read; and where we are cancelled
    while it waits it takes that for theirs, and who wanted to end us would wait for ever.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        await closing
    except asyncio.CancelledError:
        if task is None or task.cancelling() > before:
            raise
    except Exception as error:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
