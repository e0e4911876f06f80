"""SIGKILL of any one process in the middle of a stream, then a restart: as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from stream_app.app import ROLES
from stream_app.torture.outcome import Outcome
from stream_app.torture.pipeline import Pipeline
from stream_app.torture.stream import Stream, make_stream
from tests.stacks import Stack

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(420)]

RUNS = int(os.environ.get("FAULT_RUNS", "4"))
"""How many seeded runs; each kills another role in turn. ``make faults`` does 20."""
ROLES_KILLED = ("interactions", "items", "ranker", "catalogue")


async def run(stack: Stack, directory: Path, prefix: str, stream: Stream, seed: int | None) -> Outcome:
    """The stream through a pipeline; with a seed, one process is killed at a random moment and started again."""
    pipeline = Pipeline(stack.overrides, prefix, directory)
    role = None if seed is None else ROLES_KILLED[seed % len(ROLES_KILLED)]
    rng = random.Random(seed)
    sent = len(stream.items) if role == "catalogue" else len(stream.events)
    moment = rng.randrange(1, sent)
    pause_s = rng.choice([0.0, 0.0, 0.5, 2.0])
    restarts: list[asyncio.Task[None]] = []

    async def restart(role: str) -> None:
        await pipeline.workers[role].kill()
        await asyncio.sleep(pause_s)
        await pipeline.workers[role].start()

    def strike(when: str):
        async def between(number: int) -> None:
            if number == moment and role is not None and (role == "catalogue") == (when == "items"):
                restarts.append(asyncio.create_task(restart(role)))

        return between

    try:
        await pipeline.start()
        await pipeline.send_items(stream.items, strike("items"))
        await asyncio.gather(*restarts)
        await pipeline.embedded(len(stream.items))
        await pipeline.send_events(stream.events, between=strike("events"))
        await asyncio.gather(*restarts)
        assert role is None or restarts, "nobody was killed"
        return await pipeline.outcome(stream)
    except BaseException:
        print(pipeline.logs())  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        await pipeline.close()


async def hand_over(stack: Stack, directory: Path, prefix: str, stream: Stream) -> Outcome:
    """Two interactions processes share the users; one is killed and stays away; later a third joins."""
    pipeline = Pipeline(stack.overrides, prefix, directory)

    async def between(number: int) -> None:
        if number == len(stream.events) // 3:
            await pipeline.workers["interactions"].kill()
        elif number == 2 * len(stream.events) // 3:
            joining.append(asyncio.create_task(pipeline.start(["interactions#3"], create=False)))

    joining: list[asyncio.Task[None]] = []
    try:
        await pipeline.start([*ROLES, "interactions#2"])
        await pipeline.send_items(stream.items)
        await pipeline.embedded(len(stream.items))
        await pipeline.send_events(stream.events, between=between)
        await asyncio.gather(*joining)
        return await pipeline.outcome(stream)
    except BaseException:
        print(pipeline.logs())  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        await pipeline.close()


_undisturbed: dict[tuple[str, int], Outcome] = {}


async def undisturbed(stack: Stack, directory: Path, prefix: str, stream: Stream) -> Outcome:
    """The stream without any fault; run once per session."""
    key = (stack.kafka, len(stream.events))
    if key not in _undisturbed:
        calm = _undisturbed[key] = await run(stack, directory, f"{prefix}-calm", stream, None)
        assert len(calm.users) == len(stream.users)
        assert len(calm.slates) == len(stream.users)
        assert calm.examples > 0
    return _undisturbed[key]


@pytest.mark.parametrize("seed", range(RUNS))
async def test_a_killed_process_leaves_no_trace(stack: Stack, topic_prefix: str, tmp_path: Path, seed: int) -> None:
    stream = make_stream(7)
    calm = await undisturbed(stack, tmp_path, topic_prefix, stream)
    assert calm.differences(await run(stack, tmp_path, topic_prefix, stream, seed)) == []


async def test_users_move_between_processes_without_a_trace(stack: Stack, topic_prefix: str, tmp_path: Path) -> None:
    stream = make_stream(7)
    calm = await undisturbed(stack, tmp_path, topic_prefix, stream)
    assert calm.differences(await hand_over(stack, tmp_path, topic_prefix, stream)) == []
