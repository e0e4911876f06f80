"""The batched drain on Faust's own consumer: only the thread with the Kafka client is played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord, TopicPartition
from faust.types import TP
from mode.utils.queues import ThrowableQueue

from stream_app.delivery import draining as draining_module
from stream_app.delivery.draining import Delivered, DrainingConsumer, Place
from stream_app.delivery.engine import faust_app, without_payload
from stream_app.settings import load_settings
from tests.waiting import eventually

ONE, OTHER, THIRD = TP("t", 0), TP("u", 0), TP("v", 0)


def record(place: TP, offset: int) -> ConsumerRecord:
    return ConsumerRecord(
        place.topic, place.partition, offset, 1_700_000_000_250, 0, b"k", b"%d" % offset, None, 1, 1, [("h", b"1")]
    )


class Log:
    """A broker's partitions and the client's positions in them, as far as the drain sees the thread."""

    def __init__(self, **offsets: Iterable[int]) -> None:
        self.offsets = {TP(topic, 0): list(numbers) for topic, numbers in offsets.items()}
        self.committed: dict[TP, int] = {}
        self.positions: dict[TP, int] = {}
        self.at_most = 2_000
        self.answers = True
        self.fetches: list[set[TP]] = []
        self.seeks = 0
        self.failing_seeks = 0
        self.asked = 0
        self.first_seeks: list[set[TP]] = []
        self.leaderless: set[TP] = set()
        self.fetched: Callable[[], None] = lambda: None

    async def getmany(self, partitions: set[TP], timeout: float) -> Mapping[Any, list[ConsumerRecord]]:
        self.fetches.append(set(partitions))
        found = {}
        for place in partitions:
            position = self.positions.get(place, 0)
            offsets = [offset for offset in self.offsets[place] if offset >= position][: self.at_most]
            if offsets:
                self.positions[place] = offsets[-1] + 1
                found[TopicPartition(*place)] = [record(place, offset) for offset in offsets]
        self.fetched()
        await asyncio.sleep(0 if found else 0.001)
        return found

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        self.seeks += 1
        if self.failing_seeks:
            self.failing_seeks -= 1
            raise RuntimeError("moving again")
        # As aiokafka: where nothing is committed the position stays.
        self.positions.update({place: self.committed[place] for place in self.offsets if place in self.committed})
        return {place: self.committed.get(place) for place in self.offsets}

    async def seek_to_first(self, places: Iterable[TP]) -> None:
        places = list(places)
        self.first_seeks.append(set(places))
        if self.leaderless.intersection(places):
            raise RuntimeError("no leader")
        for place in places:
            self.positions[place] = next(iter(self.offsets[place]), 0)

    async def committed_of(self, topic: str) -> tuple[dict[TP, int], int]:
        self.asked += 1
        committed = {place: offset for place, offset in self.committed.items() if place.topic == topic and offset}
        return committed, len([place for place in self.offsets if place.topic == topic])

    async def ends_of(self, places: Iterable[TP]) -> dict[TP, int]:
        return {place: self.offsets[place][-1] + 1 for place in places}

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        if not self.answers:
            await asyncio.Event().wait()
        self.committed.update(offsets)
        return True

    def position_now(self, place: TP) -> int | None:
        return self.positions.get(place)

    def assignment(self) -> set[TP]:
        return set(self.offsets)


async def told(*_: Any) -> None:
    """Faust's own callbacks are not what is tested here."""


@asynccontextmanager
async def draining(log: Log, *, buffer: int = 16_384) -> AsyncIterator[Drain]:
    drain = Drain(log, buffer)
    task = asyncio.create_task(drain.consumer._drain_messages(drain.fetcher))
    try:
        yield drain
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass(frozen=True, eq=False)
class Channel:
    queue: ThrowableQueue


