"""User states while a primary is lost and a sentinel promotes a replica: real servers, killed, hung and told to go."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ResponseError

from stream_app.embedded.redis import EmbeddedRedis
from stream_app.metrics import Metrics
from stream_app.settings import load_settings
from stream_app.stores.redis_client import connect_redis
from stream_app.stores.users import UserStore
from stream_app.users.state import HistoryEntry, UserState, encode_state
from tests.redis_servers import SERVICE, Group, group
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(120)


class Process:
    """What a process of the interactions role does with Redis."""

    def __init__(self, url: str, **connection: Any) -> None:
        settings = load_settings(
            redis=url,
            redis_connection={"timeout_s": 1.0, "replicas_timeout_ms": 200, **connection},
            topics={"prefix": "t"},
            delivery={"retry_max_s": 0.1},
        )
        self.metrics = Metrics()
        self.redis = connect_redis(settings)
        self.users = UserStore(self.redis, settings, self.metrics)

    @property
    def primary(self) -> int:
        """The port of the server that is taken for the primary."""
        assert isinstance(self.redis, Redis)
        pool = self.redis.connection_pool
        assert isinstance(pool, SentinelConnectionPool)
        return int(pool.master_address[1])

    def count(self, sample: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(sample, labels) or 0.0

    async def event(self, *user_ids: str, offset: int) -> None:
        """One event of each user: loaded, folded, saved, and then acknowledged."""
        before = await self.users.load(user_ids)
        after = {user_id: folded(before[user_id], offset) for user_id in user_ids}
        assert await self.users.save(after, partitions=dict.fromkeys(user_ids, 0)) == []


@asynccontextmanager
async def process(url: str, **connection: Any) -> AsyncIterator[Process]:
    made = Process(url, **connection)
    try:
        yield made
    finally:
        await made.redis.aclose()


def folded(state: UserState, offset: int) -> UserState:
    after = state.copy()
    after.append(HistoryEntry(f"i{offset}", "click", float(offset), 1.0, offset), 500)
    after.consumed[offset] = math.inf
    after.applied[0] = offset
    after.events += 1
    return after


def expected(user_id: str, offsets: range) -> bytes:
    state = UserState(user_id)
    for offset in offsets:
        state = folded(state, offset)
    return encode_state(state)


async def stored(url: str, *user_ids: str) -> dict[str, bytes]:
    """What a process that knows nothing finds."""
    async with process(url) as new:
        return {user_id: encode_state(state) for user_id, state in (await new.users.load(user_ids)).items()}


async def test_a_process_that_lives_writes_again_what_a_promoted_replica_lacks(tmp_path: Path) -> None:
    async with group(tmp_path) as servers, process(servers.url) as owner:
        await owner.event("ann", "bob", offset=0)
        await servers.cut_off_replicas()
        await owner.event("ann", offset=1)
        await owner.event("cid", offset=2)
        await servers.primary.kill()
        servers.servers[1].resume()
        await servers.promoted()
        lacking = await stored(servers.url, "ann", "cid")
        assert lacking == {"ann": expected("ann", range(1)), "cid": encode_state(UserState("cid"))}, "it was lost"
        await owner.event("dora", offset=3)
        assert owner.count("tailrace_users_taken_back_total") == 2
        cid = encode_state(folded(UserState("cid"), 2))
        found = await stored(servers.url, "ann", "bob", "cid")
        assert found == {"ann": expected("ann", range(2)), "bob": expected("bob", range(1)), "cid": cid}


async def test_nothing_counts_before_as_many_replicas_as_wanted_have_it(tmp_path: Path) -> None:
    async with group(tmp_path) as servers, process(servers.url, replicas=1) as owner:
        await owner.event("ann", offset=0)
        servers.servers[1].suspend()
        saving = asyncio.create_task(owner.event("ann", offset=1))
        await eventually(lambda: owner.count("tailrace_retries_total", what="user states to Redis") > 1)
        async with process(servers.url, replicas=1) as other:
            # Somebody who takes over sees the state, and must not take it for one that stays.
            loading = asyncio.create_task(other.users.load(["ann"]))
            await eventually(lambda: other.count("tailrace_retries_total", what="user states from Redis") > 1)
            assert not saving.done()
            assert not loading.done()
            servers.servers[1].resume()
            await asyncio.wait_for(saving, 20)
            assert (await asyncio.wait_for(loading, 20))["ann"].events == 2
        await servers.primary.kill()
        await servers.promoted()
        assert await stored(servers.url, "ann") == {"ann": expected("ann", range(2))}


async def killed(servers: Group) -> None:
    await servers.primary.kill()
    await servers.promoted()
    await servers.primary.start()


async def hung(servers: Group) -> None:
    """For so long that another is the primary when it wakes up and takes itself for that."""
    servers.primary.suspend()
    await servers.promoted()
    servers.primary.resume()


async def told_to_go(servers: Group) -> None:
    async def accepted() -> bool:
        async with Redis(host="127.0.0.1", port=servers.sentinel.port, socket_timeout=5) as sentinel:
            try:
                await sentinel.execute_command("SENTINEL FAILOVER", SERVICE)
            except ResponseError as error:
                if "NOGOODSLAVE" not in str(error):  # it has not heard of its replicas lately
                    raise
                return False
        return True

    await eventually(accepted, timeout_s=30, interval_s=0.1, what="the sentinel goes about it")
    await servers.promoted()


@pytest.mark.parametrize(
    ("strike", "replicas"),
    # A primary that is told to go takes writes until it is told by whom it was replaced, and the other replica confirms
    # them: with one of two, what is in no memory any more can be lost (docs/redis.md).
    [(killed, 1), (hung, 1), (told_to_go, 2), (told_to_go, 0)],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
async def test_under_load_every_state_is_as_without_the_failover(
    tmp_path: Path, strike: Callable[[Group], Awaitable[None]], replicas: int
) -> None:
    users = [f"user-{number}" for number in range(20)]
    async with group(tmp_path, replicas=2) as servers, process(servers.url, replicas=replicas) as owner:
        striking: asyncio.Task[None] | None = None
        after = offset = 0
        switched = False
        while after < 30:
            await owner.event(*users, offset=offset)
            offset += 1
            if replicas and offset % 7 == 0:
                owner.users.forget()  # as if another process went on: what is in memory must not be needed
            if offset == 30:
                striking = asyncio.ensure_future(strike(servers))
            # Once is enough: a sentinel that is behind may take the next one for dead, too, and go back to the first.
            switched = switched or owner.primary != servers.primary.port
            after += switched and striking is not None and striking.done()
        assert striking is not None
        await striking
        found = await stored(servers.url, *users)
        assert found == {user_id: expected(user_id, range(offset)) for user_id in users}


async def test_a_server_that_comes_back_empty_gets_what_the_process_knows(tmp_path: Path) -> None:
    server = EmbeddedRedis(directory=tmp_path, append_only=False)
    await server.start()
    try:
        async with process(server.url) as owner:
            await owner.event("ann", "bob", offset=0)
            gone = UserState("gone", applied={0: 1}, profile_applied={0: 3}, forgotten_at=9.0)
            assert await owner.users.save({"gone": gone}, partitions={"gone": 0}) == []
            await server.kill()
            await server.start()
            await owner.users.load(["new"])
            assert owner.count("tailrace_users_taken_back_total") == 3
            found = await stored(server.url, "ann", "bob", "gone")
            assert found.pop("gone") == encode_state(gone)
            assert found == {user_id: expected(user_id, range(1)) for user_id in ("ann", "bob")}
            async with process(server.url) as other:
                assert [await other.redis.ttl(f"t:user:{user_id}") for user_id in ("ann", "new")] == [-1, -2]
                assert await other.redis.ttl("t:user:gone") > 0
    finally:
        await server.kill()


async def test_what_somebody_else_wrote_is_not_set_back_and_read_again(tmp_path: Path) -> None:
    """A process that was away for long, and has another's users in memory, when Redis is started again."""
    server = EmbeddedRedis(directory=tmp_path)
    await server.start()
    try:
        async with process(server.url) as before, process(server.url) as owner:
            await before.event("ann", "bob", offset=0)
            await owner.event("ann", offset=1)
            await server.kill()
            await server.start()
            assert (await before.users.load(["cid"]))["cid"].events == 0
            assert before.count("tailrace_users_taken_back_total") == 0
            assert (await before.users.load(["ann"]))["ann"].events == 2
            assert await stored(server.url, "ann") == {"ann": expected("ann", range(2))}
    finally:
        await server.kill()
