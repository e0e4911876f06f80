"""The embedding cache on a real Redis, and without one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from redis.asyncio import Redis
from structlog.testing import capture_logs

from stream_app.embedded.redis import EmbeddedRedis
from stream_app.stores import embedding_cache
from stream_app.stores.embedding_cache import EmbeddingCache

DIMENSIONS = 8
NOWHERE = "redis://127.0.0.1:1/0"  # nothing listens on this port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(directory=tmp_path_factory.mktemp("redis"))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


class Clock:
    """Monotonic seconds, set by the test."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def cache_on(
    url: str | None,
    *,
    prefix: str = "t",
    space: str = "s",
    memory: int = 100,
    ttl_s: int = 60,
    clock: Clock | None = None,
) -> AsyncIterator[EmbeddingCache]:
    redis = Redis.from_url(url) if url else None
    try:
        yield EmbeddingCache(
            redis,
            prefix=prefix,
            space=space,
            dimensions=DIMENSIONS,
            ttl_s=ttl_s,
            memory=memory,
            clock=clock or Clock(),
        )
    finally:
        if redis:
            await redis.aclose()


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex}"


def vectors(*keys: str) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(len(keys))
    return {key: rng.standard_normal(DIMENSIONS).astype(np.float32) for key in keys}


def assert_same(found: dict[str, NDArray[np.float32]], expected: dict[str, NDArray[np.float32]]) -> None:
    assert found.keys() == expected.keys()
    for key, vector in found.items():
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, expected[key])


async def test_a_vector_stored_by_one_process_is_found_by_another(server: EmbeddedRedis, prefix: str) -> None:
    stored = vectors("a", "b")
    async with cache_on(server.url, prefix=prefix) as one, cache_on(server.url, prefix=prefix) as other:
        assert await other.get_many(["a", "b"]) == {}
        await one.put_many(stored)
        assert_same(await other.get_many(["a", "missing", "b"]), stored)
        assert other.redis_hits == 2
        assert_same(await other.get_many(["b", "a"]), stored)
        assert (other.redis_hits, other.memory_hits) == (2, 2)  # the second time from memory


async def test_entries_have_the_documented_key_and_size_and_are_forgotten(server: EmbeddedRedis, prefix: str) -> None:
    async with cache_on(server.url, prefix=prefix, space="m/1", ttl_s=77) as cache:
        await cache.put_many(vectors("a"))
    async with Redis.from_url(server.url) as redis:
        assert await redis.strlen(f"{prefix}:emb:m/1:a") == DIMENSIONS * 4
        assert 70 <= await redis.ttl(f"{prefix}:emb:m/1:a") <= 77


async def test_vector_spaces_do_not_mix(server: EmbeddedRedis, prefix: str) -> None:
    async with cache_on(server.url, prefix=prefix, space="one") as cache:
        await cache.put_many(vectors("a"))
    async with cache_on(server.url, prefix=prefix, space="two") as cache:
        assert await cache.get_many(["a"]) == {}


async def test_a_value_of_the_wrong_size_is_not_a_vector(server: EmbeddedRedis, prefix: str) -> None:
    async with Redis.from_url(server.url) as redis:
        await redis.set(f"{prefix}:emb:s:a", b"short")
    async with cache_on(server.url, prefix=prefix) as cache:
        assert await cache.get_many(["a"]) == {}


async def test_memory_is_bounded_and_drops_what_was_not_used_for_longest() -> None:
    async with cache_on(None, memory=3) as cache:
        await cache.put_many(vectors("a", "b", "c"))
        await cache.get_many(["a"])
        await cache.put_many(vectors("d"))
        assert len(cache) == 3
        assert (await cache.get_many(["a", "b", "c", "d"])).keys() == {"a", "c", "d"}


async def test_a_vector_in_memory_does_not_hold_its_batch_and_cannot_be_changed() -> None:
    batch = np.ones((1_000, DIMENSIONS), dtype=np.float32)
    async with cache_on(None) as cache:
        await cache.put_many({"a": batch[0]})
        vector = (await cache.get_many(["a"]))["a"]
        assert not np.shares_memory(vector, batch)
        with pytest.raises(ValueError, match="read-only"):
            vector[0] = 2


async def test_without_redis_it_goes_on_says_so_once_a_minute_and_tries_again_later() -> None:
    clock = Clock()
    async with cache_on(NOWHERE, clock=clock) as cache:
        with capture_logs() as logs:
            await cache.put_many(vectors("a"))
            assert (await cache.get_many(["a", "b"])).keys() == {"a"}
            assert cache.redis_failures == 1  # left alone after the first failure
            clock.now += embedding_cache.RETRY_AFTER_S
            assert await cache.get_many(["b"]) == {}
            assert cache.redis_failures == 2
            assert len(logs) == 1
            clock.now += embedding_cache.LOG_INTERVAL_S
            await cache.get_many(["b"])
            assert len(logs) == 2


async def test_redis_that_goes_away_and_comes_back_is_used_again(tmp_path: Path) -> None:
    clock = Clock()
    server = EmbeddedRedis(directory=tmp_path)
    await server.start()
    try:
        async with cache_on(server.url, clock=clock) as cache, cache_on(server.url) as other:
            await server.kill()
            await cache.put_many(vectors("a"))
            await server.restart()
            clock.now += embedding_cache.RETRY_AFTER_S
            await cache.put_many(vectors("b"))
            assert (await other.get_many(["a", "b"])).keys() == {"b"}
    finally:
        await server.stop()


async def test_redis_that_does_not_answer_costs_one_short_wait_and_its_late_answer_is_not_mistaken_for_another(
    server: EmbeddedRedis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_cache, "TIMEOUT_S", 0.1)
    clock, stored = Clock(), vectors("a", "b")
    async with cache_on(server.url, prefix=prefix) as other:
        await other.put_many(stored)
    async with cache_on(server.url, prefix=prefix, clock=clock) as cache:
        await cache.get_many(["connects"])
        server.suspend()
        try:
            for _ in range(3):
                assert await cache.get_many(["a"]) == {}
        finally:
            server.resume()
        assert cache.redis_failures == 1
        monkeypatch.setattr(embedding_cache, "TIMEOUT_S", 10.0)
        clock.now += embedding_cache.RETRY_AFTER_S
        assert_same(await cache.get_many(["b"]), {"b": stored["b"]})


async def test_many_vectors_are_one_round_trip_each_way(server: EmbeddedRedis, prefix: str) -> None:
    keys = [f"key {number}" for number in range(500)]
    async with cache_on(server.url, prefix=prefix, memory=0) as cache, Redis.from_url(server.url) as redis:
        assert cache._redis is not None
        await cache.put_many(vectors(*keys))
        await redis.config_resetstat()
        found = await cache.get_many([*keys, "missing"])
        asked = await redis.info("commandstats")
    assert len(found) == 500
    assert asked["cmdstat_mget"]["calls"] == 1
    assert "cmdstat_get" not in asked
    assert len(cache) == 0  # its bound
