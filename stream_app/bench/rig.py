"""A pipeline to measure: a broker and Redis, a made-up shop in them, and processes of Tailrace.

The shop is put where its owners would have put it: items, their vectors, the fitted space, statistics and learned
factors into the topics, states into Redis, and the events of the histories into ``interactions.v1``, where the first
process passes them over because the states know them. So users have a past within seconds. The item vectors are drawn,
not embedded, and go straight into ``item-vectors.v1``: the catalogue role does not run here, and nothing else differs
from production.

On a cluster of somebody's own everything has a prefix of its own, and is removed at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from stream_app.bench.child import Child, Progress, child
from stream_app.bench.load import LoadJob
from stream_app.bench.publish import answering, publish_past, remove_past
from stream_app.bench.shop import MadeUpPast, ShopPlan, made_up_past
from stream_app.embedded.stack import EmbeddedStack
from stream_app.embedded.worker import WorkerProcess
from stream_app.embedded.workspace import workspace
from stream_app.errors import Unavailable
from stream_app.settings import KafkaSettings, Settings, load_settings
from workers.models import describe_model

__all__ = ["Rig", "Where", "rig"]

_OF_THE_STACK: Final = frozenset({"kafka", "redis", "connection", "metrics"})
"""Settings that are decided here; all others are those of the caller."""
_START_PATIENCE_S: Final = 1_200.0
"""A process with a large catalogue reads it for minutes."""


@dataclass(frozen=True, slots=True)
class Where:
    """Which broker and Redis.

    Attributes:
        broker: started here: ``embedded`` or ``kafka``; None: those below.
        kafka: bootstrap servers of a cluster that is there.
        redis: URL of a Redis that is there.
    """

    broker: Literal["embedded", "kafka"] | None = "embedded"
    kafka: str = ""
    redis: str = ""

    @property
    def name(self) -> str:
        """For results."""
        return self.broker or "given"


@dataclass(slots=True)
class Rig:
    """A broker and Redis with the shop in them; see :func:`rig`.

    Attributes:
        settings: of clients.
        overrides: settings of processes, as for ``load_settings``.
        directory: where processes run; removed at the end.
        past: the shop.
        sent: events that were sent so far; the next has this number.
        stack: broker and Redis, where they were started here.
    """

    settings: Settings
    overrides: dict[str, Any]
    directory: Path
    past: MadeUpPast
    sent: int
    on_progress: Progress
    stack: EmbeddedStack | None = None

    @property
    def plan(self) -> ShopPlan:
        return self.past.plan

    @asynccontextmanager
    async def worker(self, roles: Sequence[str], **overrides: Any) -> AsyncIterator[WorkerProcess]:
        """A process of Tailrace, ready; stopped at the end of the context."""
        process = self.process(roles, **overrides)
        try:
            await process.start()
            yield process
        finally:
            await process.stop()

    def process(self, roles: Sequence[str], **overrides: Any) -> WorkerProcess:
        """The same, not started."""
        process = WorkerProcess(roles, overrides={**self.overrides, **overrides}, directory=self.directory)
        process.start_timeout_s = _START_PATIENCE_S
        return process

    @asynccontextmanager
    async def load(self, count: int, *, rate: float | None, patience_s: float) -> AsyncIterator[Child]:
        """The load generator, at work on the next ``count`` events of the shop."""
        job = LoadJob(plan=self.plan, first=self.sent, count=count, rate=rate, patience_s=patience_s)
        left = self.plan.past + self.plan.events - self.sent
        if count > left:
            raise ValueError(f"the shop has {left} events left; {count} are asked for")
        self.sent += count
        async with child(
            "stream_app.bench.load", job, overrides=self.overrides, on_progress=self.on_progress
        ) as running:
            yield running

    async def loaded(
        self, count: int, *, rate: float | None = None, patience_s: float = 60.0, workers: Sequence[WorkerProcess] = ()
    ) -> dict[str, Any]:
        """Send the next ``count`` events, and wait for their slates; the figures of ``stream_app.bench.load``.

        Raises:
            TailraceError: when the generator fails, or one of ``workers`` ends meanwhile; with its output.
        """
        async with self.load(count, rate=rate, patience_s=patience_s) as running:
            figures = await running.result()
        for worker in workers:
            self.must_run(worker)
        return figures

    @staticmethod
    def must_run(worker: WorkerProcess) -> None:
        """
        Raises:
            Unavailable: when the process has ended; with its output.
        """
        if not worker.running:
            raise Unavailable(f"{worker.name} ended during the benchmark:\n{worker.output(40)}")


@asynccontextmanager
async def rig(settings: Settings, where: Where, plan: ShopPlan, *, on_progress: Progress) -> AsyncIterator[Rig]:
    """Have a broker and Redis with the shop in them; what was started here ends with the context.

    Args:
        settings: of the caller; where a cluster is given, how to speak to it is taken from them.
        where: the broker and Redis.
        plan: of the shop; space, dimensions and partitions are those of the settings.

    Raises:
        Unavailable: when a broker or Redis does not answer.
    """
    async with contextlib.AsyncExitStack() as cleanup:
        directory = cleanup.enter_context(workspace())
        given: dict[str, Any] = settings.model_dump(mode="json", exclude=set(_OF_THE_STACK))
        prefix = f"bench-{uuid.uuid4().hex[:10]}"
        overrides: dict[str, Any] = {
            **given,
            "topics": {**given["topics"], "prefix": prefix, "create": True},
            "replica": {**given["replica"], "directory": "off"},
            "log": {**given["log"], "level": "warning"},
            # The slate of every event is waited for, however fast those of a hot user come.
            "users": {**given["users"], "events_per_s": 0},
            # No event here has a text: the model would take memory and half a minute of a core for nothing.
            "encoder": {**given["encoder"], "eager": False},
        }
        stack: EmbeddedStack | None = None
        if where.broker is None:
            overrides |= {"kafka": where.kafka, "redis": where.redis, "connection": _revealed(settings.connection)}
        else:
            stack = await cleanup.enter_async_context(EmbeddedStack(where.broker, directory=directory))
            overrides |= stack.settings_overrides()
        ours = load_settings(**overrides)
        model = describe_model(ours.encoder)
        plan = _on_the_wire(plan, model.space, model.dimensions, ours.topics.partitions)
        if where.broker is None:
            await answering(ours)
        past = await asyncio.to_thread(made_up_past, ours, plan, on_progress=on_progress)
        if where.broker is None:
            cleanup.push_async_callback(remove_past, ours, past)
        await publish_past(ours, past, on_progress=on_progress)
        yield Rig(ours, overrides, directory, past, plan.past, on_progress, stack)


def _on_the_wire(plan: ShopPlan, space: str, dimensions: int, partitions: int) -> ShopPlan:
    """The same shop in the space of the model and on the topic's partitions, its last event just now."""
    return msgspec.structs.replace(
        plan, space=space, dimensions=dimensions, partitions=partitions, starts_at=time.time() - plan.span_s
    )


def _revealed(connection: KafkaSettings) -> dict[str, Any]:
    """The group with its password, for processes of ours."""
    given: dict[str, Any] = connection.model_dump(mode="json")
    if connection.password is not None:
        given["password"] = connection.password.get_secret_value()
    return given
