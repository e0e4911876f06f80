"""Faults in living processes, and what these say of themselves: the right question gets a no, and no other."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from schemas.decode import encode
from schemas.messages import Interaction, Item, Transition, Transitions
from stream_app.delivery.admin import create_topics
from stream_app.embedded import EmbeddedStack
from stream_app.embedded.worker import WorkerProcess
from stream_app.health.judging import PROBES, Probe
from stream_app.settings import Settings, load_settings
from stream_app.topics import Topics
from tests.integration.consuming import sending
from tests.stacks import Stack
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

STALLED_S = 5.0
AWAY_S = 18.0
"""Longer than health.stalled_s and what the interactions role may let wait by its settings, 14.1 s together."""


def overrides(stack: Stack | EmbeddedStack, prefix: str) -> dict[str, Any]:
    given = stack.overrides if isinstance(stack, Stack) else stack.settings_overrides()
    return {
        **given,
        "topics": {"prefix": prefix, "partitions": 1},
        "delivery": {"commit_interval_s": 0.1, "retry_max_s": 0.2},
        "items": {"flush_interval_s": 0.1},
        "encoder": {"eager": False, "deadline_s": 0.5},
        "replica": {"directory": "off"},
        "log": {"format": "text"},
        "health": {
            "interval_s": 0.1,
            "loop_s": 5.0,
            "stalled_s": STALLED_S,
            "dead_s": 6.0,
            "unready_after_s": 1.0,
            "replica_records": 20,
        },
    }


class Process(WorkerProcess):
    """A process of Tailrace, asked for its health."""

    def __init__(self, role: str, settings: dict[str, Any], folder: Path) -> None:
        self.faults = folder / "faults"
        self.faults.mkdir()
        super().__init__([role], overrides=settings, directory=folder, faults=self.faults)

    async def red(self, probe: Probe) -> dict[str, str]:
        """What is not as it should be, and what is said of it."""
        answer = await self.health(probe)
        assert answer is not None, "no answer"
        status, told = answer
        found = {name: check["detail"] for name, check in told["checks"].items() if not check["ok"]}
        assert status == (503 if found else 200)
        assert told["ok"] == (not found)
        return found

    async def all_green(self) -> bool:
        return not any([await self.red(probe) for probe in PROBES])


@asynccontextmanager
async def process(role: str, settings: dict[str, Any], folder: Path) -> AsyncIterator[Process]:
    await create_topics(load_settings(**settings))
    made = Process(role, settings, folder)
    try:
        await made.start()
        await eventually(made.all_green, timeout_s=60, interval_s=0.1, what="all green")
        yield made
        assert made.running
    except BaseException:
        print(made.output(80))  # noqa: T201
        raise
    finally:
        await made.kill()


async def send(settings: Settings, topic: str, key: str, value: bytes | None, times: int = 1) -> None:
    async with sending(settings) as producer:
        await _send(producer, topic, key, value, times)


async def _send(producer: AIOKafkaProducer, topic: str, key: str, value: bytes | None, times: int) -> None:
    for _ in range(times):
        await producer.send_and_wait(topic, value, key=key.encode())


def a_transition(source: str) -> bytes:
    row = Transition(offset=0, at=1.7e9, item_id="a", count=1.0, previous=[], symmetric=[], directed=[])
    return encode(Transitions(source_topic=source, source_partition=0, rows=[row]))


async def test_a_loop_that_is_stuck_is_not_alive_until_it_turns_again(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    async with process("items", overrides(stack, topic_prefix), tmp_path) as made:
        assert await made.metric("tailrace_waiting_seconds") is None
        stick = made.faults / "stick-loop"
        stick.touch()
        found = await eventually(lambda: made.red("live"), what="the loop is stuck")
        assert set(found) == {"loop"}
        assert "has not turned for" in found["loop"]
        assert set(await made.red("ready")) == {"loop"}
        assert await made.red("started") == {}
        samples = await made.metrics()
        assert samples is not None
        assert samples['tailrace_health{check="loop",probe="live"}'] == 0, "metrics are served by another thread, too"
        stick.unlink()
        await eventually(made.all_green, what="the loop turns again")


@pytest.mark.parametrize(
    ("fault", "check", "says"),
    [
        ("end-consumer", "consumer items", "on the broker, and nothing was fetched"),
        ("end-agents", "engine items", "Its agent tailrace.items ended"),
    ],
)
async def test_a_dead_consumer_in_a_living_process_is_not_alive(
    stack: Stack, topic_prefix: str, tmp_path: Path, fault: str, check: str, says: str
) -> None:
    values = overrides(stack, topic_prefix)
    settings = load_settings(**values)
    topics = Topics(settings)
    async with process("items", values, tmp_path) as made:
        (made.faults / fault).touch()
        # What came before it happened would be fetched.
        await eventually((made.faults / f"{fault}.done").exists, what="the fault")
        # More than one: the embedded broker states an end that is too low by the last batch.
        await send(settings, topics.transitions, "0", a_transition(topics.interactions), times=3)

        async def dead() -> str | None:
            return (await made.red("live")).get(check)

        detail = await eventually(dead, timeout_s=40, what=f"{check} is not alive")
        assert detail is not None
        assert says in detail
        assert "Start the process again" in detail
        assert check in await made.red("ready")


async def test_a_consumer_that_crashes_ends_its_process(stack: Stack, topic_prefix: str, tmp_path: Path) -> None:
    values = overrides(stack, topic_prefix)
    await create_topics(load_settings(**values))
    made = Process("items", values, tmp_path)
    try:
        await made.start()
        await eventually(made.all_green, timeout_s=60, interval_s=0.1, what="all green")
        (made.faults / "crash-consumer").touch()
        await eventually(lambda: not made.running, timeout_s=40, what="it ends")
        assert "the items role failed: RuntimeError: test fault" in made.output(80)
    finally:
        await made.kill()


async def test_a_consumer_that_moves_is_alive_for_longer_than_one_that_stands_still_would_be(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    values = overrides(stack, topic_prefix)
    settings = load_settings(**values)
    topics, sent = Topics(settings), 0
    async with process("items", values, tmp_path) as made, sending(settings) as producer:
        began = time.monotonic()
        while time.monotonic() - began < 2 * STALLED_S:
            await _send(producer, topics.transitions, "0", a_transition(topics.interactions), 3)
            sent += 3
            assert await made.red("live") == {}

        async def done() -> bool:
            return (await made.metric("tailrace_events_in_total") or 0) >= sent

        await eventually(done, what="all of it was taken")
        await eventually(made.all_green, what="all green in the end")


async def test_a_replica_that_falls_behind_is_not_ready_until_it_has_caught_up(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    values = overrides(stack, topic_prefix)
    settings = load_settings(**values)
    async with process("interactions", values, tmp_path) as made:
        (made.faults / "pause-replica").touch()
        item = encode(Item(item_id="i", title="lamp"))

        async def behind() -> dict[str, str]:
            # The fault takes a moment, and what was under way is still applied.
            await send(settings, Topics(settings).items, "i", item, times=5)
            return await made.red("ready")

        found = await eventually(behind, timeout_s=30, interval_s=0.2, what="the replica is behind")
        assert set(found) == {"replica"}
        assert "health.replica_records 20" in found["replica"]
        assert await made.red("live") == {}
        assert await made.red("started") == {}
        (made.faults / "pause-replica").unlink()
        await eventually(made.all_green, timeout_s=30, what="the replica has caught up")


@pytest.mark.parametrize("which", ["redis", "broker"])
async def test_what_is_away_makes_a_process_not_ready_and_is_no_reason_to_start_it_again(
    own_stack: EmbeddedStack, topic_prefix: str, tmp_path: Path, which: str
) -> None:
    values = overrides(own_stack, topic_prefix)
    settings = load_settings(**values)
    redis, broker, kafka = own_stack.redis_server, own_stack.broker, f"Kafka at {own_stack.kafka}"
    async with process("interactions", values, tmp_path) as made:

        async def waits_for(what: str, *, other: str) -> bool:
            assert await made.red("live") == {}
            named = (await made.red("ready")).get("services", "")
            return what in named and other not in named

        redis.suspend()
        try:
            event = Interaction(event_id="e", user_id="u", type="click", item_id="i", occurred_at=datetime.now(UTC))
            await send(settings, Topics(settings).interactions, "u", encode(event), times=3)
            await eventually(lambda: waits_for("Redis", other="Kafka"), timeout_s=60, what="Redis is waited for")
            if which == "broker":  # The events are in the process now, and cannot be acknowledged.
                broker.suspend()
                redis.resume()
                await eventually(lambda: waits_for(kafka, other="Redis"), timeout_s=60, what="the broker is waited for")
            began = time.monotonic()

            async def long_away() -> bool:
                assert await made.red("live") == {}
                assert set(await made.red("ready")) == {"services"}
                return time.monotonic() - began > AWAY_S

            await eventually(long_away, timeout_s=60, interval_s=0.2, what="away for longer than records may wait")
            assert await made.red("started") == {}
        finally:
            redis.resume()
            broker.resume()

        async def well() -> bool:
            assert await made.red("live") == {}
            return await made.all_green()

        await eventually(well, timeout_s=60, interval_s=0.1, what="it goes on by itself")
