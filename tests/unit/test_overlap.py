"""Batches overlap: while the effects of one are on their way, the next is computed; nothing else changes.

The agent is the real one. Its stage counts events instead of ranking, and broker and Redis are lists with gates.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.decode import decode_dead_letter, decode_slate, decode_transitions
from schemas.messages import Transition, Versions
from stream_app.agents.interactions import InteractionsAgent
from stream_app.delivery.publisher import OutRecord, Publisher, RefusedRecord
from stream_app.errors import NotAuthorized
from stream_app.metrics import Metrics
from stream_app.settings import Settings, load_settings
from stream_app.users.stage import NewSlate, SourcedEvent, StageResult
from stream_app.users.state import UserState
from tests.waiting import eventually

VERSIONS = Versions(ranker="r", space="s", index="i")


class Stage:
    """Counts the events of each user; what it is given and when is noted."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.ranked: list[list[str]] = []
        self.reranked: list[list[str]] = []
        self.poison = self.unrankable = ""

    def process(
        self,
        events: Sequence[SourcedEvent],
        states: Mapping[str, UserState],
        *,
        due: Mapping[str, SourcedEvent],
        later: set[str],
        **_: Any,
    ) -> StageResult:
        self.batches.append([sourced.offset for sourced in events])
        result = StageResult(transitions=defaultdict(list))
        refreshed = dict(due)
        for sourced in events:
            if sourced.event.event_id == self.poison:
                raise ValueError("no such luck")
            user_id, partition = sourced.event.user_id, sourced.partition
            state = result.states.get(user_id) or states[user_id].copy()
            if sourced.offset <= state.applied.get(partition, -1):
                continue
            state.events += 1
            state.applied[partition] = sourced.offset
            result.states[user_id], result.partitions[user_id] = state, partition
            refreshed.pop(user_id, None)
            refreshed[user_id] = sourced
            result.transitions[partition].append(
                Transition(
                    offset=sourced.offset, at=0.0, item_id="i", count=1.0, previous=[], symmetric=[], directed=[]
                )
            )
        result.due = {user_id: refreshed.pop(user_id) for user_id in [*refreshed] if user_id in later}
        result.slates = self.refresh(refreshed, {**states, **result.states})
        return result

    def refresh(self, due: Mapping[str, SourcedEvent], states: Mapping[str, UserState], **_: Any) -> list[NewSlate]:
        if self.unrankable in due and len(due) > 1:
            raise ValueError("no such luck")
        if due:
            self.ranked.append(list(due))
        assert due.keys() <= states.keys()
        return [NewSlate(user_id, [], sourced, versions=VERSIONS) for user_id, sourced in due.items()]

    def rerank(self, states: Mapping[str, UserState], **_: Any) -> list[Any]:
        self.reranked.append(list(states))
        return []

    def forget(self) -> None: ...

    def shown(self, slates: Sequence[Any]) -> None: ...


