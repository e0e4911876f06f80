"""A rebuild of users beside an owner that goes on, in many orders of their steps; on a real Redis.

The owner, the topic and the clock are the test's, so that between any two steps of the rebuild the owner may do any
number of its own. What is stored, fenced and folded is the real thing. Orders are drawn by a seed and not by
Hypothesis: what goes wrong takes five or six particular steps in a row, which it finds in one of a thousand tries.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis

from schemas.messages import Interaction
from stream_app.metrics import Metrics
from stream_app.rebuild import passes
from stream_app.rebuild.folding import Refolding, Sourced, fence
from stream_app.rebuild.passes import Counts, Pass
from stream_app.rebuild.shares import EVERYBODY, Share
from stream_app.settings import DEFAULT_EVENT_TYPES, Settings, load_settings
from stream_app.stores.rebuilt import RebuiltStates
from stream_app.stores.users import UserStore, connect_redis
from stream_app.users.fold import Folder
from stream_app.users.profiles import fold_profile
from stream_app.users.stage import SourcedEvent, SourcedProfile
from stream_app.users.state import Profile, UserState, decode_state, encode_state, id_hash
from tests.stacks import Stack

USERS = {"ann": (0, 0), "bob": (0, 1), "cid": (1, 1)}
"""Partitions of events and profiles: other producers may choose them otherwise."""
START = datetime(2026, 11, 1, tzinfo=UTC)
SEEDS = int(os.environ.get("REBUILD_SEEDS", "100"))
FOLD = Folder(DEFAULT_EVENT_TYPES, load_settings().users, load_settings().items)


class Log:
    """Both topics, and how far the owners committed."""

    def __init__(self) -> None:
        self.records: list[Sourced] = []
        self.committed = dict.fromkeys(("o0", "o1", "u0", "u1"), 0)
        self._sizes = dict.fromkeys(self.committed, 0)
        self._read = dict.fromkeys(self.committed, 0)
        self._asked = False
        self.between: Callable[[int], Awaitable[None]] = _nothing

    def append(self, user_id: str, kind: str, item: str) -> None:
        number = len(self.records)
        partition = USERS[user_id][kind == "profile"]
        name = f"{'u' if kind == 'profile' else 'o'}{partition}"
        offset, at = self._sizes[name], START + timedelta(minutes=number)
        self._sizes[name] += 1
        if kind == "profile":
            self.records.append(SourcedProfile(user_id, Profile(liked=(item,)), partition, offset, at.timestamp()))
            return
        event = Interaction(event_id=f"e{number}", user_id=user_id, type=kind, item_id=item, occurred_at=at)
        self.records.append(SourcedEvent(event, partition, offset, at.timestamp()))

    def of(self, name: str, begin: int, end: int) -> list[Sourced]:
        return [one for one in self.records if fence(one) == name and begin <= one.offset < end]

    def rewind(self) -> None:
        self._read = dict.fromkeys(self.committed, 0)
        self._asked = False

    async def effects_done(self) -> dict[str, int]:
        await self.between(int(self._asked))  # who is waited for goes on
        self._asked = True
        return dict(self.committed)

    async def ends(self) -> dict[str, int]:
        await self.between(0)
        return dict(self._sizes)

    async def read(self, until: Mapping[str, int], share: Share) -> AsyncIterator[tuple[int, list[Sourced]]]:
        begin, self._read = self._read, self._read | {name: max(end, self._read[name]) for name, end in until.items()}
        wanted = [one for one in self.records if begin[fence(one)] <= one.offset < until.get(fence(one), 0)]
        for place in range(0, len(wanted), 3):
            part = wanted[place : place + 3]
            yield len(part), [one for one in part if one.user_id.encode() in share]
            await self.between(0)


async def _nothing(_: int) -> None:
    pass


class Owner:
    """What the interactions role does: outputs, state, acknowledgement."""

    def __init__(self, log: Log, store: UserStore) -> None:
        self.log, self.store = log, store
        self.outputs: set[tuple[str, int]] = set()
        self._begun: tuple[str, list[Sourced]] | None = None
        self._saved = False
        self._states: dict[str, UserState] = {}

    async def step(self) -> bool:
        """The next thing to do; False when there is nothing."""
        if self._begun is None:
            return await self._compute()
        name, records = self._begun
        if not self._saved:
            await self._save(records)
            self._saved = True
            return True
        self.log.committed[name] = records[-1].offset + 1
        self._begun, self._saved = None, False
        return True

    async def _compute(self) -> bool:
        for name in sorted(self.log.committed):
            done = self.log.committed[name]
            if records := self.log.of(name, done, done + 2):
                self._begun = name, records
                self._states = await self._fold(records)
                return True
        return False

    async def _fold(self, records: list[Sourced]) -> dict[str, UserState]:
        states = await self.store.load({one.user_id for one in records})
        moved: dict[str, UserState] = {}
        for one in records:
            state = moved.get(one.user_id) or states[one.user_id].copy()
            if apply(state, one) != "replayed":
                moved[one.user_id] = state
                self.outputs.add((fence(one), one.offset))
        return moved

    async def _save(self, records: list[Sourced]) -> None:
        for _ in range(3):
            partitions = {one.user_id: one.partition for one in records}
            refused = set(await self.store.save(self._states, partitions=partitions))
            if not refused:
                return
            records = [one for one in records if one.user_id in refused]
            self._states = await self._fold(records)
        assert not self._states

    def crash(self, store: UserStore) -> None:
        """Killed, and another process begins at what is committed."""
        self.store, self._begun, self._saved = store, None, False


def apply(state: UserState, one: Sourced) -> str:
    if isinstance(one, SourcedEvent):
        return FOLD(state, one.event, partition=one.partition, offset=one.offset, appended_s=one.appended_s).outcome
    place = {"partition": one.partition, "offset": one.offset, "appended_s": one.appended_s}
    return fold_profile(state, one.profile, **place)


class Drawn:
    """What happens, by a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def event(self) -> tuple[str, str, str]:
        kind = self.random.choices(["click", "purchase", "hide", "profile"], [4, 2, 1, 2])[0]
        return self.random.choice(sorted(USERS)), kind, self.random.choice("abcd")

    def steps(self, most: int) -> list[str | tuple[str, str, str]]:
        kinds = self.random.choices(["owner", "event", "crash"], [12, 8, 1], k=self.random.randint(0, most))
        return [self.event() if kind == "event" else kind for kind in kinds]


