"""What an event, an item and a user cost as a shop grows: one of its sizes at a time, the others as they were.

Every shop is made and ranked in a process of its own (``python -m stream_app.bench.growth``), so that what a large one
leaves behind in memory is not counted for the next. What is timed is what ``tailrace bench ranking`` times: everything
but the broker and Redis, on one core.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec
import numpy as np
import psutil
from redis.asyncio import Redis

from stream_app.bench.child import Progress, child, read_job, run_child, tell
from stream_app.bench.ranking import ranking_figures
from stream_app.bench.shop import ShopPlan, made_up_past, opened, served
from stream_app.embedded.redis import EmbeddedRedis
from stream_app.embedded.workspace import workspace
from stream_app.errors import TailraceError
from stream_app.settings import Settings, load_settings
from stream_app.users.state import decode_state, encode_state
from stream_app.warm_up import warm_up

__all__ = ["AXES", "GROUPS", "GrowthJob", "array_bytes", "growth_figures", "growth_line", "object_bytes"]

AXES = ("items", "users", "history")
"""Sizes of a shop: items, users, and events that are kept of each."""

GROUPS = {
    "lists": ("interests", "neighbours", "search"),
    "candidates": ("tables", "candidates"),
    "order": ("order",),
    "reasons": ("reasons",),
    "fold": ("fold",),
    "state": ("encode state",),
}
"""Groups of the stages of ``tailrace bench ranking``; all others are ``other``."""

_ITEM_BYTES: Final = 14_000
"""Of memory per item while a shop is made, at the most: its vector three times, its graph, factors and objects."""
_USER_BYTES: Final = 4_000
_EVENT_BYTES: Final = 300
"""Of memory per user and per event kept of one, while a shop is made."""
_REDIS_BYTES: Final = 5_000
"""Of Redis' memory per user, at the most."""
_STATES: Final = 1_000
_AT_ONCE: Final = 1_000
_SAMPLE: Final = 100
_TELL_EVERY_S: Final = 0.25


class GrowthJob(msgspec.Struct, frozen=True, kw_only=True):
    """One shop, and how it is measured.

    Attributes:
        items, users: how many.
        history: events of each user; as many are kept, where ``users.history`` is less.
        events: that are measured.
        batch: events at a time.
    """

    items: int = 10_000
    users: int = 2_000
    history: int = 20
    events: int = 3_200
    batch: int = 64
    seed: int = 0


async def growth_figures(
    settings: Settings,
    base: GrowthJob,
    axes: Mapping[str, Sequence[int]],
    *,
    redis_users: Sequence[int] = (),
    on_progress: Progress = lambda _what, _done, _total: None,
) -> list[dict[str, Any]]:
    """One line per size of every axis, and one per number of users in Redis.

    Args:
        base: what stays the same along an axis.
        axes: sizes by name (:data:`AXES`).
        redis_users: so many users' states are put into a Redis of its own.
        on_progress: told what is being done, how much of it is done, and of how much.

    Returns:
        see :func:`growth_line`, with ``axis``, and ``grew_most``: the stage that takes most more than in the axis'
        first line, and by how many microseconds per event; nothing where none does. Lines of the axis ``redis`` have
        ``users``, ``history``, ``state_bytes`` (one packed state) and ``redis_bytes_per_user``.

    Raises:
        TailraceError: when a shop does not fit into the memory that is free, before any is made; when a child fails.
    """
    jobs = {axis: [msgspec.structs.replace(base, **{axis: size}) for size in sizes] for axis, sizes in axes.items()}
    need_memory([job for of_axis in jobs.values() for job in of_axis], redis_users)
    measured: dict[GrowthJob, dict[str, Any]] = {}
    lines = []
    for axis, of_axis in jobs.items():
        first: dict[str, float] | None = None
        for job in of_axis:
            if job not in measured:
                name = f"{job.items:,} items, {job.users:,} users, {job.history} events each"
                measured[job] = await _in_a_child(settings, job, name, on_progress)
            line = {"benchmark": "growth", "axis": axis, **measured[job]}
            first = first or line["us_by_stage"]
            lines.append(line | {"grew_most": _grew_most(first, line["us_by_stage"])})
    if redis_users:
        lines += await _redis_figures(settings, base, sorted(redis_users), on_progress)
    return lines


