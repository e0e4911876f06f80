"""Questions that tell whether a server does its work."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from stream_app.delivery.connections import close_client

__all__ = ["kafka_answers", "redis_answers"]

_TIMEOUT_S = 2.0


async def kafka_answers(address: str) -> bool:
    """Whether a broker at ``host:port`` lists itself in its metadata, that is: is ready to lead partitions."""
    client = AIOKafkaClient(bootstrap_servers=address, request_timeout_ms=int(_TIMEOUT_S * 1_000))
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await client.bootstrap()
            return bool(client.cluster.brokers())
    except (KafkaError, OSError, TimeoutError):
        return False
    finally:
        with suppress(KafkaError, OSError):
            await close_client(client.close())


async def redis_answers(url: str) -> bool:
    """Whether Redis answers PING with PONG, which it does not while it still loads its data."""
    client = Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()
