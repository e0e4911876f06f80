"""The one way to a client of Redis: a server, the primary that sentinels name, or a cluster.

Every connection asks anew who we are (``redis_credentials``), and where sentinels say which server is the primary, asks
them. Nothing here waits or tries again: :func:`stream_app.delivery.retry.until_it_works` does, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, TypeAlias

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from stream_app.errors import SettingsError, Unavailable
from stream_app.logs import get_logger
from stream_app.settings import Settings
from stream_app.stores.redis_address import RedisAddress, parse_redis_url
from stream_app.stores.redis_credentials import Certificates, Credentials

__all__ = [
    "REDIS_TRANSIENT",
    "RedisClient",
    "connect_redis",
    "connections_begun",
    "evicts_states",
    "histories",
    "look_again",
    "place",
    "primaries_info",
    "warn_of_eviction",
]

_log = get_logger(__name__)

RedisClient: TypeAlias = "Redis | RedisCluster"

REDIS_TRANSIENT = (
    *(RedisConnectionError, RedisTimeoutError, ReadOnlyError, OutOfMemoryError, OSError, Unavailable),
    *(RedisClusterException, ClusterError),
)
"""Errors of Redis that pass: away, slow, failing over, full, or loading its data (a kind of ConnectionError)."""

_CONNECT_TIMEOUT_S = 2.0
_HEALTH_CHECK_S = 15
_ASK_EVERY_S = 1.0


class _Encrypted:
    """A connection with TLS by the certificates of the moment; redis-py's own reads them once."""

    def __init__(self, *, certificates: Certificates, **options: Any) -> None:
        super().__init__(**options)
        self._certificates = certificates

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "ssl": self._certificates.context()}  # type: ignore[misc]


class _TlsConnection(_Encrypted, Connection):
    pass


class _SentinelTlsConnection(_Encrypted, SentinelManagedConnection):
    pass


class _Sentinels(Sentinel):
    """Sentinels, asked for the primary as clients are to ask: while a failover goes on they name the new one.

    redis-py looks it up in the list of all services, where the one before stands until every replica was told, for ten
    seconds and more; what is written there meanwhile is lost.
    """

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        problems = []
        for place, sentinel in enumerate(self.sentinels):
            try:
                address: Any = await sentinel.sentinel_get_master_addr_by_name(service_name)
            except RedisError as error:
                options = sentinel.connection_pool.connection_kwargs
                problems.append(f"{options['host']}:{options['port']}: {error}")
                continue
            if address:
                self.sentinels.insert(0, self.sentinels.pop(place))
                host, port = address
                return str(host), int(port)
        why = "; ".join(problems) or "none of them knows it"
        raise MasterNotFoundError(f"the sentinels name no primary of {service_name!r}: {why}")


class _SentinelPool(SentinelConnectionPool):
    """Connections to the primary, and the clients of the sentinels with them.

    While connections are used, the sentinels are asked again and again: a primary that was told to go takes writes
    until it is told that it went, for ten seconds and more, and all of them are lost.
    """

    _asking: asyncio.Task[None] | None = None
    _ask_at = 0.0

    async def get_connection(self, *args: Any, **options: Any) -> AbstractConnection:
        now = asyncio.get_running_loop().time()
        if now >= self._ask_at and (self._asking is None or self._asking.done()):
            self._ask_at = now + _ASK_EVERY_S
            self._asking = asyncio.create_task(self._ask())
        connection: AbstractConnection = await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]
        return connection

    async def _ask(self) -> None:
        with contextlib.suppress(*REDIS_TRANSIENT):
            # Idle connections to another are ended.
            await self.get_master_address()  # type: ignore[no-untyped-call]

    async def release(self, connection: AbstractConnection) -> None:
        # One that led to the primary before must not be used again: that may come back as a replica, or for a moment
        # as a primary that knows nothing of what was written since.
        if isinstance(connection, Connection) and (connection.host, connection.port) != self.master_address:
            await connection.disconnect()
        await super().release(connection)

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await super().aclose()
        await self.sentinel_manager.aclose()


class _Cluster(RedisCluster):
    """A cluster that is found again through the nodes it was first found through, when all others are gone."""

    def __init__(self, seeds: tuple[tuple[str, int], ...], certificates: Certificates | None, **options: Any) -> None:
        super().__init__(startup_nodes=[ClusterNode(host, port) for host, port in seeds], **options)
        self._seeds = seeds
        if certificates is not None:  # redis-py lets nobody choose the class of a cluster's connections
            self.connection_kwargs.update(connection_class=_TlsConnection, certificates=certificates)
            self.nodes_manager.startup_nodes.clear()
        self.ask_seeds()

    def ask_seeds(self) -> None:
        """Ask the first nodes too, the next time the cluster's layout is asked for."""
        for host, port in self._seeds:
            node = ClusterNode(host, port, **self.connection_kwargs)
            self.nodes_manager.startup_nodes.setdefault(node.name, node)


def connect_redis(settings: Settings) -> RedisClient:
    """A client for the configured Redis; connects at first use.

    Raises:
        SettingsError: when a file of the settings ``redis_connection`` cannot be read or used; names both.
    """
    given = settings.redis_connection
    url = settings.redis.get_secret_value()
    address = parse_redis_url(url)
    credentials = Credentials(
        username=address.username,
        password=address.password,
        username_file=given.username_file,
        password_file=given.password_file,
    )
    credentials.check()
    certificates = _certificates(settings) if address.tls else None
    options: dict[str, Any] = {
        "decode_responses": False,
        "credential_provider": credentials,
        "socket_timeout": given.timeout_s,
        "socket_connect_timeout": min(_CONNECT_TIMEOUT_S, given.timeout_s),
        "health_check_interval": _HEALTH_CHECK_S,
    }
    if address.form == "cluster":
        retry = Retry(NoBackoff(), 0)
        return _Cluster(address.nodes, certificates, retry=retry, dynamic_startup_nodes=True, **options)
    if address.form == "sentinel":
        return Redis.from_pool(_sentinel_pool(settings, address, certificates, options))
    return Redis.from_pool(_pool(url, certificates, options))


