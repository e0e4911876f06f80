"""The load generator, a process of its own: sends a made-up shop's events and times the slates they cause.

``python -m stream_app.bench.load`` reads a :class:`LoadJob` as one line of JSON from standard input, writes its figures
as JSON to standard output, and says how far it is in lines of JSON on standard error. It ends when its input does, so
it does not outlive who started it. Where the broker is it reads from the settings, as every process does.

It is an open loop: every event has its time to be sent, fixed before the first one, and what is measured counts from
that time to the arrival of the first slate that knows the event. Whatever stalls, this process included, is in the
figures. Records are encoded beforehand.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from schemas.decode import encode
from stream_app.bench.child import read_job, run_child, tell
from stream_app.bench.coverage import Coverage, SlateSequence, due_times, percentiles_ms
from stream_app.bench.hot import latencies_apart
from stream_app.bench.shop import ShopPlan
from stream_app.delivery.connections import close_client, kafka_options, stop_consumer
from stream_app.errors import Unavailable
from stream_app.settings import Settings, load_settings
from stream_app.topics import Topics

__all__ = ["LoadJob", "run_load"]

_LEAD_S = 0.3
"""From connected to the first event."""
_TURN = 32
"""Events sent in a row, where all are due, before the reader gets its turn."""
_TICK_S = 0.001
"""The shortest sleep: uvloop counts in milliseconds, and shorter ones turn in circles, on a core that the pipeline
needs. An event counts from its own time all the same."""
_LATE_S = 1.0
"""Who waits longer sees that something is wrong."""
_GIVE_UP_MS = 600_000
"""An event waits for a broker that is away; it counts from its time all the same."""
_TELL_EVERY_S = 0.25
_POLL_MS = 200
_FETCH_BYTES = 16 * 1_048_576


class LoadJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to send.

    Attributes:
        first, count: which of the shop's events, by number.
        rate: events per second; None: as fast as the broker takes them.
        patience_s: what is not known to a slate when none came for so long counts as lost (seconds).
    """

    plan: ShopPlan
    first: int
    count: int
    rate: float | None = None
    patience_s: float = 60.0


class _Trigger(msgspec.Struct):
    event_id: str | None = None


class _Versions(msgspec.Struct):
    space: str = ""


class _Slate(msgspec.Struct):
    """As much of a slate as is looked at."""

    user_id: str
    trigger: _Trigger
    items: list[msgspec.Raw]
    versions: _Versions = msgspec.field(default_factory=_Versions)