def growth_line(settings: Settings, job: GrowthJob, *, on_progress: Progress) -> dict[str, Any]:
    """Make the shop and rank in it, in this process.

    Returns:
        the job's sizes; ``events_per_s`` and ``us_per_event`` of this process without broker and Redis, ``p99_us`` of
        batches per event, ``slates_per_event``, ``us_by_group`` (:data:`GROUPS`) and ``us_by_stage``;
        ``bytes_per_item``, by which resident memory grew while what serves was made, and of it ``bytes_by_part``:
        arrays of the index, of statistics, factors and catalogue, and ``learner`` and ``statistics of the items
        role``, which are in processes of their own; ``state_bytes`` of a packed state, ``cached_state_bytes`` of one in
        memory.
    """
    kept = max(settings.users.history, job.history)
    settings = settings.model_copy(update={"users": settings.users.model_copy(update={"history": kept})})
    plan = ShopPlan(items=job.items, users=job.users, events=job.events, history=job.history, seed=job.seed)
    past = made_up_past(settings, plan, on_progress=on_progress)
    before = _resident()
    serving = served(settings, past, on_progress=on_progress)
    grown = _resident() - before
    shop = opened(settings, past, serving)
    figures = ranking_figures(
        shop, batch=job.batch, on_progress=lambda done, total: on_progress("measured events", done, total)
    )
    packed = [encode_state(state) for state in list(shop.states.values())[:_STATES]]
    parts = {
        "index": serving.index.memory_bytes,
        "statistics": array_bytes(serving.signals),
        "factors": array_bytes(serving.factors),
        "catalogue": array_bytes(serving.catalogue),
        "learner of the ranker role": array_bytes(past.learner),
        "statistics of the items role": array_bytes(past.statistics),
    }
    return {
        **{name: getattr(job, name) for name in (*AXES, "events", "batch", "seed")},
        "events_per_s": round(1e6 / figures["us_per_event_in_all"]),
        "us_per_event": figures["us_per_event_in_all"],
        "p99_us": figures["p99_us"],
        "slates_per_event": figures["slates_per_event"],
        "us_by_group": by_group(figures["us_per_event"]),
        "us_by_stage": figures["us_per_event"],
        "bytes_per_item": round(grown / job.items),
        "bytes_by_part": {name: round(held / job.items) for name, held in parts.items()},
        "state_bytes": round(float(np.mean([len(state) for state in packed]))),
        "cached_state_bytes": round(
            float(np.mean([object_bytes(decode_state("user", state)) for state in packed[:_SAMPLE]]))
        ),
    }


def by_group(stages: Mapping[str, float]) -> dict[str, float]:
    """Microseconds per event by group, from those by stage."""
    found = {group: sum(stages.get(name, 0.0) for name in names) for group, names in GROUPS.items()}
    found["other"] = sum(stages.values()) - sum(found.values())
    return {group: round(took, 1) for group, took in found.items()}


def array_bytes(thing: object) -> int:
    """Bytes of all arrays that an object of ours holds, in its attributes or those of objects of ours there."""
    arrays: dict[int, int] = {}
    seen: set[int] = set()

    def walk(held: object) -> None:
        if isinstance(held, np.ndarray):
            while isinstance(held.base, np.ndarray):
                held = held.base
            arrays[id(held)] = held.nbytes
        elif id(held) not in seen and (isinstance(held, tuple) or type(held).__module__.startswith("stream_app.")):
            seen.add(id(held))
            for inside in _attributes(held):
                walk(inside)

    walk(thing)
    return sum(arrays.values())


def _attributes(held: object) -> Iterable[object]:
    if isinstance(held, tuple):
        return held
    slots = [name for kind in type(held).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*vars(held).values()] if hasattr(held, "__dict__") else [getattr(held, name) for name in slots]


def object_bytes(thing: object) -> int:
    """Bytes of an object and everything it refers to, types and what the interpreter has once left out."""
    seen: dict[int, object] = {}
    waiting = [thing]
    while waiting:
        held = waiting.pop()
        if id(held) in seen or held is None or isinstance(held, type | bool):
            continue
        seen[id(held)] = held
        waiting += gc.get_referents(held)
    return sum(sys.getsizeof(held) for held in seen.values())


