"""When the ranker role broadcasts: neither interval shortens the other."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

from stream_app.agents.ranker import RankerAgent
from stream_app.metrics import Metrics
from stream_app.settings import load_settings
from tests.waiting import eventually


async def flushes(count: int, **factors: Any) -> list[tuple[int, bool]]:
    """The first so many flushes of an owner with a thousand rows waiting: how many rows, and whether of named items."""
    seen: list[tuple[int, bool]] = []

    async def flush(_owned: Any, limit: int, *, named: bool = False) -> None:
        seen.append((limit, named))

    agent = RankerAgent(load_settings(factors=factors), SimpleNamespace(), Metrics(), space="s", dimensions=4)  # type: ignore[arg-type]
    agent._owned = SimpleNamespace(factors=SimpleNamespace(waiting=1_000))  # type: ignore[assignment]
    agent._flush = flush  # type: ignore[method-assign]
    task = asyncio.create_task(agent._flush_for_ever())
    try:
        await eventually(lambda: len(seen) >= count, what=f"{count} flushes")
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return seen[:count]


async def test_what_was_named_leaves_often_and_everything_else_no_more_often_than_it_should():
    assert await flushes(8, flush_interval_s=60, named_interval_s=0.02, flush_rows=300) == [(300, True)] * 8


async def test_a_flush_is_spread_over_its_interval():
    assert await flushes(10, flush_interval_s=0.25, named_interval_s=1.0, flush_rows=300) == [(60, False)] * 10
