"""The same evaluation over a real broker: live processes are sent the log, and what they publish is tested.

For every basket, in order of time: the user's visit is sent, the slate it causes is awaited, the basket is tested
against that slate, then its events are sent. A visit says only that the user is there now, which is what a replay in
process knows when it ranks. The next basket follows when what was learned of this one has been broadcast.

Broker, Redis and processes run on this machine and end with the evaluation.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from schemas.messages import Interaction, Item, Slate
from stream_app.demo.client import ShopClient
from stream_app.demo.traffic import Basket, baskets
from stream_app.embedded.stack import BrokerKind, EmbeddedStack
from stream_app.embedded.worker import WorkerProcess
from stream_app.embedded.workspace import workspace
from stream_app.errors import Unavailable
from stream_app.evaluation.effects import Effects
from stream_app.evaluation.ledger import MAX_DEPTH, Ledger, without
from stream_app.evaluation.metrics import DEPTH
from stream_app.evaluation.prequential import Outcome
from stream_app.settings import Settings, load_settings

__all__ = ["Pipeline", "live_outcome", "pipeline", "settings_for_workers"]

_PATIENCE_S: Final = 120.0
"""A slate that is not there by then ends the evaluation."""
_WINDOW: Final = 1
"""Two at a time take nine tenths of the time, and a slate then knows nothing of the basket before."""
_PROCESSED_S: Final = 1.0
"""A last event that causes no slate (of a type that refreshes none) is taken as processed after so long."""
_LEARNED_S: Final = 5.0
"""What is not broadcast by then (an event that says nothing any more, say) is not waited for."""
_BEHIND_S: Final = 0.002
"""Slates and examples of a batch are published together, on two topics: one may be read so much sooner."""
_LINGER_MS: Final = 3
"""A basket arrives as one: otherwise each of its events would cause a slate that nobody looks at."""
_REPORT_EVERY: Final = 100
_BROADCAST_S: Final = 0.02
_BROADCAST_ROWS: Final = 10_000
_FACTORS_S: Final = 10.0
"""One basket moves half of a small catalogue's factors. Those it names are broadcast at once; the others hardly moved,
and broadcasting them each time is what would take longest."""
_MOST_FIRST_ITEMS: Final = 1_000_000
_OF_THE_STACK: Final = frozenset({"kafka", "redis", "connection", "topics", "replica", "metrics", "log", "delivery"})
"""Settings that the evaluation decides itself; all others are those of the caller."""


@dataclass
class Pipeline:
    """A running pipeline: a client, the processes, their settings, and what is closed before they end."""

    client: ShopClient
    interactions: list[WorkerProcess]
    others: list[WorkerProcess]
    settings: Settings
    cleanup: contextlib.AsyncExitStack

    def check(self) -> None:
        """Whether every process runs.

        Raises:
            Unavailable: when one has ended; with its last output.
        """
        for worker in (*self.others, *self.interactions):
            if not worker.running:
                raise Unavailable(f"{worker.name} ended during the evaluation:\n{worker.output(40)}")

    async def load(
        self, items: Sequence[Item], on_progress: Callable[[int], None] = lambda _: None, *, whitened: bool = False
    ) -> None:
        """Send the catalogue, and wait until all can be recommended, with ``whitened`` in a space fitted to it."""
        await self.client.send_items(items)
        while (known := await self.interactions[-1].metric("tailrace_index_items") or 0) < len(items):
            self.check()
            on_progress(int(known))
            await asyncio.sleep(0.2)
        while whitened and not await self.interactions[-1].metric("tailrace_space_version"):
            self.check()
            await asyncio.sleep(0.2)
        on_progress(len(items))


@asynccontextmanager
async def pipeline(
    *,
    broker: BrokerKind = "embedded",
    workers: int = 1,
    prefix: str = "bench",
    linger_ms: int = 0,
    **overrides: Any,
) -> AsyncIterator[Pipeline]:
    """Start broker, Redis and processes; stop everything at the end.

    Args:
        broker: ``embedded`` or ``kafka``.
        workers: processes that take interactions.
        prefix: of the topics.
        linger_ms: how long the client's events wait for others to travel with.
        overrides: settings of the processes.
    """
    async with contextlib.AsyncExitStack() as cleanup:
        directory: Path = cleanup.enter_context(workspace())
        stack = await cleanup.enter_async_context(EmbeddedStack(broker, directory=directory))
        common = {
            **stack.settings_overrides(),
            "topics": {"prefix": prefix},
            "replica": {"directory": "off"},
            "log": {"level": "warning"},
            **overrides,
        }
        lazily = {**common, "encoder": {**common.get("encoder", {}), "eager": False}}
        interactions = [WorkerProcess(["interactions"], overrides=lazily, directory=directory) for _ in range(workers)]
        others = [WorkerProcess(["catalogue", "items", "ranker"], overrides=common, directory=directory)]
        for worker in (*others, *interactions):
            cleanup.push_async_callback(worker.stop)
        await asyncio.gather(*(worker.start() for worker in (*others, *interactions)))
        settings = load_settings(**common)
        client = await cleanup.enter_async_context(ShopClient(settings, linger_ms=linger_ms))
        running = Pipeline(client, interactions, others, settings, cleanup)
        yield running
        running.check()


def settings_for_workers(settings: Settings, *, slate_size: int, items: int) -> dict[str, Any]:
    """The caller's settings as overrides for processes that take a log much faster than it happened.

    Slates are as long as tests need them, any event time is accepted, and what is learned is broadcast at once: a
    second of an evaluation is hours of the log. The space is fitted once, to all ``items``, as in process, and not
    while they arrive.
    """
    given: dict[str, Any] = settings.model_dump(mode="json", exclude=set(_OF_THE_STACK))
    given["slate"] = {**given["slate"], "size": slate_size}
    given["events"] = {**given["events"], "oldest": "0001-01-01T00:00:00Z", "future_tolerance_s": 31_536_000.0}
    given["items"] = {**given["items"], "flush_interval_s": _BROADCAST_S, "flush_rows": _BROADCAST_ROWS}
    given["factors"] = {
        **given["factors"],
        "flush_interval_s": _FACTORS_S,
        "named_interval_s": _BROADCAST_S,
        "flush_rows": _BROADCAST_ROWS,
    }
    first = max(given["spaces"]["first_items"], min(items, _MOST_FIRST_ITEMS))
    given["spaces"] = {**given["spaces"], "first_items": first, "check_interval_s": 0.1}
    given["ranker"] = {**given["ranker"], "publish_interval_s": _BROADCAST_S}
    return given


@dataclass(slots=True)
class _Board:
    """Slates that somebody waits for, by the event that causes them."""

    waiting: dict[str, asyncio.Future[Slate]] = field(default_factory=dict)

    def expect(self, event_id: str) -> asyncio.Future[Slate]:
        """The slate that this event will cause."""
        future = self.waiting[event_id] = asyncio.get_running_loop().create_future()
        return future

    async def follow(self, client: ShopClient) -> None:
        """Read slates for ever."""
        async for slate, _ in client.slates():
            future = self.waiting.pop(slate.trigger.event_id or "", None)
            if future is not None and not future.done():
                future.set_result(slate)


async def live_outcome(
    items: Sequence[Item],
    interactions: Sequence[Interaction],
    settings: Settings,
    *,
    broker: BrokerKind,
    train_share: float = 0.1,
    window: int = _WINDOW,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> tuple[Outcome, float]:
    """Evaluate over a broker, with the streaming protocol; the outcome, and the seconds the log took.

    Args:
        items: the catalogue. Dates of publication and expiry act against today's clock live, so expired ones are
            sent without.
        interactions: in order of time.
        settings: of the processes; what concerns the broker is set here.
        broker: ``embedded`` or ``kafka``.
        train_share: share of the events, from the first, that only train.
        window: baskets of different users that may be under way at a time; with more than one a slate may know a
            little less of the other users than in process.
        on_progress: told what is being done, how much of it is done, and of how much.

    Raises:
        Unavailable: when a slate does not come, or a process ends.
    """
    rows = {item.item_id: row for row, item in enumerate(items)}
    consuming = all(settings.event_types[event.type].consumes for event in interactions if event.item_id)
    size = DEPTH if consuming else 2 * DEPTH
    ledger = Ledger(settings, lambda item_id: rows.get(item_id, -1), len(rows))
    overrides = settings_for_workers(settings, slate_size=min(size, MAX_DEPTH), items=len(items))
    total, done, tested_from = len(interactions), 0, int(len(interactions) * train_share)
    board = _Board()
    async with pipeline(broker=broker, prefix="evaluation", linger_ms=_LINGER_MS, **overrides) as running:
        await running.load(
            [msgspec.structs.replace(item, expires_at=None) for item in items],
            lambda known: on_progress("items", known, len(items)),
            whitened=settings.spaces.whiten and len(items) >= settings.spaces.first_items,
        )
        effects = await running.cleanup.enter_async_context(Effects(running.settings))
        following = asyncio.create_task(board.follow(running.client))
        started = time.perf_counter()

        async def shop(basket: Basket, first: int) -> None:
            slate = await _visit(running, board, basket)
            tests = ledger.tests(basket.events, at=basket.visit.occurred_at.timestamp(), counted=first >= tested_from)
            if tests is not None:
                published = [rows[item.item_id] for item in slate.items if item.item_id in rows]
                ledger.slates.add_slate(without(np.array(published, np.int32), tests.had), tests.rows)
            ledger.remember(basket.events)
            places: list[tuple[int, int]] = []
            processed = board.expect(basket.events[-1].event_id)
            for event in basket.events:
                await running.client.send(event, lambda place: places.append((place.partition, place.offset)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(processed, _PROCESSED_S)
            await asyncio.sleep(_BEHIND_S)
            if not await effects.of(places, patience_s=_LEARNED_S):
                running.check()

        under_way: dict[str, asyncio.Task[None]] = {}
        order: deque[str] = deque()
        try:
            for number, basket in enumerate(baskets(islice(interactions, total))):
                earlier = under_way.pop(basket.user_id, None)
                if earlier is not None:
                    order.remove(basket.user_id)
                    await earlier
                while len(under_way) >= window:
                    await under_way.pop(order.popleft())
                under_way[basket.user_id] = asyncio.create_task(shop(basket, done))
                order.append(basket.user_id)
                done += len(basket.events)
                if number % _REPORT_EVERY == 0:
                    on_progress("live", done, total)
            await asyncio.gather(*under_way.values())
            await running.client.flush()
            seconds = time.perf_counter() - started
        finally:
            for task in (following, *under_way.values()):
                task.cancel()
            await asyncio.gather(following, *under_way.values(), return_exceptions=True)
        on_progress("live", total, total)
    return (
        Outcome(
            events=total,
            items=len(rows),
            maturity=ledger.maturity,
            at=ledger.at,
            cold=ledger.cold,
            slates=ledger.slates,
            untested=dict(ledger.untested),
        ),
        seconds,
    )


async def _visit(running: Pipeline, board: _Board, basket: Basket) -> Slate:
    """Announce the user, and wait for the slate that this causes."""
    visit = basket.visit
    future = board.expect(visit.event_id)
    await running.client.send(visit, lambda _place: None)
    try:
        return await asyncio.wait_for(future, _PATIENCE_S)
    except TimeoutError:
        running.check()
        raise Unavailable(
            f"no slate for user {visit.user_id!r} within {_PATIENCE_S:.0f} s of the visit {visit.event_id!r}:\n"
            f"{running.interactions[0].output(40)}"
        ) from None
