"""From settings to the arguments every aiokafka client shares: where the broker is and how to speak to it."""

from __future__ import annotations

import ssl
from typing import Any

from aiokafka.helpers import create_ssl_context

from stream_app.errors import SettingsError
from stream_app.settings import KafkaSettings, Settings

__all__ = ["CLIENT_ID", "kafka_options"]

CLIENT_ID = "tailrace"
"""How Tailrace's clients name themselves to the broker (quotas and request logs)."""


def kafka_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for aiokafka's producer, consumer and admin client alike.

    Raises:
        SettingsError: when the security protocol needs something that is not set or cannot be read.
    """
    connection = settings.connection
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in settings.kafka.split(",")],
        "client_id": CLIENT_ID,
        "request_timeout_ms": int(connection.request_timeout_s * 1_000),
        "metadata_max_age_ms": int(connection.metadata_max_age_s * 1_000),
        "security_protocol": connection.security_protocol,
    }
    if connection.security_protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = _ssl_context(connection)
    if connection.security_protocol.startswith("SASL"):
        options.update(_credentials(connection))
    return options


def _ssl_context(connection: KafkaSettings) -> ssl.SSLContext:
    path = connection.ca_file
    try:
        context: ssl.SSLContext = create_ssl_context(cafile=None if path is None else str(path))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"connection.ca_file = {path}: cannot be read as PEM certificates: {error}") from error
    return context


def _credentials(connection: KafkaSettings) -> dict[str, str]:
    if connection.username is None or connection.password is None:
        missing = "connection.username" if connection.username is None else "connection.password"
        raise SettingsError(f"{missing} is not set; security_protocol {connection.security_protocol} needs it")
    return {
        "sasl_mechanism": connection.sasl_mechanism,
        "sasl_plain_username": connection.username,
        "sasl_plain_password": connection.password.get_secret_value(),
    }
