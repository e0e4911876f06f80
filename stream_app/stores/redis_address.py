"""Where Redis is, in one URL: a server, a group of servers behind Sentinel, or a Redis Cluster.

``redis://``, ``rediss://`` and ``unix://`` are redis-py's own. The others are in use elsewhere: ``redis+sentinel://``
with a list of sentinels, the service and the database is what redis-sentinel-url and Prefect take, ``redis+cluster://``
with a list of nodes what limits takes. A second s, as in ``rediss+sentinel://``, means TLS to every server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

__all__ = ["RedisAddress", "parse_redis_url"]

_FORMS: Final = (
    "redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, redis+cluster:// or rediss+cluster://"
)
_DEFAULT_PORT: Final = {"sentinel": 26_379, "cluster": 6_379}
_NODE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:\s]+)(:(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """What a URL says.

    Attributes:
        form: ``single``, ``sentinel`` or ``cluster``.
        tls: whether every connection is encrypted.
        nodes: sentinels, or nodes of the cluster to ask first, as host and port; empty for a single server.
        service: what the sentinels call the group of servers.
        database: its number; 0 in a cluster, which has no other.
        username, password: of the data servers, not of the sentinels. Not shown.
    """

    form: Literal["single", "sentinel", "cluster"]
    tls: bool
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    database: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


def parse_redis_url(url: str) -> RedisAddress:
    """The parts of the URL. Those of a single server are left to redis-py, but for what everybody has to know.

    Raises:
        ValueError: when it is no such URL; says what is wrong, and shows nothing of it, for it may hold a password.
    """
    scheme, colon, rest = url.partition("://")
    form = {"redis": "single", "rediss": "single", "unix": "single"}.get(scheme)
    if form is None and colon:
        name, plus, kind = scheme.partition("+")
        form = kind if name in ("redis", "rediss") and plus and kind in _DEFAULT_PORT else None
    if form is None or not colon:
        raise ValueError(f"a Redis URL starts with {_FORMS}")
    tls = scheme.startswith("rediss")
    if form == "single":
        return _single(url, tls=tls)
    if "?" in rest or "#" in rest:
        raise ValueError(
            "options after ? are for single servers; see the settings redis_connection.* (a password's special "
            "characters are percent-encoded in a URL)"
        )
    where, _, path = rest.rpartition("@")[2].partition("/")
    username, password = _credentials(rest.rpartition("@")[0])
    nodes = tuple(_node(node, place, _DEFAULT_PORT[form]) for place, node in enumerate(where.split(","), 1))
    if form == "cluster":
        if path.strip("/") not in ("", "0"):
            raise ValueError("a Redis Cluster has no databases: leave out what stands behind the hosts")
        return RedisAddress("cluster", tls, nodes, username=username, password=password)
    service, _, database = path.strip("/").partition("/")
    if not service:
        raise ValueError("the service's name is missing: redis+sentinel://host:port,host:port/service/0")
    if not re.fullmatch(r"\d*", database):
        raise ValueError("the database behind the service's name is not a number")
    return RedisAddress("sentinel", tls, nodes, unquote(service), int(database or 0), username, password)


def _single(url: str, *, tls: bool) -> RedisAddress:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its message holds what it took for the port, which may be a part of the password
        raise ValueError(
            "the port is not a number (a password's special characters are percent-encoded in a URL)"
        ) from None
    username, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return RedisAddress("single", tls, username=username or None, password=password or None)


def _credentials(text: str) -> tuple[str | None, str | None]:
    username, colon, password = text.partition(":")
    return unquote(username) or None, (unquote(password) or None) if colon else None


def _node(text: str, place: int, default_port: int) -> tuple[str, int]:
    match = _NODE.fullmatch(text.strip())
    port = int(match["port"] or default_port) if match else 0
    if match is None or not 0 < port < 65_536:
        raise ValueError(
            f"number {place} of the hosts is not host:port (a password's special characters are percent-encoded in "
            "a URL)"
        )
    return match["host"].strip("[]"), port
