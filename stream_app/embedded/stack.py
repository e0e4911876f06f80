"""A broker and a Redis server, started together for a demo or a test and gone afterwards."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from stream_app.embedded.broker import EmbeddedBroker
from stream_app.embedded.kafka import ApacheKafka
from stream_app.embedded.processes import Server
from stream_app.embedded.redis import EmbeddedRedis, Fsync
from stream_app.embedded.workspace import workspace

__all__ = ["BrokerKind", "EmbeddedStack"]

BrokerKind = Literal["embedded", "kafka", "auto"]

_ServerT = TypeVar("_ServerT", bound=Server)


class EmbeddedStack:
    """A broker and Redis as child processes on loopback, each on a free port.

    ::

        async with EmbeddedStack("kafka") as stack:
            settings = load_settings(**stack.settings_overrides())

    ``with`` works too, where no event loop runs; the servers belong to no loop. Both end with this process, also
    when it is killed.

    Args:
        broker: ``embedded``: the one in memory (see :mod:`stream_app.embedded.broker` for what it cannot do);
            ``kafka``: Apache Kafka; ``auto``: the embedded one.
        directory: where the data goes and stays; None: a temporary one, removed at the end.
        kafka_jars: folder of Apache Kafka's jars; None: the default one.
        redis_fsync: see :class:`~stream_app.embedded.redis.EmbeddedRedis`.
    """

    def __init__(
        self,
        broker: BrokerKind = "embedded",
        *,
        directory: Path | None = None,
        kafka_jars: Path | None = None,
        redis_fsync: Fsync = "no",
    ) -> None:
        if broker not in ("embedded", "kafka", "auto"):
            raise ValueError(f"broker={broker!r}: allowed are 'embedded', 'kafka' and 'auto'")
        self.kind: Literal["embedded", "kafka"] = "kafka" if broker == "kafka" else "embedded"
        self._directory = directory
        self._kafka_jars = kafka_jars
        self._redis_fsync = redis_fsync
        self._broker: EmbeddedBroker | ApacheKafka | None = None
        self._redis: EmbeddedRedis | None = None
        self._cleanup = ExitStack()

    @property
    def broker(self) -> Server:
        """The broker's process: to stop, kill, suspend and start again."""
        return _started(self._broker)

    @property
    def redis_server(self) -> EmbeddedRedis:
        """Redis' process: to stop, kill, suspend and start again."""
        return _started(self._redis)

    @property
    def kafka(self) -> str:
        """Bootstrap server, ``host:port``."""
        return self.broker.address

    @property
    def redis(self) -> str:
        """Redis URL."""
        return self.redis_server.url

    def settings_overrides(self) -> dict[str, Any]:
        """Arguments for :func:`stream_app.settings.load_settings` that lead to this stack."""
        connection: dict[str, Any] = {"replication_factor": 1}
        if self.kind == "embedded":
            # It waits this long before each answer to a fetch, whether there is data or not.
            connection |= {"fetch_max_wait_ms": 10, "gather_ms": 50}
        return {"kafka": self.kafka, "redis": self.redis, "connection": connection}

    async def start(self) -> None:
        """Start both servers at the same time, and wait until both answer.

        Raises:
            EmbeddedStackError: when one is not installed or does not start; nothing is left running.
        """
        directory = (self._directory or self._cleanup.enter_context(workspace())).absolute()
        if self.kind == "kafka":
            self._broker = ApacheKafka(directory=directory / "kafka", jars=self._kafka_jars)
        else:
            self._broker = EmbeddedBroker(directory=directory / "broker")
        self._redis = EmbeddedRedis(directory=directory / "redis", fsync=self._redis_fsync)
        try:
            results = await asyncio.gather(self._broker.start(), self._redis.start(), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End both servers and remove the temporary directory; does nothing when they have ended."""
        try:
            await asyncio.gather(*(server.stop() for server in (self._broker, self._redis) if server is not None))
        finally:
            self._cleanup.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        asyncio.run(self.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run(self.stop())


def _started(server: _ServerT | None) -> _ServerT:
    if server is None:
        raise RuntimeError("the embedded stack is not started: use it as a context manager, or await start() first")
    return server
