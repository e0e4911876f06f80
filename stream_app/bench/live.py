"""Live processes under load: latency at a rate, throughput when saturated, and the floor of both.

Every figure comes from the product as it is: a real broker, a real Redis, one interactions process with all candidate
sources, the online ranker, diversity and reasons, and the item and ranker roles in a second process. The load comes
from a third (:mod:`stream_app.bench.load`). What is measured begins after ``warm`` events: the ranker has then learned
enough for its network to take part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from stream_app.bench.bare import BareJob
from stream_app.bench.child import Progress, child
from stream_app.bench.hot import hot_rows
from stream_app.bench.rig import Rig, Where, rig
from stream_app.bench.shop import ShopPlan
from stream_app.embedded.worker import WorkerProcess
from stream_app.settings import Settings

__all__ = ["aiokafka_floor", "latency_figures", "throughput_figures"]

_STEPS = ("load", "compute", "publish", "save")
_PATIENCE_S = 60.0


async def latency_figures(
    settings: Settings,
    where: Where,
    *,
    rates: Sequence[float],
    seconds: float,
    items: int,
    users: int,
    warm: int,
    seed: int,
    processes: int = 1,
    hot_item: float = 0.0,
    hot_user: float = 0.0,
    patience_s: float = _PATIENCE_S,
    on_progress: Progress = lambda _what, _done, _total: None,
) -> list[dict[str, Any]]:
    """One line per rate: figures of ``stream_app.bench.load``, ``us_per_event`` by step as the processes count
    them, all together, memory in MB, and with hot keys what is kept of them (:func:`stream_app.bench.hot.hot_rows`).

    Args:
        where: broker and Redis.
        rates: events per second, one after the other; the next begins when a slate knows every event before.
        seconds: of each.
        items, users: of the shop.
        warm: events before the first rate.
        processes: with the interactions role, at most as many as ``interactions.v1`` has partitions.
        hot_item, hot_user: shares of all events (0 to 1) that are of one item and of one user.
        patience_s: events are lost when nothing came for so long.
        on_progress: told what is being done, how much of it is done, and of how much.

    Raises:
        TailraceError: when a broker, Redis, or a process is not there any more.
    """
    counts = [max(1, round(rate * seconds)) for rate in rates]
    plan = ShopPlan(
        items=items, users=users, events=warm + sum(counts), seed=seed, hot_item=hot_item, hot_user=hot_user
    )
    lines = []
    async with AsyncExitStack() as cleanup:
        running = await cleanup.enter_async_context(rig(settings, where, plan, on_progress=on_progress))
        others, first = await _processes(cleanup, running)
        more = [await cleanup.enter_async_context(running.worker(["interactions"])) for _ in range(1, processes)]
        workers = [first, *more]
        if warm:
            await running.loaded(warm, patience_s=patience_s, workers=(others, *workers))
        for rate, count in zip(rates, counts, strict=True):
            before = await _counted(workers)
            found = await running.loaded(count, rate=rate, patience_s=patience_s, workers=(others, *workers))
            after = await _counted(workers)
            lines.append(
                {
                    "benchmark": "latency",
                    "rate": rate,
                    "seconds": seconds,
                    **_parameters(running, where, warm),
                    "processes": processes,
                    **_without_clock(found),
                    "us_per_event": _by_step(before, after, count),
                    **_memory(workers, others),
                    **await hot_rows(running.settings, running.plan),
                }
            )
    return lines


async def throughput_figures(
    settings: Settings,
    where: Where,
    *,
    events: int,
    items: int,
    users: int,
    warm: int,
    seed: int,
    floor: bool = False,
    processes: int = 1,
    hot_item: float = 0.0,
    hot_user: float = 0.0,
    patience_s: float = _PATIENCE_S,
    on_progress: Progress = lambda _what, _done, _total: None,
) -> list[dict[str, Any]]:
    """One line: all events sent as fast as the broker takes them; done when a slate knows every one.

    Args:
        events: how many.
        floor: measure a bare aiokafka loop as well, beside the same processes and on the same topics.
        where, items, users, warm, seed, processes, hot_item, hot_user, patience_s, on_progress: as for
            :func:`latency_figures`.

    Returns:
        ``events_per_s``; ``us_per_event`` by step, as the processes themselves count them, all together; with
        ``floor`` also ``floor_events_per_s`` and ``share_of_floor``.

    Raises:
        TailraceError: as :func:`latency_figures`.
    """
    plan = ShopPlan(
        items=items, users=users, events=(warm + events) * (2 if floor else 1), seed=seed,
        hot_item=hot_item, hot_user=hot_user,
    )  # fmt: skip
    async with AsyncExitStack() as cleanup:
        running = await cleanup.enter_async_context(rig(settings, where, plan, on_progress=on_progress))
        others = await cleanup.enter_async_context(running.worker(["items", "ranker"]))
        async with AsyncExitStack() as workers_end:
            workers = [
                await workers_end.enter_async_context(running.worker(["interactions"])) for _ in range(processes)
            ]
            if warm:
                await running.loaded(warm, patience_s=patience_s, workers=(others, *workers))
            before = await _counted(workers)
            found = await running.loaded(events, patience_s=patience_s, workers=(others, *workers))
            after = await _counted(workers)
            line = {
                "benchmark": "throughput",
                **_parameters(running, where, warm),
                "processes": processes,
                "events": events,
                "events_per_s": found["achieved"],
                "slates": found["slates"],
                "items_per_slate": found["items_per_slate"],
                "lost": found["lost"],
                "us_per_event": _by_step(before, after, events),
                **_memory(workers, others),
                **await hot_rows(running.settings, running.plan),
            }
        if floor:
            bare = await _bare(running, events, patience_s, others, warm)
            line["floor_events_per_s"] = bare["floor_events_per_s"]
            line["share_of_floor"] = round(line["events_per_s"] / bare["floor_events_per_s"], 3)
            line["lost"] += bare["lost"]
    return [line]


async def aiokafka_floor(
    settings: Settings,
    where: Where,
    *,
    events: int,
    items: int,
    users: int,
    warm: int,
    seed: int,
    patience_s: float = _PATIENCE_S,
    on_progress: Progress = lambda _what, _done, _total: None,
) -> dict[str, Any]:
    """What the same functions do in a bare aiokafka loop (:mod:`stream_app.bench.bare`), saturated.

    Args:
        events: how many.
        where, items, users, warm, seed, patience_s, on_progress: as for :func:`latency_figures`; warm events go through
            the loop, too.

    Returns:
        ``floor_events_per_s``, and ``us_per_event`` by step.

    Raises:
        TailraceError: as :func:`latency_figures`.
    """
    plan = ShopPlan(items=items, users=users, events=warm + events, seed=seed)
    async with AsyncExitStack() as cleanup:
        running = await cleanup.enter_async_context(rig(settings, where, plan, on_progress=on_progress))
        others = await cleanup.enter_async_context(running.worker(["items", "ranker"]))
        return {
            "benchmark": "floor",
            "loop": "aiokafka",
            **_parameters(running, where, warm),
            **await _bare(running, events, patience_s, others, warm),
        }


async def _bare(running: Rig, events: int, patience_s: float, others: WorkerProcess, warm: int) -> dict[str, Any]:
    """The bare loop in the place of the interactions process, which must not run."""
    async with child("stream_app.bench.bare", BareJob(), overrides=running.overrides) as loop:
        await loop.told("ready")
        if warm:
            await running.loaded(warm, patience_s=patience_s, workers=[others])
        found = await running.loaded(events, patience_s=patience_s, workers=[others])
        loop.end_input()
        took = await loop.result()
        return {
            "events": events,
            "floor_events_per_s": found["achieved"],
            "slates": found["slates"],
            "items_per_slate": found["items_per_slate"],
            "lost": found["lost"],
            **took,
        }


async def _processes(cleanup: AsyncExitStack, running: Rig) -> tuple[WorkerProcess, WorkerProcess]:
    """The item and ranker roles in one process, the interactions role in another."""
    others = await cleanup.enter_async_context(running.worker(["items", "ranker"]))
    return others, await cleanup.enter_async_context(running.worker(["interactions"]))


def _parameters(running: Rig, where: Where, warm: int) -> dict[str, Any]:
    plan = running.plan
    shares = {"hot_item": plan.hot_item, "hot_user": plan.hot_user}
    return {
        "broker": where.name,
        "items": plan.items,
        "users": plan.users,
        "warm": warm,
        "seed": plan.seed,
        **{name: share for name, share in shares.items() if share},
    }


def _without_clock(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in {"known_at", "late_until"}}


async def _counted(workers: Sequence[WorkerProcess]) -> dict[str, float]:
    """What the processes count, all together, by name; nothing of one that does not answer."""
    counted: defaultdict[str, float] = defaultdict(float)
    for worker in workers:
        for name, value in (await worker.metrics() or {}).items():
            counted[name] += value
    return counted


def _memory(workers: Sequence[WorkerProcess], others: WorkerProcess) -> dict[str, float]:
    """Resident memory in MB; of several interactions processes that of the largest."""
    return {
        "interactions_process_mb": round(max(sum(worker.memory_bytes()) for worker in workers) / 1e6, 1),
        "items_ranker_process_mb": round(sum(others.memory_bytes()) / 1e6, 1),
    }


def _by_step(before: Mapping[str, float], after: Mapping[str, float], events: int) -> dict[str, float]:
    """Microseconds per event of what the interactions process counts by step; ``other`` is the rest of its batches."""

    def took(step: str) -> float:
        name = f'tailrace_batch_seconds_sum{{role="interactions",step="{step}"}}'
        return 1e6 * (after.get(name, 0.0) - before.get(name, 0.0)) / events

    steps = {step: round(took(step), 1) for step in _STEPS}
    return {**steps, "other": round(max(took("all") - sum(steps.values()), 0.0), 1)}
