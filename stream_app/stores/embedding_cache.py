"""Vectors by content hash: a bounded memory cache in front of Redis, shared by all processes.

An embedding depends on nothing but the text and the vector space, so an entry is never stale; it is only forgotten,
in memory when newer ones need the place, in Redis after the configured time. The cache saves work and nothing rests
on it: when Redis does not answer, everything goes on without it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import RedisCluster
from redis.exceptions import RedisError

from stream_app.logs import get_logger
from stream_app.stores.redis_client import REDIS_TRANSIENT, RedisClient, look_again

__all__ = ["EmbeddingCache"]

_log = get_logger(__name__)

TIMEOUT_S = 0.5
"""Longer than this and embedding the text again is quicker."""
RETRY_AFTER_S = 5.0
"""After a failure Redis is left alone for so long, or each lookup would wait for the timeout."""
LOG_INTERVAL_S = 60.0


class EmbeddingCache:
    """Vectors of one space. Keys in Redis: ``<prefix>:emb:<space>:<text hash>``; values: float32, little endian.

    ``redis`` needs ``decode_responses`` off; None keeps vectors in memory only. ``memory`` bounds the vectors held in
    this process, least recently used dropped first. ``clock`` gives monotonic seconds.
    """

    def __init__(
        self,
        redis: RedisClient | None,
        *,
        prefix: str,
        space: str,
        dimensions: int,
        ttl_s: int,
        memory: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._key = f"{prefix}:emb:{space}:"
        self._dimensions = dimensions
        self._ttl_s = ttl_s
        self._memory: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._most = memory
        self._clock = clock
        self._retry_at = -float("inf")
        self._log_at = -float("inf")
        self.memory_hits = 0
        self.redis_hits = 0
        self.redis_failures = 0

    def __len__(self) -> int:
        """Vectors held in memory."""
        return len(self._memory)

    async def get_many(self, hashes: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors known for ``hashes``, each float32 [dimensions], read-only. Never raises for Redis."""
        found: dict[str, NDArray[np.float32]] = {}
        for key in hashes:
            if (vector := self._memory.get(key)) is not None:
                self._memory.move_to_end(key)
                found[key] = vector
        self.memory_hits += len(found)
        missing = [key for key in hashes if key not in found]
        redis = self._reachable()
        if redis is None or not missing:
            return found
        try:
            async with asyncio.timeout(TIMEOUT_S):
                names = [self._key + key for key in missing]
                # In a cluster they are on several servers: still one round trip to each.
                of_many = redis.mget_nonatomic if isinstance(redis, RedisCluster) else redis.mget
                values = await of_many(names)
        except (RedisError, TimeoutError, *REDIS_TRANSIENT) as error:
            await self._failed(redis, error)
            return found
        size = self._dimensions * 4
        for key, value in zip(missing, values, strict=True):
            if isinstance(value, bytes) and len(value) == size:
                vector = np.frombuffer(value, dtype="<f4")
                if not np.isfinite(vector).all():
                    continue  # not written by us: the text is embedded again
                found[key] = vector
                self._remember(key, vector)
                self.redis_hits += 1
        return found

    async def put_many(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep ``vectors`` (text hash to float32 [dimensions]). Never raises for Redis."""
        values: dict[str, bytes] = {}
        for key, vector in vectors.items():
            # Its own bytes: a row of a batch would keep the whole batch in memory.
            values[key] = np.ascontiguousarray(vector, dtype="<f4").tobytes()
            self._remember(key, np.frombuffer(values[key], dtype="<f4"))
        redis = self._reachable()
        if redis is None or not values:
            return
        try:
            async with asyncio.timeout(TIMEOUT_S), redis.pipeline(transaction=False) as pipeline:
                for key, value in values.items():
                    pipeline.set(self._key + key, value, ex=self._ttl_s)
                await pipeline.execute()
        except (RedisError, TimeoutError, *REDIS_TRANSIENT) as error:
            await self._failed(redis, error)

    def _remember(self, key: str, vector: NDArray[np.float32]) -> None:
        self._memory[key] = vector
        self._memory.move_to_end(key)
        while len(self._memory) > self._most:
            self._memory.popitem(last=False)

    def _reachable(self) -> RedisClient | None:
        """Redis, unless it failed a moment ago."""
        return self._redis if self._clock() >= self._retry_at else None

    async def _failed(self, redis: RedisClient, error: BaseException) -> None:
        now = self._clock()
        self.redis_failures += 1
        self._retry_at = now + RETRY_AFTER_S
        if now >= self._log_at:
            self._log_at = now + LOG_INTERVAL_S
            _log.warning(
                "embedding cache without Redis",
                error=str(error) or type(error).__name__,
                effect="texts are embedded again; nothing is lost",
            )
        await look_again(redis, error)
