"""SIGKILL of any one process while another model is built, served and rolled back: as if nothing had happened, and at
every moment each slate is of one of the two spaces."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import aclosing
from pathlib import Path

import pytest

from schemas.decode import decode_slate
from schemas.messages import ModelSpace
from stream_app.delivery.reading import read_to_end
from stream_app.space_operations import Progress, build_space, cut_over_to, follow_build, hindrances, roll_back_space
from stream_app.torture.outcome import Outcome
from stream_app.torture.pipeline import Pipeline
from stream_app.torture.stream import Stream, make_stream
from tests.stacks import Stack
from tests.waiting import eventually

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(420)]

RUNS = int(os.environ.get("CUT_OVER_RUNS", "3"))
ROLES_KILLED = ("interactions", "catalogue", "ranker")
MOMENTS = ("build", "cutover", "rollback")
"""Of the change that a process is killed in."""


async def _complete(pipeline: Pipeline, space: ModelSpace, count: int) -> None:
    progress: Progress | None = None
    lacks: list[str] = []
    try:
        async with asyncio.timeout(180), aclosing(follow_build(pipeline.settings, space)) as told:
            async for progress in told:
                if progress.complete and progress.items == count:
                    # Without learning (rate 0) there is no basis to carry over.
                    lacks = await hindrances(pipeline.settings, space)
                    if not lacks:
                        return
    except TimeoutError:
        raise AssertionError(f"{space.space} is not complete after 180 s: {progress}, lacks {lacks}") from None


async def _serves(pipeline: Pipeline, number: int) -> None:
    async def there() -> bool:
        found = [await worker.metrics() or {} for worker in pipeline.ranking_workers()]
        return bool(found) and all(samples.get("tailrace_space_number") == number for samples in found)

    await eventually(there, timeout_s=120, interval_s=0.1, what=f"space {number} is served")


async def run(stack: Stack, directory: Path, prefix: str, stream: Stream, seed: int | None) -> Outcome:
    """The stream, with a change of model and back in the middle of it; with a seed, one process is killed meanwhile."""
    pipeline = Pipeline(stack.overrides, prefix, directory)
    role = None if seed is None else ROLES_KILLED[seed % len(ROLES_KILLED)]
    rng = random.Random(seed)
    moment, pause_s = rng.choice(MOMENTS), rng.uniform(0.0, 1.5)
    restarts: list[asyncio.Task[None]] = []

    async def strike(when: str) -> None:
        if role is None or when != moment:
            return

        async def restart(role: str) -> None:
            await asyncio.sleep(pause_s)
            await pipeline.workers[role].kill()
            await pipeline.workers[role].start()

        restarts.append(asyncio.create_task(restart(role)))

    async def change() -> ModelSpace:
        await strike("build")
        space = await build_space(pipeline.settings, {"dimensions": 256})
        await _complete(pipeline, space, len(stream.items))
        await strike("cutover")
        await cut_over_to(pipeline.settings, space.space)
        await _serves(pipeline, space.number)
        await strike("rollback")
        await roll_back_space(pipeline.settings)
        await _serves(pipeline, 0)
        await cut_over_to(pipeline.settings, space.space)
        await _serves(pipeline, space.number)
        return space

    try:
        await pipeline.start()
        await pipeline.send_items(stream.items)
        await pipeline.embedded(len(stream.items))
        half = len(stream.events) // 2
        changing = asyncio.create_task(change())
        await pipeline.send_events(stream.events[:half], per_s=40.0)
        space = await changing
        await asyncio.gather(*restarts)
        await pipeline.send_events(stream.events[half:])
        assert role is None or restarts, "nobody was killed"
        outcome = await pipeline.outcome(stream)
        assert {slate.versions.space.partition("+")[0] for slate in outcome.slates.values()} == {space.space}
        await _only_spaces(pipeline, space)
        return outcome
    except BaseException:
        print(pipeline.logs())  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        await pipeline.close()


async def _only_spaces(pipeline: Pipeline, space: ModelSpace) -> None:
    """Every slate that was ever published was of one of the two spaces."""
    names = set()
    async for record in read_to_end(pipeline.settings, pipeline.topics.recommendations):
        slate = decode_slate(record.key, record.value, record.headers)[1]
        if slate is not None:
            names.add(slate.versions.space.partition("+")[0])
    assert space.space in names
    assert len(names) == 2


_calm: dict[str, Outcome] = {}
"""What the stream comes to when nobody is killed, by the broker it ran on."""


@pytest.mark.parametrize("seed", range(RUNS))
async def test_a_process_killed_while_the_model_changes_leaves_no_trace(
    stack: Stack, topic_prefix: str, tmp_path: Path, seed: int
) -> None:
    stream = make_stream(11, events=800)
    if stack.kafka not in _calm:
        _calm[stack.kafka] = await run(stack, tmp_path, f"{topic_prefix}-calm", stream, None)
    calm = _calm[stack.kafka]
    assert len(calm.slates) == len(stream.users)
    assert calm.differences(await run(stack, tmp_path, topic_prefix, stream, seed)) == []