class _Load:
    def __init__(self, settings: Settings, job: LoadJob) -> None:
        self.settings = settings
        self.job = job
        self.topics = Topics(settings)
        self.records: list[tuple[bytes, bytes, int]] = []
        self.number_of: dict[str, int] = {}
        self.users: list[str] = []
        for number, (partition, _, event) in enumerate(job.plan.interactions(job.first, job.count)):
            self.records.append((event.user_id.encode(), encode(event), partition))
            self.number_of[event.event_id] = number
            self.users.append(event.user_id)
        self.coverage = Coverage(self.users)
        self.sent_at = np.full(len(self.users), np.nan)
        self.slates = self.items = 0
        self.sequence = SlateSequence()
        self.lag_at_end = 0
        self.progress_at = 0.0
        self.error: BaseException | None = None

    async def run(self) -> dict[str, Any]:
        """Send everything, wait for its slates, and say how it was."""
        options = kafka_options(self.settings)
        producer = AIOKafkaProducer(**{**options, "request_timeout_ms": _GIVE_UP_MS}, acks="all")
        consumer = AIOKafkaConsumer(
            **options,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=self.settings.connection.fetch_max_wait_ms,
            max_partition_fetch_bytes=_FETCH_BYTES,
        )
        try:
            await producer.start()
            await consumer.start()
            await self._seek_to_end(consumer)
            reading = asyncio.create_task(self._read(consumer))
            telling = asyncio.create_task(self._tell())
            try:
                start = await self._send(producer)
                await self._settle(reading)
            finally:
                for task in (reading, telling):
                    task.cancel()
                await asyncio.gather(reading, telling, return_exceptions=True)
        except (KafkaError, OSError) as error:
            raise Unavailable(f"Kafka at {self.settings.kafka}: {error}") from error
        finally:
            await stop_consumer(consumer)
            await close_client(producer.stop())
        return self._figures(start)

    async def _seek_to_end(self, consumer: AIOKafkaConsumer) -> None:
        partitions = [TopicPartition(self.topics.recommendations, number) for number in range(self.job.plan.partitions)]
        consumer.assign(partitions)
        # Where a broker states ends that are too low, slates of earlier events are read, which know none of ours.
        for partition, end in (await consumer.end_offsets(partitions)).items():
            consumer.seek(partition, end)
        await consumer.getmany(timeout_ms=0)

    async def _send(self, producer: AIOKafkaProducer) -> float:
        """Send all; the time of the start."""
        clock, topic, sent = time.perf_counter, self.topics.interactions, self.coverage.sent
        start = clock() + _LEAD_S
        due = None if self.job.rate is None else (start + due_times(len(self.records), self.job.rate)).tolist()
        await asyncio.sleep(_LEAD_S)
        for number, (key, value, partition) in enumerate(self.records):
            now = clock()
            if due is not None:
                while due[number] > now:
                    await asyncio.sleep(max(due[number] - now, _TICK_S))
                    now = clock()
            if number % _TURN == 0:
                await asyncio.sleep(0)
                now = clock()
                if self.error is not None:
                    raise self.error
            sent(number, now if due is None else due[number])
            self.sent_at[number] = now
            future = await producer.send(topic, value, key=key, partition=partition)
            future.add_done_callback(self._acknowledged)
        self.lag_at_end = self.coverage.uncovered
        await producer.flush()
        tell("sent", len(self.records), len(self.records))
        return start

    def _acknowledged(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self.error = self.error or error

    async def _settle(self, reading: asyncio.Task[None]) -> None:
        """Until a slate knows every event, or patience ends."""
        self.progress_at = time.perf_counter()
        while self.coverage.uncovered and time.perf_counter() - self.progress_at < self.job.patience_s:
            if self.error is not None:
                raise self.error
            if reading.done():
                reading.result()
            await asyncio.sleep(0.01)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        """Read slates for ever."""
        decode, number_of, coverage = msgspec.json.Decoder(_Slate).decode, self.number_of, self.coverage
        while True:
            fetched = await consumer.getmany(timeout_ms=_POLL_MS)
            at = time.perf_counter()
            for records in fetched.values():
                for record in records:
                    if record.value is None:
                        continue
                    slate = decode(record.value)
                    number = number_of.get(slate.trigger.event_id or "", -1)
                    if number >= 0:
                        self.slates += 1
                        self.items += len(slate.items)
                        self.sequence.slate(slate.user_id, record.partition, number, slate.versions.space)
                        if coverage.slate(slate.user_id, number, at):
                            self.progress_at = at

    async def _tell(self) -> None:
        while True:
            tell("known to a slate", len(self.coverage) - self.coverage.lost, len(self.coverage))
            await asyncio.sleep(_TELL_EVERY_S)

    def _figures(self, start: float) -> dict[str, Any]:
        coverage = self.coverage
        count, lost = len(coverage), coverage.lost
        last = float(np.nanmax(coverage.known, initial=start))
        late = percentiles_ms(self.sent_at - coverage.due)
        hot_user, apart = self.job.plan.hot_user_id, {}
        if hot_user is not None:
            places = [partition for _, _, partition in self.records]
            apart = latencies_apart(coverage.latencies, self.users, places, hot_user=hot_user)
        # Wall clock: the caller compares it with its own.
        known_at = time.time() - (time.perf_counter() - last)
        return {
            "events": count,
            "sent_per_s": _per_s(count, float(self.sent_at[-1]) - start),
            "achieved": _per_s(count - lost, last - start),
            **percentiles_ms(coverage.latencies),
            **apart,
            "sent_late_p99_ms": late["p99_ms"],
            "slates": self.slates,
            "items_per_slate": round(self.items / max(self.slates, 1), 2),
            "slates_older_than_before": self.sequence.older,
            "models_served": self.sequence.models,
            "most_changes_of_model": self.sequence.changes,
            "most_lag": coverage.most_uncovered,
            "lag": self.lag_at_end,
            "lost": lost,
            "known_at": known_at,
            "late_until": self._late_until(),
        }

    def _late_until(self) -> float | None:
        """When the last event that waited for longer than it should was known (seconds since 1970)."""
        known = self.coverage.known[self.coverage.latencies > _LATE_S]
        return None if not len(known) else time.time() - (time.perf_counter() - float(np.nanmax(known)))


def _per_s(count: int, seconds: float) -> float:
    return round(count / max(seconds, 1e-9), 1)


async def run_load(settings: Settings, job: LoadJob) -> dict[str, Any]:
    """Send the events of the job, and wait until a slate knows each.

    Returns:
        ``events``; ``sent_per_s``; ``achieved`` (events known to a slate per second, from the first event to the last
        slate); ``p50_ms`` ... ``max_ms`` from an event's time to be sent to the first slate that knows it, with a hot
        user also those of :func:`stream_app.bench.hot.latencies_apart`; ``sent_late_p99_ms`` (this process' own part of
        that); ``slates`` and ``items_per_slate``; those of :class:`stream_app.bench.coverage.SlateSequence`;
        ``most_lag`` and ``lag`` (events that no slate knew: the most at a
        time, and when the last one was sent); ``lost``; ``known_at`` (the last slate, seconds since 1970);
        ``late_until`` (the last slate that an event waited for longer than a second, or None).

    Raises:
        Unavailable: when the broker goes away or refuses an event.
    """
    load = _Load(settings, job)
    gc.collect()
    gc.freeze()
    return await load.run()


async def _main() -> None:
    job, ended = await read_job(LoadJob)
    working = asyncio.create_task(run_load(load_settings(), job))
    await asyncio.wait([working, ended], return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return
    ended.cancel()
    sys.stdout.buffer.write(msgspec.json.encode(working.result()) + b"\n")


if __name__ == "__main__":
    run_child(_main())