class Drain:
    """A consumer of Faust's with its queues; partitions are assigned, and the flow is stopped."""

    def __init__(self, log: Log, buffer: int) -> None:
        app = faust_app(load_settings(), "items")
        consumer = DrainingConsumer.__new__(DrainingConsumer)
        consumer._new_consumer_thread = lambda: SimpleNamespace(beacon=None)  # type: ignore[method-assign]
        consumer.add_dependency = lambda service: service  # type: ignore[method-assign]
        DrainingConsumer.__init__(
            consumer, app.transport, callback=told, on_partitions_revoked=told, on_partitions_assigned=told
        )
        consumer._thread = log
        self.log, self.app, self.consumer = log, app, consumer
        self.fetcher = SimpleNamespace(should_stop=False)
        self.queues = {
            place: ThrowableQueue(maxsize=buffer, flow_control=app.flow_control, clear_on_resume=True)
            for place in log.offsets
        }
        for place, queue in self.queues.items():
            app.topics._tp_index[place].add(Channel(queue))
        self.looked = 0
        looking = consumer._get_active_partitions

        def look() -> set[TP]:
            self.looked += 1
            found: set[TP] = looking()
            return found

        consumer._get_active_partitions = look
        consumer.stop_flow()
        consumer._set_active_tps(log.assignment())

    def resume(self) -> None:
        """As Faust's recovery does when the partitions have moved."""
        self.app.flow_control.resume()
        self.consumer.resume_flow()

    def suspend(self) -> None:
        """As Faust does when partitions are revoked."""
        self.consumer.stop_flow()
        self.app.flow_control.suspend()
        self.app.flow_control.clear()

    def waits(self) -> bool:
        """Whether the drain has seen that the flow is stopped."""
        return bool(self.consumer.can_resume_flow._waiters)

    def offsets(self, place: TP = ONE) -> list[int]:
        return [event.offset for event in self.queues[place]._queue]

    def to_commit(self, place: TP = ONE) -> int | None:
        offset: int | None = self.consumer._new_offset(place)
        return offset


async def test_a_fetch_is_delivered_at_once_in_order_from_what_is_committed():
    log = Log(t=range(10), u=range(3))
    log.committed[ONE] = 4
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: len(drain.offsets()) == 6 and len(drain.offsets(OTHER)) == 3)
        assert drain.offsets() == [4, 5, 6, 7, 8, 9]
        assert drain.offsets(OTHER) == [0, 1, 2]
        assert drain.consumer._read_offset[ONE] == 9
        assert log.seeks == 1
        (event, *_) = drain.queues[ONE]._queue
        assert (event.topic, event.partition, event.key, event.value) == ("t", 0, b"k", b"4")
        assert (event.timestamp, event.headers, event.tp) == (1_700_000_000.25, [("h", b"1")], ONE)


async def test_whoever_waits_is_woken():
    log = Log(t=[0])
    async with draining(log) as drain:
        waiting = asyncio.create_task(drain.queues[ONE].get())
        await asyncio.sleep(0)
        drain.resume()
        assert (await asyncio.wait_for(waiting, 5)).offset == 0


async def test_nothing_is_fetched_while_the_flow_is_stopped():
    log = Log(t=range(5))
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: drain.offsets() == [0, 1, 2, 3, 4])
        drain.suspend()
        await eventually(drain.waits)
        assert drain.offsets() == []


@pytest.mark.parametrize("how", ["stopped", "resumed", "both"])
async def test_a_fetch_during_which_the_flow_changed_is_void_and_nothing_is_missed(how: str):
    log = Log(t=range(5))
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: drain.offsets() == [0, 1, 2, 3, 4])
        log.offsets[ONE] = list(range(8))
        log.committed[ONE] = 3

        def change() -> None:
            if log.positions[ONE] < 8:
                return
            log.fetched = lambda: None
            if how != "resumed":
                drain.suspend()
            if how != "stopped":
                drain.resume()

        log.fetched = change
        await eventually(lambda: log.positions[ONE] == 8)
        await asyncio.sleep(0)
        if how == "stopped":
            await eventually(drain.waits)
            assert drain.offsets() == [], "it is not delivered behind the back of a rebalance"
            drain.resume()
        await eventually(lambda: drain.offsets() == [3, 4, 5, 6, 7], what="again from what is committed")


