"""The interactions path without an engine: a plain aiokafka loop around the same domain functions, as a process.

What it reads, writes and waits for is what the interactions process does for events: decode, load states, process,
publish with acknowledgement, save states, commit; one batch after the other, as large as what has arrived. What it
leaves out is what makes it a process one can run: Faust, several owners, dead letters, retries one by one, items that
come and go. So it is the limit of what the engine around the domain can reach.

``python -m stream_app.bench.bare`` is started by ``tailrace bench floor`` (see ``stream_app.bench.child``).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import ConsumerRecord

from schemas.decode import decode_interaction
from stream_app.agents.interactions import InteractionsAgent
from stream_app.bench.child import read_job, run_child, tell
from stream_app.bench.parts import in_parts
from stream_app.delivery.connections import close_client, kafka_options, stop_consumer
from stream_app.delivery.publisher import Publisher, producer_options
from stream_app.memory import settle
from stream_app.metrics import Metrics
from stream_app.ranking.recommender import Recommender
from stream_app.replicas.replica import Replica
from stream_app.settings import Settings, load_settings
from stream_app.stores.redis_client import connect_redis
from stream_app.stores.users import UserStore
from stream_app.topics import Topics
from stream_app.users.stage import SourcedEvent, UserStage
from stream_app.warm_up import warm_up
from workers.models import describe_model
from workers.pool import EncoderPool

__all__ = ["BareJob"]

_POLL_MS = 200
_JOIN_S = 60.0


class BareJob(msgspec.Struct, frozen=True):
    """Nothing is to be said but what the settings say."""


class _Loop:
    """Batches through the domain; what each step takes is noted."""

    def __init__(
        self, settings: Settings, replica: Replica, users: UserStore, producer: AIOKafkaProducer, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.users = users
        self.producer = producer
        self.stage = UserStage(settings, replica.serving, Recommender(settings, replica.serving))
        # Not started: it makes the same records of a result.
        self.agent = InteractionsAgent(
            settings,
            Publisher(settings, metrics),
            metrics,
            users=users,
            stage=self.stage,
            serving=replica.serving,
            pool=EncoderPool(settings.encoder),
        )
        self.seconds: dict[str, float] = defaultdict(float)
        self.events = 0

    async def run(self, consumer: AIOKafkaConsumer) -> None:
        """Take what there is, for ever."""
        clock, seconds = time.perf_counter, self.seconds
        while True:
            began = clock()
            fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=self.agent.most)
            records = [record for part in fetched.values() for record in part]
            if not records:
                continue
            seconds["fetch"] += clock() - began
            await self.process(records)
            began = clock()
            await consumer.commit()
            seconds["commit"] += clock() - began
            self.events += len(records)

    async def process(self, records: Sequence[ConsumerRecord]) -> None:
        """One batch, until its effects are durable."""
        clock, seconds, agent, now = time.perf_counter, self.seconds, self.agent, time.time()
        marks = [clock()]
        events = self.decode(records, now)
        marks.append(clock())
        states = await self.users.load({sourced.event.user_id for sourced in events})
        marks.append(clock())
        result = in_parts(self.stage, events, states, now=now, size=self.settings.delivery.batch)
        marks.append(clock())
        rounds = agent._notes(result)
        rounds[0] = [*agent._slates(result.slates, now), *rounds[0]]
        marks.append(clock())
        for wanted in rounds:
            sends = [
                await self.producer.send(
                    record.topic, record.value, key=record.key, partition=record.partition, headers=list(record.headers)
                )
                for record in wanted
            ]
            await asyncio.gather(*sends)
        marks.append(clock())
        await self.users.save(result.states, partitions=result.partitions)
        marks.append(clock())
        for place, step in enumerate(("decode", "load", "compute", "encode", "publish", "save")):
            seconds[step] += marks[place + 1] - marks[place]

    def decode(self, records: Sequence[ConsumerRecord], now: float) -> list[SourcedEvent]:
        """Events, checked as live."""
        limits: dict[str, Any] = {
            "event_types": self.settings.event_types,
            "now": now,
            "oldest": 0.0,
            "future_tolerance_s": self.settings.events.future_tolerance_s,
        }
        return [
            SourcedEvent(
                decode_interaction(record.key, record.value, record.headers, **limits),
                record.partition,
                record.offset,
                record.timestamp / 1_000,
            )
            for record in records
        ]

    def figures(self) -> dict[str, Any]:
        """Microseconds per event by step, in their order."""
        return {
            "us_per_event": {step: round(1e6 * took / max(self.events, 1), 1) for step, took in self.seconds.items()}
        }


async def _work(settings: Settings, ended: asyncio.Task[None]) -> dict[str, Any]:
    warm_up(settings)
    metrics, model, topics = Metrics(), describe_model(settings.encoder), Topics(settings)
    replica = Replica(settings, metrics, space=model.space, dimensions=model.dimensions)
    redis = connect_redis(settings)
    options = kafka_options(settings)
    # As the process publishes: a limit with smaller requests than what it limits would be none.
    producer = AIOKafkaProducer(**producer_options(settings))
    consumer = AIOKafkaConsumer(
        **options,
        group_id=topics.group("bare"),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=settings.connection.fetch_max_wait_ms,
    )
    try:
        await replica.start()
        await replica.ready.wait()
        await producer.start()
        await consumer.start()
        consumer.subscribe([topics.interactions])
        await _at_the_end(consumer)
        loop = _Loop(settings, replica, UserStore(redis, settings, metrics), producer, metrics)
        settle()
        tell("ready", 1, 1)
        running = asyncio.create_task(loop.run(consumer))
        await asyncio.wait([running, ended, replica.failed], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        if replica.failed.done():
            replica.failed.result()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return loop.figures()
    finally:
        await stop_consumer(consumer)
        await close_client(producer.stop())
        await replica.stop()
        await redis.aclose()


async def _at_the_end(consumer: AIOKafkaConsumer) -> None:
    """Be given the partitions, and leave out what is there: the states know it.

    A broker that states ends that are too low makes us pass over some of it.
    """
    async with asyncio.timeout(_JOIN_S):
        while not (partitions := consumer.assignment()):
            await consumer.getmany(timeout_ms=_POLL_MS, max_records=1)
    for partition, end in (await consumer.end_offsets(list(partitions))).items():
        consumer.seek(partition, end)


async def _main() -> None:
    _, ended = await read_job(BareJob)
    figures = await _work(load_settings(), ended)
    sys.stdout.buffer.write(msgspec.json.encode(figures) + b"\n")


if __name__ == "__main__":
    run_child(_main())
