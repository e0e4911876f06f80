"""How long ``tailrace rebuild users`` takes: Online Retail's events on a broker, every state made from them.

``python -m benchmarks.rebuild [--stack kafka] [--events N]``. Nobody else works on the broker meanwhile. The
first rebuild finds an empty Redis and writes every state, the second finds them right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from itertools import islice
from typing import Any

import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas.decode import encode
from stream_app.datasets.online_retail import load_online_retail
from stream_app.delivery.admin import create_topics
from stream_app.delivery.connections import kafka_options
from stream_app.embedded import EmbeddedStack
from stream_app.rebuild.users import rebuild_users
from stream_app.settings import Settings, load_settings
from stream_app.topics import Topics

__all__ = ["rebuild_figures"]


async def rebuild_figures(settings: Settings, events: int) -> dict[str, Any]:
    """Events, users, and of both rebuilds the seconds, events per second, and the most memory of this process (MB)."""
    await create_topics(settings)
    await _produce(settings, events)
    figures: dict[str, Any] = {"events": events}
    for name in ("from_nothing", "unchanged"):
        started = time.perf_counter()
        outcome = await rebuild_users(settings)
        seconds = time.perf_counter() - started
        memory = psutil.Process().memory_info().rss / 1e6
        figures["users"] = outcome.counts.users
        figures[name] = {
            "seconds": round(seconds, 1), "events_per_s": round(events / seconds), "memory_mb": round(memory)
        }  # fmt: skip
        right = outcome.counts.created if name == "from_nothing" else outcome.counts.unchanged
        assert right == outcome.counts.users, outcome
    return figures


async def _produce(settings: Settings, events: int) -> None:
    topic = Topics(settings).interactions
    producer = AIOKafkaProducer(**kafka_options(settings), linger_ms=20, max_batch_size=262_144)
    await producer.start()
    ends: dict[TopicPartition, int] = {}
    try:
        interactions = iter(load_online_retail().interactions)
        while part := list(islice(interactions, min(2_000, events))):
            events -= len(part)
            sent = [await producer.send(topic, encode(event), key=event.user_id.encode()) for event in part]
            for place in await asyncio.gather(*sent):
                ends[TopicPartition(topic, place.partition)] = place.offset + 1
    finally:
        await producer.stop()
    consumer = AIOKafkaConsumer(**kafka_options(settings), group_id=Topics(settings).group("interactions"))
    await consumer.start()
    try:
        consumer.assign(list(ends))
        await consumer.commit({place: max(end, ends[place]) for place, end in ends.items()})
    finally:
        await consumer.stop()


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stack", choices=["embedded", "kafka"], default="kafka")
    parser.add_argument("--events", type=int, default=400_000)
    arguments = parser.parse_args()
    with EmbeddedStack(arguments.stack) as stack:
        settings = load_settings(**stack.settings_overrides(), topics={"prefix": "rebuilt"}, metrics={"port": -1})
        print(json.dumps(asyncio.run(rebuild_figures(settings, arguments.events)), indent=1))


if __name__ == "__main__":
    main()
