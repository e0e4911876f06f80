"""Each role on a real Redis under exactly the rights of ``deploy/redis/users.acl``: enough, and none of them idle."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.exceptions import RedisClusterException, RedisError

from stream_app.cli import checks
from stream_app.errors import Forbidden
from stream_app.metrics import Metrics
from stream_app.settings import Settings, load_settings
from stream_app.stores.embedding_cache import EmbeddingCache
from stream_app.stores.lock import one_at_a_time
from stream_app.stores.rebuilt import RebuiltStates, Replacement
from stream_app.stores.redis_client import RedisClient, connect_redis, warn_of_eviction
from stream_app.stores.redis_rights import REDIS_USERS, RedisUser, acl_file, acl_rules
from stream_app.stores.requests import SlateRebuild, SlateRebuilds
from stream_app.stores.users import UserStore
from stream_app.users.state import UserState, encode_state
from tests.redis_servers import RedisNode, following
from tests.waiting import eventually

FILE = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
_numbers = itertools.count()
FOR_CLUSTERS = {"cluster|slots", "command", "asking"}


def test_the_file_is_what_the_code_says() -> None:
    assert FILE.read_text() == acl_file(prefix="tailrace"), (
        "write it again: acl_file(prefix='tailrace') of stream_app/stores/redis_rights.py"
    )


@dataclass
class Servers:
    """A primary with the users of the file, each with a password; and a replica of it."""

    primary: RedisNode
    replica: RedisNode
    database: int = 5

    def settings(self, user: RedisUser) -> Settings:
        return load_settings(
            redis=f"redis://tailrace-{user}:{user}@{self.primary.address}/{self.database}",
            redis_connection={"timeout_s": 2.0, "replicas": 1},
            delivery={"retry_max_s": 0.05},
        )

    async def allow(self, user: RedisUser, *rules: str, cut: bool = True) -> None:
        """What the file allows, and then ``rules``; with an empty log of refusals, and, to ``cut``, no connections."""
        async with self.primary.client() as admin:
            name = f"tailrace-{user}"
            given = acl_rules(user, prefix="tailrace")
            await admin.execute_command("ACL", "SETUSER", name, "reset", "on", f">{user}", *given, *rules)
            if cut:
                await admin.execute_command("CLIENT", "KILL", "USER", name)
            await admin.execute_command("ACL", "LOG", "RESET")
            await admin.script_flush()

    async def refused(self) -> set[str]:
        """Commands, and keys, that were refused to anybody."""
        async with self.primary.client() as admin:
            log = await admin.acl_log()
        return {_text(entry["object"]).lower() for entry in log if _text(entry["reason"]) != "auth"}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    stack = AsyncExitStack()
    directory = tmp_path_factory.mktemp("redis")
    with asyncio.Runner() as runner:
        yield runner.run(stack.enter_async_context(_started(directory)))
        runner.run(stack.aclose())


@asynccontextmanager
async def _started(directory: Path) -> AsyncIterator[Servers]:
    primary = RedisNode(directory=directory / "primary", options={"aclfile": FILE})
    replica = RedisNode(directory=directory / "replica")
    try:
        await primary.start()
        replica.options["replicaof"] = f"127.0.0.1 {primary.port}"
        await replica.start()
        await eventually(lambda: following(primary, 1), what="the replica follows")
        yield Servers(primary, replica)
    finally:
        await asyncio.gather(primary.kill(), replica.kill())


@asynccontextmanager
async def client(settings: Settings) -> AsyncIterator[RedisClient]:
    redis = connect_redis(settings)
    try:
        yield redis
    finally:
        await redis.aclose()


async def as_interactions(settings: Settings) -> None:
    async with client(settings) as redis:
        assert await redis.ping()
        users = UserStore(redis, settings, Metrics())
        await users.check()
        await warn_of_eviction(redis)
        user = f"user-{next(_numbers)}"
        for state in (
            UserState(user, applied={0: 1}, events=1),
            UserState(user, applied={0: 1}, profile_applied={0: 1}, forgotten_at=1.0),
            UserState(user, applied={0: 2}, profile_applied={0: 1}, events=1),
        ):
            assert await users.save({user: state}, partitions={user: 0}) == []
        assert await SlateRebuilds(redis, settings).asked() is None
        await _as_after_a_failover(users, user)
        users.forget()
        assert (await users.load([user]))[user].applied == {0: 3}
        await as_catalogue(settings)


async def _as_after_a_failover(users: UserStore, user: str) -> None:
    """The cache knows a state that Redis lacks, and Redis has another history than before."""
    state = (await users.load([user]))[user].copy()
    state.applied[0] += 1
    users._cache.put(user, state, encode_state(state))
    users._histories, users._connections_seen = frozenset(), -1
    await users.load(["new"])


async def as_catalogue(settings: Settings) -> None:
    async with client(settings) as redis:
        cache = EmbeddingCache(redis, prefix="tailrace", space="s", dimensions=4, ttl_s=60, memory=0)
        await cache.put_many({"a": np.ones(4, np.float32)})
        found = await cache.get_many(["a", "b"])
        assert set(found) == {"a"}
        assert cache.redis_failures == 0


async def as_operator(settings: Settings) -> None:
    found = [finding async for finding in checks.redis(settings)]
    assert [finding for finding in found if finding.status == "fail"] == []
    async with client(settings) as redis:
        await UserStore(redis, settings, Metrics()).load(["u"])
        requests = SlateRebuilds(redis, settings)
        await requests.ask(SlateRebuild(id="r", ends={0: 1}, users_per_s=1.0))
        assert await requests.take_back()
        user = f"user-{next(_numbers)}"
        async with one_at_a_time(redis, f"tailrace:rebuild:{user}", "a rebuild of users"):
            states = RebuiltStates(redis, settings, generation=1)
            for state, fences in (
                (UserState(user, applied={0: 1}, events=1), {"o0": 1}),
                (UserState(user, applied={0: 2}, forgotten_at=1.0), {"o0": 2}),
                (UserState(user, applied={0: 3}, events=1), {"o0": 3}),
            ):
                (held,) = await states.held([user])
                assert await states.replace([Replacement(state, encode_state(state), fences, held)]) == ["written"]
                states.generation += 1


ROLES: dict[RedisUser, Callable[[Settings], Awaitable[None]]] = {
    "interactions": as_interactions,
    "catalogue": as_catalogue,
    "operator": as_operator,
}


@pytest.mark.parametrize("user", REDIS_USERS)
async def test_every_role_works_under_exactly_its_rights(servers: Servers, user: RedisUser) -> None:
    await servers.allow(user)
    await ROLES[user](servers.settings(user))
    assert await servers.refused() == set()


@pytest.mark.parametrize("user", REDIS_USERS)
async def test_every_right_is_needed(servers: Servers, user: RedisUser) -> None:
    rules = acl_rules(user, prefix="tailrace")
    commands = {rule[1:] for rule in rules if rule.startswith("+")} - FOR_CLUSTERS - {"ping"}
    unused = []
    for command in sorted(commands):
        await servers.allow(user, f"-{command}")
        if not await _is_refused(servers, user, command):
            unused.append(command)
    for keys in (rule for rule in rules if rule.startswith("~")):
        others = [rule for rule in rules if rule.startswith("~") and rule != keys]
        await servers.allow(user, "resetkeys", *others)
        if not await _is_refused(servers, user, keys[1:].rstrip("*")):
            unused.append(keys)
    assert unused == []


async def _is_refused(servers: Servers, user: RedisUser, what: str) -> bool:
    working = asyncio.ensure_future(ROLES[user](servers.settings(user)))
    try:
        while True:
            if any(refused.startswith(what) for refused in await servers.refused()):
                return True
            if working.done():
                return any(refused.startswith(what) for refused in await servers.refused())
            await asyncio.wait([working], timeout=0.01)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("-hgetall", "HGETALL on tailrace:user:?: "),
        ("-evalsha", "EVALSHA on tailrace:user:?: "),
        ("-script|load", "SCRIPT LOAD on the script that saves: "),
        ("-info", "INFO on replication: "),
        ("-set", "SET on tailrace:fence: "),
        ("-wait", "WAIT on tailrace:fence: "),
        ("resetkeys", "HGETALL on tailrace:user:?: "),
    ],
)
async def test_a_missing_right_ends_the_start_and_is_named(servers: Servers, rule: str, named: str) -> None:
    await servers.allow("interactions", rule)
    settings = servers.settings("interactions")
    async with client(settings) as redis:
        said = f"Redis does not allow our user {named}"
        with pytest.raises(Forbidden, match=re.escape(said) + r".*deploy/redis/users\.acl"):
            await UserStore(redis, settings, Metrics()).check()


async def test_a_right_that_is_taken_away_while_we_run_is_named_and_waited_for(
    servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    await servers.allow("interactions")
    settings = servers.settings("interactions")
    async with client(settings) as redis:
        users = UserStore(redis, settings, Metrics())
        await users.check()
        user = f"user-{next(_numbers)}"
        await servers.allow("interactions", "-hset", cut=False)
        state = UserState(user, applied={0: 1}, events=1)
        saving = asyncio.create_task(users.save({user: state}, partitions={user: 0}))
        said = ""

        def named() -> bool:
            nonlocal said
            said += capsys.readouterr().out
            return f"Redis does not allow our user EVALSHA on the state of user '{user}'" in said and "hset" in said

        await eventually(named, what="the log names the command")
        assert not saving.done()
        await servers.allow("interactions")
        assert await asyncio.wait_for(saving, 20) == []


async def test_a_cluster_takes_the_rights_too(tmp_path: Path) -> None:
    node = RedisNode(directory=tmp_path, options={"cluster-enabled": "yes", "aclfile": FILE})
    try:
        await node.start()
        async with node.client() as admin:
            await admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
            for user in REDIS_USERS:
                await admin.execute_command("ACL", "SETUSER", f"tailrace-{user}", "on", f">{user}")

            async def ready() -> bool:
                return dict(await admin.execute_command("CLUSTER INFO"))["cluster_state"] == "ok"

            await eventually(ready, what="one node is a cluster")
            for user in REDIS_USERS:
                settings = load_settings(redis=f"redis+cluster://tailrace-{user}:{user}@{node.address}")
                await ROLES[user](settings)
                async with client(settings) as redis:
                    await redis.execute_command("ASKING", target_nodes=redis.get_primaries())  # type: ignore[union-attr]
            assert await admin.acl_log() == []
            of_catalogue = load_settings(redis=f"redis+cluster://tailrace-catalogue:catalogue@{node.address}")
            for command in FOR_CLUSTERS - {"asking"}:
                await admin.execute_command("ACL", "SETUSER", "tailrace-catalogue", f"-{command}")
                async with client(of_catalogue) as redis:
                    with pytest.raises((RedisError, RedisClusterException)):
                        await redis.get("tailrace:emb:x")
                assert command in {_text(entry["object"]) for entry in await admin.acl_log()}
                await admin.execute_command("ACL", "SETUSER", "tailrace-catalogue", f"+{command}")
    finally:
        await node.kill()
