"""Until an interactions process takes events: from the topics, from a snapshot, and after it was away.

Measured from outside, from the start of the program to its ``tailrace_ready``; the other roles do not run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from stream_app.bench.child import Progress
from stream_app.bench.publish import publish_items
from stream_app.bench.rig import Rig, Where, rig
from stream_app.bench.shop import ShopPlan
from stream_app.embedded.worker import WorkerProcess
from stream_app.errors import Unavailable
from stream_app.settings import Settings

__all__ = ["start_figures"]

_PATIENCE_S: Final = 120.0
_CHANGED: Final = 10
"""One in so many items changes while the process is away."""
_LOOK_EVERY_S: Final = 0.2


async def start_figures(
    settings: Settings,
    where: Where,
    *,
    sizes: Sequence[int],
    users: int,
    behind: int,
    seed: int,
    on_progress: Progress = lambda _what, _done, _total: None,
) -> list[dict[str, Any]]:
    """Three lines per size of the catalogue: ``cold``, ``snapshot`` and ``catch-up``.

    Args:
        where: broker and Redis.
        sizes: items.
        users: of the shop.
        behind: events that come while the process is away, before the catch-up; a tenth of the catalogue is sent again
            meanwhile, too.
        seed: of the shop.
        on_progress: told what is being done, how much of it is done, and of how much.

    Returns:
        ``ready_s``; of ``catch-up`` also ``caught_up_s`` (from the start until a slate knew the last of those events)
        and ``lost``; ``snapshot_mb`` where one was read; ``mb`` (resident memory when ready).

    Raises:
        TailraceError: when a broker, Redis, or a process is not there any more.
    """
    lines = []
    for size in sizes:
        plan = ShopPlan(items=size, users=users, events=behind, seed=seed)
        async with rig(settings, where, plan, on_progress=on_progress) as running:
            lines += [
                {"benchmark": "start", "broker": where.name, "items": size, "users": users, "seed": seed, **line}
                for line in await _starts(running, settings, behind, on_progress)
            ]
    return lines


async def _starts(running: Rig, settings: Settings, behind: int, on_progress: Progress) -> list[dict[str, Any]]:
    snapshots = running.directory / "snapshots"
    overrides: dict[str, Any] = {
        "replica": {**running.overrides["replica"], "directory": str(snapshots)},
        # As people run it: with the model, where they let it be loaded at the start.
        "encoder": settings.encoder.model_dump(mode="json"),
    }
    lines = []
    for number, start in enumerate(("cold", "snapshot")):
        on_progress(f"starts, {running.plan.items:,} items", number, 3)
        process = running.process(["interactions"], **overrides)
        line: dict[str, Any] = {"start": start}
        if start == "snapshot":
            line["snapshot_mb"] = _megabytes(snapshots)
        try:
            line["ready_s"] = await _ready(process)
            line["mb"] = round(process.memory_bytes()[0] / 1e6, 1)
            if start == "cold":
                await _past_taken(process, running.plan.past)
        finally:
            await process.stop()  # writes a snapshot
        lines.append(line)
    on_progress(f"starts, {running.plan.items:,} items", 2, 3)
    await publish_items(running.settings, running.past, range(0, running.plan.items, _CHANGED), on_progress=on_progress)
    process = running.process(["interactions"], **overrides)
    try:
        async with running.load(behind, rate=None, patience_s=_PATIENCE_S) as load:
            await load.told("sent")
            size, began = _megabytes(snapshots), time.time()
            ready = await _ready(process)
            memory = round(process.memory_bytes()[0] / 1e6, 1)
            found = await load.result()
    finally:
        await process.stop()
    lines.append(
        {
            "start": "catch-up",
            "snapshot_mb": size,
            "ready_s": ready,
            "mb": memory,
            "behind_events": behind,
            "behind_items": len(range(0, running.plan.items, _CHANGED)),
            "caught_up_s": round(found["known_at"] - began, 2),
            "lost": found["lost"],
        }
    )
    on_progress(f"starts, {running.plan.items:,} items", 3, 3)
    return lines


async def _ready(process: WorkerProcess) -> float:
    began = time.perf_counter()
    await process.start()
    return round(time.perf_counter() - began, 2)


async def _past_taken(process: WorkerProcess, events: int) -> None:
    """Until it has passed over the events of the shop's past: that is done once, not at every start.

    Raises:
        Unavailable: when it does not get there, or ends.
    """
    deadline = time.perf_counter() + _PATIENCE_S
    while (await process.metric("tailrace_events_in_total") or 0.0) < events:
        if not process.running or time.perf_counter() > deadline:
            raise Unavailable(f"{process.name} does not catch up:\n{process.output(40)}")
        await asyncio.sleep(_LOOK_EVERY_S)


def _megabytes(folder: Path) -> float:
    """Of the newest snapshot."""
    newest = max((path for path in folder.glob("*/*") if path.is_dir()), default=None)
    return 0.0 if newest is None else round(sum(file.stat().st_size for file in newest.iterdir()) / 1e6, 1)