def _certificates(settings: Settings) -> Certificates:
    given = settings.redis_connection
    certificates = Certificates(
        ca_file=given.ca_file,
        certificate_file=given.certificate_file,
        key_file=given.key_file,
        verify_hostname=given.verify_hostname,
    )
    certificates.context()
    return certificates


def _pool(url: str, certificates: Certificates | None, options: dict[str, Any]) -> ConnectionPool:
    try:
        given: dict[str, Any] = dict(parse_url(url))
    except ValueError:  # its message may hold a part of the URL
        raise SettingsError("redis: an option in the URL has a value that cannot be used") from None
    for name in ("username", "password"):  # the credentials have them
        given.pop(name, None)
    own_tls = any(name.startswith("ssl_") for name in given)
    if own_tls and certificates is not None:
        given["connection_class"] = SSLConnection  # as the URL has it, read once
    elif certificates is not None:
        given.update(connection_class=_TlsConnection, certificates=certificates)
    if given.get("connection_class") is UnixDomainSocketConnection:
        options = {name: value for name, value in options.items() if not name.startswith("socket_keepalive")}
    return ConnectionPool(**options | given)


def _sentinel_pool(
    settings: Settings, address: RedisAddress, certificates: Certificates | None, options: dict[str, Any]
) -> _SentinelPool:
    given = settings.redis_connection
    credentials = Credentials(
        username=given.sentinel_username,
        password_file=given.sentinel_password_file,
        group="redis_connection.sentinel_",
    )
    credentials.check()
    tls: dict[str, Any] = {"certificates": certificates} if certificates is not None else {}
    plain = {"connection_class": Connection if certificates is None else _TlsConnection, **tls}
    to_sentinels = {**options, **plain, "credential_provider": credentials, "decode_responses": True}
    to_sentinels["socket_timeout"] = options["socket_connect_timeout"]  # it only looks something up
    manager = _Sentinels([], sentinel_kwargs={})  # type: ignore[no-untyped-call]
    manager.sentinels = [
        Redis.from_pool(ConnectionPool(host=host, port=port, **to_sentinels)) for host, port in address.nodes
    ]
    return _SentinelPool(  # type: ignore[no-untyped-call]
        address.service,
        manager,
        connection_class=SentinelManagedConnection if certificates is None else _SentinelTlsConnection,
        db=address.database,
        **tls,
        **options,
    )


def place(settings: Settings) -> str:
    """Where Redis is by the settings, for people: no user, no password."""
    url = settings.redis.get_secret_value()
    address = parse_redis_url(url)
    hosts = ", ".join(f"{host}:{port}" for host, port in address.nodes)
    if address.form == "sentinel":
        return f"Redis {address.service!r} of the sentinels {hosts}"
    if address.form == "cluster":
        return f"Redis Cluster at {hosts}"
    given = parse_url(url)
    where = given.get("path") or f"{given.get('host', 'localhost')}:{given.get('port', 6379)}"
    return f"Redis at {where}"


def connections_begun(redis: RedisClient) -> int:
    """How many connections the client has begun. Where it is another than before, another server may answer."""
    options = redis.connection_kwargs if isinstance(redis, RedisCluster) else redis.connection_pool.connection_kwargs
    credentials = options.get("credential_provider")
    return credentials.connections if isinstance(credentials, Credentials) else 0


async def histories(redis: RedisClient) -> frozenset[str]:
    """The ids of the histories of writes that the primaries continue.

    A primary has a new one when it was started, and when it was promoted from a replica: what it holds may then be
    older than what was written to the one before.
    """
    found = await primaries_info(redis, "replication")
    return frozenset(str(info.get("master_replid", "")) for info in found)


async def primaries_info(redis: RedisClient, *section: str) -> list[dict[str, Any]]:
    """What INFO says on each primary."""
    if not isinstance(redis, RedisCluster):
        return [await redis.info(*section)]
    await redis.initialize()
    return [await redis.info(*section, target_nodes=node) for node in redis.get_primaries()]


async def warn_of_eviction(redis: RedisClient) -> None:
    """Say so where Redis may throw user states away to make room; whoever may not ask, is not told."""
    with contextlib.suppress(ResponseError, *REDIS_TRANSIENT):
        for info in await primaries_info(redis, "memory"):
            if evicts_states(info):
                _log.warning(
                    "Redis throws user states away when it is full",
                    maxmemory_policy=info.get("maxmemory_policy"),
                    effect="users lose their history; set noeviction or volatile-lru",
                )


def evicts_states(info: Mapping[str, Any]) -> bool:
    """Whether a server with this INFO throws away keys without a time to live when its memory is full."""
    return bool(int(info.get("maxmemory", 0))) and str(info.get("maxmemory_policy", "")).startswith("allkeys")


async def look_again(redis: RedisClient, error: BaseException) -> None:
    """After an error: forget which servers are the primaries, where they may be others by now."""
    with contextlib.suppress(*REDIS_TRANSIENT):
        if isinstance(redis, RedisCluster):
            await redis.aclose()
            if isinstance(redis, _Cluster):
                redis.ask_seeds()
        elif isinstance(redis.connection_pool, _SentinelPool) or "READONLY" in str(error):
            # The primary may be another server now, also behind a name or a proxy; connections lead to the one before.
            await redis.connection_pool.disconnect(inuse_connections=False)