class Broker(Publisher):
    """Takes records when its gate is open, in the order of the calls."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[list[int]] = []
        self.records: list[OutRecord] = []
        self.refuse = -1
        self.forbids = False
        self.refuse_slates: asyncio.Event | None = None

    async def publish(self, records: Iterable[OutRecord]) -> None:
        records = list(records)
        offsets = self.offsets(records)
        if self.forbids and offsets:
            raise NotAuthorized("does not allow us Write on topic t")
        if offsets:
            self.asked.append(offsets)
        if self.refuse_slates is not None and self.slates(records):
            await self.refuse_slates.wait()
            self.refuse_slates = None
            self.gate.clear()
            raise RefusedRecord(records[0], ValueError("too large"))
        await self.gate.wait()
        if self.refuse in offsets:
            raise RefusedRecord(records[0], ValueError("too large"))
        self.records += records

    def offsets(self, records: Iterable[OutRecord] | None = None) -> list[int]:
        """Source offsets of the transitions, in order."""
        return [
            row.offset
            for record in (self.records if records is None else records)
            if record.topic.endswith("transitions.v1")
            for row in decode_transitions(record.value).rows
        ]

    def slates(self, records: Iterable[OutRecord] | None = None) -> list[tuple[str, int]]:
        """User and offset of the slates, in order."""
        records = self.records if records is None else records
        found = [record for record in records if record.topic.endswith("recommendations.v1")]
        slates = [decode_slate(record.key, record.value, record.headers)[1] for record in found]
        return [(slate.user_id, slate.trigger.offset) for slate in slates if slate is not None]

    def letters(self) -> list[str]:
        found = [record for record in self.records if record.topic.endswith("dead-letter.v1")]
        return [decode_dead_letter(record.value).reason for record in found]


class Redis:
    """States behind the fence of the real store."""

    def __init__(self) -> None:
        self.states: dict[str, UserState] = {}
        self.loads: list[set[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.saving = asyncio.Event()
        self.refused: set[str] = set()

    def forget(self) -> None: ...

    async def load(self, user_ids: Iterable[str]) -> dict[str, UserState]:
        users = set(user_ids)
        self.loads.append(users)
        await asyncio.sleep(0)
        return {user_id: self.states.get(user_id, UserState(user_id)) for user_id in users}

    async def save(self, states: Mapping[str, UserState], *, partitions: Mapping[str, int]) -> list[str]:
        self.saving.set()
        await self.gate.wait()
        refused = []
        for user_id, state in states.items():
            partition = partitions[user_id]
            held = self.states.get(user_id, UserState(user_id)).applied.get(partition, -1)
            if user_id in self.refused:
                self.refused.remove(user_id)
                refused.append(user_id)
            elif state.applied[partition] > held:
                self.states[user_id] = state
            else:
                refused.append(user_id)
        return refused


class Bench:
    def __init__(self) -> None:
        settings = load_settings(delivery={"attempts": 2, "batch": 4, "catch_up": 100})
        metrics = Metrics()
        self.stage, self.redis, self.broker = Stage(), Redis(), Broker(settings, metrics)
        serving: Any = SimpleNamespace(versions=SimpleNamespace(space="s"))
        stage: Any = self.stage
        users: Any = self.redis
        pool: Any = None
        self.agent = InteractionsAgent(
            settings, self.broker, metrics, users=users, stage=stage, serving=serving, pool=pool
        )
        self.acked: list[int] = []
        self.offset = itertools.count()

    def batch(self, *users: str, value: bytes | None = None) -> list[Any]:
        return [self.event(user, value) for user in users]

    def event(self, user: str, value: bytes | None = None) -> Any:
        offset = next(self.offset)
        body = {
            "event_id": f"e{offset}",
            "user_id": user,
            "type": "click",
            "item_id": "i",
            "occurred_at": datetime.now(UTC).isoformat(),
        }
        message = SimpleNamespace(
            topic="t", partition=0, offset=offset, key=user.encode(), headers=(), timestamp=0.0,
            value=json.dumps(body).encode() if value is None else value,
        )  # fmt: skip
        return SimpleNamespace(message=message, ack=lambda: self.acked.append(offset))

    async def done(self) -> None:
        async with self.agent.alone():
            pass

    def counts(self) -> dict[str, int]:
        return {user_id: state.events for user_id, state in self.redis.states.items()}


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    try:
        yield made
        assert not made.agent.failed.done(), made.agent.failed
    finally:
        made.broker.gate.set()
        made.redis.gate.set()
        await made.agent.stop()


async def test_the_next_batch_is_computed_on_states_that_are_not_written_yet():
    async with bench() as b:
        b.broker.gate.clear()
        await b.agent.handle(b.batch("ann", "bob"))
        following = asyncio.create_task(b.agent.handle(b.batch("ann", "cid")))
        await eventually(lambda: b.stage.batches == [[0, 1], [2, 3]], what="both are computed")
        assert b.broker.asked == [[0, 1]], "and the second is not on its way"
        assert (b.acked, b.counts()) == ([], {})
        assert not following.done()
        b.broker.gate.set()
        await following
        await b.done()
        assert b.counts() == {"ann": 2, "bob": 1, "cid": 1}
        assert b.redis.loads == [{"ann", "bob"}, {"cid"}], "what is pending is not loaded"
        assert b.acked == b.broker.offsets() == [0, 1, 2, 3]


async def test_outputs_of_a_batch_begin_when_the_states_before_it_are_written():
    async with bench() as b:
        b.redis.gate.clear()
        await b.agent.handle(b.batch("ann"))
        following = asyncio.create_task(b.agent.handle(b.batch("ann")))
        await eventually(lambda: len(b.stage.batches) == 2)
        await asyncio.wait_for(b.redis.saving.wait(), 5)
        assert b.broker.asked == [[0]]
        assert b.acked == []
        b.redis.gate.set()
        await following
        await b.done()
        assert b.broker.asked == [[0], [1]]


async def test_no_more_than_one_batch_is_computed_ahead():
    async with bench() as b:
        b.broker.gate.clear()
        tasks = [asyncio.create_task(b.agent.handle(b.batch("ann"))) for _ in range(4)]
        await eventually(lambda: len(b.stage.batches) == 2)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(b.stage.batches) == 2
        b.broker.gate.set()
        await asyncio.gather(*tasks)
        await b.done()
        assert b.acked == [0, 1, 2, 3]
        assert b.counts() == {"ann": 4}


async def test_what_was_computed_on_states_that_another_owner_outran_is_computed_again():
    async with bench() as b:
        b.redis.gate.clear()
        await b.agent.handle(b.batch("ann"))
        following = asyncio.create_task(b.agent.handle(b.batch("ann")))
        await eventually(lambda: len(b.stage.batches) == 2)
        # Another owner had the first event and, with it, one that this process never sees.
        b.redis.states["ann"] = UserState("ann", applied={0: 0}, events=10)
        b.redis.gate.set()
        await following
        await b.done()
        assert b.counts() == {"ann": 11}, "on what is stored, not on what was thought"
        assert b.stage.batches == [[0], [1], [1]]
        assert b.acked == [0, 1]


async def test_a_refused_record_costs_neither_its_batch_nor_the_next():
    async with bench() as b:
        b.broker.gate.clear()
        b.broker.refuse = 1
        await b.agent.handle(b.batch("ann", "bob", "ann"))
        following = asyncio.create_task(b.agent.handle(b.batch("ann", "bob")))
        await eventually(lambda: len(b.stage.batches) == 2)
        b.broker.gate.set()
        await following
        await b.done()
        assert b.broker.letters() == ["processing_failed"]
        assert b.counts() == {"ann": 3, "bob": 1}
        assert b.broker.offsets() == [0, 2, 3, 4]
        assert b.acked == [0, 1, 2, 3, 4]


async def test_a_right_that_is_missing_ends_the_role_and_is_no_event_s_fault():
    b = Bench()
    b.broker.forbids = True
    try:
        await b.agent.handle(b.batch("ann", "bob"))
        with pytest.raises(NotAuthorized):
            await asyncio.wait_for(asyncio.shield(b.agent.failed), 5)
        assert b.broker.letters() == []
        assert (b.acked, b.counts()) == ([], {}), "the next owner has everything to do"
    finally:
        await b.agent.stop()


@pytest.mark.parametrize("ahead", [False, True])
async def test_an_event_that_fails_is_dead_lettered_alone_and_in_its_turn(ahead: bool):
    async with bench() as b:
        b.stage.poison = "e2" if ahead else "e0"
        b.broker.gate.clear()
        await b.agent.handle(b.batch("ann", "bob"))
        following = asyncio.create_task(b.agent.handle(b.batch("ann", "bob")))
        await eventually(lambda: len(b.stage.batches) == (2 if ahead else 1))
        assert b.acked == []
        b.broker.gate.set()
        await following
        await b.done()
        assert b.broker.letters() == ["processing_failed"]
        assert b.counts() == {"ann": 1, "bob": 2}
        assert b.acked == [0, 1, 2, 3]
        assert b.broker.offsets() == ([0, 1, 3] if ahead else [1, 2, 3])


async def test_records_that_cannot_be_read_are_dead_lettered_and_acknowledged_in_order():
    async with bench() as b:
        await b.agent.handle(b.batch("ann", value=b"{"))
        await b.agent.handle(b.batch("ann"))
        await b.done()
        assert len(b.broker.letters()) == 1
        assert b.acked == [0, 1]


async def test_a_batch_computed_before_the_partitions_moved_is_computed_again():
    async with bench() as b:
        b.broker.gate.clear()
        await b.agent.handle(b.batch("ann"))
        following = asyncio.create_task(b.agent.handle(b.batch("ann")))
        await eventually(lambda: len(b.stage.batches) == 2)
        await b.agent.partitions_changed()
        b.broker.gate.set()
        await following
        await b.done()
        assert b.stage.batches == [[0], [1], [1]]
        assert b.counts() == {"ann": 2}


async def test_after_the_partitions_moved_nothing_is_computed_before_what_was_on_its_way_is_written():
    async with bench() as b:
        b.broker.gate.clear()
        await b.agent.handle(b.batch("ann"))
        await b.agent.partitions_changed()
        following = asyncio.create_task(b.agent.handle(b.batch("ann")))
        for _ in range(50):
            await asyncio.sleep(0)
        assert b.stage.batches == [[0]]
        b.redis.states["bob"] = UserState("bob", events=5)
        b.broker.gate.set()
        await following
        await b.done()
        assert b.counts() == {"ann": 2, "bob": 5}


async def test_others_wait_for_what_is_on_its_way_and_being_told_to_stop_does_not_end_it():
    async with bench() as b:
        b.broker.gate.clear()
        await b.agent.handle(b.batch("ann"))
        turn = asyncio.Event()

        async def alone() -> None:
            async with b.agent.alone():
                turn.set()

        waiting = asyncio.create_task(alone())
        await eventually(lambda: b.agent._busy.locked())
        assert not turn.is_set()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        b.broker.gate.set()
        await alone()
        assert b.acked == [0]
        assert turn.is_set()


async def test_a_hand_over_ends_with_everything_acknowledged():
    async with bench() as b:
        b.broker.gate.clear()
        await b.agent.handle(b.batch("ann"))
        following = asyncio.create_task(b.agent.handle(b.batch("bob")))
        await eventually(lambda: len(b.stage.batches) == 2)
        leaving = asyncio.create_task(b.agent.hand_over())
        b.broker.gate.set()
        await leaving
        await following
        assert b.acked == [0, 1]
        assert b.counts() == {"ann": 1, "bob": 1}


async def test_a_process_that_is_stopped_while_effects_hang_acknowledges_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stream_app.agents.base._HAND_OVER_S", 0.01)
    b = Bench()
    b.broker.gate.clear()
    await b.agent.handle(b.batch("ann"))
    await b.agent.stop()
    b.broker.gate.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert (b.acked, b.counts(), b.broker.records) == ([], {}, [])


async def test_an_effect_that_fails_for_an_unforeseen_reason_ends_the_agent_without_another_event():
    b = Bench()

    async def broken(records: Iterable[OutRecord]) -> None:
        raise RuntimeError("boom")

    b.broker.publish = broken  # type: ignore[method-assign]
    await b.agent.handle(b.batch("ann"))
    await asyncio.wait([b.agent.failed], timeout=5)
    with pytest.raises(RuntimeError, match="boom"):
        b.agent.failed.result()
    assert b.acked == []
    await b.agent.stop()


async def test_a_long_batch_goes_in_parts_and_ranks_each_user_once():
    async with bench() as b:
        await b.agent.handle(b.batch(*"abcdefabcdef"))
        await b.done()
        assert b.stage.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
        assert b.stage.ranked == [["a", "b"], ["c", "d", "e", "f"]], "with their last events"
        assert b.broker.slates() == [(user, offset) for offset, user in enumerate("abcdef", 6)]
        assert b.broker.offsets() == b.acked == list(range(12))
        assert b.counts() == dict.fromkeys("abcdef", 2)
        assert b.redis.loads == [set("abcd"), set("ef"), set()], "what the batch knows is not loaded"


async def test_of_a_long_batch_nothing_is_written_before_all_of_it_is_published():
    async with bench() as b:
        b.broker.gate.clear()
        handling = asyncio.create_task(b.agent.handle(b.batch(*"abcdefabcdef")))
        await eventually(lambda: len(b.stage.batches) == 2, what="the second part is computed meanwhile")
        assert (b.broker.asked, b.counts(), b.acked) == ([[0, 1, 2, 3]], {}, [])
        b.redis.gate.clear()
        b.broker.gate.set()
        await handling
        await asyncio.wait_for(b.redis.saving.wait(), 5)
        assert len(b.broker.slates()) == 6
        assert b.acked == []
        b.redis.gate.set()
        await b.done()
        assert b.acked == list(range(12))


async def test_after_a_long_batch_the_next_is_computed_on_its_states():
    async with bench() as b:
        b.redis.gate.clear()
        await b.agent.handle(b.batch(*"abcdef"))
        following = asyncio.create_task(b.agent.handle(b.batch("a", "x")))
        await eventually(lambda: len(b.stage.batches) == 3)
        assert b.redis.loads[-1] == {"x"}
        b.redis.gate.set()
        await following
        await b.done()
        assert b.counts() == {**dict.fromkeys("bcdefx", 1), "a": 2}


@pytest.mark.parametrize("what", ["folding", "ranking"])
async def test_what_fails_in_a_long_batch_costs_its_own_part_only(what: str):
    async with bench() as b:
        if what == "folding":
            b.stage.poison = "e5"
        else:
            b.stage.unrankable = "f"
        await b.agent.handle(b.batch(*"abcdefabcdef"))
        await b.agent.handle(b.batch("x"))
        await b.done()
        assert b.broker.letters() == (["processing_failed"] if what == "folding" else [])
        assert b.counts() == {**dict.fromkeys("abcde", 2), "f": 1 if what == "folding" else 2, "x": 1}
        assert sorted(set(b.broker.offsets())) == [offset for offset in range(13) if (what, offset) != ("folding", 5)]
        assert b.acked == list(range(13))
        again = b.stage.batches[-9:] if what == "folding" else b.stage.batches[-12:]
        assert again[0] == [0, 1, 2, 3], "in parts of the usual size"


async def test_a_process_that_leaves_does_not_stay_for_a_long_batch():
    async with bench() as b:
        b.broker.gate.clear()
        handling = asyncio.create_task(b.agent.handle(b.batch(*"abcdefabcdef")))
        await eventually(lambda: len(b.stage.batches) == 2)
        leaving = asyncio.create_task(b.agent.hand_over())
        for _ in range(20):
            await asyncio.sleep(0)
        b.broker.gate.set()
        await handling
        await leaving
        assert len(b.stage.batches) == 2
        assert (b.acked, b.counts()) == ([], {}), "all of it is the next owner's"


async def test_a_long_batch_during_which_another_owner_wrote_is_done_for_the_others():
    async with bench() as b:
        b.redis.gate.clear()
        await b.agent.handle(b.batch(*"abcdef"))
        await asyncio.wait_for(b.redis.saving.wait(), 5)
        b.redis.states["a"] = UserState("a", applied={0: 0}, events=10)
        b.redis.gate.set()
        await b.done()
        assert b.counts() == {"a": 10, **dict.fromkeys("bcdef", 1)}
        assert b.acked == list(range(6))


async def test_after_a_batch_was_left_undone_no_other_begins():
    async with bench() as b:
        b.broker.gate.clear()
        handling = asyncio.create_task(b.agent.handle(b.batch(*"abcdefabcdef")))
        await eventually(lambda: len(b.stage.batches) == 2)
        following = asyncio.create_task(b.agent.handle(b.batch("a")))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await b.agent.hand_over()
        b.broker.gate.set()
        await asyncio.gather(handling, following)
        assert len(b.stage.batches) == 2
        assert (b.acked, b.counts()) == ([], {})


@pytest.mark.parametrize("ahead", [False, True])
async def test_nothing_is_written_on_top_of_a_failed_batch_that_was_left_undone(ahead: bool):
    async with bench() as b:
        if ahead:  # It fails in its last step, when the next one is computed.
            refusing = b.broker.refuse_slates = asyncio.Event()
        else:
            b.stage.poison = "e1"
            b.broker.gate.clear()
        await b.agent.handle(b.batch(*"abcdabcdabcd"))
        following = asyncio.create_task(b.agent.handle(b.batch("d")))
        if ahead:
            await eventually(lambda: b.stage.batches[-1] == [12])
            refusing.set()
        await eventually(lambda: not b.broker.gate.is_set())
        leaving = asyncio.create_task(b.agent.hand_over())
        await eventually(lambda: b.agent._busy.locked())
        for _ in range(20):
            await asyncio.sleep(0)
        b.broker.gate.set()
        await asyncio.gather(following, leaving)
        assert b.acked == []
        assert b.redis.states["a"].applied == {0: 0}, "the part that was under way"
        assert b.redis.states["d"].applied == {0: 3}


async def test_a_batch_takes_no_more_events_when_time_is_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stream_app.agents.interactions._BATCH_S", -1.0)
    async with bench() as b:
        await b.agent.handle(b.batch(*"abcdefabcdef", value=None))
        await b.done()
        assert b.stage.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
        # Nobody's slate waits for events of another batch.
        assert b.stage.ranked == [["a", "b", "c", "d"], ["a", "b"], ["e", "f"], ["c", "d", "e", "f"]]
        assert b.broker.offsets() == b.acked == list(range(12))
        assert b.counts() == dict.fromkeys("abcdef", 2)


async def test_what_is_written_is_not_held_for_the_next_batch():
    async with bench() as b:
        await b.agent.handle(b.batch(*"abcdef"))
        await eventually(lambda: len(b.acked) == 6)
        await eventually(lambda: b.agent._pending == {})


async def test_slates_of_many_refused_users_are_made_again_in_slices():
    async with bench() as b:
        b.redis.gate.clear()
        await b.agent.handle(b.batch(*"abcdefghij"))
        await asyncio.wait_for(b.redis.saving.wait(), 5)
        for number, user in enumerate("abcdefghij"):
            b.redis.states[user] = UserState(user, applied={0: number}, events=1)
        b.redis.gate.set()
        await b.done()
        assert [len(users) for users in b.stage.reranked] == [4, 4, 2]
        assert b.acked == list(range(10))


async def test_events_that_are_missing_after_a_refusal_are_all_done_however_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
):
    async with bench() as b:
        b.redis.gate.clear()
        await b.agent.handle(b.batch(*"abcdefghij" * 2))
        await asyncio.wait_for(b.redis.saving.wait(), 5)
        monkeypatch.setattr("stream_app.agents.interactions._BATCH_S", -1.0)
        b.redis.refused.update("abcdefghij")  # Somebody wrote their profiles.
        b.redis.gate.set()
        await b.done()
        assert b.counts() == dict.fromkeys("abcdefghij", 2)
        assert b.acked == list(range(20))
