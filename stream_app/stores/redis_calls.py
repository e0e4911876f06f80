"""Many commands in one round trip per server, on request confirmed by replicas before anybody relies on them.

Redis answers before its replicas have a write, and a replica that is promoted without it takes it back. With
``replicas``, what is asked for here ends with a write to a fence key and ``WAIT`` on the *same connection*: when so
many replicas have the fence, they have every write before it, and what any read before it has seen. On another
connection ``WAIT`` would say nothing, for it speaks of its own connection's writes, and after a failover of another
server.

In a Redis Cluster commands go to the server of their key. A key that is being moved is asked for where Redis says
(MOVED, ASK), again with a fence there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import AskError, MovedError, NoPermissionError

from stream_app.errors import Unavailable
from stream_app.stores.redis_client import RedisClient

__all__ = ["Call", "Calls", "NotAllowed", "refusal"]

_REDIRECTIONS = 5
"""Where a key still moves after so many, the caller tries again later."""
_FENCES = 200_000
"""Fence keys tried to find one of a server's; with the fewest slots a server can have, one, 16,384 are expected."""


class Call(NamedTuple):
    """A command and the one key it is about."""

    key: str
    command: tuple[str | bytes | int, ...]


class Calls:
    """Commands to a Redis.

    Args:
        fence: fence keys begin so.
        replicas: how many must have what is written and read; 0: the primary's answer is enough.
        timeout_ms: how long they are waited for.
    """

    def __init__(self, redis: RedisClient, *, fence: str, replicas: int = 0, timeout_ms: int = 1_000) -> None:
        self._redis = redis
        self._fence = fence
        self._replicas = replicas
        self._timeout_ms = timeout_ms
        self._numbers: dict[str, int] = {}

    async def each(self, calls: Sequence[Call]) -> list[Any]:
        """The replies, in order; an error reply is in its place as an exception, and then nothing may be relied on.

        Raises:
            Unavailable: when too few replicas confirm in time, or a key moves on and on. What was written is there all
                the same: write it again.
            Exception: redis-py's, when a server does not answer.
        """
        if not calls:
            return []
        if isinstance(self._redis, RedisCluster):
            return await self._in_cluster(self._redis, calls)
        async with self._redis.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.execute_command(*call.command)
            if self._replicas:
                for command in self._confirming(self._fence):
                    pipe.execute_command(*command)
            replies = list(await pipe.execute(raise_on_error=False))
        if self._replicas:
            *replies, fenced, confirmed = replies
            self._confirm(replies, fenced, confirmed)
        return replies

    def _confirming(self, key: str) -> tuple[tuple[str | int, ...], ...]:
        return ("SET", key, 1), ("WAIT", self._replicas, self._timeout_ms)

    def _confirm(self, replies: Sequence[Any], fenced: object, confirmed: object) -> None:
        if any(isinstance(reply, BaseException) for reply in replies):
            return  # the caller has something to say already
        for reply, command in ((fenced, "SET"), (confirmed, "WAIT")):
            if isinstance(reply, BaseException):
                raise refusal(reply, command, self._fence) from reply
        if not isinstance(confirmed, int) or confirmed < self._replicas:
            raise Unavailable(
                f"{confirmed} of {self._replicas} replicas confirm within {self._timeout_ms} ms (settings "
                "redis_connection.replicas, replicas_timeout_ms); until they do, nothing is acknowledged"
            )

    async def _in_cluster(self, redis: RedisCluster, calls: Sequence[Call]) -> list[Any]:
        await redis.initialize()
        replies: list[Any] = [None] * len(calls)
        open_calls = {place: (_node_of(redis, call.key), False) for place, call in enumerate(calls)}
        for _ in range(_REDIRECTIONS):
            await self._round(redis, calls, open_calls, replies)
            open_calls = {
                place: await _redirected(redis, replies[place])
                for place in open_calls
                if isinstance(replies[place], AskError)
            }
            if not open_calls:
                return replies
        raise Unavailable(f"{len(open_calls)} keys are being moved in the Redis Cluster")

    async def _round(
        self,
        redis: RedisCluster,
        calls: Sequence[Call],
        open_calls: dict[int, tuple[ClusterNode, bool]],
        replies: list[Any],
    ) -> None:
        """Each call to its node, and a fence behind those of each."""
        nodes: dict[str, tuple[ClusterNode, list[int]]] = {}
        for place, (node, _) in open_calls.items():
            nodes.setdefault(node.name, (node, []))[1].append(place)
        pipe = redis.pipeline()
        order: list[int] = []  # whose reply; -1: of no call
        fences: dict[str, int] = {}
        for name, (node, places) in nodes.items():
            for place in places:
                if open_calls[place][1]:
                    pipe.execute_command("ASKING", target_nodes=node)
                    order.append(-1)
                pipe.execute_command(*calls[place].command, target_nodes=node)
                order.append(place)
            if self._replicas:
                fences[name] = len(order)
                for command in self._confirming(self._fence_of(redis, node)):
                    pipe.execute_command(*command, target_nodes=node)
                    order.append(-1)
        # Redirections are ours to follow: redis-py would follow them on connections without a fence.
        found = await pipe.execute(raise_on_error=False, allow_redirections=False)
        for at, reply in zip(order, found, strict=True):
            if at >= 0:
                replies[at] = reply
        for name, at in fences.items():
            of_node = [reply for place in nodes[name][1] if not isinstance(reply := replies[place], AskError)]
            self._confirm(of_node, found[at], found[at + 1])

    def _fence_of(self, redis: RedisCluster, node: ClusterNode) -> str:
        """A fence key that this node has; of few different ones, so that few are ever written."""
        known = self._numbers.get(node.name, 0)
        for number in chain((known,), range(_FENCES)):
            key = f"{self._fence}:{number}"
            if _node_of(redis, key).name == node.name:
                self._numbers[node.name] = number
                return key
        raise Unavailable(f"{node.name} of the Redis Cluster has no slots")


def _node_of(redis: RedisCluster, key: str) -> ClusterNode:
    node = redis.get_node_from_key(key)
    if node is None:
        raise Unavailable("the Redis Cluster has no primary for a key")
    return node


async def _redirected(redis: RedisCluster, error: AskError) -> tuple[ClusterNode, bool]:
    """Where Redis wants a command to be sent, and whether with ASKING."""
    moved = isinstance(error, MovedError)
    if moved:
        await redis.nodes_manager.move_slot(error)
    node = redis.get_node(host=error.host, port=error.port)
    if node is None:
        raise Unavailable("a key was moved to a server of the Redis Cluster that is new")
    return node, not moved


class NotAllowed(Unavailable):
    """Redis does not let our user do something. Somebody may give the right while we wait."""


def refusal(error: BaseException, command: str, what: str) -> Unavailable:
    """An error reply as what it is to the caller: something to wait for, named so that it can be mended.

    Args:
        command: that it answers; Redis names only what a script was not allowed to do itself.
        what: key, or whatever else the command was about.
    """
    if isinstance(error, NoPermissionError) or "NOPERM" in str(error) or "ACL failure" in str(error):
        return NotAllowed(
            f"Redis does not allow our user {command} on {what}: {error}; the rights it needs are in "
            "deploy/redis/users.acl"
        )
    return Unavailable(f"Redis refuses: {error}")
