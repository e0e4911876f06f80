"""User states and the embedding cache on a real Redis Cluster: placed, moved, failed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import pytest
from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import RedisClusterException

from stream_app.metrics import Metrics
from stream_app.settings import load_settings
from stream_app.stores.embedding_cache import EmbeddingCache
from stream_app.stores.redis_client import connect_redis, histories, look_again, primaries_info
from stream_app.stores.users import UserStore
from stream_app.users.state import UserState
from tests.redis_servers import RedisNode, cluster
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisNode]]:
    """Three primaries, and a replica of each."""
    stack = AsyncExitStack()
    directory = tmp_path_factory.mktemp("cluster")
    with asyncio.Runner() as runner:
        yield runner.run(stack.enter_async_context(cluster(directory, replicas=3)))
        runner.run(stack.aclose())


class Process:
    def __init__(self, nodes: list[RedisNode], prefix: str, **connection: Any) -> None:
        settings = load_settings(
            redis=f"redis+cluster://{','.join(node.address for node in nodes)}",
            redis_connection={"timeout_s": 1.0, "replicas_timeout_ms": 300, **connection},
            topics={"prefix": prefix},
            delivery={"retry_max_s": 0.1},
        )
        self.metrics = Metrics()
        redis = connect_redis(settings)
        assert isinstance(redis, RedisCluster)
        self.redis = redis
        self.users = UserStore(redis, settings, self.metrics)

    async def save(self, states: dict[str, UserState]) -> None:
        assert await self.users.save(states, partitions=dict.fromkeys(states, 0)) == []

    def retries(self, what: str) -> float:
        return self.metrics.registry.get_sample_value("tailrace_retries_total", {"what": what}) or 0.0


@asynccontextmanager
async def process(nodes: list[RedisNode], prefix: str = "t", **connection: Any) -> AsyncIterator[Process]:
    made = Process(nodes, prefix, **connection)
    try:
        yield made
    finally:
        await made.redis.aclose()


def through(user_id: str, offset: int) -> UserState:
    return UserState(user_id, applied={0: offset}, events=offset + 1)


async def found(nodes: list[RedisNode], prefix: str, *user_ids: str) -> dict[str, int]:
    """How many events a process that knows nothing finds of each."""
    async with process(nodes, prefix) as new:
        return {user_id: state.events for user_id, state in (await new.users.load(user_ids)).items()}


@pytest.mark.parametrize("replicas", [0, 1])
async def test_many_users_are_one_round_trip_to_each_primary(
    nodes: list[RedisNode], replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    execute = ClusterNode.execute_pipeline

    async def counted(node: ClusterNode, commands: Any) -> bool:
        sent.append(node.name)
        return await execute(node, commands)

    states = {f"user {number}": through(f"user {number}", number) for number in range(300)}
    async with process(nodes, f"trips-{replicas}", replicas=replicas) as owner:
        await owner.users.check()
        monkeypatch.setattr(ClusterNode, "execute_pipeline", counted)
        await owner.save(states)
        owner.users.forget()
        loaded = await owner.users.load([*states, "{odd} one"])
        monkeypatch.undo()
        assert {user_id: state.events for user_id, state in loaded.items()} == {
            **{user_id: state.events for user_id, state in states.items()},
            "{odd} one": 0,
        }
        assert sorted(sent) == sorted(2 * [node.name for node in owner.redis.get_primaries()])
        for node in owner.redis.get_primaries():
            assert any(owner.redis.get_node_from_key(f"trips-{replicas}:user:{name}") == node for name in states)
    assert owner.retries("user states to Redis") == 0


async def test_a_lost_script_is_loaded_on_every_primary(nodes: list[RedisNode]) -> None:
    states = {f"user {number}": through(f"user {number}", 0) for number in range(30)}
    async with process(nodes, "scripts") as owner:
        await owner.save(states)
        async with nodes[1].client() as one:
            await one.script_flush()
        states = {user_id: through(user_id, 1) for user_id in states}
        await owner.save(states)
    assert set((await found(nodes, "scripts", *states)).values()) == {2}


async def test_embeddings_are_cached_on_all_primaries(nodes: list[RedisNode]) -> None:
    vectors = {f"text {number}": np.full(4, number, np.float32) for number in range(100)}
    async with process(nodes) as one:
        options: dict[str, Any] = {"prefix": "t", "space": "s", "dimensions": 4, "ttl_s": 60, "memory": 0}
        await EmbeddingCache(one.redis, **options).put_many(vectors)
        cache = EmbeddingCache(one.redis, **options)
        loaded = await cache.get_many([*vectors, "unknown"])
    assert loaded.keys() == vectors.keys()
    assert all((loaded[key] == vectors[key]).all() for key in vectors)
    assert cache.redis_failures == 0


async def test_the_nodes_of_the_url_are_asked_again_when_all_that_were_known_are_gone(nodes: list[RedisNode]) -> None:
    async with process(nodes[1:2]) as one:
        await one.redis.ping()
        known = one.redis.nodes_manager.startup_nodes
        assert len(known) == len(nodes)
        known.clear()
        known["gone"] = ClusterNode("127.0.0.1", 1, **one.redis.connection_kwargs)
        await one.redis.aclose()
        with pytest.raises(RedisClusterException, match="cannot be connected") as error:
            await one.redis.ping()
        await look_again(one.redis, error.value)
        assert await one.redis.ping()


@pytest.mark.parametrize("replicas", [0, 1])
async def test_users_of_a_slot_that_is_being_moved_are_found_where_they_are(
    nodes: list[RedisNode], replicas: int
) -> None:
    prefix = f"moving-{replicas}"
    async with process(nodes, prefix, replicas=replicas) as owner:
        await owner.save({"ann": through("ann", 0)})
        key = f"{prefix}:user:ann"
        slot = owner.redis.keyslot(key)
        source = next(node for node in nodes if node.port == owner.redis.get_node_from_key(key).port)
        target = next(node for node in nodes[:3] if node is not source)
        async with source.client() as one, target.client() as other:
            names = [(await client.execute_command("CLUSTER MYID")).decode() for client in (one, other)]
            await other.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[0])
            await one.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[1])
            await owner.save({"ann": through("ann", 1)})
            await one.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5_000)
            # It is there now, and the slot is not: ASK.
            await owner.save({"ann": through("ann", 2)})
            owner.users.forget()
            assert (await owner.users.load(["ann"]))["ann"].events == 3
            for client in (other, one):
                await client.execute_command("CLUSTER SETSLOT", slot, "NODE", names[1])
        # The client's map is of before: MOVED.
        await owner.save({"ann": through("ann", 3)})
        assert owner.redis.get_node_from_key(key).port == target.port
        owner.users.forget()
        assert (await owner.users.load(["ann"]))["ann"].events == 4
        assert owner.retries("user states to Redis") == owner.retries("user states from Redis") == 0
    assert await found(nodes, prefix, "ann") == {"ann": 4}


async def test_replicas_of_every_primary_that_is_written_to_are_waited_for(nodes: list[RedisNode]) -> None:
    states = {f"user {number}": through(f"user {number}", 0) for number in range(30)}
    async with process(nodes, "waiting", replicas=1) as owner:
        await owner.save(states)
        nodes[3].suspend()
        try:
            saving = asyncio.create_task(owner.save({user_id: through(user_id, 1) for user_id in states}))
            await eventually(lambda: owner.retries("user states to Redis") > 1)
            assert not saving.done()
        finally:
            nodes[3].resume()
        await asyncio.wait_for(saving, 30)
    assert set((await found(nodes, "waiting", *states)).values()) == {2}


async def test_a_primary_is_killed_under_load_and_its_replica_goes_on(nodes: list[RedisNode]) -> None:
    """The last of this module: the cluster is another afterwards."""
    users = [f"user {number}" for number in range(30)]
    async with process(nodes, "killed", replicas=1) as owner, process(nodes, "lost") as careless:
        offset = after = 0
        striking: asyncio.Task[None] | None = None
        before = await histories(owner.redis)
        while after < 10:
            await owner.save({user_id: through(user_id, offset) for user_id in users})
            owner.users.forget()
            states = await owner.users.load(users)
            assert {state.events for state in states.values()} == {offset + 1}
            await careless.save({user_id: through(user_id, offset) for user_id in users})
            offset += 1
            if offset == 10:
                striking = asyncio.create_task(_killed_and_back(nodes, owner.redis))
            after += striking is not None and striking.done()
        assert striking is not None
        await striking
        assert await histories(owner.redis) != before
        assert {"master"} == {info["role"] for info in await primaries_info(owner.redis, "replication")}
    for prefix in ("killed", "lost"):
        assert await found(nodes, prefix, *users) == dict.fromkeys(users, offset)


async def _killed_and_back(nodes: list[RedisNode], redis: RedisCluster) -> None:
    await nodes[0].kill()

    async def promoted() -> bool:
        async with nodes[3].client() as client:
            return (await client.info("replication"))["role"] == "master"

    await eventually(promoted, timeout_s=30, what="the replica is promoted")
    await nodes[0].start()  # as its replica: without one, nothing would count
