"""The composition root: builds the parts a process needs for its roles, starts them in order, watches them, stops
them in order. Importing anything starts nothing; this does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from aiokafka import TopicPartition

from schemas.messages import ModelSpace
from stream_app.agents.base import Agent
from stream_app.agents.catalogue import CatalogueAgent
from stream_app.agents.catalogue_spaces import HOLDER as CATALOGUE
from stream_app.agents.catalogue_spaces import CatalogueSpaces
from stream_app.agents.interactions import InteractionsAgent
from stream_app.agents.items import ItemsAgent
from stream_app.agents.ranker import RankerAgent
from stream_app.delivery.admin import create_topics
from stream_app.delivery.gate import Gate
from stream_app.delivery.publisher import Publisher
from stream_app.delivery.retry import until_it_works
from stream_app.delivery.rights import check_rights
from stream_app.delivery.unpacking import bound_unpacking
from stream_app.encoder_metrics import watch_pools
from stream_app.encoder_space import describe_encoder
from stream_app.encoders import Encoders, deciding_settings
from stream_app.errors import SettingsError, TailraceError, Unavailable
from stream_app.faults import faults_folder, watch_faults
from stream_app.headroom import memory_budget
from stream_app.health.endpoints import serve
from stream_app.health.ends import Ends
from stream_app.health.health import Health
from stream_app.health.looking import look
from stream_app.health.state import Seen
from stream_app.holding_back import hold_back
from stream_app.logs import get_logger
from stream_app.memory import settle
from stream_app.metrics import Metrics
from stream_app.ranking.recommender import Recommender
from stream_app.replicas.replica import Replica
from stream_app.replicas.spaces import SpaceWatch, control_record, read_control
from stream_app.settings import Settings
from stream_app.space_operations import control_of
from stream_app.spaces.control import served_space
from stream_app.stores.redis_client import RedisClient, connect_redis, warn_of_eviction
from stream_app.stores.requests import SlateRebuilds
from stream_app.stores.users import UserStore
from stream_app.users.stage import UserStage
from stream_app.warm_up import warm_up
from workers.vector_pool import VectorPool

__all__ = ["ROLES", "Role", "Tailrace", "stop_on_signals"]

Role = Literal["catalogue", "interactions", "items", "ranker"]
ROLES: tuple[Role, ...] = ("catalogue", "items", "ranker", "interactions")
"""In the order they are started: what feeds the others first."""

_log = get_logger(__name__)
_Part = TypeVar("_Part")
_LOOK_EVERY_S = 1.0
_RECORD_WITHIN_S = 5.0
"""How long a broker is waited for that may say that other settings than ours count (seconds)."""


class Tailrace:
    """One process of Tailrace, with one or more roles.

    Attributes:
        ready: set when every role takes events (a replica is caught up, the consumers have joined).
        metrics_port: where ``/metrics`` and health are served, None when it is switched off.
        health: what ``/live``, ``/ready`` and ``/started`` say.
    """

    def __init__(self, settings: Settings, roles: Sequence[Role]) -> None:
        self.settings = settings
        self.roles = [role for role in ROLES if role in roles]
        self.metrics = Metrics()
        self.metrics_port: int | None = None
        self.ready = asyncio.Event()
        self.agents: list[Agent] = []
        self.replica: Replica | None = None
        self.encoders: Encoders | None = None
        self.health = Health(settings.health)
        self.metrics.health.samples = self.health.samples
        self._ends = Ends(settings, self._places)
        self._beside: CatalogueSpaces | None = None
        self._watch_spaces: SpaceWatch | None = None
        self._following: list[asyncio.Task[None]] = []
        self._watching: list[asyncio.Task[None]] = []
        self._dropping: asyncio.Task[None] | None = None
        self._gate = Gate()
        self._users: UserStore | None = None
        self._stack = contextlib.AsyncExitStack()

    @property
    def pool(self) -> VectorPool | None:
        """The encoders of the space that is served, as far as this process has any."""
        if self.encoders is None or self._watch_spaces is None:
            return None
        return self.encoders.held(self._watch_spaces.control.serving)

    async def run(self, stop: asyncio.Event) -> None:
        """Start, work until ``stop`` is set, stop. Waits for a broker or Redis that is not there yet.

        Raises:
            TailraceError: when a part failed; nothing it held was acknowledged, so starting again continues.
        """
        stopping = asyncio.create_task(stop.wait())
        working = asyncio.create_task(self._work())
        try:
            await asyncio.wait([stopping, working], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            self.health.stop()
            for task in (stopping, working):
                task.cancel()
            await asyncio.gather(stopping, working, return_exceptions=True)
            await self._stack.aclose()

    async def _work(self) -> None:
        settings, metrics = self.settings, self.metrics
        bound_unpacking(settings.connection.max_unpacked_bytes)
        endpoints = serve(metrics.registry, settings.metrics, self.health.report)
        if endpoints is not None:
            self.metrics_port = endpoints.port
            self._stack.callback(endpoints.close)
            _log.info("health and metrics", **endpoints.urls())
        self._watch_health()
        if {"catalogue", "interactions"} & set(self.roles):
            await _check_encoder(settings)
        # While the process connects and reads its snapshot, and before it joins a group: see there.
        warming = asyncio.create_task(_warm_up(settings)) if set(self.roles) - {"catalogue"} else None
        if warming is not None:
            self._stack.callback(warming.cancel)
        publisher = Publisher(settings, metrics)
        await publisher.start()
        self._stack.push_async_callback(publisher.stop)
        if settings.topics.create:
            await until_it_works(
                lambda: create_topics(settings),
                what=f"Kafka at {settings.kafka}",
                transient=(Unavailable,),
                settings=settings.delivery,
                metrics=metrics,
            )
        await until_it_works(
            lambda: check_rights(settings, self.roles),
            what=f"Kafka at {settings.kafka}",
            transient=(Unavailable,),
            settings=settings.delivery,
            metrics=metrics,
        )
        redis = connect_redis(settings)
        self._stack.push_async_callback(redis.aclose)
        if "interactions" in self.roles:  # elsewhere it is a cache, and nothing rests on it
            await UserStore(redis, settings, metrics).check()
            await warn_of_eviction(redis)
        self._watch_spaces = watch = SpaceWatch(settings, lambda: control_of(settings))
        await watch.start()
        self._stack.push_async_callback(watch.stop)
        if served_space(watch.control).encoder != deciding_settings(settings.encoder):
            _log.warning(
                "the encoder's settings are not those of the space that is served; change that with: tailrace spaces",
                served=watch.control.serving,
                setting=settings.encoder.model,
            )
        if "catalogue" in self.roles and not watch.recorded:
            # From now on a changed setting alone changes nothing: vectors of two models would be in one topic.
            await publisher.publish([control_record(settings, watch.control)])
        self.encoders = encoders = Encoders(settings, redis)
        self._stack.push_async_callback(encoders.close)
        if "interactions" in self.roles:
            pool = encoders.pool(served_space(watch.control), "interactions")
            if settings.encoder.eager:
                await pool.start()
        # Together: joining a consumer group takes a broker up to half a session.
        await asyncio.gather(*(self._start_role(role, publisher, redis, watch, warming) for role in self.roles))
        self._following.append(asyncio.create_task(self._watch_encoders(encoders, watch), name="encoders"))
        self._stack.push_async_callback(_cancelled, self._following[-1])
        settle()
        self.ready.set()
        metrics.ready.set(1)
        catalogue = next((agent for agent in self.agents if agent.role == "catalogue"), None)
        watching = watch_pools(encoders, metrics, catalogue.unfinished if catalogue is not None else None)
        self._following.append(asyncio.create_task(watching, name="encoder-metrics"))
        self._stack.push_async_callback(_cancelled, self._following[-1])
        budget = memory_budget(settings.memory)
        if budget is not None:
            shrinking = [] if self._users is None else [self._users]
            holding = hold_back(settings.memory, budget, gate=self._gate, shrinking=shrinking, metrics=metrics)
            self._following.append(asyncio.create_task(holding, name="memory"))
            self._stack.push_async_callback(_cancelled, self._following[-1])
        await self._watch(watch)

    def _watch_health(self) -> None:
        watching = [self.health.watch(self._look), self._ends.watch()]
        if (folder := faults_folder()) is not None:
            watching.append(watch_faults(folder, lambda: self.agents, lambda: self.replica))
        for one in watching:
            task = asyncio.create_task(one, name="health")
            self._watching.append(task)
            self._stack.push_async_callback(_cancelled, task)

    def _look(self) -> Seen:
        return look(
            expected=self.roles,
            agents=self.agents,
            beside=[] if self._beside is None else self._beside.agents,
            replica=self.replica,
            pool=self.pool,
            ends=self._ends,
            waits=self.metrics.waiting,
            broker=f"Kafka at {self.settings.kafka}",
            complete=self.ready.is_set(),
        )

    def _places(self) -> set[TopicPartition]:
        """The partitions whose ends health is judged by."""
        beside = [] if self._beside is None else self._beside.agents
        places = {TopicPartition(*place) for agent in (*self.agents, *beside) for place in agent.places()}
        return places | (set() if self.replica is None else self.replica.positions_served().keys())

    async def _start_role(
        self,
        role: Role,
        publisher: Publisher,
        redis: RedisClient,
        watch: SpaceWatch,
        warming: asyncio.Task[None] | None,
    ) -> None:
        agent = await self._agent(role, publisher, redis, watch)
        agent.gate = self._gate
        self._stack.push_async_callback(agent.stop)
        self.agents.append(agent)
        if warming is not None:
            await asyncio.shield(warming)
        await agent.start()
        following = asyncio.create_task(self._follow_spaces(agent, publisher, watch), name=f"{role}-spaces")
        self._following.append(following)
        self._stack.push_async_callback(_cancelled, following)
        _log.info("role started", started=role)

    async def _follow_spaces(self, agent: Agent, publisher: Publisher, watch: SpaceWatch) -> None:
        """Tell a role of the spaces that are kept and served, now and when they change."""
        encoders = self._made(self.encoders)
        spaces = None
        if isinstance(agent, CatalogueAgent):
            spaces = self._beside = CatalogueSpaces(
                self.settings, publisher, self.metrics, encoders=encoders, first=agent
            )
        try:
            async for control in watch.changes():
                if spaces is not None:
                    await spaces.spaces_changed(control)
                elif isinstance(agent, RankerAgent):
                    agent.serve(served_space(control))
                elif isinstance(agent, InteractionsAgent):
                    self._made(self.replica).spaces_changed(control)
        finally:
            if spaces is not None:
                await spaces.stop()

    async def _agent(self, role: Role, publisher: Publisher, redis: RedisClient, watch: SpaceWatch) -> Agent:
        settings, metrics, encoders = self.settings, self.metrics, self._made(self.encoders)
        live = served_space(watch.control)
        if role == "items":
            return ItemsAgent(settings, publisher, metrics)
        if role == "ranker":
            return RankerAgent(
                settings, publisher, metrics, space=live.space, dimensions=live.dimensions, number=live.number
            )
        if role == "catalogue":
            first = [one for one in watch.control.spaces if one.number == 0]
            try:
                pool = encoders.pool(first[0], CATALOGUE) if first else None
            except SettingsError as error:
                raise SettingsError(
                    f"space 0 is kept, and its model cannot be used: {error}; put it back, or where another space is "
                    "served, retire it: tailrace spaces retire 0"
                ) from error
            if pool is not None and not pool.started:
                await pool.start()
            return CatalogueAgent(settings, publisher, metrics, pool)
        self.replica = replica = Replica(
            settings, metrics, space=live.space, dimensions=live.dimensions, control=watch.control
        )
        await replica.start()
        self._stack.push_async_callback(replica.stop)
        await self._caught_up(replica)
        serving = replica.serving
        if replica.live != live:
            await encoders.release(live.space, role)
        self._users = users = UserStore(redis, settings, metrics)
        agent = InteractionsAgent(
            settings,
            publisher,
            metrics,
            users=users,
            stage=UserStage(settings, serving, Recommender(settings, serving)),
            serving=serving,
            pool=encoders.pool(replica.live, role),
            rebuilds=SlateRebuilds(redis, settings),
        )
        replica.prepare = self._prepare
        replica.exclusively = agent.alone
        replica.on_cut_over = self._on_cut_over(agent)
        replica.on_withdrawn = agent.withdraw
        replica.on_arrived = agent.arrive
        return agent

    @staticmethod
    async def _caught_up(replica: Replica) -> None:
        ready = asyncio.ensure_future(replica.ready.wait())
        parts: list[asyncio.Future[Any]] = [ready, replica.failed]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            if replica.failed.done():
                replica.failed.result()
        finally:
            ready.cancel()

    async def _prepare(self, space: ModelSpace) -> None:
        """The model is here and, where texts were embedded before, ready to embed more."""
        encoders, replica = self._made(self.encoders), self._made(self.replica)
        await encoders.describe(space)
        pool = encoders.pool(space, "interactions")
        if encoders.pool(replica.live, "interactions").started and not pool.started:
            await pool.start()
        if pool.started:
            await pool.ready()

    def _on_cut_over(self, agent: InteractionsAgent) -> Callable[[ModelSpace], None]:
        encoders, live = self._made(self.encoders), self._made(self.replica).live

        def cut_over(space: ModelSpace) -> None:
            nonlocal live
            agent.use(encoders.pool(space, agent.role))
            encoders.serve(space.space)
            self._dropping = asyncio.create_task(encoders.release(live.space, agent.role))
            live = space

        return cut_over

    @staticmethod
    def _made(part: _Part | None) -> _Part:
        assert part is not None  # noqa: S101 - made before anything that asks for it
        return part

    async def _watch_encoders(self, encoders: Encoders, watch: SpaceWatch) -> None:
        """Until the encoders of the space that is served have given up: without them what people say counts for
        nothing, and started again the process says why."""
        while True:
            live = self.replica.live.space if self.replica is not None else watch.control.serving
            pool = encoders.held(live)
            if pool is not None and pool.error is not None and encoders.held(live) is pool:
                raise pool.error
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _watch(self, watch: SpaceWatch) -> None:
        """Until a part fails."""
        parts: list[asyncio.Future[None]] = [agent.failed for agent in self.agents]
        parts += [watch.failed, *self._following, *self._watching]
        if self.replica is not None:
            parts.append(self.replica.failed)
        await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for watching in self._watching:
            if watching.done() and (error := watching.exception()) is not None:
                raise TailraceError(f"health cannot be looked at: {type(error).__name__}: {error}") from error
        for part in (watch.failed, *self._following):
            if part.done() and (error := part.exception()) is not None:
                raise TailraceError(f"vector spaces and encoders: {type(error).__name__}: {error}") from error
        if self.replica is not None and self.replica.failed.done():
            self.replica.failed.result()
        for agent in self.agents:
            if agent.failed.done() and (error := agent.failed.exception()) is not None:
                raise TailraceError(f"the {agent.role} role failed: {type(error).__name__}: {error}") from error


async def _check_encoder(settings: Settings) -> None:
    """See that the model of the settings can be used before a broker is waited for, which may be for ever.

    Where a record says which spaces are kept, that counts, and the settings may name a model that is gone: only then
    the process goes on, and says so.

    Raises:
        SettingsError: when it cannot be used, and no record was found soon.
    """
    try:
        await asyncio.to_thread(describe_encoder, settings.encoder)
    except SettingsError as error:
        _log.error("the encoder's settings cannot be used", error=str(error))
        try:
            await read_control(settings, lambda: control_of(settings), patience_s=_RECORD_WITHIN_S)
        except TailraceError:
            raise error from None


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _warm_up(settings: Settings) -> None:
    """Compile, or read from the disk, what events need; in a thread, so that metrics and connections live meanwhile.

    A process told to stop does not wait for the thread. A failure costs only time: it is logged, and the functions are
    compiled when events need them.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[float] = loop.create_future()

    def finish(seconds: float, error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(seconds)
        else:
            done.set_exception(error)

    def work() -> None:
        seconds, error = 0.0, None
        try:
            seconds = warm_up(settings)
        except Exception as problem:
            error = problem
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(finish, seconds, error)

    threading.Thread(target=work, name="warm-up", daemon=True).start()
    try:
        _log.info("warmed up", seconds=round(await done, 2))
    except Exception:
        _log.warning("not warmed up: functions are compiled when events need them", exc_info=True)


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGINT and SIGTERM set ``stop``; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def handler(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handler, number)
