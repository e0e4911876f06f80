"""Real Redis servers for tests: with replicas and sentinels, and as a cluster, on loopback."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from stream_app.embedded.probes import redis_answers
from stream_app.embedded.processes import LOOPBACK, Command, Server, free_port
from stream_app.embedded.redis import EmbeddedRedis, find_redis_binary
from tests.waiting import eventually

__all__ = ["SERVICE", "Group", "RedisNode", "SentinelServer", "cluster", "group", "info"]

SERVICE = "shop"
"""What the sentinels call the servers they watch."""
_DOWN_AFTER_MS = 1_000
"""Not much less: on a busy machine a server that lives answers as late, and would be replaced as well."""
_NODE_TIMEOUT_MS = 600


class RedisNode(EmbeddedRedis):
    """A Redis with further options; one with a password cannot say that it answers, so give it users later."""

    def __init__(self, *, directory: Path, options: Mapping[str, str | int] | None = None) -> None:
        super().__init__(directory=directory)
        self.options = dict(options or {})

    def client(self) -> Redis:
        return Redis(host=LOOPBACK, port=self.port, socket_timeout=5)

    def _command(self) -> Command:
        command = super()._command()
        # Replicas begin at once.
        argv = [*command.argv, "--repl-diskless-sync-delay", "0"]
        for option, value in self.options.items():
            argv += [f"--{option}", *str(value).split()]
        return Command(argv=argv, env=command.env, cwd=command.cwd)


class SentinelServer(Server):
    """A sentinel, alone with its opinion, that watches a primary, or what stands before it on another port."""

    name = "sentinel"

    def __init__(self, *, directory: Path, primary: RedisNode, watched_port: int = 0) -> None:
        super().__init__(directory=directory)
        self.primary = primary
        self.watched_port = watched_port

    async def _prepare(self) -> None:
        lines = [
            f"port {self.port}",
            f"bind {LOOPBACK}",
            f"dir {self.directory}",
            f"sentinel monitor {SERVICE} {LOOPBACK} {self.watched_port or self.primary.port} 1",
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 2000",
        ]
        (self.directory / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def _command(self) -> Command:
        argv = [str(find_redis_binary()), str(self.directory / "sentinel.conf"), "--sentinel"]
        return Command(argv=argv, env={"PATH": os.defpath, "LC_ALL": "C"}, cwd=self.directory)

    async def _answers(self) -> bool:
        return await redis_answers(f"redis://{self.address}")


@dataclass
class Group:
    """A primary, its replicas, and a sentinel that promotes one of these."""

    servers: list[RedisNode]
    sentinel: SentinelServer

    @property
    def url(self) -> str:
        return f"redis+sentinel://{self.sentinel.address}/{SERVICE}/0"

    @property
    def primary(self) -> RedisNode:
        return self.servers[0]

    async def cut_off_replicas(self) -> None:
        """What is written from now on reaches none of them, until they are resumed and the primary is still there."""
        for server in self.servers[1:]:
            server.suspend()
        async with self.primary.client() as client:
            await client.execute_command("CLIENT KILL TYPE replica")

    async def promoted(self) -> RedisNode:
        """The server that the sentinel has made the primary in place of the first."""

        async def other() -> RedisNode | None:
            async with Redis(host=LOOPBACK, port=self.sentinel.port, socket_timeout=5) as sentinel:
                _, port = await sentinel.sentinel_get_master_addr_by_name(SERVICE)
            found = next(server for server in self.servers if server.port == port)
            if found is self.primary or (await info(found, "replication"))["role"] != "master":
                return None
            return found

        found = await eventually(other, timeout_s=30, what="a replica is promoted")
        for server in self.servers[1:]:
            if server is not found:  # the sentinel would tell it within ten seconds or so
                async with server.client() as client:
                    await client.execute_command("REPLICAOF", LOOPBACK, found.port)
        return found


@asynccontextmanager
async def group(directory: Path, *, replicas: int = 1) -> AsyncIterator[Group]:
    """A primary that its replicas follow, and a sentinel that knows of them all."""
    primary = RedisNode(directory=directory / "primary")
    servers: list[RedisNode] = [primary]
    sentinel = SentinelServer(directory=directory / "sentinel", primary=primary)
    try:
        await primary.start()
        for number in range(replicas):
            follows = {"replicaof": f"{LOOPBACK} {primary.port}"}
            servers.append(RedisNode(directory=directory / f"replica-{number}", options=follows))
        await asyncio.gather(*(server.start() for server in servers[1:]))
        await eventually(lambda: following(primary, replicas), timeout_s=30, what="replicas follow")
        await sentinel.start()

        async def known() -> bool:
            async with Redis(host=LOOPBACK, port=sentinel.port) as client:
                return int((await client.sentinel_masters())[SERVICE]["num-slaves"]) == replicas

        await eventually(known, timeout_s=30, what="the sentinel knows the replicas")
        yield Group(servers, sentinel)
    finally:
        await _killed([sentinel, *servers])


@asynccontextmanager
async def cluster(directory: Path, *, primaries: int = 3, replicas: int = 0) -> AsyncIterator[list[RedisNode]]:
    """A Redis Cluster: first the primaries, each with its share of the slots, then a replica of each of the first."""
    nodes = []
    for number in range(primaries + replicas):
        options: dict[str, str | int] = {
            "cluster-enabled": "yes",
            "cluster-port": free_port(),
            "cluster-node-timeout": _NODE_TIMEOUT_MS,
            "cluster-replica-validity-factor": 0,
            "repl-ping-replica-period": 1,  # a replica counts when it has received something
        }
        nodes.append(RedisNode(directory=directory / f"node-{number}", options=options))
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        size = -(-16_384 // primaries)
        for number, node in enumerate(nodes):
            async with node.client() as client:
                await client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                if number < primaries:
                    last = min(16_383, (number + 1) * size - 1)
                    await client.execute_command("CLUSTER ADDSLOTSRANGE", number * size, last)
                for other in nodes[:number]:  # each of them: gossip would take seconds
                    bus = other.options["cluster-port"]
                    await client.execute_command("CLUSTER MEET", LOOPBACK, other.port, bus)
        await _agreed(nodes)
        for primary, replica in zip(nodes, nodes[primaries:], strict=False):
            async with primary.client() as one, replica.client() as other:
                name = await one.execute_command("CLUSTER MYID")
                await other.execute_command("CLUSTER REPLICATE", name)
            await eventually(lambda node=primary: following(node, 1), timeout_s=30, what="a replica follows")  # type: ignore[misc]
        await _agreed(nodes, replicas=replicas)
        yield nodes
    finally:
        await _killed(nodes)


async def _agreed(nodes: Sequence[RedisNode], *, replicas: int = 0) -> None:
    async def agreed() -> bool:
        for node in nodes:
            async with node.client() as client:
                state = dict(await client.execute_command("CLUSTER INFO"))
                slots = await client.execute_command("CLUSTER SLOTS")
            if state["cluster_state"] != "ok" or int(state["cluster_known_nodes"]) != len(nodes):
                return False
            if sum(len(part) - 3 for part in slots) != replicas:
                return False
        return True

    await eventually(agreed, timeout_s=30, what="the cluster's nodes agree")


async def following(primary: RedisNode, replicas: int) -> bool:
    """Whether so many replicas are up to date."""
    found = await info(primary, "replication")
    online = [found.get(f"slave{number}", {}).get("state") == "online" for number in range(replicas)]
    return sum(online) == replicas


async def info(server: RedisNode, section: str) -> dict[str, Any]:
    """INFO of a server, empty while it does not answer."""
    async with server.client() as client:
        try:
            return dict(await client.info(section))
        except (RedisError, OSError):
            return {}


async def _killed(servers: Sequence[Server]) -> None:
    for server in servers:
        server.resume()
    await asyncio.gather(*(server.kill() for server in servers))
