"""What users notice of a process, a broker or a Redis that goes away, under a steady load.

Each phase has as many events as its seconds hold. ``longest_wait_s`` is how long an event waited for the first slate
that knows it, at most: for so long a user who did something saw nothing of it. ``recovered_s`` counts from the moment
the server answers again until every event that waited for more than a second is known to a slate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from stream_app.bench.child import Progress
from stream_app.bench.rig import Rig, Where, rig
from stream_app.bench.shop import ShopPlan
from stream_app.embedded.processes import Server
from stream_app.embedded.worker import WorkerProcess
from stream_app.errors import SettingsError
from stream_app.settings import Settings

__all__ = ["outage_figures"]

_PATIENCE_S = 120.0
_BEFORE_S = 5.0
"""Of a phase, before something goes away."""


async def outage_figures(
    settings: Settings,
    where: Where,
    *,
    rate: float,
    seconds: float,
    away_s: float,
    processes: int,
    items: int,
    users: int,
    warm: int,
    seed: int,
    on_progress: Progress = lambda _what, _done, _total: None,
) -> list[dict[str, Any]]:
    """One line per phase: ``before``; ``sigkill`` and ``sigterm`` of one interactions process, which is missing until
    the phase is over; ``redis`` and (Apache Kafka) ``broker`` killed and started again after ``away_s`` seconds.

    Args:
        where: broker and Redis, started here.
        rate: events per second, all the time.
        seconds: of a phase in which a process goes away; the others last ``away_s`` longer.
        processes: with the interactions role.
        items, users: of the shop.
        warm: events before anything is measured.

    Raises:
        SettingsError: when broker and Redis are not ours to kill.
        TailraceError: when one of them, or a process, does not come back.
    """
    if where.broker is None:
        raise SettingsError("outages are measured on a broker and a Redis that are started for it, not on yours")
    phase_s, outage_s = seconds + _BEFORE_S, seconds + away_s + _BEFORE_S
    events = warm + round(rate * (3 * phase_s + 2 * outage_s)) + 8
    plan = ShopPlan(items=items, users=users, events=events, seed=seed)
    lines: list[dict[str, Any]] = []
    async with AsyncExitStack() as cleanup:
        running = await cleanup.enter_async_context(rig(settings, where, plan, on_progress=on_progress))
        stack = running.stack
        assert stack is not None  # noqa: S101 - the broker is ours
        others = await cleanup.enter_async_context(running.worker(["items", "ranker"]))
        workers = [await cleanup.enter_async_context(running.worker(["interactions"])) for _ in range(processes)]
        await running.loaded(warm, patience_s=_PATIENCE_S, workers=(others, *workers))

        async def phase(name: str, lasts_s: float, strike: Callable[[], Awaitable[float | None]] | None = None) -> None:
            on_progress(name, 0, 1)
            lines.append(await _phase(running, name, rate, lasts_s, strike) | {"processes": processes})
            on_progress(name, 1, 1)

        await phase("before", phase_s)
        for name, end in (("sigkill", workers[0].kill), ("sigterm", workers[0].stop)):
            await phase(name, phase_s, lambda end=end: _end(end))  # type: ignore[misc]
            await workers[0].start()
        await phase("redis", outage_s, lambda: _away(stack.redis_server, away_s))
        if where.broker == "kafka":
            await phase("broker", outage_s, lambda: _away(stack.broker, away_s))
        _all_run([others, *workers])
    return lines


async def _phase(
    running: Rig, name: str, rate: float, seconds: float, strike: Callable[[], Awaitable[float | None]] | None
) -> dict[str, Any]:
    count = max(1, round(rate * seconds))
    async with running.load(count, rate=rate, patience_s=_PATIENCE_S) as load:
        back_at = None
        if strike is not None:
            await asyncio.sleep(_BEFORE_S)
            back_at = await strike()
        found = await load.result()
    late_until, recovered = found.pop("late_until"), {}
    del found["known_at"]
    if back_at is not None:
        recovered = {"recovered_s": round(max(0.0, (late_until or back_at) - back_at), 2)}
    plan = running.plan
    return {
        "benchmark": "outages",
        "phase": name,
        "rate": rate,
        "seconds": seconds,
        "items": plan.items,
        "users": plan.users,
        "seed": plan.seed,
        **found,
        "longest_wait_s": round(found["max_ms"] / 1_000, 2),
        **recovered,
    }


async def _end(end: Callable[[], Awaitable[None]]) -> None:
    await end()


async def _away(server: Server, seconds: float) -> float:
    """Kill it; when it answers again (seconds since 1970)."""
    await server.kill()
    await asyncio.sleep(seconds)
    await server.start()
    return time.time()


def _all_run(workers: Sequence[WorkerProcess]) -> None:
    for worker in workers:
        Rig.must_run(worker)
