"""A pipeline with a real shop to measure: embedded stack, worker processes, a client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from stream_app.datasets.dataset import Dataset
from stream_app.datasets.online_retail import load_online_retail
from stream_app.demo.client import ShopClient
from stream_app.demo.scoreboard import Scoreboard
from stream_app.embedded.stack import BrokerKind
from stream_app.embedded.worker import WorkerProcess
from stream_app.evaluation.live import Pipeline, pipeline

__all__ = ["Rig", "rig"]

_PREFIX = "bench"


@dataclass
class Rig:
    """A running pipeline with the shop's catalogue, every item embedded."""

    dataset: Dataset
    pipeline: Pipeline
    began: float

    @property
    def client(self) -> ShopClient:
        return self.pipeline.client

    @property
    def interactions(self) -> list[WorkerProcess]:
        return self.pipeline.interactions

    def memory(self) -> dict[str, float]:
        """Resident memory in MB: the largest interactions process alone, and everything else."""
        own = max(worker.memory_bytes()[0] for worker in self.interactions)
        others = sum(sum(worker.memory_bytes()) for worker in self.pipeline.others)
        return {
            "interactions_process_mb": round(own / 1e6, 1),
            "catalogue_items_ranker_encoder_mb": round(others / 1e6),
        }

    async def follow(self, scoreboard: Scoreboard, changed: asyncio.Condition | None = None) -> None:
        """Read slates into the scoreboard for ever; tell ``changed`` after each."""
        async for slate, at in self.client.slates():
            scoreboard.received(slate, at=at, since_start=at - self.began)
            if changed is not None:
                async with changed:
                    changed.notify_all()

    async def settle(self, scoreboard: Scoreboard, *, timeout_s: float = 120.0) -> float:
        """Wait until a slate knows every event; the time (perf_counter) when it did, or when patience ended."""
        await self.client.flush()
        deadline = time.perf_counter() + timeout_s
        while scoreboard.uncovered and time.perf_counter() < deadline:
            await asyncio.sleep(0.02)
        return time.perf_counter()


@asynccontextmanager
async def rig(
    *, broker: BrokerKind = "embedded", workers: int = 1, embed: bool = True, **overrides: Any
) -> AsyncIterator[Rig]:
    """Start everything, load the catalogue, and wait until it is embedded; stop everything at the end."""
    began = time.perf_counter()
    dataset = load_online_retail()
    async with pipeline(broker=broker, workers=workers, prefix=_PREFIX, **overrides) as running:
        if embed:
            await running.load(dataset.items)
        yield Rig(dataset, running, began)
