"""The stack under failure: what survives, what comes back, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from stream_app.embedded import EmbeddedRedis, EmbeddedStack
from stream_app.embedded.probes import kafka_answers, redis_answers
from tests.stacks import Stack
from tests.waiting import eventually, eventually_sync

ROOT = Path(__file__).parents[2]


def gone(pid: int) -> bool:
    """Whether the process has ended (one that nobody has waited for yet counts)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_stop_leaves_no_process_and_no_directory(own_stack: EmbeddedStack) -> None:
    pids = [own_stack.broker.pid, own_stack.redis_server.pid]
    directory = own_stack.redis_server.directory.parent
    assert all(pid is not None and psutil.pid_exists(pid) for pid in pids)
    assert directory.is_dir()
    asyncio.run(own_stack.stop())
    assert all(pid is not None and gone(pid) for pid in pids)
    assert not directory.exists()


def test_a_killed_parent_leaves_no_process(stack: Stack, tmp_path: Path) -> None:
    if stack.servers is None:
        pytest.skip(f"--stack={stack.kind}: its servers do not end with us")
    code = (
        "import sys\n"
        "from stream_app.embedded import EmbeddedStack\n"
        f"with EmbeddedStack({stack.kind!r}) as stack:\n"
        "    print(stack.broker.pid, stack.redis_server.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    # Nobody is left to remove the temporary directory: pytest does.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(gone(pid) for pid in pids)
        parent.send_signal(signal.SIGKILL)
    eventually_sync(lambda: all(gone(pid) for pid in pids), what=f"processes {pids} end with their parent")


async def test_a_broker_comes_back_at_the_same_address(own_stack: EmbeddedStack) -> None:
    address = own_stack.kafka
    await own_stack.broker.kill()
    assert not await kafka_answers(address)
    await own_stack.broker.start()
    assert own_stack.kafka == address
    assert await kafka_answers(address)


@pytest.mark.kafka
async def test_apache_kafka_keeps_its_data_through_kill_and_stop(own_stack: EmbeddedStack) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=own_stack.kafka)
    await admin.start()
    await admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=1)])
    await admin.close()

    async def append(value: bytes) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=own_stack.kafka, acks="all")
        await producer.start()
        await producer.send_and_wait("kept", value)
        await producer.stop()

    await append(b"before the kill")
    await own_stack.broker.kill()
    await own_stack.broker.start()
    await append(b"before the stop")
    await own_stack.broker.restart()

    consumer = AIOKafkaConsumer("kept", bootstrap_servers=own_stack.kafka, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(20):
            records = [await consumer.getone() for _ in range(2)]
    finally:
        await consumer.stop()
    assert [(record.offset, record.value) for record in records] == [(0, b"before the kill"), (1, b"before the stop")]


@pytest.fixture
async def redis_server(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    server = EmbeddedRedis(directory=tmp_path / "redis")
    await server.start()
    yield server
    await server.stop()


async def test_redis_keeps_every_acknowledged_write_through_kills(redis_server: EmbeddedRedis) -> None:
    port = redis_server.port
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        async with Redis.from_url(redis_server.url, socket_timeout=5) as redis:
            while True:
                await redis.set("counter", acknowledged + 1)
                acknowledged += 1

    def reached(number: int) -> bool:
        return acknowledged >= number

    for _ in range(3):
        writer = asyncio.create_task(write())
        await eventually(partial(reached, acknowledged + 200), what="writes go through")
        await redis_server.kill()
        with pytest.raises((RedisError, OSError)):
            await writer
        await redis_server.start()
        assert redis_server.port == port
        async with Redis.from_url(redis_server.url) as redis:
            stored = int(await redis.get("counter") or 0)
        # A write may have been made without its reply getting out; none that was answered may be missing.
        assert acknowledged <= stored <= acknowledged + 1
        acknowledged = stored


async def test_a_suspended_server_does_not_answer_until_resumed(redis_server: EmbeddedRedis) -> None:
    redis_server.suspend()
    assert redis_server.running
    async with Redis.from_url(redis_server.url, socket_timeout=0.2) as redis:
        with pytest.raises(RedisTimeoutError):
            await redis.ping()
    redis_server.resume()
    assert await redis_answers(redis_server.url)


async def test_a_suspended_server_can_be_stopped(redis_server: EmbeddedRedis) -> None:
    redis_server.suspend()
    async with asyncio.timeout(redis_server.stop_grace_s):
        await redis_server.stop()
    assert not redis_server.running


async def test_data_in_a_given_directory_outlives_the_stack(tmp_path: Path) -> None:
    for expected in (None, b"1"):
        async with EmbeddedStack(directory=tmp_path) as stack, Redis.from_url(stack.redis) as redis:
            assert await redis.get("runs") == expected
            await redis.incr("runs")
    assert (tmp_path / "redis").is_dir()
