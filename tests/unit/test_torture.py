"""The tools of the torture: what its seed decides, its bad network, its moved clock, and what it compares."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import ItemSignals
from stream_app.torture.clock import MovedClock, why_not
from stream_app.torture.faults import possible_kinds
from stream_app.torture.outcome import Outcome
from stream_app.torture.proxy import Proxy
from stream_app.torture.schedule import ALL_KINDS, BROKER, REDIS, Kind, make_schedule
from stream_app.torture.stream import make_stream
from stream_app.users.state import Flood, UserState, encode_state


@given(st.integers(0, 10_000), st.integers(1, 50_000), st.integers(1, 8), st.integers(0, 40))
def test_a_seed_decides_everything_and_all_of_it_happens(seed: int, events: int, processes: int, faults: int) -> None:
    schedule = make_schedule(seed, events=events, processes=processes, faults=faults)
    assert schedule == make_schedule(seed, events=events, processes=processes, faults=faults)
    assert len(schedule) == faults
    assert list(schedule) == sorted(schedule, key=lambda fault: fault.after)
    for fault in schedule:
        assert 1 <= fault.after <= events
        assert 0 < fault.lasts_s <= 12
        assert fault.target in {BROKER, REDIS, *map(str, range(processes))}


def test_other_seeds_decide_otherwise_and_every_kind_comes_up() -> None:
    schedules = [make_schedule(seed, events=1_000, processes=3, faults=10) for seed in range(60)]
    assert len(set(schedules)) == len(schedules)
    assert {fault.kind for schedule in schedules for fault in schedule} == set(ALL_KINDS)
    assert {fault.target for schedule in schedules for fault in schedule} == {BROKER, REDIS, "0", "1", "2"}


def test_kinds_are_those_asked_for() -> None:
    schedule = make_schedule(3, events=1_000, processes=3, faults=20, kinds=(Kind.KILL, Kind.CLOCK))
    assert {fault.kind for fault in schedule} == {Kind.KILL, Kind.CLOCK}
    with pytest.raises(ValueError, match="at least one of each"):
        make_schedule(3, events=0, processes=3, faults=20)


def test_the_embedded_broker_has_no_faults_of_its_own() -> None:
    assert not {Kind.BROKER_KILL, Kind.BROKER_SUSPEND, Kind.CUT_BROKER} & set(possible_kinds("embedded"))
    assert Kind.BROKER_KILL in possible_kinds("kafka")


def test_a_stream_is_its_seed_s() -> None:
    stream = make_stream(5, items=30, users=9, events=500)
    assert stream == make_stream(5, items=30, users=9, events=500)
    assert stream != make_stream(6, items=30, users=9, events=500)
    assert (len(stream.items), len(stream.events), len(stream.users)) == (30, 500, 9)
    ids = [event.event_id for event in stream.events]
    assert len(set(ids)) < len(ids), "some are sent twice"


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(b"> " + line)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    proxy = Proxy(f"{host}:{port}")
    await proxy.start()
    yield proxy
    await proxy.close()
    server.close()


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], line: bytes) -> bytes:
    reader, writer = connection
    writer.write(line + b"\n")
    return await asyncio.wait_for(reader.readline(), 5)


async def answered(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], line: bytes) -> bytes | None:
    try:
        return await ask(connection, line) or None
    except ConnectionError:
        return None


async def test_a_proxy_forwards(proxy: Proxy) -> None:
    connection = await connect(proxy)
    assert await ask(connection, b"a") == b"> a\n"
    connection[1].close()


async def test_a_cut_ends_connections_and_refuses_new_ones_until_it_heals(proxy: Proxy) -> None:
    connection = await connect(proxy)
    assert await ask(connection, b"a") == b"> a\n"
    await proxy.cut()
    assert await answered(connection, b"b") is None
    assert await answered(await connect(proxy), b"c") is None
    proxy.heal()
    assert await ask(await connect(proxy), b"d") == b"> d\n"


async def test_nothing_passes_while_it_is_stalled_and_nothing_is_lost(proxy: Proxy) -> None:
    reader, writer = await connect(proxy)
    proxy.stall()
    writer.write(b"a\n")
    answer = asyncio.create_task(reader.readline())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not answer.done()
    proxy.heal()
    assert await asyncio.wait_for(answer, 5) == b"> a\n"
    writer.close()


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_moved_clock_moves_the_wall_clock_of_its_process_and_no_other(tmp_path: Path) -> None:
    clock = MovedClock(tmp_path)
    program = (
        "import sys, time\nfor line in sys.stdin:\n    print(time.time() - float(line), time.monotonic(), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    import time

    found = []
    with process:
        for moved in (0.0, 3_600.0, -90.5, 0.0):
            clock.move(moved)
            process.stdin.write(f"{time.time()}\n")
            process.stdin.flush()
            ahead, monotonic = map(float, process.stdout.readline().split())
            assert abs(ahead - moved) < 30
            found.append(monotonic)
        process.stdin.close()
    assert found == sorted(found)
    assert found[-1] - found[0] < 30


ONE, TWO = (encode_state(UserState("u", applied={0: offset}, events=1)) for offset in (1, 2))


def outcome() -> Outcome:
    row = ItemSignals(item_id="i", at=1.0, counts=[1.0], applied={"0": 3}, neighbours=[], symmetric="", directed="")
    return Outcome(
        users={"u": ONE}, expected={"u": ONE}, items={"i": row}, examples=3, examples_applied={"0": 2}, slates={}
    )


def test_runs_that_amount_to_the_same_are_equal_and_any_difference_is_named() -> None:
    calm = outcome()
    assert calm.differences(outcome()) == []
    at_another_time = encode_state(UserState("u", applied={0: 1}, events=1, flood=Flood(1, 1_700_000_000, 5)))
    assert calm.differences(replace(outcome(), users={"u": at_another_time}, expected={"u": at_another_time})) == []
    assert calm.differences(replace(outcome(), users={"u": TWO}, expected={"u": TWO})) == ["state of u differs"]
    assert calm.differences(replace(outcome(), users={}, expected={})) == ["state of u differs"]
    assert calm.differences(replace(outcome(), users={"u": TWO})) == [
        "state of u is not that of its events",
        "state of u differs",
    ]
    (row,) = calm.items.values()
    twice = ItemSignals(**{name: getattr(row, name) for name in row.__struct_fields__} | {"counts": [2.0]})
    assert calm.differences(replace(outcome(), items={"i": twice}))[0].startswith("statistics of i differ")
    assert calm.differences(replace(outcome(), items={}))[0].startswith("statistics of i differ")
    assert calm.differences(replace(outcome(), examples=4))[0].startswith("examples differ")
