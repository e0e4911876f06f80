"""The live measurements: latency at a rate, saturated throughput, prequential quality, time to the first slate."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from aiokafka.structs import RecordMetadata
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.rig import Rig, rig
from schemas.messages import Interaction
from stream_app.demo.scoreboard import Scoreboard
from stream_app.demo.traffic import Basket, baskets, with_visits
from stream_app.embedded.stack import BrokerKind

__all__ = ["latency", "quality", "throughput"]


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), transient=True,
    )  # fmt: skip


def _schedule(running: Rig, ahead: int) -> Iterator[tuple[Basket, Interaction]]:
    return iter(with_visits(baskets(running.dataset.interactions), ahead=ahead))


async def _send(running: Rig, scoreboard: Scoreboard, event: Interaction, due: float) -> None:
    def acknowledged(place: RecordMetadata) -> None:
        scoreboard.sent(event, partition=place.partition, offset=place.offset, at=due)

    await running.client.send(event, acknowledged)


async def latency(rates: list[float], seconds: float, *, broker: BrokerKind, warm: int = 5_000) -> list[dict[str, Any]]:
    """Event to slate at each rate: open loop, counted from the intended send time to the slate's arrival here.

    The first ``warm`` events are sent beforehand as fast as they go, so that users have histories.
    """
    results = []
    async with rig(broker=broker) as running:
        schedule = _schedule(running, 200)
        scoreboard = Scoreboard()
        following = asyncio.create_task(running.follow(scoreboard))
        for _, event in itertools.islice(schedule, warm):
            await _send(running, scoreboard, event, time.perf_counter())
        await running.settle(scoreboard)
        for rate in rates:
            scoreboard.freshness_ms.clear()
            sent_before, start = scoreboard.events_in, time.perf_counter() + 0.5
            count = int(rate * seconds)
            for number, (_, event) in enumerate(itertools.islice(schedule, count)):
                due = start + number / rate
                wait = due - time.perf_counter()
                if wait > 0.0005:
                    await asyncio.sleep(wait)
                await _send(running, scoreboard, event, due)
            finished = time.perf_counter()
            await running.settle(scoreboard)
            samples = np.fromiter(scoreboard.freshness_ms, float)
            p50, p99, p999 = np.percentile(samples, [50, 99, 99.9]).tolist()
            results.append(
                {
                    "benchmark": "latency",
                    "rate": rate,
                    "seconds": seconds,
                    "achieved": round((scoreboard.events_in - sent_before) / (finished - start), 1),
                    "p50_ms": round(p50, 1),
                    "p99_ms": round(p99, 1),
                    "p999_ms": round(p999, 1),
                    "max_ms": round(float(samples.max()), 1),
                    "slates": len(samples),
                    "lost": scoreboard.uncovered,
                    **running.memory(),
                }
            )
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return results


async def throughput(events: int, *, broker: BrokerKind, warm: int = 2_000) -> list[dict[str, Any]]:
    """Saturated: all events are sent as fast as the broker takes them; done when a slate knows every one."""
    async with rig(broker=broker) as running:
        schedule = _schedule(running, 200)
        scoreboard = Scoreboard()
        following = asyncio.create_task(running.follow(scoreboard))
        for _, event in itertools.islice(schedule, warm):
            await _send(running, scoreboard, event, time.perf_counter())
        await running.settle(scoreboard)
        slates_before, start = scoreboard.slates_out, time.perf_counter()
        for _, event in itertools.islice(schedule, events):
            await _send(running, scoreboard, event, time.perf_counter())
        end = await running.settle(scoreboard, timeout_s=600)
        samples = await running.interactions[0].metrics() or {}
        steps = {
            step: round(samples.get(f'tailrace_batch_seconds_sum{{role="interactions",step="{step}"}}', 0.0), 2)
            for step in ("load", "compute", "publish", "save", "all")
        }
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        return [
            {
                "benchmark": "throughput",
                "events": events,
                "events_per_s": round(events / (end - start), 1),
                "slates": scoreboard.slates_out - slates_before,
                "lost": scoreboard.uncovered,
                "seconds_by_step": steps,
                **running.memory(),
            }
        ]


async def quality(
    *, broker: BrokerKind, limit: int | None = None, window: int = 8, train_share: float = 0.1
) -> list[dict[str, Any]]:
    """Prequential quality through the live path, on published slates.

    For every basket, in time order: the user's visit is sent, the slate it causes is awaited, the basket is tested
    against that slate, then its purchases are sent. Up to ``window`` baskets of different users are under way at
    a time. A test is an item of the basket that is new to a user who was there before; items the user had and the
    other items of the basket do not count as ranked above it; the first ``train_share`` of events only train.
    """
    async with rig(broker=broker, slate={"size": 50}) as running:
        total = running.dataset.interaction_count if limit is None else min(limit, running.dataset.interaction_count)
        scoreboard = Scoreboard(train=int(total * train_share))
        changed = asyncio.Condition()
        following = asyncio.create_task(running.follow(scoreboard, changed))
        stream = baskets(itertools.islice(running.dataset.interactions, total))
        begun = time.perf_counter()
        under_way: dict[str, asyncio.Task[None]] = {}
        order: deque[str] = deque()

        async def shop(basket: Basket) -> None:
            await _send(running, scoreboard, basket.visit, time.perf_counter())
            async with changed:
                await asyncio.wait_for(changed.wait_for(lambda: scoreboard.knows(basket.visit)), 120)
            scoreboard.basket_begins(basket)
            for event in basket.events:
                await _send(running, scoreboard, event, time.perf_counter())

        with _progress() as progress:
            bar = progress.add_task("live quality", total=total, rate="")
            for basket in stream:
                earlier = under_way.pop(basket.user_id, None)
                if earlier is not None:
                    order.remove(basket.user_id)
                    await earlier
                while len(under_way) >= window:
                    await under_way.pop(order.popleft())
                under_way[basket.user_id] = asyncio.create_task(shop(basket))
                order.append(basket.user_id)
                rates = scoreboard.hit_rate
                progress.update(
                    bar,
                    advance=len(basket.events),
                    rate=f"HR@10 {rates.slates:.4f} (popularity {rates.popularity:.4f}, {rates.tests} tests)",
                )
            await asyncio.gather(*under_way.values())
        end = await running.settle(scoreboard)
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        rates = scoreboard.hit_rate
        return [
            {
                "benchmark": "live quality",
                "events": total,
                "seconds": round(end - begun, 1),
                "events_per_s": round(scoreboard.events_in / (end - begun), 1),
                "tests": rates.tests,
                "hr@10": round(rates.slates, 4),
                "ndcg@10": round(rates.ndcg, 4),
                "popularity_hr@10": round(rates.popularity, 4),
                "lost": scoreboard.uncovered,
                **running.memory(),
            }
        ]
