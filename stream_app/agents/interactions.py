"""The interactions path: events and profiles in; user states to Redis; slates, transitions and examples out.

Order of effects for a batch: outputs are acknowledged by the broker, then the states are written, then the
events are acknowledged. After a crash between any two, the batch is delivered again: users whose state was
written skip their events, the others produce the same outputs again, and the consumers of those skip what they
have (by source offset). Nothing is lost, nothing counts twice.

While the effects of a batch are on their way, the next is computed, on the states that are about to be written
(:meth:`InteractionsAgent.handle`). Its own effects begin when those before it are done; when they did not go as
computed, it is computed again.

A process that is behind finds thousands of events waiting. It takes them as one batch, in steps of some hundred events;
a user is ranked once, in the step with the user's last event. What one step has to publish is on its way while the next
is computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import RedisError

from schemas.cloudevents import event_type, headers
from schemas.decode import decode_slate, encode
from schemas.messages import Slate, TrainingExample, TrainingExamples, Transition, Transitions, Trigger
from stream_app.agents.base import Agent
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.delivery.reading import read_to_end
from stream_app.delivery.records import InRecord
from stream_app.errors import EncodeError, InvalidMessage, NotAuthorized, TailraceError, TooLate
from stream_app.items.partitions import by_owner
from stream_app.logs import get_logger
from stream_app.metrics import Metrics
from stream_app.ranking.features import feature_names
from stream_app.rebuild.recommendations import Standing
from stream_app.replicas.replica import ItemChange
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.stores.redis_client import REDIS_TRANSIENT
from stream_app.stores.requests import SlateRebuild, SlateRebuilds
from stream_app.stores.users import UserStore
from stream_app.textify import Textifier
from stream_app.users.flood import REASON as TOO_MANY_EVENTS
from stream_app.users.fold import not_shed
from stream_app.users.nearby import NearbyUsers, Newest, best_first
from stream_app.users.showing import Showing
from stream_app.users.sources import Sources
from stream_app.users.stage import NewSlate, SourcedEvent, SourcedProfile, StageResult, UserStage
from stream_app.users.state import UserState
from workers.vector_pool import VectorPool
from workers.waiting import Priority

__all__ = ["InteractionsAgent"]

T = TypeVar("T")
_Sourced = tuple[Any, InRecord, SourcedEvent]
"""An event as it was delivered, its record, and what it says."""
_log = get_logger(__name__)
_PROFILES_AT_ONCE = 64
"""Profiles processed in one go; events wait for no more than these."""
_REPLACED_AT_ONCE = 64
"""Slates made again in one go when an item is withdrawn; events wait for no more than these."""
_OFFERED_AT_ONCE = 16
"""Users ranked again in one go for new items; events wait for no more than these."""
_MOST_REFUSALS = 100
"""Times that a state is computed again because another process wrote the same user meanwhile."""
_BATCH_S = 5.0
"""A batch takes no more events when it has been computed for so long (where their texts are waited for, it has few): it
is to be written and acknowledged, and others have their turn."""
_FAILURES = (TailraceError, ArithmeticError, LookupError, TypeError, ValueError)
"""What one bad event or user may cause, and others must not suffer from. A right that is missing is nobody's fault
among them, and ends the process: what it held was not acknowledged."""
_ASKED_EVERY_S = 2.0
"""How often is looked whether slates are to be made again."""
_TURNS_TO_SEND = 8
"""Turns of the loop in which what was published is written to the socket, before a computation holds the loop up."""


@dataclass(slots=True)
class _Taken(SourcedEvent):
    """An event with its record, which a dead letter needs."""

    record: InRecord | None = None


@dataclass(frozen=True, slots=True)
class _Step:
    """What a part of a batch has to publish; ``more`` are records that follow when those before are acknowledged.
    ``shed`` are as in a ``StageResult``: their letters are written when the step is sent, for it may be computed again
    before."""

    records: list[OutRecord]
    more: list[list[OutRecord]]
    slates: Sequence[NewSlate]
    space: str
    shed: Sequence[tuple[SourcedEvent, int]] = ()


@dataclass(slots=True)
class _Batch:
    """Events that are computed step by step.

    Attributes:
        letters: to be published with the first step.
        folded: how many of the events are.
        until: when it takes no more events (``time.monotonic()``).
        left: how many events were left to the next batch, because time was up.
        last: the place of each user's last event.
        due: the users whose slates wait for their last events, and why.
        states, partitions, skipped: what the events folded so far amount to, as in a ``StageResult``.
        step: the first one, computed before the effects begin.
        computed: set when nothing is left to be computed, or will not be.
    """

    events: Sequence[SourcedEvent]
    letters: Sequence[OutRecord]
    until: float
    folded: int = 0
    left: int = 0
    last: dict[str, int] = field(default_factory=dict)
    due: dict[str, SourcedEvent | SourcedProfile] = field(default_factory=dict)
    states: dict[str, UserState] = field(default_factory=dict)
    partitions: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    step: _Step | None = None
    computed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def whole(self) -> bool:
        """Whether nothing is left to be computed."""
        return self.folded == len(self.events) and not self.due


class _LeftUndone(Exception):
    """The process leaves: what is left of the batch is not acknowledged, and is its next owner's."""


