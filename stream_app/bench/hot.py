"""Hot keys: what a user and an item with a large share of all events amount to, and who waits for whom.

A topic is read in order per partition, and a user's events are in one, so whoever shares it with a busy user may wait
behind. What is kept of either must not grow with their events: it is read back from where it is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from numpy.typing import NDArray

from schemas.decode import decode_item_signals
from stream_app.bench.coverage import percentiles_ms
from stream_app.bench.shop import ShopPlan
from stream_app.delivery.connections import kafka_options, stop_consumer
from stream_app.items.partitions import item_partition
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.stores.redis_client import connect_redis
from stream_app.stores.users import UserStore
from stream_app.topics import Topics
from stream_app.users.state import encode_state

__all__ = ["hot_rows", "latencies_apart"]

_POLL_MS = 500
_PATIENCE_S = 60.0


def latencies_apart(
    latencies: NDArray[np.float64], users: Sequence[str], partitions: Sequence[int], *, hot_user: str
) -> dict[str, float | None]:
    """``p50_ms`` and ``p99_ms`` of the hot user's events, of all others, and of the others in the same partition.

    Args:
        latencies: float64 [events], seconds; NaN where no slate came.
        users, partitions: of each event.
        hot_user: the user.
    """
    of_hot = np.array([user == hot_user for user in users], np.bool_)
    where = np.asarray(partitions)
    beside = ~of_hot & np.isin(where, where[of_hot])
    found: dict[str, float | None] = {}
    for name, chosen in (("hot_user", of_hot), ("others", ~of_hot), ("same_partition", beside)):
        figures = percentiles_ms(latencies[chosen])
        found |= {f"{name}_{part}": figures[part] for part in ("p50_ms", "p99_ms")}
    return found


async def hot_rows(settings: Settings, plan: ShopPlan) -> dict[str, int]:
    """How much is kept of the hot user in Redis, and said of the hot item on ``item-signals.v1``.

    Returns:
        ``hot_user_history`` (events), ``hot_user_state_bytes``, ``hot_item_neighbours`` and ``hot_item_record_bytes``
        of the newest record; nothing of a key that is not hot.

    Raises:
        TailraceError: when the record cannot be read.
        TimeoutError: when the broker does not answer in a minute.
    """
    found: dict[str, int] = {}
    if plan.hot_user_id is not None:
        redis = connect_redis(settings)
        try:
            state = (await UserStore(redis, settings, Metrics()).load([plan.hot_user_id]))[plan.hot_user_id]
        finally:
            await redis.aclose()
        found |= {"hot_user_history": len(state.history), "hot_user_state_bytes": len(encode_state(state))}
    if plan.hot_item_id is not None:
        async with asyncio.timeout(_PATIENCE_S):
            value = await _newest(settings, plan.hot_item_id, plan.partitions)
        _, signals = decode_item_signals(plan.hot_item_id.encode(), value)
        if value is not None and signals is not None:
            found |= {"hot_item_neighbours": len(signals.neighbours), "hot_item_record_bytes": len(value)}
    return found


async def _newest(settings: Settings, item_id: str, partitions: int) -> bytes | None:
    """The item's newest record of ``item-signals.v1``; None where there is none."""
    place = TopicPartition(Topics(settings).item_signals, item_partition(item_id, partitions))
    key, newest = item_id.encode(), None
    consumer = AIOKafkaConsumer(**kafka_options(settings), enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        await consumer.seek_to_beginning(place)
        while await consumer.position(place) < end:
            for records in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                newest = next((record.value for record in reversed(records) if record.key == key), newest)
    finally:
        await stop_consumer(consumer)
    return newest
