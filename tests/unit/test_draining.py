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

ONE, OTHER = TP("t", 0), TP("u", 0)


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
        for place in self.offsets:
            self.positions[place] = self.committed.get(place, 0)
        return {place: self.committed.get(place) for place in self.offsets}

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
        assert not drain.consumer._gap[ONE]


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
        drain.consumer._committed_offset[ONE] = 4
        events[2].ack()
        events[3].ack()
        assert drain.to_commit() == 9
        drain.consumer._committed_offset[ONE] = 9
        assert drain.to_commit() is None
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
        assert drain.to_commit() == 5


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
    return drain, [Delivered(drain.consumer, ONE, record(ONE, offset)) for offset in range(6)]


async def test_offsets_are_committed_up_to_the_first_that_is_not_acknowledged():
    drain, events = acknowledging()
    for number in (0, 1, 3, 1):
        events[number].ack()
    assert drain.to_commit() == 2
    events[2].ack()
    drain.consumer._committed_offset[ONE] = 2
    assert drain.to_commit() == 4


async def test_an_acknowledgement_of_what_is_committed_changes_nothing():
    drain, events = acknowledging()
    drain.consumer._committed_offset[ONE] = 3
    for event in events[:3]:
        event.ack()
    assert not drain.consumer._acked[ONE]


async def test_what_is_acknowledged_is_committed_before_the_partitions_go():
    drain, events = acknowledging()
    for event in events[:3]:
        event.ack()
    await drain.consumer.on_partitions_revoked({ONE})
    assert drain.log.committed == {ONE: 3}
    assert not drain.consumer._acked


async def test_a_broker_that_is_away_does_not_hold_up_the_rebalance(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(draining_module, "_LAST_COMMIT_S", 0.01)
    drain, events = acknowledging()
    events[0].ack()
    drain.log.answers = False
    await asyncio.wait_for(drain.consumer.on_partitions_revoked({ONE}), 5)
    assert not drain.consumer._acked


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