async def test_where_nothing_is_committed_what_was_fetched_and_dropped_comes_again():
    log = Log(t=range(3, 8))
    async with draining(log) as drain:

        def move() -> None:
            log.fetched = lambda: None
            drain.suspend()
            drain.resume()

        log.fetched = move
        drain.resume()
        await eventually(lambda: drain.offsets() == [3, 4, 5, 6, 7])
        assert len(log.first_seeks) == 2


async def test_a_partition_without_a_leader_keeps_the_others_from_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(draining_module, "_FETCH_S", 0.01)
    log = Log(t=range(3), u=range(2), v=range(4))
    log.committed[ONE] = 1
    log.leaderless = {OTHER}
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: drain.offsets() == [1, 2], what="something is committed of it")
        await eventually(lambda: drain.offsets(THIRD) == [0, 1, 2, 3], what="nothing is, and it has a leader")
        assert all(OTHER not in fetch for fetch in log.fetches)
        log.leaderless = set()
        await eventually(lambda: drain.offsets(OTHER) == [0, 1])


NEW = TP("t", 1)


@asynccontextmanager
async def grown(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Log, Drain]]:
    """A topic that was given a second partition, which has two records; the first one is done up to 2 of 5."""
    monkeypatch.setattr(draining_module, "_HELD_S", 0.001)
    log = Log(t=range(5))
    log.offsets[NEW] = []
    log.committed[ONE] = 2
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: drain.offsets() == [2, 3, 4])
        log.offsets[NEW] += [0, 1]
        await eventually(lambda: log.positions.get(NEW) == 2, what="it is read")
        yield log, drain


async def test_a_new_partition_is_read_when_those_before_it_are_done_as_far_as_they_went(
    monkeypatch: pytest.MonkeyPatch,
):
    async with grown(monkeypatch) as (log, drain):
        log.offsets[ONE] += [5, 6]  # what comes later is not waited for
        await eventually(lambda: drain.offsets() == [2, 3, 4, 5, 6])
        assert drain.offsets(NEW) == []
        log.committed[ONE] = 5
        await eventually(lambda: drain.offsets(NEW) == [0, 1])
        log.offsets[NEW].append(2)
        await eventually(lambda: drain.offsets(NEW) == [0, 1, 2])


async def test_a_new_partition_waits_no_longer_than_the_old_ones_get_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(draining_module, "_NO_PROGRESS_S", 0.05)
    async with grown(monkeypatch) as (_, drain):
        await eventually(lambda: drain.offsets(NEW) == [0, 1], what="the end of the old one is never reached")


@pytest.mark.parametrize("committed", [{}, {1: 4}, {0: 1, 3: 1, 7: 2}])
async def test_a_group_that_begins_holds_nothing_back(committed: dict[int, int]):
    """With eight partitions: nothing committed, not of the first one, or not of a quarter of them without a gap."""
    log = Log(t=range(5))
    places = [TP("t", number) for number in range(8)]
    log.offsets |= {place: list(range(5)) for place in places}
    log.committed = {places[number]: offset for number, offset in committed.items()}
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: all(drain.offsets(place)[-1:] == [4] for place in places))
        assert log.asked <= 1, "once, however many partitions there are"


async def test_what_holds_a_partition_back_and_fails_ends_the_agent(monkeypatch: pytest.MonkeyPatch):
    failed: list[BaseException] = []
    async with grown(monkeypatch) as (log, drain):
        drain.app.tailrace_on_failure = failed.append
        monkeypatch.setattr(drain.consumer, "_seek_to_first", lambda *_: None)
        log.committed[ONE] = 5
        await eventually(lambda: failed)
        assert isinstance(failed[0], TypeError)


