"""Prequential quality through the live path, on published slates."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from typing import Any

from aiokafka.structs import RecordMetadata
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.rig import Rig, rig
from schemas.messages import Interaction
from stream_app.demo.scoreboard import Scoreboard
from stream_app.demo.traffic import Basket, baskets
from stream_app.embedded.stack import BrokerKind

__all__ = ["quality"]


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), transient=True,
    )  # fmt: skip


async def _send(running: Rig, scoreboard: Scoreboard, event: Interaction, due: float) -> None:
    def acknowledged(place: RecordMetadata) -> None:
        scoreboard.sent(event, partition=place.partition, offset=place.offset, at=due)

    await running.client.send(event, acknowledged)


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
