"""Hours in minutes: a steady load while the catalogue turns over, and what the processes hold as time goes on.

Every second some items are new (embedded by the catalogue role), as many of those that came before leave, and some of
the shop's have another title or another price: whatever is kept per item, per text or per change shows as memory that
grows. The shop's users are as many as ever, and so are the items that can be recommended.

Growth is that of the second half, when caches have filled: the mean of the last tenth of the samples over the mean of
the tenth after the middle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas.decode import encode
from schemas.messages import Item
from stream_app.bench.child import Progress
from stream_app.bench.cutover import embedded
from stream_app.bench.rig import Rig, Where, rig
from stream_app.bench.shop import ShopPlan
from stream_app.delivery.connections import close_client, kafka_options, no_broker
from stream_app.embedded.worker import WorkerProcess
from stream_app.settings import Settings
from stream_app.stores.users import connect_redis
from stream_app.topics import Topics

__all__ = ["growth", "soak_figures"]

_PATIENCE_S = 60.0
_SAMPLES = 360
"""At most."""
_ALIVE_S = 60.0
"""A new item stays for so long."""


def growth(samples: Sequence[float]) -> float:
    """How much more the last tenth of the samples is than the tenth after the middle, as a share of that.

    Raises:
        ValueError: when there are fewer than ten.
    """
    if len(samples) < 10:
        raise ValueError(f"{len(samples)} samples are too few to tell growth; at least 10")
    tenth, middle = len(samples) // 10, len(samples) // 2
    before = float(np.mean(samples[middle : middle + tenth]))
    return float(np.mean(samples[-tenth:])) / before - 1.0


async def soak_figures(
    settings: Settings,
    where: Where,
    *,
    rate: float,
    seconds: float,
    churn: float,
    items: int,
    users: int,
    seed: int,
    on_progress: Progress = lambda _what, _done, _total: None,
) -> list[dict[str, Any]]:
    """One line: the figures of ``stream_app.bench.load``; memory in MB at the start, the middle and the end, and its
    growth in the second half, of each process (with its children), of all together, and of Redis; and the samples.

    Args:
        where: broker and Redis.
        rate: events per second.
        seconds: of the load, after everything is embedded.
        churn: new items per second; as many leave, and as many have another title and another price.
        items, users: of the shop.

    Raises:
        TailraceError: when a broker, Redis, or a process is not there any more.
    """
    count = max(1, round(rate * seconds))
    plan = ShopPlan(items=items, users=users, events=count, seed=seed)
    async with AsyncExitStack() as cleanup:
        running = await cleanup.enter_async_context(rig(settings, where, plan, on_progress=on_progress))
        workers = {
            "items and ranker": await cleanup.enter_async_context(running.worker(["items", "ranker"])),
            "catalogue": await cleanup.enter_async_context(running.worker(["catalogue"])),
            "interactions": await cleanup.enter_async_context(running.worker(["interactions"])),
        }
        await embedded(workers["catalogue"], items, on_progress)
        samples: dict[str, list[float]] = {name: [] for name in (*workers, "all", "redis")}
        load = asyncio.create_task(
            running.loaded(count, rate=rate, patience_s=_PATIENCE_S, workers=tuple(workers.values()))
        )
        beside = [
            asyncio.create_task(_churn(running, churn)),
            asyncio.create_task(_watch(running.settings, workers, samples, max(0.2, seconds / _SAMPLES))),
        ]
        try:
            await asyncio.wait([load, *beside], return_when=asyncio.FIRST_COMPLETED)
            for task in beside:
                if task.done():
                    task.result()  # it only ends by an error
            found = await load
        finally:
            load.cancel()
            for task in beside:
                task.cancel()
            await asyncio.gather(load, *beside, return_exceptions=True)
    del found["known_at"], found["late_until"]
    return [
        {
            "benchmark": "soak",
            "broker": where.name,
            "rate": rate,
            "seconds": seconds,
            "churn": churn,
            "items": items,
            "users": users,
            "seed": seed,
            **found,
            **{f"{name}, MB": _shape(series) for name, series in samples.items()},
            "samples": {name: [round(sample, 1) for sample in series] for name, series in samples.items()},
        }
    ]


def _shape(series: Sequence[float]) -> dict[str, float]:
    """Where a series begins, is in the middle, and ends, and how much it grows in the second half."""
    middle = series[len(series) // 2]
    return {
        "start": round(series[0], 1),
        "middle": round(middle, 1),
        "end": round(series[-1], 1),
        "growth": round(growth(series), 4),
    }


async def _watch(
    settings: Settings, workers: Mapping[str, WorkerProcess], samples: Mapping[str, list[float]], every_s: float
) -> None:
    """Note what each holds (MB), for as long as it may."""
    redis = connect_redis(settings)
    try:
        while True:
            held = {name: sum(worker.memory_bytes()) / 1e6 for name, worker in workers.items()}
            used = (await redis.info("memory"))["used_memory"] / 1e6
            for name, value in {**held, "all": sum(held.values()), "redis": used}.items():
                samples[name].append(value)
            await asyncio.sleep(every_s)
    finally:
        await redis.aclose()


async def _churn(running: Rig, per_s: float) -> None:
    """Items come and go, and those of the shop change, for as long as it may.

    Raises:
        Unavailable: when the broker does not take them.
    """
    topic, plan = Topics(running.settings).items, running.plan
    alive = max(1, round(per_s * _ALIVE_S))
    producer = AIOKafkaProducer(**kafka_options(running.settings), acks="all")
    try:
        await producer.start()
        started, number = time.monotonic(), 0
        while True:
            await asyncio.sleep(max(0.0, started + number / per_s - time.monotonic()))
            changes: list[tuple[str, bytes | None]] = []
            new = Item(item_id=f"new-{number}", title=f"New article {number} of group {number % 997}")
            if number >= alive:
                changes.append((f"new-{number - alive}", None))
            renamed = plan.item((2 * number) % plan.items)
            renamed = msgspec.structs.replace(renamed, title=f"{renamed.title}, edition {number}")
            repriced = msgspec.structs.replace(plan.item((2 * number + 1) % plan.items), price=1.0 + number % 50)
            changes += [(item.item_id, encode(item)) for item in (new, renamed, repriced)]
            for item_id, value in changes:
                await producer.send_and_wait(topic, value, key=item_id.encode())
            number += 1
    except (KafkaError, OSError) as error:
        raise no_broker(running.settings, error) from error
    finally:
        await close_client(producer.stop())
