"""The brokers and Redis servers the suite can run on, behind one shape.

``embedded``
    The embedded broker and Redis as child processes; needs nothing but Python packages.
``kafka``
    Apache Kafka as a child process, and Redis; needs Java and the jars (``tailrace kafka install``).
``docker``
    Containers through testcontainers; needs a Docker engine.
``external``
    Whatever listens at ``TAILRACE_KAFKA`` and ``TAILRACE_REDIS``. Every test uses its own topic prefix, so nothing
    that is there is touched, and nothing is cleaned up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from stream_app.embedded import EmbeddedStack, kafka_missing

__all__ = ["STACK_KINDS", "Stack", "StackKind", "open_stack", "why_missing"]

StackKind = Literal["embedded", "kafka", "docker", "external"]
STACK_KINDS = cast("tuple[StackKind, ...]", get_args(StackKind))

KAFKA_IMAGE = "confluentinc/cp-kafka:7.9.0"
"""``KafkaContainer`` expects the folder layout of this image."""
REDIS_IMAGE = "redis:8"


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A broker and Redis that answer.

    ``overrides`` are arguments for ``load_settings``. ``servers`` are the processes, to be killed and started
    again; None where they are not ours.
    """

    kind: StackKind
    kafka: str
    redis: str
    overrides: dict[str, Any] = field(default_factory=dict)
    servers: EmbeddedStack | None = None

    @property
    def is_apache_kafka(self) -> bool:
        """Whether the broker may be expected to do everything Apache Kafka does."""
        return self.kind != "embedded"


def why_missing(kind: StackKind) -> str | None:
    """Why this stack cannot be had here, in a sentence; None when it can."""
    if kind == "kafka":
        return kafka_missing()
    if kind == "docker":
        return _why_no_docker()
    if kind == "external":
        unset = [name for name in ("TAILRACE_KAFKA", "TAILRACE_REDIS") if not os.environ.get(name)]
        return f"--stack=external takes its addresses from {' and '.join(unset)}, not set" if unset else None
    return None


@contextmanager
def open_stack(kind: StackKind) -> Iterator[Stack]:
    """Start the stack, and stop it at the end of the context."""
    if kind == "external":
        kafka, redis = os.environ["TAILRACE_KAFKA"], os.environ["TAILRACE_REDIS"]
        yield Stack(kind=kind, kafka=kafka, redis=redis, overrides={"kafka": kafka, "redis": redis})
    elif kind == "docker":
        with _containers() as stack:
            yield stack
    else:
        with EmbeddedStack(kind) as servers:
            yield Stack(
                kind=kind,
                kafka=servers.kafka,
                redis=servers.redis,
                overrides=servers.settings_overrides(),
                servers=servers,
            )


@contextmanager
def _containers() -> Iterator[Stack]:
    from testcontainers.community.kafka import KafkaContainer
    from testcontainers.community.redis import RedisContainer

    broker = KafkaContainer(KAFKA_IMAGE).with_kraft().with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
    with broker, RedisContainer(REDIS_IMAGE) as server:
        kafka = broker.get_bootstrap_server()
        redis = f"redis://{server.get_container_host_ip()}:{server.get_exposed_port(server.port)}/0"
        overrides = {"kafka": kafka, "redis": redis, "connection": {"replication_factor": 1}}
        yield Stack(kind="docker", kafka=kafka, redis=redis, overrides=overrides)


def _why_no_docker() -> str | None:
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env()
        try:
            client.ping()
        finally:
            client.close()
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    return None
