"""What is said of a Redis that would lose states: at the start of a process, and by ``tailrace doctor``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from stream_app.cli import checks
from stream_app.settings import load_settings
from stream_app.stores.redis_client import connect_redis, warn_of_eviction
from tests.redis_servers import RedisNode


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNode]:
    server = RedisNode(directory=tmp_path_factory.mktemp("redis"))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.mark.parametrize(
    ("policy", "limit", "wrong"),
    [
        ("noeviction", "100mb", False),
        ("volatile-lru", "100mb", False),
        ("allkeys-lru", "100mb", True),
        ("allkeys-random", "0", False),
    ],
)
async def test_a_redis_that_throws_states_away_is_warned_of(
    server: RedisNode, policy: str, limit: str, wrong: bool
) -> None:
    settings = load_settings(redis=server.url)
    async with server.client() as admin:
        await admin.config_set("maxmemory-policy", policy)
        await admin.config_set("maxmemory", limit)
    redis = connect_redis(settings)
    with capture_logs() as logs:
        await warn_of_eviction(redis)
    await redis.aclose()
    assert [line.get("maxmemory_policy") for line in logs] == ([policy] if wrong else [])
    found = [finding async for finding in checks.redis(settings)]
    assert any(policy in finding.text and finding.status == "fail" for finding in found) == wrong


async def test_who_may_not_ask_or_does_not_reach_it_is_not_held_up(server: RedisNode) -> None:
    async with server.client() as admin:
        await admin.execute_command("ACL", "SETUSER", "nobody", "on", ">x", "-@all")
    for url in (f"redis://nobody:x@{server.address}", "redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"):
        redis = connect_redis(load_settings(redis=url))
        with capture_logs() as logs:
            await warn_of_eviction(redis)
        await redis.aclose()
        assert logs == []


async def test_doctor_says_where_replicas_are_waited_for_and_missing(server: RedisNode) -> None:
    settings = load_settings(redis=server.url, redis_connection={"replicas": 2})
    found = [finding async for finding in checks.redis(settings) if finding.status == "fail"]
    assert ["0 replicas" in finding.text and "waits for 2" in finding.text for finding in found] == [True]


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://u:s3cr3t@127.0.0.1:1/0", "Redis at 127.0.0.1:1 does not answer"),
        ("redis+sentinel://u:s3cr3t@127.0.0.1:1/shop", "Redis 'shop' of the sentinels 127.0.0.1:1 does not answer"),
        ("redis+cluster://u:s3cr3t@127.0.0.1:1", "Redis Cluster at 127.0.0.1:1 does not answer"),
    ],
)
async def test_doctor_says_what_does_not_answer(url: str, where: str) -> None:
    (finding,) = [finding async for finding in checks.redis(load_settings(redis=url))]
    assert finding.status == "fail"
    assert finding.text.startswith(where)
    assert "s3cr3t" not in finding.text