class InteractionsAgent(Agent):
    """Owns the users of its partitions of ``interactions.v1`` and ``users.v1``.

    Attributes:
        standing_reads: how often the standing slates were read to their end.
    """

    role: ClassVar[str] = "interactions"

    def __init__(
        self,
        settings: Settings,
        publisher: Publisher,
        metrics: Metrics,
        *,
        users: UserStore,
        stage: UserStage,
        serving: ServingState,
        pool: VectorPool,
        rebuilds: SlateRebuilds | None = None,
    ) -> None:
        super().__init__(settings, publisher, metrics)
        self._users = users
        self._rebuilds = rebuilds
        self._stage = stage
        self._serving = serving
        self._pool = pool
        self._textifier = Textifier.of(settings.textify)
        self._sources = Sources(settings)
        self._item_partitions = settings.topics.partitions
        self._busy = asyncio.Lock()
        self._settling: asyncio.Task[bool] | None = None
        self._pending: Mapping[str, UserState] | None = {}
        self._moves = 0
        self._leaving = self._left_undone = False
        self._showing = Showing(limit=settings.users.cache)
        self._withdrawn: dict[str, ItemChange] = {}
        self._withdrawal = asyncio.Event()
        self._nearby = NearbyUsers(limit=settings.cold.users_indexed)
        self._arrivals: Newest[str, ItemChange] = Newest(limit=settings.cold.items_waiting)
        self._arrival = asyncio.Event()
        self._moved = asyncio.Event()
        self._asked: dict[str, tuple[int, bool]] = {}
        self.standing_reads = 0
        self._feature_names = list(feature_names(settings.items))

    @property
    def topic(self) -> str:
        return self.topics.interactions

    @property
    def most(self) -> int:
        return max(super().most, self.settings.delivery.catch_up)

    @property
    def more_topics(self) -> Mapping[str, Callable[[Sequence[Any]], Awaitable[None]]]:
        return {self.topics.users: self.handle_profiles}

    @property
    def patience_s(self) -> float:
        # Profiles are acknowledged by the batch, and each part of one waits for its texts up to twice.
        parts = -(-self.settings.delivery.batch // _PROFILES_AT_ONCE)
        return super().patience_s + _BATCH_S + 2 * parts * self.settings.encoder.deadline_s

    async def start(self) -> None:
        self._item_partitions = await self.publisher.partitions(self.topics.transitions)
        await super().start()
        self._run("withdrawals", self._replace_withdrawn())
        self._run("standing", self._follow_standing())
        self._run("space", self._keep_space_fitted())
        self._run("arrivals", self._offer_arrivals())
        if self._rebuilds is not None:
            self._run("rebuild", self._rebuild_when_asked(self._rebuilds))

    async def _keep_space_fitted(self) -> None:
        """Fit the served space to the catalogue, where this process owns the first partition: one does, of all.

        Should two take themselves for the owner while partitions move, everyone ends with the later record.
        """
        asked, of = 0, ""
        too_long: set[str] = set()
        while True:
            serving = self._serving
            # Our own record comes back through the replica; until then nothing new is known.
            if serving.served.version >= asked or serving.space != of:
                asked = 0
            name = serving.space
            if 0 in self.assignment() and not asked and name not in too_long and serving.space_due():
                space = await asyncio.to_thread(serving.fit_space())
                if space is None:
                    _log.warning("vectors too long to whiten", setting="connection.max_message_bytes")
                    too_long.add(name)
                else:
                    record = OutRecord(self.topics.spaces, space.space.encode(), encode(space))
                    await self.publisher.publish([record])
                    asked, of = space.version, space.space
                    _log.info("space fitted", version=space.version, items=space.items)
            if 0 in self.assignment():
                await self._ready_others()
            await asyncio.sleep(self.settings.spaces.check_interval_s)

    async def _ready_others(self) -> None:
        """What a space that is kept beside the served one needs before it can be served: a fit, and a basis."""
        serving = self._serving
        # What was asked for comes back through the replica; until then it is not asked for again.
        self._asked = {name: asked for name, asked in self._asked.items() if name in serving.beside}
        for name, kept in list(serving.beside.items()):
            records = []
            version, carried = self._asked.get(name, (0, False))
            if serving.space_due(name) and version <= kept.served.version:
                space = await asyncio.to_thread(serving.fit_space(name))
                if space is not None:
                    records.append(OutRecord(self.topics.spaces, name.encode(), encode(space)))
                    version = space.version
            if serving.basis_due(name) and not carried:
                basis = await asyncio.to_thread(serving.carry_basis(name))
                records.append(OutRecord(self.topics.factor_basis, name.encode(), encode(basis)))
                carried = True
            self._asked[name] = version, carried
            if records:
                await self.publisher.publish(records)
                _log.info("space beside is ready", space=name, records=[record.topic for record in records])

    def use(self, pool: VectorPool) -> None:
        """Texts are embedded by this pool from now on, which is of the space served from now on. To be called within
        :meth:`alone`."""
        self._pool = pool

    async def hand_over(self) -> None:
        # The batches under way finish and are acknowledged, but for a long one, which may be seconds from its end;
        # the lock is kept, so no other begins.
        self._leaving = True
        await self._busy.acquire()
        await self._settled()

    async def stop(self) -> None:
        await super().stop()
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)

    async def partitions_changed(self) -> None:
        # What is on its way is fenced; nothing more is computed on it, for others may write in between.
        self._moves += 1
        self._pending = None
        self._users.forget()
        self._stage.forget()
        # Others may have published since for users that are ours now.
        self._showing = Showing(limit=self.settings.users.cache)
        self._nearby.clear()
        self._moved.set()

    def withdraw(self, change: ItemChange) -> None:
        """An item may not be recommended any more: the slates that show it are published again, without it."""
        held = self._withdrawn.get(change.item_id)
        if held is not None and change.users is not None:
            change = held if held.users is None else replace(change, users=change.users | held.users)
        self._withdrawn[change.item_id] = change
        self._withdrawal.set()

    async def _replace_withdrawn(self) -> None:
        while True:
            await self._withdrawal.wait()
            self._withdrawal.clear()
            changes, self._withdrawn = self._withdrawn, {}
            async with self.alone():  # With the batches under way: its slates are made, and not yet noted as shown.
                users = self._showing.showing(
                    {item_id: change.users for item_id, change in changes.items()}, partitions=self.assignment()
                )
            for start in range(0, len(users), _REPLACED_AT_ONCE):
                part = users[start : start + _REPLACED_AT_ONCE]
                async with self.alone():  # Events get their turn between slices.
                    await self._replace_each(part, changes)

    async def _replace_each(self, users: Sequence[tuple[str, str]], changes: Mapping[str, ItemChange]) -> None:
        """All at once; where that fails, user by user, so that one costs the others nothing."""
        try:
            await self._replace(users, changes)
        except NotAuthorized:
            raise
        except _FAILURES as error:
            if len(users) == 1:
                _log.error("slate not replaced", user=users[0][0], item=users[0][1], error=str(error))
                return
            for user in users:
                await self._replace_each([user], changes)

    async def _replace(self, users: Sequence[tuple[str, str]], changes: Mapping[str, ItemChange]) -> None:
        """Fresh slates for ``users``: pairs of user and the item that must leave."""
        now = time.time()
        states = _not_forgotten(await self._users.load_stored([user_id for user_id, _ in users]))
        texts = await self._text_vectors([], states)
        slates = self._stage.rerank(states, now=now, text_vectors=texts)
        reasons = dict(users)
        await self._publish_caused([(slate, changes[reasons[slate.user_id]]) for slate in slates], now)
        self.metrics.slates_replaced.inc(len(slates))

    async def _rebuild_when_asked(self, rebuilds: SlateRebuilds) -> None:
        """Make the slates of our users again when somebody asks for it, and what is left when users become ours."""
        done = ("", -1)
        while True:
            await asyncio.sleep(_ASKED_EVERY_S)
            try:
                asked = await rebuilds.asked()
            except (*REDIS_TRANSIENT, RedisError):
                continue  # whoever needs it says so
            moves = self._moves
            if asked is not None and done != (asked.id, moves) and await self._rebuild_slates(asked, rebuilds):
                done = asked.id, moves

    async def _rebuild_slates(self, asked: SlateRebuild, rebuilds: SlateRebuilds) -> bool:
        """Whether all was done; not when partitions moved, or it is not asked for any more."""
        moves = self._moves
        standing = await self.reading(partial(self._read_old, asked), self.topics.recommendations)
        users = [(key.decode(), place) for key, place in standing.items()]
        _log.info("slates are made again", users=len(users), per_s=asked.users_per_s)
        for start in range(0, len(users), _REPLACED_AT_ONCE):
            part = dict(users[start : start + _REPLACED_AT_ONCE])
            async with self.alone():  # Events get their turn between slices.
                if moves != self._moves:
                    return False
                await self._rebuild_each(part)
            await asyncio.sleep(len(part) / asked.users_per_s)
            if (now := await self._still(rebuilds)) is not None and now != asked.id:
                return False
        return True

    @staticmethod
    async def _still(rebuilds: SlateRebuilds) -> str | None:
        """The request there is now, empty for none; None: not known."""
        try:
            asked = await rebuilds.asked()
        except (*REDIS_TRANSIENT, RedisError):
            return None
        return "" if asked is None else asked.id

    async def _read_old(self, asked: SlateRebuild) -> dict[bytes, tuple[int, int]]:
        """Our users whose standing slates are from before, and where these are."""
        standing, ours, owners = Standing(asked.ends), self.assignment(), dict[bytes, int]()
        async for record in read_to_end(self.settings, self.topics.recommendations):
            standing.take(record.key, record.partition, record.offset, gone=record.value is None)
            if record.key in standing.old:
                try:
                    _, slate = decode_slate(record.key, record.value, record.headers)
                except InvalidMessage:
                    continue
                by_event = slate is not None and slate.trigger.topic in (self.topic, self.topics.users)
                owners[record.key] = slate.trigger.partition if slate is not None and by_event else record.partition
        return {key: place for key, place in standing.old.items() if owners.get(key) in ours}

    async def _rebuild_each(self, users: Mapping[str, tuple[int, int]]) -> None:
        """All at once; where that fails, user by user, so that one costs the others nothing."""
        try:
            await self._rebuild(users)
        except NotAuthorized:
            raise
        except _FAILURES as error:
            if len(users) == 1:
                _log.error("slate not made again", user=next(iter(users)), error=str(error))
                return
            for user_id, place in users.items():
                await self._rebuild_each({user_id: place})

    async def _rebuild(self, users: Mapping[str, tuple[int, int]]) -> None:
        """Fresh slates for ``users``. Who has no state keeps the slate: nothing better is known."""
        now = time.time()
        states = _not_forgotten(await self._users.load_stored(users))
        states = {user_id: state for user_id, state in states.items() if state.events or state.profile is not None}
        slates = self._stage.rerank(states, now=now, text_vectors=await self._text_vectors([], states))
        topic = self.topics.recommendations
        await self._publish_caused([(slate, ItemChange("", topic, *users[slate.user_id])) for slate in slates], now)
        self.metrics.slates_rebuilt.inc(len(slates))

    def arrive(self, change: ItemChange) -> None:
        """A new item can be recommended: users near it are ranked again, and who would see it gets a fresh slate."""
        if not self.settings.cold.users_indexed:
            return
        dropped = self._arrivals.put(change.item_id, change)
        if dropped:
            self.metrics.new_items.labels("dropped").inc(dropped)
        self._arrival.set()

    async def _offer_arrivals(self) -> None:
        """Whatever arrived meanwhile is one burst: each user is ranked once, at most a second's worth of users."""
        cold = self.settings.cold
        while True:
            await self._arrival.wait()
            self._arrival.clear()
            changes = self._arrivals.take()
            self.metrics.new_items.labels("taken").inc(len(changes))
            users, left_out = best_first(await self._suited(changes), max(1, int(cold.users_per_s)))
            self.metrics.offers.labels("left_out").inc(left_out)
            for start in range(0, len(users), _OFFERED_AT_ONCE):
                async with self.alone():  # Events get their turn between slices.
                    # Users may have left, with their partition or for good.
                    part = [user_id for user_id in users[start : start + _OFFERED_AT_ONCE] if user_id in self._nearby]
                    if part:
                        await self._offer_each(part, changes)
                await asyncio.sleep(len(part) / cold.users_per_s)

    async def _suited(self, changes: Mapping[str, ItemChange]) -> list[list[tuple[str, float]]]:
        """The users near each item that can still be recommended and that they are not shown yet."""
        serving, found = self._serving, []
        for item_id in changes:
            row = serving.catalogue.row(item_id)
            if row < 0 or not serving.servable(time.time())[row]:
                continue
            vector = serving.index.vectors(np.array([row], np.int32))
            (users,) = self._nearby.near(vector, self.settings.cold.users_per_item, space=serving.versions.space)
            found.append([user for user in users if item_id not in self._showing.items_of(user[0])])
            await asyncio.sleep(0)
        return found

    async def _offer_each(self, users: Sequence[str], changes: Mapping[str, ItemChange]) -> None:
        """All at once; where that fails, user by user, so that one costs the others nothing."""
        try:
            await self._offer(users, changes)
        except NotAuthorized:
            raise
        except _FAILURES as error:
            if len(users) == 1:
                _log.error("new items not offered", user=users[0], error=str(error))
                self.metrics.offers.labels("failed").inc()
                return
            for user_id in users:
                await self._offer_each([user_id], changes)

    async def _offer(self, users: Sequence[str], changes: Mapping[str, ItemChange]) -> None:
        """Rank ``users`` again and publish the slates that show one of the new items and did not before."""
        now = time.time()
        states = _not_forgotten(await self._users.load_stored(users))
        texts = await self._text_vectors([], states)
        space = self._serving.versions.space
        fresh: list[tuple[NewSlate, ItemChange]] = []
        for slate in self._stage.rerank(states, now=now, text_vectors=texts):
            before = self._showing.items_of(slate.user_id)
            shown = [item.item_id for item in slate.items if item.item_id in changes and item.item_id not in before]
            if shown:
                fresh.append((slate, changes[shown[0]]))
        await self._publish_caused(fresh, now)
        self._keep_interests([slate for slate, _ in fresh], space)
        self.metrics.offers.labels("published").inc(len(fresh))
        self.metrics.offers.labels("unchanged").inc(len(users) - len(fresh))
        done = time.time()
        for _, change in fresh:
            if change.appended_s:
                self.metrics.offer_seconds.observe(max(0.0, done - change.appended_s))

    def _keep_interests(self, slates: Sequence[NewSlate], space: str) -> None:
        """New items find the users of these slates by what they are interested in now; ``space`` is that of the
        ranking, which another may have replaced since."""
        known = [(slate.user_id, slate.interest) for slate in slates if slate.interest is not None]
        if not known or not self.settings.cold.users_indexed:
            return
        vectors = np.stack([vector for _, vector in known])
        self._nearby.put([user_id for user_id, _ in known], vectors, space=space)
        self.metrics.users_indexed.set(len(self._nearby))

    async def _follow_standing(self) -> None:
        """Read the standing slates whenever the partitions moved."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            await self.reading(self._read_standing, self.topics.recommendations)
            self.standing_reads += 1

    async def _read_standing(self) -> None:
        """The slates others published, or we before: what they show may have been withdrawn meanwhile."""
        servable = self._serving.servable
        showing, before = self._showing, Showing(limit=self.settings.users.cache)
        async for record in read_to_end(self.settings, self.topics.recommendations):
            try:
                user_id, slate = decode_slate(record.key, record.value, record.headers)
            except InvalidMessage:
                continue
            if slate is None:
                before.gone(user_id)
            else:
                # An item's change says nothing of the user; the topics are partitioned alike by default.
                by_event = slate.trigger.topic in (self.topic, self.topics.users)
                before.standing(user_id, slate, partition=slate.trigger.partition if by_event else record.partition)
        if self._showing is not showing:
            return  # The partitions moved again: what was read may be outdated, and a new reading follows.
        showing.add_older(before)
        row_of = self._serving.catalogue.row
        now = time.time()
        for item_id in self._showing.items():
            row = row_of(item_id)
            if row < 0 or not servable(now)[row]:
                self.withdraw(ItemChange(item_id, self.topics.items, -1, -1))

    async def handle(self, events: Sequence[Any]) -> None:
        """Compute a batch while the effects of the one before are on their way, and begin its own when they are done.

        A batch whose effects did not go as computed (a record was refused, somebody else has a user by now), or during
        which the partitions moved, takes with it what was computed on top: that is computed again, on what is stored.
        """
        now = time.time()
        sourced: list[_Sourced] = []
        refused: list[Any] = []
        letters: list[OutRecord] = []
        for number, event in enumerate(events, 1):
            record = InRecord.from_faust(event)
            try:
                sourced.append((event, record, self._decode(record, now)))
            except InvalidMessage as error:
                letters.append(self.letter(record, error))
                refused.append(event)
            if number % self.settings.delivery.batch == 0:
                await asyncio.sleep(0)
        left = await self._take(sourced, refused, letters)
        while left:
            left = await self._take(sourced[-left:], [], [])
        for _ in range(_TURNS_TO_SEND):
            await asyncio.sleep(0)

    async def _take(self, sourced: Sequence[_Sourced], refused: Sequence[Any], letters: list[OutRecord]) -> int:
        """One batch; how many events it left, for want of time. ``refused`` are events that ``letters`` are about."""
        async with self._busy:
            if self._leaving:
                return 0
            if self._settling is not None and self._settling.done():
                await self._settled()
            moves = self._moves
            batch = await self._ahead(sourced, letters)
            if not await self._settled() or moves != self._moves:
                moves = self._moves
                batch = await self._ahead(sourced, letters)  # On states that never came to be.
            if self._left_undone:
                return 0  # Written on top of what was left undone, this would have that taken for applied.
            # The next batch waits, for what is to be written is not known.
            self._pending = None
            self._settling = asyncio.create_task(self._settle(sourced, refused, letters, batch))
            self._settling.add_done_callback(self._on_settled)
            if batch is None:
                return 0
            if not batch.whole:
                await batch.computed.wait()
            if batch.whole and moves == self._moves and not self._settling.done():
                self._pending = batch.states
            return batch.left

    async def _ahead(self, sourced: Sequence[_Sourced], letters: Sequence[OutRecord]) -> _Batch | None:
        """The batch, its first step computed on what is stored and what is about to be; None where an event of that
        fails."""
        if self._pending is None:
            await self._settled()
        try:
            return await self._begun([one for _, _, one in sourced], letters, self._pending or {})
        except NotAuthorized:
            raise
        except _FAILURES:
            _log.warning("batch failed, going on in parts", events=len(sourced), exc_info=True)
            return None

    async def _settle(
        self, sourced: Sequence[_Sourced], refused: Sequence[Any], letters: list[OutRecord], batch: _Batch | None
    ) -> bool:
        """Do what was computed, or the events in parts, and acknowledge. Whether the states are now as computed."""
        as_computed, computed = False, batch is not None
        try:
            if batch is not None:
                try:
                    as_computed = await self._effect(batch)
                except NotAuthorized:
                    raise
                except _FAILURES:
                    _log.warning("batch failed, going on in parts", events=len(batch.events), exc_info=True)
                    computed = False
                sourced = sourced[: len(batch.events)]
            if not computed:
                await self._in_parts([(record, one) for _, record, one in sourced], letters)
        except _LeftUndone:
            self._left_undone = True
            return False
        for event in refused:
            event.ack()
        for event, _, _ in sourced:
            event.ack()
        return as_computed

    async def _in_parts(self, sourced: Sequence[tuple[InRecord, SourcedEvent]], letters: list[OutRecord]) -> None:
        """Parts of the usual size one after the other; of the one that fails, event by event."""
        size = self.settings.delivery.batch
        for start in range(0, max(len(sourced), 1), size):
            part = sourced[start : start + size]
            if start and self._leaving:
                raise _LeftUndone
            if len(sourced) > size:
                try:
                    await self._process([event for _, event in part], letters)
                except NotAuthorized:
                    raise
                except _FAILURES:
                    _log.warning("batch failed, going on one by one", events=len(part), exc_info=True)
                else:
                    letters = []
                    continue
            await self._one_by_one(part, letters, lambda event: self._process([event], []))
            letters = []

    async def _settled(self) -> bool:
        """Wait for the batch whose effects are on their way, if any. Whether the states are as it was computed.

        For whoever holds the lock. Told to stop, only the waiting ends.
        """
        as_computed = self._settling is None or await asyncio.shield(self._settling)
        self._settling = None
        self._pending = {}
        return as_computed

    def _on_settled(self, settling: asyncio.Task[bool]) -> None:
        if settling.cancelled():
            return
        if (error := settling.exception()) is not None:
            self._fail(error)
        elif settling is self._settling and settling.result():
            self._pending = {}  # All of it is written, and it may be much.

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Nothing is being computed, and the effects of what was are done."""
        async with self._busy:
            await self._settled()
            yield

    async def handle_profiles(self, events: Sequence[Any]) -> None:
        """What :meth:`handle` is to events."""
        now = time.time()
        sourced: list[tuple[InRecord, SourcedProfile]] = []
        letters: list[OutRecord] = []
        for event in events:
            record = InRecord.from_faust(event)
            try:
                sourced.append((record, self._sources.profile(record)))
            except InvalidMessage as error:
                letters.append(self.letter(record, error))
        await self.publisher.publish(letters)
        for start in range(0, len(sourced), _PROFILES_AT_ONCE):
            part = sourced[start : start + _PROFILES_AT_ONCE]
            # Before it is our turn: events do not wait for the embeddings of a load of profiles.
            texts = {text for _, one in part if one.profile is not None for text in one.profile.texts}
            await self._encoded(texts, Priority.EVENT)
            async with self.alone():
                try:
                    await self._process_profiles([one for _, one in part], now)
                except NotAuthorized:
                    raise
                except _FAILURES:
                    _log.warning("batch failed, going on one by one", profiles=len(part), exc_info=True)
                    await self._one_by_one(part, [], lambda one: self._process_profiles([one], now))
        for event in events:
            event.ack()

    def _decode(self, record: InRecord, now: float) -> SourcedEvent:
        # Ahead of when the broker took it, as a rebuild judges too: a clock of ours that is behind refuses nobody.
        event = self._sources.interaction(record, record.timestamp_s if record.timestamp_s > 0 else now)
        return _Taken(event, record.partition, record.offset, record.timestamp_s, record)

    async def _one_by_one(
        self,
        sourced: Sequence[tuple[InRecord, T]],
        letters: list[OutRecord],
        process: Callable[[T], Awaitable[object]],
    ) -> None:
        """Find the record that cannot be processed, dead-letter it, and do the others."""
        await self.publisher.publish(letters)
        for record, event in sourced:
            for attempt in range(1, self.settings.delivery.attempts + 1):
                try:
                    await process(event)
                    break
                except NotAuthorized:
                    raise
                except _FAILURES as error:
                    if attempt == self.settings.delivery.attempts:
                        problem = InvalidMessage(
                            "processing_failed",
                            f"{type(error).__name__}: {error}; the record itself is well formed: "
                            "report it, then replay it after the fix",
                        )
                        await self.publisher.publish([self.letter(record, problem, attempts=attempt)])

    async def _process(self, events: Sequence[SourcedEvent], letters: Sequence[OutRecord], attempt: int = 1) -> bool:
        batch = await self._begun(events, letters, {})
        as_computed = await self._effect(batch, attempt)
        while batch.left:
            batch = await self._begun(events[-batch.left :], [], {})
            as_computed = await self._effect(batch, attempt) and as_computed
        return as_computed

    async def _begun(
        self, events: Sequence[SourcedEvent], letters: Sequence[OutRecord], pending: Mapping[str, UserState]
    ) -> _Batch:
        """A batch with its first step computed; ``pending`` are the states of users that are not written yet."""
        batch = _Batch(events, letters, time.monotonic() + _BATCH_S)
        batch.last = {sourced.event.user_id: place for place, sourced in enumerate(events)}
        batch.step = await self._fold(batch, pending)
        return batch

    async def _advance(self, batch: _Batch) -> _Step | None:
        """Compute the next step; None: the batch is whole."""
        if batch.whole:
            return None
        if self._leaving:
            raise _LeftUndone
        if batch.folded < len(batch.events) and time.monotonic() > batch.until:
            batch.left = len(batch.events) - batch.folded
            batch.events = batch.events[: batch.folded]
            if batch.whole:
                return None
        return await (self._fold(batch, {}) if batch.folded < len(batch.events) else self._rank(batch))

    async def _fold(self, batch: _Batch, pending: Mapping[str, UserState]) -> _Step:
        """Process the next events of the batch. Users of whom more follow are ranked with these."""
        t0 = time.perf_counter()
        events = batch.events[batch.folded : batch.folded + self.settings.delivery.batch]
        end = batch.folded + len(events)
        users = {sourced.event.user_id for sourced in events}
        held = {user_id: pending[user_id] for user_id in users & pending.keys()}
        held.update((user_id, batch.states[user_id]) for user_id in users & batch.states.keys())
        states = await self._users.load(users - held.keys()) | held
        texts = await self._text_vectors(not_shed(events, states, self.settings.users), states)
        t1 = time.perf_counter()
        space, now = self._serving.versions.space, time.time()
        result = self._stage.process(
            events,
            states,
            now=now,
            text_vectors=texts,
            due={user_id: batch.due.pop(user_id) for user_id in [*batch.due] if user_id in users},
            later={user_id for user_id in users if batch.last[user_id] >= end},
        )
        batch.folded = end
        batch.due.update(result.due)
        batch.states.update(result.states)
        batch.partitions.update(result.partitions)
        for why, count in result.skipped.items():
            batch.skipped[why] = batch.skipped.get(why, 0) + count
        first, *more = self._notes(result)
        letters, batch.letters = batch.letters, ()
        records = [*letters, *self._slates(result.slates, now), *first]
        step = _Step(records, more, result.slates, space, result.shed)
        self._observe("load", t1 - t0)
        self._observe("compute", time.perf_counter() - t1)
        return step

    async def _rank(self, batch: _Batch) -> _Step:
        """Rank some of the users whose last events were left to the next batch."""
        t0 = time.perf_counter()
        part = dict(islice(batch.due.items(), self.settings.delivery.batch))
        for user_id in part:
            del batch.due[user_id]
        texts = await self._text_vectors([], {user_id: batch.states[user_id] for user_id in part})
        t1 = time.perf_counter()
        space, now = self._serving.versions.space, time.time()
        slates = self._stage.refresh(part, batch.states, now=now, text_vectors=texts)
        step = _Step(self._slates(slates, now), [], slates, space)
        self._observe("load", t1 - t0)
        self._observe("compute", time.perf_counter() - t1)
        return step

    def _observe(self, step: str, seconds: float) -> None:
        self.metrics.batch_seconds.labels(self.role, step).observe(seconds)

    async def _send(self, step: _Step) -> None:
        """Publish what a step has to, and note what users see now."""
        t0 = time.perf_counter()
        await self.publisher.publish([*self._shed_letters(step.shed), *step.records])
        for records in step.more:
            await self.publisher.publish(records)
        self._showing.published(step.slates)
        self._keep_interests(step.slates, step.space)
        self._measure_freshness(step.slates)
        self._observe("publish", time.perf_counter() - t0)

    def _shed_letters(self, shed: Iterable[tuple[SourcedEvent, int]]) -> list[OutRecord]:
        limit, letters = self.settings.users.events_per_s, []
        for sourced, untold in shed:
            if not isinstance(sourced, _Taken) or sourced.record is None:
                continue
            more = f"; {untold:,} more of this user since the letter before have none, and are in the topic before it"
            error = InvalidMessage(
                TOO_MANY_EVENTS,
                f"user {sourced.event.user_id!r} sends more than {limit:,} events per second (setting "
                f"users.events_per_s), and this one was left out{more if untold else ''}; "
                "if they are meant, raise the limit, then replay",
            )
            letters.append(self.letter(sourced.record, error))
        return letters

    async def _publish_steps(self, batch: _Batch) -> None:
        """Publish what each step has to, the next step being computed meanwhile."""
        step = batch.step
        batch.step = None
        try:
            while step is not None:
                if batch.whole:
                    batch.computed.set()
                    await self._send(step)
                    return
                sending = asyncio.create_task(self._send(step))
                try:
                    for _ in range(_TURNS_TO_SEND):
                        await asyncio.sleep(0)
                    step = await self._advance(batch)
                except asyncio.CancelledError:
                    sending.cancel()
                    raise
                except BaseException:
                    await asyncio.gather(sending, return_exceptions=True)
                    raise
                await sending
        finally:
            batch.computed.set()

    async def _effect(self, batch: _Batch, attempt: int = 1) -> bool:
        """Publish, then write. Whether every state was written as computed."""
        await self._publish_steps(batch)
        for why, count in batch.skipped.items():
            self.metrics.skipped.labels(why).inc(count)
        t0 = time.perf_counter()
        refused = []
        users, size = list(batch.states), self.settings.delivery.batch
        for start in range(0, len(users), size):
            part = {user_id: batch.states[user_id] for user_id in users[start : start + size]}
            try:
                refused += await self._users.save(part, partitions=batch.partitions)
            except NotAuthorized:
                raise
            except _FAILURES:
                await self._publish_again(refused, batch.partitions, time.time())
                raise
        if refused:
            stored = await self._users.load(refused)
            missing = [
                sourced
                for sourced in batch.events
                if (state := stored.get(sourced.event.user_id)) is not None
                and sourced.offset > state.applied.get(sourced.partition, -1)
            ]
            if missing:  # Somebody wrote a profile, or has the user's new partition.
                self._may_try(attempt)
                await self._process(missing, [], attempt + 1)
            await self._publish_again(refused, batch.partitions, time.time())
        self._observe("save", time.perf_counter() - t0)
        return not refused

    async def _process_profiles(self, profiles: Sequence[SourcedProfile], now: float, attempt: int = 1) -> None:
        """Like events: slates are acknowledged, then the states are written."""
        states = await self._users.load({sourced.user_id for sourced in profiles})
        texts = {text for one in profiles if one.profile is not None for text in one.profile.texts}
        vectors = await self._text_vectors([], states, texts)
        space = self._serving.versions.space
        result = self._stage.process_profiles(profiles, states, now=now, text_vectors=vectors)
        for why, count in result.skipped.items():
            self.metrics.skipped.labels(why).inc(count)
        await self.publisher.publish([*self._slates(result.slates, now), *map(self._no_slate, result.forgotten)])
        self._showing.published(result.slates)
        self._keep_interests(result.slates, space)
        self._gone(result.forgotten)
        refused = await self._users.save(result.states, partitions=result.partitions)
        if refused:
            stored = await self._users.load(refused)
            missing = [
                sourced
                for sourced in profiles
                if (state := stored.get(sourced.user_id)) is not None
                and sourced.offset > state.profile_applied.get(sourced.partition, -1)
            ]
            if missing:
                self._may_try(attempt)
                await self._process_profiles(missing, now, attempt + 1)
            await self._publish_again(refused, result.partitions, now)

    def _may_try(self, attempt: int) -> None:
        """Each refusal means that somebody else has written the user, so it ends; what is not applied is never
        acknowledged.

        Raises:
            RuntimeError: when it does not end. It ends the process: dead letters would be no answer.
        """
        if attempt >= _MOST_REFUSALS:
            raise RuntimeError(f"states were refused {attempt} times, because somebody else writes the same users")

    def _gone(self, users: Iterable[str]) -> None:
        """Nothing is shown to these users any more."""
        for user_id in users:
            self._showing.gone(user_id)
            self._nearby.gone(user_id)

    def _no_slate(self, user_id: str) -> OutRecord:
        return OutRecord(self.topics.recommendations, user_id.encode(), None)

    async def _publish_again(self, users: Sequence[str], partitions: Mapping[str, int], now: float) -> None:
        """Slates from the stored states of users somebody else has by now: ours may have come after theirs."""
        size = self.settings.delivery.batch
        for start in range(0, len(users), size):
            await self._publish_slice_again(users[start : start + size], partitions, now)

    async def _publish_slice_again(self, users: Sequence[str], partitions: Mapping[str, int], now: float) -> None:
        states = await self._users.load(users)
        forgotten = [user_id for user_id, state in states.items() if state.forgotten]
        states = _not_forgotten(states)
        slates = self._stage.rerank(states, now=now, text_vectors=await self._text_vectors([], states))
        self._gone(forgotten)
        await self.publisher.publish(map(self._no_slate, forgotten))
        caused = []
        for slate in slates:
            partition = partitions[slate.user_id]
            through = states[slate.user_id].applied.get(partition, -1)
            caused.append((slate, ItemChange("", self.topic, partition, through)))
        await self._publish_caused(caused, now)

    async def _text_vectors(
        self, events: Sequence[SourcedEvent], states: Mapping[str, UserState], more: Iterable[str] = ()
    ) -> dict[str, NDArray[np.float32]]:
        """Embeddings of the free texts that matter to this batch: of events, histories, profiles, and ``more``.

        Somebody waits for what was said just now: it passes what histories and profiles of many users may bring along,
        and what there is to catch up with, of which there may be more than is embedded within its deadline.
        """
        kept = self.settings.users.text_history_chars
        just_now = time.time() - self.settings.encoder.deadline_s
        said: set[str] = set()
        texts = {entry.text for state in states.values() for entry in state.history if entry.text}
        for sourced in events:
            words = self._textifier.said(sourced.event, max_chars=kept)
            (said if sourced.appended_s >= just_now else texts).add(words)
        texts.update(text for state in states.values() if state.profile is not None for text in state.profile.texts)
        texts.update(more)
        said.discard("")
        texts -= {"", *said}
        if not said:
            return await self._encoded(texts, Priority.EVENT)
        urgent, others = await asyncio.gather(self._encoded(said, Priority.QUERY), self._encoded(texts, Priority.EVENT))
        return others | urgent

    async def _encoded(self, texts: set[str], priority: Priority) -> dict[str, NDArray[np.float32]]:
        """Embeddings by text; what is not embedded by the priority's deadline is left out, and counts the next time.

        Whatever a user says is a query to the model: it is there to find items.
        """
        if not texts:
            return {}
        wanted = sorted(texts)
        if not self._pool.started:
            await self._pool.start()
        try:
            outcomes = await self._pool.encode_each(wanted, priority, kind="query")
        except TailraceError as error:
            _log.warning("texts of events left out", texts=len(wanted), error=f"{type(error).__name__}: {error}")
            return {}
        vectors, late = {}, []
        for text, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, TooLate):
                late.append(outcome)
            elif isinstance(outcome, EncodeError):
                _log.warning("text of an event left out", text=text[:80], error=str(outcome))
            else:
                vectors[text] = outcome
        if late:
            _log.warning("texts of events left out", texts=len(late), of=len(wanted), error=str(late[0]))
        return vectors

    def _slates(self, slates: Sequence[NewSlate], now: float) -> list[OutRecord]:
        generated_at = datetime.fromtimestamp(now, UTC)
        return [self._slate(slate, generated_at) for slate in slates]

    def _slate(self, slate: NewSlate, generated_at: datetime, change: ItemChange | None = None) -> OutRecord:
        """The record of a slate; ``change`` is what caused it when no event did."""
        sourced = slate.trigger
        if isinstance(sourced, SourcedProfile):
            slate_id = sourced.slate_id
            trigger = Trigger(topic=self.topics.users, partition=sourced.partition, offset=sourced.offset)
        elif sourced is not None:
            slate_id = sourced.slate_id
            trigger = Trigger(
                topic=self.topic,
                partition=sourced.partition,
                offset=sourced.offset,
                event_id=sourced.event.event_id,
                occurred_at=sourced.event.occurred_at,
            )
        elif change is not None:
            slate_id = self._slate_id(change)
            trigger = Trigger(topic=change.topic, partition=change.partition, offset=change.offset)
        else:
            raise ValueError("a slate is caused by an event or by an item's change")
        message = Slate(
            slate_id=slate_id,
            user_id=slate.user_id,
            generated_at=generated_at,
            items=slate.items,
            trigger=trigger,
            versions=slate.versions or self._serving.versions,
        )
        return OutRecord(
            self.topics.recommendations,
            slate.user_id.encode(),
            encode(message),
            headers(
                event_type("recommendations"),
                source="/tailrace/interactions",
                id=slate_id,
                time=generated_at,
                subject=slate.user_id,
            ),
        )

    def _slate_id(self, change: ItemChange) -> str:
        """Id of the slates that an item's change causes; one of each user."""
        whys = {self.topic: "again", self.topics.rules: "rules", self.topics.item_vectors: "vectors"}
        whys[self.topics.recommendations] = "rebuilt"
        return f"{whys.get(change.topic, 'items')}-{change.partition}-{change.offset}"

    async def _publish_caused(self, caused: Sequence[tuple[NewSlate, ItemChange]], now: float) -> None:
        """Publish slates that no event caused, and note that they are what their users see now."""
        generated_at = datetime.fromtimestamp(now, UTC)
        await self.publisher.publish(self._slate(slate, generated_at, change) for slate, change in caused)
        self._showing.replaced([slate for slate, _ in caused])
        self._stage.shown([(slate, self._slate_id(change)) for slate, change in caused])

    def _notes(self, result: StageResult) -> list[list[OutRecord]]:
        """Transitions for the item owners and examples for the ranker, in rounds.

        Their consumers take offsets in order, so of the parts that one message cannot hold, each is published after
        the one before is acknowledged: round by round.
        """
        limit = self.settings.connection.max_message_bytes // 3
        rounds: list[list[OutRecord]] = [[]]

        def add(records: list[OutRecord]) -> None:
            while len(rounds) < len(records):
                rounds.append([])
            for place, record in enumerate(records):
                rounds[place].append(record)

        for source, transitions in result.transitions.items():
            of_owner: dict[int, list[Transition]] = {}
            for transition in transitions:
                for owner, part in by_owner(transition, self._item_partitions).items():
                    of_owner.setdefault(owner, []).append(part)
            for owner, rows in sorted(of_owner.items()):
                add([self._transitions(source, owner, part) for part in _parts(rows, _transition_bytes, limit)])
        for source, examples in result.examples.items():
            add([self._examples(source, part) for part in _parts(examples, _example_bytes, limit)])
        return rounds

    def _transitions(self, source: int, owner: int, rows: list[Transition]) -> OutRecord:
        message = Transitions(source_topic=self.topic, source_partition=source, rows=rows)
        return OutRecord(self.topics.transitions, str(source).encode(), encode(message), partition=owner)

    def _examples(self, source: int, examples: list[TrainingExample]) -> OutRecord:
        message = TrainingExamples(
            source_topic=self.topic, source_partition=source, feature_names=self._feature_names, examples=examples
        )
        return OutRecord(self.topics.training_examples, b"default", encode(message))

    def _measure_freshness(self, slates: Sequence[NewSlate]) -> None:
        now = time.time()
        triggers = [slate.trigger for slate in slates if isinstance(slate.trigger, SourcedEvent)]
        self.metrics.observe_freshness(
            event_s=[max(0.0, now - trigger.event.occurred_at.timestamp()) for trigger in triggers],
            append_s=[max(0.0, now - trigger.appended_s) for trigger in triggers],
            objective_s=self.settings.metrics.freshness_objective_ms / 1000,
        )


def _not_forgotten(states: Mapping[str, UserState]) -> dict[str, UserState]:
    """Who was forgotten, perhaps since it was decided to rank again, has no slate any more."""
    return {user_id: state for user_id, state in states.items() if not state.forgotten}


def _parts(rows: Sequence[T], size: Callable[[T], int], limit: int) -> list[list[T]]:
    """``rows`` in order, cut so that the sizes of a part add up to at most ``limit`` bytes (or it is one row)."""
    parts: list[list[T]] = []
    room = 0
    for row in rows:
        needed = size(row)
        if not parts or needed > room:
            parts.append([])
            room = limit
        parts[-1].append(row)
        room -= needed
    return parts


def _transition_bytes(row: Transition) -> int:
    """An upper estimate of the row's JSON: four bytes a character, two numbers per earlier item."""
    return 200 + 4 * len(row.item_id) + 48 * len(row.previous) + 4 * sum(map(len, row.previous))


def _example_bytes(row: TrainingExample) -> int:
    """An upper estimate of the row's JSON: four bytes a character, 25 a number."""
    ids = 4 * len(row.item_id) + 3 * len(row.previous) + 4 * sum(map(len, row.previous))
    return 240 + len(row.features) + ids + 25 * len(row.context)
