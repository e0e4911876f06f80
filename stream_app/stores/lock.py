"""One of a kind at a time, over all machines: a key in Redis that goes away by itself when its holder does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from stream_app.errors import TailraceError
from stream_app.stores.redis_client import REDIS_TRANSIENT, RedisClient

__all__ = ["HELD_S", "one_at_a_time"]

HELD_S = 30
"""How long the lock of a process that was killed keeps others away (seconds)."""
_RENEWALS = 3
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@asynccontextmanager
async def one_at_a_time(redis: RedisClient, key: str, what: str) -> AsyncIterator[None]:
    """Hold ``key`` while the block runs.

    It keeps two from doing the same work; whether that would do harm must not rest on it. A Redis that is away, or
    loses the key, ends nothing.

    Raises:
        TailraceError: when somebody else holds it; says who, and since when.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    mine = f"process {os.getpid()} on {socket.gethostname()} since {since} ({uuid.uuid4().hex[:8]})"
    if not await redis.set(key, mine, nx=True, ex=HELD_S):
        found = await redis.get(key) or b""
        holder = found if isinstance(found, str) else found.decode("utf-8", "replace")
        raise TailraceError(
            f"{what} is under way: {holder or 'it just ended'}; wait for it, or when that process is gone try again "
            f"after {HELD_S} s"
        )
    renewing = asyncio.create_task(_renew(redis, key, mine))
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        with contextlib.suppress(*REDIS_TRANSIENT):
            await redis.eval(_RELEASE, 1, key, mine)


async def _renew(redis: RedisClient, key: str, mine: str) -> None:
    while True:
        await asyncio.sleep(HELD_S / _RENEWALS)
        with contextlib.suppress(*REDIS_TRANSIENT):
            await redis.set(key, mine, ex=HELD_S)
