"""Redis or the broker away: at start and in the middle of a stream. Everything resumes by itself, nothing is lost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from stream_app.embedded import EmbeddedStack
from stream_app.embedded.processes import Server
from stream_app.torture.pipeline import Pipeline
from stream_app.torture.stream import Stream, make_stream
from tests.waiting import eventually

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(420)]

OUTAGE_S = float(os.environ.get("OUTAGE_S", "30"))


async def test_a_process_started_first_says_what_it_waits_for_and_goes_on_when_it_is_there(
    own_stack: EmbeddedStack, topic_prefix: str, tmp_path: Path
) -> None:
    pipeline = Pipeline(own_stack.settings_overrides(), topic_prefix, tmp_path)
    await asyncio.gather(own_stack.broker.stop(), own_stack.redis_server.stop())
    starting = asyncio.create_task(pipeline.start(["catalogue,items,ranker,interactions"], create=False))
    try:
        worker = await eventually(lambda: pipeline.workers.get("catalogue,items,ranker,interactions"))
        await eventually(lambda: f"Kafka at {own_stack.kafka}" in worker.output(), timeout_s=60, what="waits for Kafka")
        assert "waiting" in worker.output()
        await own_stack.broker.start()
        await eventually(lambda: "what=Redis" in worker.output(), timeout_s=60, what="waits for Redis")
        assert worker.running
        await own_stack.redis_server.start()
        await asyncio.wait_for(starting, 120)
        assert "resumed" in worker.output()
        stream = make_stream(1, items=5, users=2, events=10)
        await pipeline.send_items(stream.items)
        await pipeline.send_events(stream.events)
        await pipeline.interactions_done()
        assert set(await pipeline.slates()) == set(stream.users)
    except BaseException:
        print(pipeline.logs())  # noqa: T201
        raise
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await pipeline.close()


async def outage(pipeline: Pipeline, stream: Stream, server: Server) -> None:
    """Events at a steady rate; in the middle the server is killed and comes back after a while."""
    tasks: list[asyncio.Task[None]] = []

    async def away() -> None:
        await server.kill()
        await asyncio.sleep(OUTAGE_S)
        await server.start()

    async def strike(number: int) -> None:
        if number == len(stream.events) // 3:
            tasks.append(asyncio.create_task(away()))

    await pipeline.start(["catalogue,items,ranker", "interactions"])
    await pipeline.send_items(stream.items)
    await pipeline.embedded(len(stream.items))
    await pipeline.send_events(stream.events, per_s=len(stream.events) / (OUTAGE_S + 5), between=strike)
    await asyncio.gather(*tasks)
    await pipeline.settled()


@pytest.mark.parametrize("which", ["redis", pytest.param("broker", marks=pytest.mark.kafka)])
async def test_gone_for_a_while_in_the_middle_of_a_stream(
    own_stack: EmbeddedStack, topic_prefix: str, tmp_path: Path, which: str
) -> None:
    pipeline = Pipeline(own_stack.settings_overrides(), topic_prefix, tmp_path)
    stream = make_stream(3, items=30, users=20, events=600)
    server = own_stack.redis_server if which == "redis" else own_stack.broker
    try:
        await outage(pipeline, stream, server)
        assert await pipeline.states(stream.users) == await pipeline.expected_states()
        slates = await pipeline.slates()
        assert set(slates) == set(stream.users)
        for worker in pipeline.workers.values():
            assert worker.running
            assert worker.output().count("\n") < 350, "an outage must not flood the logs"
    except BaseException:
        print(pipeline.logs())  # noqa: T201
        raise
    finally:
        await pipeline.close()