async def scenario(chosen: Settings, seed: int) -> None:
    redis = connect_redis(chosen)
    try:
        await _scenario(chosen, redis, Drawn(seed))
    finally:
        await redis.aclose()


async def _scenario(chosen: Settings, redis: Redis, drawn: Drawn) -> None:
    log = Log()
    owner = Owner(log, UserStore(redis, chosen, Metrics()))

    async def act(steps: list[str | tuple[str, str, str]]) -> None:
        for step in steps:
            if step == "owner":
                await owner.step()
            elif step == "crash":
                owner.crash(UserStore(redis, chosen, Metrics()))
            else:
                log.append(*step)

    await act([drawn.event() for _ in range(8)] + drawn.steps(30))
    keys = {user_id: f"{chosen.topics.prefix}:user:{user_id}" for user_id in USERS}
    earlier = {user_id: await redis.hgetall(key) for user_id, key in keys.items()}
    await act(drawn.steps(10))
    for user_id in drawn.random.sample(sorted(USERS), drawn.random.randint(0, 3)):
        await damaged(redis, keys[user_id], user_id, drawn.random.choice(["wipe", "wrong", "back"]), earlier[user_id])
    if drawn.random.random() < 0.3:
        await act(["crash"])  # what the next owner remembers is the damage
    await act(drawn.steps(6))

    async def between(least: int) -> None:
        await act(["owner"] * least + drawn.steps(5))

    log.between = between
    states = Interrupted(redis, chosen, generation=1)
    states.between = between
    shares, counts, most = [EVERYBODY], Counts(), drawn.random.choice([1, 100])
    while shares:
        log.rewind()
        one = Pass(log, states, Refolding(FOLD, unpacked=1), shares.pop(), counts, most=most, look_again_s=10.0)
        await one.run(len(log.records))
        shares += one.given_away
        states.generation += 1
    assert not counts.left
    while await owner.step():
        pass
    expected: dict[str, UserState] = {}
    for record in log.records:
        apply(expected.setdefault(record.user_id, UserState(record.user_id)), record)
    stored = {user_id: await redis.hget(keys[user_id], "s") or b"" for user_id in expected}
    for user_id, state in expected.items():
        assert stored[user_id], user_id
        assert decode_state(user_id, stored[user_id]) == state
        assert stored[user_id] == encode_state(state)
    assert owner.outputs == {(fence(record), record.offset) for record in log.records}, "nothing is taken for done"


async def test_an_event_whose_state_was_lost_before_it_was_committed_is_not_lost(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner knows it, Redis does not, and the rebuild may not know it yet."""
    monkeypatch.setattr(passes, "_LOOK_EVERY_S", 0.0)
    redis = connect_redis(settings)
    log = Log()
    owner = Owner(log, UserStore(redis, settings, Metrics()))
    key = f"{settings.topics.prefix}:user:ann"
    try:
        log.append("ann", "click", "a")
        for _ in ("computed", "written", "committed"):
            await owner.step()
        log.append("ann", "click", "b")
        for _ in ("computed", "written"):
            await owner.step()
        await redis.delete(key)

        async def between(least: int) -> None:
            for _ in range(least):
                await owner.step()

        log.between = between
        states, counts = RebuiltStates(redis, settings, generation=1), Counts()
        one = Pass(log, states, Refolding(FOLD, unpacked=1), EVERYBODY, counts, most=9, look_again_s=10.0)
        await one.run(2)
        log.between = _nothing
        log.append("ann", "click", "c")
        while await owner.step():
            pass
        state = decode_state("ann", await redis.hget(key, "s") or b"")
        assert [entry.item_id for entry in state.history] == ["a", "b", "c"]
        assert (counts.created, counts.users) == (1, 1)
    finally:
        await redis.aclose()


class Interrupted(RebuiltStates):
    """Others have their turn before each look and each write."""

    between: Callable[[int], Awaitable[None]] = staticmethod(_nothing)

    async def held(self, user_ids):
        await self.between(0)
        return await super().held(user_ids)

    async def replace(self, replacements):
        await self.between(0)
        return await super().replace(replacements)


async def damaged(redis: Redis, key: str, user_id: str, damage: str, earlier: dict[bytes, bytes]) -> None:
    if damage == "wrong":
        packed = await redis.hget(key, "s")
        if packed is not None:  # by a defect of an earlier release
            state = decode_state(user_id, packed)
            state.hidden[id_hash("never hidden")] = None
            await redis.hset(key, "s", encode_state(state))
        return
    await redis.delete(key)
    if damage == "back" and earlier:
        await redis.hset(key, mapping=earlier)


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
async def test_whatever_the_owner_does_meanwhile_the_states_are_the_fold_of_the_topics(
    stack: Stack, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(passes, "_LOOK_EVERY_S", 0.0)
    chosen = load_settings(redis=stack.redis)
    for seed in range(first, first + 50):
        topics = chosen.topics.model_copy(update={"prefix": f"{topic_prefix}-{seed}"})
        try:
            await scenario(chosen.model_copy(update={"topics": topics}), seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
