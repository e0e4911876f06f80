"""Settings as people give them to a command: from the environment."""

from __future__ import annotations

import pytest

from stream_app.settings import Settings

__all__ = ["to_environment"]


def to_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say where broker, Redis and topics of these settings are; the rest is as it is where nobody says anything."""
    for name, value in {
        "KAFKA": settings.kafka,
        "REDIS": settings.redis.get_secret_value(),
        "TOPICS__PREFIX": settings.topics.prefix,
        "CONNECTION__FETCH_MAX_WAIT_MS": str(settings.connection.fetch_max_wait_ms),
        "CONNECTION__REPLICATION_FACTOR": str(settings.connection.replication_factor),
    }.items():
        monkeypatch.setenv(f"TAILRACE_{name}", value)