async def test_a_rebalance_is_over_for_faust_however_long_the_broker_takes_to_say_what_is_committed():
    log = Log(t=range(3))
    log.committed[ONE] = 1
    answers = asyncio.Event()
    said = log.seek_to_committed

    async def seek_to_committed() -> Mapping[TP, int | None]:
        await answers.wait()
        return await said()

    log.seek_to_committed = seek_to_committed  # type: ignore[method-assign]
    async with draining(log) as drain:
        app, recovery = drain.app, drain.app.tables.recovery
        app._consumer = drain.consumer
        app.__dict__["_fetcher"] = SimpleNamespace(maybe_start=told)
        app.on_rebalance_start()
        await recovery.start()
        try:
            recovery.signal_recovery_start.set()
            # Faust waits for a request's time, and ends its recovery for good when that is over.
            await eventually(lambda: drain.consumer.flow_active)
            assert drain.offsets() == []
            answers.set()
            await eventually(lambda: drain.offsets() == [1, 2])
            assert not app.rebalancing
        finally:
            await recovery.stop()


async def test_a_crash_of_faust_s_is_told_once():
    failed: list[BaseException] = []
    drain = Drain(Log(t=[]), 1)
    drain.app.tailrace_on_failure = failed.append
    error = RuntimeError("a task of Faust's")
    await drain.app.tables.recovery.crash(error)
    assert drain.app.crashed
    await drain.app.tables.recovery.crash(RuntimeError("another"))
    assert failed == [error]


async def test_what_was_delivered_before_a_seek_is_to_be_done_again():
    log = Log(t=range(5))
    log.committed[ONE] = 1
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: drain.offsets() == [1, 2, 3, 4])
        before = list(drain.queues[ONE]._queue)
        drain.suspend()
        drain.resume()
        await eventually(lambda: log.seeks == 2 and drain.offsets() == [1, 2, 3, 4])
        for event in before:
            event.ack()  # done late: the records are on their way again, and may be done in another order
        assert drain.to_commit() is None
        for event in list(drain.queues[ONE]._queue)[:2]:
            event.ack()
        assert drain.to_commit() == 3


async def test_a_seek_that_fails_is_tried_again_before_anything_is_fetched():
    log = Log(t=range(3))
    log.failing_seeks = 2
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: drain.offsets() == [0, 1, 2])
        assert log.seeks == 3


async def test_partitions_whose_agent_is_behind_wait_and_the_others_go_on():
    log = Log(t=range(100), u=range(30))
    log.at_most = 10
    async with draining(log, buffer=64) as drain:
        drain.resume()
        await eventually(lambda: len(drain.offsets()) == 70 and len(drain.offsets(OTHER)) == 30)
        await eventually(lambda: log.fetches[-1] == {OTHER})
        drain.queues[ONE]._queue.clear()
        await eventually(lambda: drain.offsets() == list(range(70, 100)), what="there is room again")


async def test_no_partitions_no_fetch():
    log = Log(t=range(3))
    async with draining(log) as drain:
        drain.consumer._set_active_tps(set())
        drain.resume()
        await eventually(lambda: drain.looked > 2)
        assert not log.fetches
        drain.consumer._set_active_tps({ONE})
        await eventually(lambda: drain.offsets() == [0, 1, 2])


async def test_offsets_that_are_not_there_need_no_acknowledgement():
    log = Log(t=[2, 3, 7, 8, 20])
    log.committed[ONE] = 1
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: drain.offsets() == [2, 3, 7, 8, 20])
        events = list(drain.queues[ONE]._queue)
        for event in events[:2]:
            event.ack()
        assert drain.to_commit() == 4
        events[2].ack()
        events[3].ack()
        assert drain.to_commit() == 9
        events[4].ack()
        assert drain.to_commit() == 21


async def test_the_record_behind_a_gap_is_not_committed_before_it_is_acknowledged():
    log = Log(t=[0, 1, 5, 6])
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: drain.offsets() == [0, 1, 5, 6])
        first, second, _, last = drain.queues[ONE]._queue
        for event in (first, second, last):
            event.ack()
        assert drain.to_commit() == 2


