"""A run: a broker, Redis and processes of Tailrace, a stream of events, and faults in the middle of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from stream_app.embedded.broker import EmbeddedBroker
from stream_app.embedded.kafka import ApacheKafka
from stream_app.embedded.redis import EmbeddedRedis
from stream_app.errors import EmbeddedStackError
from stream_app.torture.clock import MovedClock, why_not
from stream_app.torture.faults import Ground
from stream_app.torture.outcome import Outcome
from stream_app.torture.pipeline import Pipeline, settles
from stream_app.torture.proxy import Proxy
from stream_app.torture.schedule import Fault
from stream_app.torture.stream import Stream

__all__ = ["Report", "Told", "torture"]

T = TypeVar("T")

Told = Callable[[str, int, int], None]
"""What is being done (or what happened), how much of it is done, and of how much."""

_ROLES = ("catalogue,items,ranker,interactions", "items,ranker,interactions", "catalogue,items,interactions")
"""Of the processes, in turn: every role is more than one process's."""
_LOOK_EVERY_S = 0.25
_SETTLED_WITHIN_S = 300.0


@dataclass
class Report:
    """What became of a run.

    Attributes:
        faults: what went wrong, in order, with the second it began and the second it was healed.
        ended: what ended by itself, and was started again.
        seconds: that the events took to be sent, and everything after them to settle.
        outcome: what it amounts to.
        logs: the last lines of each process.
    """

    faults: list[tuple[Fault, float, float]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    seconds: tuple[float, float] = (0.0, 0.0)
    outcome: Outcome | None = None
    logs: str = ""


async def torture(
    stream: Stream,
    schedule: Sequence[Fault],
    *,
    broker: Literal["kafka", "embedded"],
    directory: Path,
    processes: int = 3,
    rate: float = 400.0,
    prefix: str = "torture",
    overrides: dict[str, Any] | None = None,
    told: Told = lambda _what, _done, _total: None,
) -> Report:
    """Send the stream through processes of its own while things go wrong; everything is healed before it is compared.

    Args:
        stream: what is sent.
        schedule: what goes wrong; empty: nothing.
        broker: which one is started.
        directory: where everything goes; empty.
        processes: of Tailrace.
        rate: events per second, when nothing holds the sender up.
        prefix: of the topics.
        overrides: further settings.
        told: about progress and each fault.

    Raises:
        EmbeddedStackError: when something does not start, or does not come back.
        NotSettled: when what must come in the end does not come; the processes' last lines are its note.
    """
    report = Report()
    async with _ground(stream, broker, directory, processes, prefix, overrides or {}) as (pipeline, ground):
        try:
            await _run(stream, schedule, pipeline, ground, report, rate, told)
        except BaseException as error:
            report.logs = pipeline.logs()
            error.add_note(report.logs)
            raise
        report.logs = pipeline.logs()
    return report


async def _run(
    stream: Stream,
    schedule: Sequence[Fault],
    pipeline: Pipeline,
    ground: Ground,
    report: Report,
    rate: float,
    told: Told,
) -> None:
    total = len(stream.events)
    told("processes start", 0, 1)
    await asyncio.gather(*(worker.start() for worker in ground.workers))
    told("processes start", 1, 1)
    await pipeline.send_items(stream.items)
    await pipeline.embedded(len(stream.items))
    began = time.monotonic()
    due = list(schedule)
    suffering: list[asyncio.Task[None]] = []
    sent = 0

    async def suffer(fault: Fault) -> None:
        at = time.monotonic() - began
        told(str(fault), sent, total)
        await ground.suffer(fault)
        report.faults.append((fault, at, time.monotonic() - began))
        told(f"healed: {fault}", sent, total)

    async def between(number: int) -> None:
        nonlocal sent
        sent = number
        while due and due[0].after <= number:
            # Events wait for the one before it on the same target: what happens after the last event shows nothing.
            await settles(_free(ground, due[0].target), what=f"{due[0].target} is back", timeout_s=_SETTLED_WITHIN_S)
            suffering.append(asyncio.create_task(suffer(due.pop(0))))
            await asyncio.sleep(0)
        if number % 50 == 0 or number == total:
            told("events", number, total)

    watching = asyncio.create_task(_revive(ground, report, told))
    try:
        sending_all = pipeline.send_events(stream.events, per_s=rate, catch_up=False, between=between)
        await _unless_it_fails(watching, sending_all)
        await asyncio.gather(*suffering)
        sending = time.monotonic() - began
        told("settling", 0, 1)
        report.outcome = await _unless_it_fails(watching, pipeline.outcome(stream, timeout_s=_SETTLED_WITHIN_S))
        if still := [number for number, worker in enumerate(ground.workers) if not worker.running]:
            raise EmbeddedStackError(f"processes {still} do not run at the end")
        report.seconds = (sending, time.monotonic() - began - sending)
        told("settling", 1, 1)
    finally:
        tasks = [watching, *suffering]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _free(ground: Ground, target: str) -> Callable[[], Coroutine[Any, Any, bool]]:
    async def free() -> bool:
        return not ground.busy(target)

    return free


async def _unless_it_fails(watching: asyncio.Task[None], work: Coroutine[Any, Any, T]) -> T:
    """The result of the work; the watcher's error when that comes first: a process that does not come back."""
    working = asyncio.ensure_future(work)
    await asyncio.wait([watching, working], return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        watching.result()
    return working.result()


async def _revive(ground: Ground, report: Report, told: Told) -> None:
    """What ends by itself is started again, as whoever runs it would; and noted."""
    while True:
        for number, worker in enumerate(ground.workers):
            if not worker.running and not ground.busy(str(number)):
                report.ended.append(f"process {number}: {worker.output(30)}")
                told(f"process {number} ended by itself and is started again", 0, 1)
                await ground.revive(str(number))
        await asyncio.sleep(_LOOK_EVERY_S)


@asynccontextmanager
async def _ground(
    stream: Stream,
    broker: Literal["kafka", "embedded"],
    directory: Path,
    processes: int,
    prefix: str,
    overrides: dict[str, Any],
) -> AsyncIterator[tuple[Pipeline, Ground]]:
    to_broker, to_redis = Proxy(), Proxy()
    kafka: ApacheKafka | EmbeddedBroker
    if broker == "kafka":
        kafka = ApacheKafka(directory=directory / "kafka", proxied_at=to_broker.address)
    else:
        kafka = EmbeddedBroker(directory=directory / "broker")
    redis = EmbeddedRedis(directory=directory / "redis")
    pipeline: Pipeline | None = None
    try:
        await asyncio.gather(kafka.start(), redis.start(), to_broker.start(), to_redis.start())
        to_broker.target = kafka.proxied_address if isinstance(kafka, ApacheKafka) else kafka.address
        to_redis.target = redis.address
        connection: dict[str, Any] = {"replication_factor": 1}
        if broker == "embedded":
            connection |= {"fetch_max_wait_ms": 10, "gather_ms": 50}
        pipeline = Pipeline(
            {"kafka": kafka.address, "redis": redis.url, "connection": connection},
            prefix,
            directory,
            {"topics": {"prefix": prefix, "partitions": 2 * processes}, **overrides},
            items=len(stream.items),
            exactly_once=broker == "kafka",
        )
        await pipeline.start([])
        clocks: dict[str, MovedClock] = {}
        for number in range(processes):
            own: dict[str, Any] = {}
            if not number:
                own["redis"] = f"redis://{to_redis.address}/0"
                if broker == "kafka":
                    own["kafka"] = to_broker.address
            if why_not() is None:
                clocks[str(number)] = MovedClock(directory / f"clock-{number}")
            environment = clocks[str(number)].environment if clocks else {}
            pipeline.add(f"{_ROLES[number % len(_ROLES)]}#{number}", overrides=own, environment=environment)
        yield pipeline, Ground(kafka, redis, to_broker, to_redis, list(pipeline.workers.values()), clocks)
    finally:
        if pipeline is not None:
            await pipeline.close()
        for proxy in (to_broker, to_redis):
            with suppress(OSError):
                await proxy.close()
        await asyncio.gather(kafka.kill(), redis.kill())
