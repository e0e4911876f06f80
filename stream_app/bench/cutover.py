"""A change of the model under load: a space is built, served, and rolled back, while events come at a steady rate.

What is asked of it: no event without a slate, no slate that knows less than the one before, one change of model per
partition for each time it is said, and the latency of the minute before, of the change, and of the minute after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from schemas.messages import ModelSpace
from stream_app.bench.child import Progress
from stream_app.bench.rig import Rig, Where, rig
from stream_app.bench.shop import ShopPlan
from stream_app.embedded.worker import WorkerProcess
from stream_app.errors import Unavailable
from stream_app.settings import Settings
from stream_app.space_operations import build_space, cut_over_to, follow_build, hindrances, roll_back_space
from stream_app.space_settings import changed_encoder, usable_encoder
from stream_app.spaces.control import EncoderValue

__all__ = ["cut_over_figures", "embedded", "failures"]

_PATIENCE_S = 60.0
_ASK_EVERY_S = 0.2
_MOST_PHASES = 60
"""Of ``seconds`` each, in which a space has to be complete."""


async def cut_over_figures(
    settings: Settings,
    where: Where,
    *,
    rate: float,
    seconds: float,
    items: int,
    users: int,
    warm: int,
    seed: int,
    encoder: Mapping[str, EncoderValue],
    on_progress: Progress = lambda _what, _done, _total: None,
) -> list[dict[str, Any]]:
    """One line per phase of ``seconds``: ``before``, ``build`` (as many as it takes), ``cutover``, ``rollback``,
    ``after``; figures of ``stream_app.bench.load``, and in which second of a phase the process had changed.

    Args:
        where: broker and Redis.
        rate: events per second, all the time.
        items, users: of the shop.
        warm: events before anything is measured.
        encoder: what is different in the other space, as ``tailrace spaces build`` takes it.

    Raises:
        SettingsError: when there is no such space, before anything is started.
        TailraceError: when a broker, Redis, or a process is not there any more, or the space is never complete.
    """
    usable_encoder(changed_encoder(settings.encoder, encoder))
    count = max(1, round(rate * seconds))
    plan = ShopPlan(items=items, users=users, events=warm + count * (_MOST_PHASES + 4), seed=seed)
    lines: list[dict[str, Any]] = []
    async with AsyncExitStack() as cleanup:
        running = await cleanup.enter_async_context(rig(settings, where, plan, on_progress=on_progress))
        others = await cleanup.enter_async_context(running.worker(["items", "ranker"]))
        # The shop's vectors are made up; here they are those of its texts.
        catalogue = await cleanup.enter_async_context(running.worker(["catalogue"]))
        worker = await cleanup.enter_async_context(running.worker(["interactions"]))
        workers = (others, catalogue, worker)
        await embedded(catalogue, items, on_progress)
        await running.loaded(warm, patience_s=_PATIENCE_S, workers=workers)

        async def phase(name: str, meanwhile: Callable[[], Awaitable[Any]] | None = None) -> None:
            lines.append(await _phase(running, name, count, rate, workers, meanwhile))

        await phase("before")
        space = await build_space(running.settings, encoder)
        building = asyncio.create_task(_complete(running.settings, space, on_progress))
        try:
            while not building.done():
                if len(lines) > _MOST_PHASES:
                    raise Unavailable(f"the space is not complete after {_MOST_PHASES} x {seconds:g} s")
                await phase("build")
            building.result()
        finally:
            building.cancel()
        await phase("cutover", lambda: _said(worker, space.number, cut_over_to(running.settings, space.space), seconds))
        await phase("rollback", lambda: _said(worker, 0, roll_back_space(running.settings), seconds))
        await phase("after")
    return lines


def failures(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a change of the model must not do and did, a sentence per phase and kind; none: all was as asked.

    Args:
        lines: of :func:`cut_over_figures`, or as many phases of one as there are.
    """
    found = []
    for number, line in enumerate(lines, 1):
        place = f"phase {number} ({line['phase']})"
        if lost := line["lost"]:
            found.append(f"{place}: {lost:,} events are known to no slate")
        if older := line["slates_older_than_before"]:
            found.append(f"{place}: {older:,} slates know less of their user than one before")
        if (changes := line["most_changes_of_model"]) > 1:
            found.append(f"{place}: the slates of a partition went from one model to another {changes:,} times")
    return found


async def _phase(
    running: Rig,
    name: str,
    count: int,
    rate: float,
    workers: Sequence[WorkerProcess],
    meanwhile: Callable[[], Awaitable[Any]] | None,
) -> dict[str, Any]:
    happening = asyncio.ensure_future(meanwhile()) if meanwhile is not None else None
    try:
        found = await running.loaded(count, rate=rate, patience_s=_PATIENCE_S, workers=workers)
        changed = {} if happening is None else {"changed_after_s": round(await happening, 2)}
    finally:
        if happening is not None:
            happening.cancel()
    del found["known_at"], found["late_until"]
    plan = running.plan
    shop = {"items": plan.items, "users": plan.users, "seed": plan.seed}
    return {"benchmark": "cutover", "phase": name, "rate": rate, **shop, **found, **changed}


async def embedded(catalogue: WorkerProcess, items: int, on_progress: Progress) -> None:
    """Until the catalogue process has embedded everything: its consumer group has read all of it."""
    done, moved_at, loop = 0.0, 0.0, asyncio.get_running_loop()
    while done < items:
        before = done
        metrics = await catalogue.metrics() or {}
        done = metrics.get("tailrace_encoder_texts_total", 0.0)
        on_progress("texts embedded", int(min(done, items)), items)
        if done > before or not moved_at:
            moved_at = loop.time()
        if loop.time() - moved_at > _PATIENCE_S:
            raise Unavailable(f"{catalogue.name} embeds nothing any more:\n{catalogue.output(40)}")
        if not catalogue.running:
            raise Unavailable(f"{catalogue.name} ended:\n{catalogue.output(40)}")
        await asyncio.sleep(_ASK_EVERY_S)


async def _complete(settings: Settings, space: ModelSpace, on_progress: Progress) -> None:
    async with aclosing(follow_build(settings, space)) as told:
        async for progress in told:
            on_progress("space", progress.done, max(progress.items, 1))
            if progress.complete and progress.items and not await hindrances(settings, space):
                return


async def _said(worker: WorkerProcess, number: int, say: Awaitable[Any], seconds: float) -> float:
    """Say it after a third of the phase; how long until the process serves the space (seconds)."""
    await asyncio.sleep(seconds / 3)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await say
    while (await worker.metric("tailrace_space_number")) != number:
        if loop.time() - started > _PATIENCE_S:
            raise Unavailable(f"{worker.name} does not serve space {number}:\n{worker.output(40)}")
        await asyncio.sleep(_ASK_EVERY_S)
    return loop.time() - started
