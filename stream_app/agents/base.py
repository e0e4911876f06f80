"""What every agent shares: its Faust app, its loop, and the rule that nothing escapes it.

Faust would restart an agent that raises, and the events it held would wait unacknowledged until the next
rebalance. So whatever an agent cannot handle ends the process through :attr:`Agent.failed`, and whoever runs
it starts it again; nothing was acknowledged, nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from stream_app.delivery.dead_letters import dead_letter
from stream_app.delivery.engine import batches, faust_app, has_joined, raw_topic, what_ended
from stream_app.delivery.gate import Gate
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.delivery.records import InRecord
from stream_app.delivery.retry import until_it_works
from stream_app.delivery.unpacking import TOO_LARGE_HEADER
from stream_app.errors import InvalidMessage, Unavailable
from stream_app.health.state import RoleSeen, StreamSeen
from stream_app.logs import get_logger
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.topics import Topics

__all__ = ["Agent"]

T = TypeVar("T")
_log = get_logger(__name__)
_LAG_EVERY_S = 1.0
_HAND_OVER_S = 3.0


class Agent(ABC):
    """One role's consumer of its topic, and of topics that go with it.

    Args:
        settings: of this process.
        publisher: started.
        metrics: of this process.

    Attributes:
        gate: in front of what it consumes; another may be given before it is started.
    """

    role: ClassVar[str]
    gathers: ClassVar[bool] = False
    """Nobody waits for the role: the broker lets its records gather for a moment."""

    def __init__(self, settings: Settings, publisher: Publisher, metrics: Metrics) -> None:
        self.settings = settings
        self.topics = Topics(settings)
        self.publisher = publisher
        self.metrics = metrics
        self.gate = Gate()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self.stopping = False
        self._app: Any = None
        self._long_work = ""

    @property
    @abstractmethod
    def topic(self) -> str:
        """Full name of the topic the agent consumes."""

    @property
    def group(self) -> str:
        """Name of the consumer group, without prefix: one per role."""
        return self.role

    @property
    def also(self) -> tuple[str, ...]:
        """Full names of further topics whose events :meth:`handle` gets in between."""
        return ()

    @property
    def most(self) -> int:
        """Events :meth:`handle` is given at a time, at most."""
        return self.settings.delivery.batch

    @property
    def more_topics(self) -> Mapping[str, Callable[[Sequence[Any]], Awaitable[None]]]:
        """Further topics (full names) of the same group, each with what :meth:`handle` is to the first. Topics with
        as many partitions are handed out together: whoever has a partition of one has that of the other."""
        return {}

    @property
    def patience_s(self) -> float:
        """For how long the settings may let a record wait unacknowledged though all is well (seconds)."""
        return self.settings.delivery.commit_interval_s

    @property
    def work(self) -> int:
        """Grows with work that shows before records are acknowledged."""
        return 0

    @property
    def busy(self) -> str:
        """Long work that records are waiting for; "" for none."""
        return self._long_work

    @abstractmethod
    async def handle(self, events: Sequence[Any]) -> None:
        """Process a natural batch of Faust events and acknowledge what is durable."""

    async def before_partitions_move(self) -> None:  # noqa: B027 - most have nothing under way
        """Partitions are about to be taken: finish what is under way, soon; the group waits. What is acknowledged when
        this returns is committed; what is acknowledged later does not count, and is delivered again."""

    async def partitions_changed(self) -> None:  # noqa: B027 - most hold nothing
        """Partitions were taken or given: drop what is held for them. Called before new events arrive."""

    async def hand_over(self) -> None:  # noqa: B027 - most hold nothing
        """Make durable and acknowledge what is held, before leaving the group. Bounded in time by the caller."""

    async def start(self) -> None:
        """Join the consumer group and begin; waits while the broker is away."""
        await until_it_works(
            self._join,
            what=f"Kafka at {self.settings.kafka}",
            transient=(KafkaConnectionError, OSError),
            settings=self.settings.delivery,
            metrics=self.metrics,
        )
        self._run("lag", self._watch_lag())

    async def _join(self) -> None:
        app = self._app = faust_app(self.settings, self.group, gathers=self.gathers, gate=self.gate)
        app.tailrace_before_moving = self.before_partitions_move
        app.tailrace_on_failure = self._failed_elsewhere(asyncio.get_running_loop())
        app.agent(raw_topic(app, self.topic, *self.also), name=f"tailrace.{self.role}", concurrency=1)(
            self._consumer(self.handle, self.most)
        )
        for name, handle in self.more_topics.items():
            app.agent(raw_topic(app, name), name=f"tailrace.{self.role}.{name}", concurrency=1)(
                self._consumer(handle, self.settings.delivery.batch)
            )
        app.on_partitions_revoked.connect(self._on_rebalance, weak=False)
        app.on_partitions_assigned.connect(self._on_rebalance, weak=False)
        try:
            await app.start()
        except BaseException:
            self._app = None
            with contextlib.suppress(Exception):  # it may have begun with nothing
                async with asyncio.timeout(_HAND_OVER_S):
                    await app.stop()
            raise

    async def stop(self) -> None:
        """Leave the group: acknowledged offsets are committed, everything else is somebody else's now."""
        self.stopping = True
        await self.before_partitions_move()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(_HAND_OVER_S):
                await self.hand_over()
        except Exception as error:  # whatever is not handed over is done again by the next owner
            _log.warning("not handed over", stage=self.role, error=f"{type(error).__name__}: {error}")
        if self._app is not None:
            await self._app.stop()
            self._app = None
            with contextlib.suppress(KeyError):  # nobody consumes any more, and nothing is behind
                self.metrics.lag.remove(self.group)
        if not self.failed.done():
            self.failed.cancel()

    def assignment(self) -> set[int]:
        """The partitions of the agent's topic that are this process's now."""
        app = self._app
        if app is None or app._consumer is None:
            return set()
        return {place.partition for place in app.consumer.assignment() if place.topic == self.topic}

    def lag(self) -> int:
        """Records between what was delivered to the agent and the end of its partitions, as last heard."""
        app = self._app
        if app is None or app._consumer is None:
            return 0
        behind = 0
        consumer = app.consumer
        for partition in list(consumer.assignment()):
            high = consumer.highwater(partition)
            read = consumer._read_offset.get(partition)
            if high is not None and read is not None:
                behind += max(0, high - read - 1)
        return behind

    def unfinished(self) -> int:
        """Records of the agent's topic whose effects are not committed yet, at most: what compaction removed counts.
        Unlike :meth:`lag` it includes what was delivered and waits in this process."""
        app = self._app
        if app is None or app._consumer is None:
            return 0
        consumer, unfinished = app.consumer, 0
        for place in list(consumer.assignment()):
            if place.topic != self.topic:
                continue
            high, committed = consumer.highwater(place), consumer._committed_offset.get(place)
            unfinished += max(0, (high or 0) - (committed or 0))
        return unfinished

    def places(self) -> list[TopicPartition]:
        """The partitions that are this process's now, of all topics of the group."""
        app = self._app
        if app is None or app._consumer is None or app.consumer._thread._consumer is None:
            return []
        return list(app.consumer.assignment())

    def seen(self, ends: Mapping[TopicPartition, int], *, counts: bool = True) -> RoleSeen:
        """What a look at the agent shows.

        Args:
            ends: where its partitions end, those that are known.
            counts: whether the process is there for it.
        """
        places = self.places()
        if self._app is None or self._app._consumer is None:
            return RoleSeen(name=self.group, counts=counts)
        names = dict.fromkeys((self.topic, *self.also), self.group)
        names.update((topic, f"{self.group} {self._short(topic)}") for topic in self.more_topics)
        streams = []
        for name in dict.fromkeys(names.values()):
            its = [place for place in places if names.get(place.topic) == name]
            streams.append(self._stream(name, its, ends))
        return RoleSeen(
            name=self.group,
            joined=has_joined(self._app),
            dead=what_ended(self._app),
            streams=tuple(streams),
            counts=counts,
        )

    def _short(self, topic: str) -> str:
        return topic.removeprefix(f"{self.settings.topics.prefix}.")

    def _stream(self, name: str, places: Sequence[TopicPartition], ends: Mapping[TopicPartition, int]) -> StreamSeen:
        unread = position = undone = done = 0
        for tp in places:
            place = self._app.consumer.place(tp)
            at = place.through if place.position is None else place.position
            unread += max(0, ends.get(tp, at) - at)
            position += at
            undone += place.undone
            done += place.through
        return StreamSeen(
            name=name,
            unread=unread,
            position=position,
            undone=undone,
            done=done,
            work=self.work,
            busy=self.busy,
            patience_s=self.patience_s,
        )

    @contextlib.contextmanager
    def long_work(self, what: str) -> Iterator[None]:
        """Records wait for something that may take minutes; not to be nested."""
        self._long_work = what
        try:
            yield
        finally:
            self._long_work = ""

    async def reading(self, attempt: Callable[[], Awaitable[T]], what: str) -> T:
        """The result of reading a topic to its end, from the beginning again when the broker goes away meanwhile."""
        return await until_it_works(
            attempt, what=what, transient=(Unavailable,), settings=self.settings.delivery, metrics=self.metrics
        )

    def letter(self, record: InRecord, error: InvalidMessage, *, attempts: int = 1) -> OutRecord:
        """The dead letter of a record; counted and logged here."""
        unpacked = [content for name, content in record.headers if name == TOO_LARGE_HEADER]
        if unpacked and record.key is record.value is None:
            error = InvalidMessage("too_large", unpacked[0].decode("utf-8", "replace"))
        self.metrics.dead_letters.labels(self.role, error.reason).inc()
        _log.info("dead letter", stage=self.role, at=record.place, reason=error.reason, detail=error.detail[:300])
        return dead_letter(
            record,
            error,
            topic=self.topics.dead_letter,
            stage=self.role,
            attempts=attempts,
            now=time.time(),
            max_message_bytes=self.settings.connection.max_message_bytes,
        )

    def _run(self, name: str, coroutine: Any) -> asyncio.Task[None]:
        """Run a background task whose failure is the agent's failure."""

        async def guarded() -> None:
            try:
                await coroutine
            except asyncio.CancelledError as error:
                self._look_who_cancelled(error)
                raise
            except BaseException as error:
                self._fail(error)

        task = asyncio.create_task(guarded(), name=f"{self.role}-{name}")
        self._tasks = [*(held for held in self._tasks if not held.done()), task]
        return task

    def _failed_elsewhere(self, loop: asyncio.AbstractEventLoop) -> Callable[[BaseException], None]:
        """:meth:`_fail` for any thread."""

        def fail(error: BaseException) -> None:
            with contextlib.suppress(RuntimeError):  # everything is ending
                loop.call_soon_threadsafe(self._fail, error)

        return fail

    def _fail(self, error: BaseException) -> None:
        _log.error("agent failed", stage=self.role, exc_info=error)
        if not self.failed.done():
            self.failed.set_exception(error)

    def _consumer(
        self, handle: Callable[[Sequence[Any]], Awaitable[None]], most: int
    ) -> Callable[[Any], Awaitable[None]]:
        async def consume(stream: Any) -> None:
            await self._consume(handle, stream, most)

        return consume

    async def _consume(self, handle: Callable[[Sequence[Any]], Awaitable[None]], stream: Any, most: int) -> None:
        try:
            async for events in batches(stream, most):
                self.metrics.events_in.labels(self.group).inc(len(events))
                self.metrics.batch_events.labels(self.group).observe(len(events))
                started = time.perf_counter()
                await handle(events)
                self.metrics.batch_seconds.labels(self.group, "all").observe(time.perf_counter() - started)
        except asyncio.CancelledError as error:
            self._look_who_cancelled(error)
            raise
        except BaseException as error:
            self._fail(error)

    def _look_who_cancelled(self, error: asyncio.CancelledError) -> None:
        """When it was not we but a library, from within: Faust would start the agent again behind the records it had,
        and what follows them would be taken for all there is; a task of ours would just be gone."""
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            self._fail(Unavailable(f"cancelled from within: {error!r}"))

    async def _on_rebalance(self, *_: Any, **__: Any) -> None:
        await self.partitions_changed()

    async def _watch_lag(self) -> None:
        while True:
            self.metrics.lag.labels(self.group).set(self.lag())
            await asyncio.sleep(_LAG_EVERY_S)
