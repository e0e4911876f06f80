"""Redis' primary is killed in the middle of a stream, and with it the process that knew the newest states."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stream_app.torture.pipeline import Pipeline
from stream_app.torture.stream import make_stream
from tests.redis_servers import Group, group
from tests.stacks import Stack

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(240)]


async def killed(servers: Group, pipeline: Pipeline) -> None:
    worker = pipeline.workers["interactions"]
    await asyncio.gather(servers.primary.kill(), worker.kill())
    for server in servers.servers:
        server.resume()
    await asyncio.gather(worker.start(), servers.promoted())


async def test_a_promoted_replica_has_every_state_whose_events_were_acknowledged(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    stream = make_stream(5, users=30, events=600)
    striking: list[asyncio.Task[None]] = []
    async with group(tmp_path / "redis", replicas=2) as servers:
        confirmed = {"replicas": 1, "replicas_timeout_ms": 300, "timeout_s": 2.0}
        pipeline = Pipeline(
            stack.overrides, topic_prefix, tmp_path, overrides={"redis": servers.url, "redis_connection": confirmed}
        )

        async def in_the_middle(number: int) -> None:
            if number == len(stream.events) // 3:
                await servers.cut_off_replicas()  # what the primary takes from now on will be lost with it
            if number == len(stream.events) * 2 // 3:
                striking.append(asyncio.create_task(killed(servers, pipeline)))

        try:
            await pipeline.start(["interactions"])
            await pipeline.send_events(stream.events, between=in_the_middle)
            await asyncio.gather(*striking)
            await pipeline.interactions_done()
            assert await pipeline.states(stream.users) == await pipeline.expected_states()
        except BaseException:
            print(pipeline.logs())  # noqa: T201
            raise
        finally:
            await pipeline.close()