async def test_what_was_read_before_is_not_delivered_again():
    log = Log(t=range(6))
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: len(drain.offsets()) == 6)
        log.positions[ONE] = 2  # a client that goes back by itself
        log.offsets[ONE] = list(range(8))
        await eventually(lambda: drain.offsets()[-2:] == [6, 7])
        assert drain.offsets() == [0, 1, 2, 3, 4, 5, 5, 6, 7], "the last one read may come again, as with Faust"


def acknowledging() -> tuple[Drain, list[Delivered]]:
    drain = Drain(Log(t=range(6)), 100)
    drain.consumer._deliver(ONE, [record(ONE, offset) for offset in range(6)])
    return drain, list(drain.queues[ONE]._queue)


async def test_one_record_that_is_not_acknowledged_is_not_committed_wherever_it_is():
    drain, events = acknowledging()
    for event in events[1:]:
        event.ack()
    assert drain.to_commit() is None
    events[0].ack()
    assert drain.to_commit() == 6


async def test_what_is_acknowledged_is_committed_before_the_partitions_go():
    drain, events = acknowledging()
    for event in events[:3]:
        event.ack()
    await drain.consumer.on_partitions_revoked({ONE})
    assert drain.log.committed == {ONE: 3}
    events[3].ack()
    assert drain.to_commit() is None, "what comes too late is the next owner's"


async def test_what_is_under_way_is_finished_before_the_last_commit():
    drain, events = acknowledging()

    async def finish() -> None:
        events[0].ack()

    drain.app.tailrace_before_moving = finish
    await drain.consumer.on_partitions_revoked({ONE})
    assert drain.log.committed == {ONE: 1}


async def test_a_broker_that_is_away_does_not_hold_up_the_rebalance(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(draining_module, "_LAST_COMMIT_S", 0.01)
    drain, events = acknowledging()
    events[0].ack()
    drain.log.answers = False
    await asyncio.wait_for(drain.consumer.on_partitions_revoked({ONE}), 5)
    assert drain.to_commit() is None


async def test_an_event_without_its_payload_can_still_be_acknowledged():
    drain, events = acknowledging()
    held = without_payload(events[0])
    assert (held.key, held.value, list(held.headers)) == (None, None, [])
    held.ack()
    assert drain.to_commit() == 1


async def test_its_place_says_what_was_delivered_and_is_not_acknowledged():
    log = Log(t=range(5, 10))
    log.committed[ONE] = 5
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: len(drain.offsets()) == 5)
        assert drain.consumer.place(ONE) == Place(position=10, through=5, undone=5)
        events = list(drain.queues[ONE]._queue)
        for event in events[:2]:
            event.ack()
        await drain.consumer.commit()
        assert drain.consumer.place(ONE) == Place(position=10, through=7, undone=3)
        for event in events[2:]:
            event.ack()
        await drain.consumer.commit()
        assert drain.consumer.place(ONE) == Place(position=10, through=10, undone=0)


async def test_its_place_where_nothing_was_delivered_yet_has_nothing_undone():
    log = Log(t=[])
    log.committed[ONE] = 5
    async with draining(log) as drain:
        assert drain.consumer.place(ONE) == Place(position=None, through=0, undone=0)
        drain.resume()
        await eventually(lambda: log.seeks == 1 and log.fetches)
        assert drain.consumer.place(ONE) == Place(position=5, through=5, undone=0)


async def test_its_place_passes_what_is_no_record_and_has_nothing_undone_then():
    log = Log(t=range(3))
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: len(drain.offsets()) == 3)
        log.positions[ONE] = 4  # as after the marker of a transaction
        for event in list(drain.queues[ONE]._queue):
            event.ack()
        await drain.consumer.commit()
        assert drain.consumer.place(ONE) == Place(position=4, through=3, undone=0)


async def test_what_was_in_the_queues_when_partitions_moved_is_undone_no_more():
    log = Log(t=range(3))
    async with draining(log) as drain:
        drain.resume()
        await eventually(lambda: len(drain.offsets()) == 3)
        drain.suspend()
        await eventually(drain.waits)
        log.offsets[ONE] = []
        drain.resume()
        await eventually(lambda: log.seeks == 2)
        assert drain.consumer.place(ONE).undone == 0