def need_memory(jobs: Iterable[GrowthJob], redis_users: Iterable[int]) -> None:
    """Return when the largest of the shops, and Redis, fit into the memory that is free.

    Raises:
        TailraceError: when one does not; says how much it takes.
    """
    free = psutil.virtual_memory().available
    wanted = [
        (job.items * _ITEM_BYTES + job.users * (_USER_BYTES + _EVENT_BYTES * job.history),
         f"{job.items:,} items and {job.users:,} users with {job.history} events each")
        for job in jobs
    ]  # fmt: skip
    wanted += [(users * _REDIS_BYTES, f"Redis with {users:,} users") for users in redis_users]
    for need, what in wanted:
        if need > free:
            raise TailraceError(
                f"{what}: about {need / 1e9:.1f} GB of memory are needed, {free / 1e9:.1f} GB are free; name less"
            )


def _grew_most(first: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """The stage that takes most more than before, and how much (us); nothing where none takes more."""
    grown = {name: round(took - first.get(name, 0.0), 1) for name, took in now.items()}
    stage = max(grown, key=lambda name: grown[name])
    return {stage: grown[stage]} if grown[stage] > 0 else {}


def _resident() -> int:
    """Resident memory of this process (bytes); what is free is given back first, where the C library can."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    resident: int = psutil.Process().memory_info().rss
    return resident


async def _in_a_child(settings: Settings, job: GrowthJob, name: str, on_progress: Progress) -> dict[str, Any]:
    # Broker and Redis are not asked, and a password would have to be revealed.
    overrides = settings.model_dump(mode="json", exclude={"kafka": True, "redis": True, "connection": {"password"}})

    def told(what: str, done: int, total: int) -> None:
        on_progress(f"{name}: {what}", done, total)

    async with child("stream_app.bench.growth", job, overrides=overrides, on_progress=told) as running:
        return await running.result()


async def _redis_figures(
    settings: Settings, base: GrowthJob, wanted: Sequence[int], on_progress: Progress
) -> list[dict[str, Any]]:
    """Memory of a Redis of its own with so many users, as :class:`stream_app.stores.users.UserStore` writes them.

    The states are those of 1,000 users with full histories, again and again under other keys: Redis does not know that
    two values are the same.
    """
    history = settings.users.history
    plan = ShopPlan(items=base.items, users=_STATES, events=0, history=history, dimensions=64, seed=base.seed)
    past = await asyncio.to_thread(made_up_past, settings, plan, on_progress=on_progress)
    packed = [(encode_state(state), state.applied[0]) for state in past.states.values()]
    prefix = f"{settings.topics.prefix}:user:user-"
    lines = []
    async with AsyncExitStack() as cleanup:
        server = EmbeddedRedis(directory=cleanup.enter_context(workspace()), append_only=False)
        cleanup.push_async_callback(server.stop)
        await server.start()
        redis = Redis.from_url(server.url)
        cleanup.push_async_callback(redis.aclose)
        empty, sent = (await redis.info("memory"))["used_memory"], 0
        for users in wanted:
            while sent < users:
                async with redis.pipeline(transaction=False) as pipe:
                    for user in range(sent, min(sent + _AT_ONCE, users)):
                        state, offset = packed[user % len(packed)]
                        pipe.hset(f"{prefix}{user}", mapping={"s": state, "o0": offset})
                    await pipe.execute()
                sent = min(sent + _AT_ONCE, users)
                on_progress("users to Redis", sent, wanted[-1])
            used = (await redis.info("memory"))["used_memory"] - empty
            lines.append(
                {
                    "benchmark": "growth",
                    "axis": "redis",
                    "users": users,
                    "history": history,
                    "seed": base.seed,
                    "state_bytes": round(float(np.mean([len(state) for state, _ in packed]))),
                    "redis_bytes_per_user": round(used / users),
                }
            )
    return lines


async def _main() -> None:
    job, ended = await read_job(GrowthJob)
    working = asyncio.create_task(asyncio.to_thread(_work, job))
    await asyncio.wait([working, ended], return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        os._exit(1)  # whoever started it is gone; the thread cannot be told
    ended.cancel()
    sys.stdout.buffer.write(msgspec.json.encode(working.result()) + b"\n")


def _work(job: GrowthJob) -> dict[str, Any]:
    settings = load_settings()
    warm_up(settings)
    return growth_line(settings, job, on_progress=_Seldom())


class _Seldom:
    """Tells the parent, a few times a second."""

    def __init__(self) -> None:
        self._at = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._at > _TELL_EVERY_S:
            self._at = now
            tell(what, done, total)


if __name__ == "__main__":
    run_child(_main())
