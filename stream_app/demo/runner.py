"""Running the demo: servers, worker processes, a shop that buys at a steady rate, and a board that shows it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka.structs import RecordMetadata

from schemas.messages import Interaction
from stream_app.datasets.dataset import Dataset
from stream_app.datasets.online_retail import load_online_retail
from stream_app.demo.client import ShopClient
from stream_app.demo.display import Board, Display
from stream_app.demo.scoreboard import Scoreboard
from stream_app.demo.traffic import Basket, baskets, with_visits
from stream_app.embedded import EmbeddedStack
from stream_app.embedded.stack import BrokerKind
from stream_app.embedded.worker import WorkerProcess
from stream_app.embedded.workspace import workspace
from stream_app.errors import EmbeddedStackError, TailraceError
from stream_app.settings import load_settings

__all__ = ["DemoOptions", "run_demo"]

_SETTLE_S = 20.0
"""After the last event, wait this long at most for its slate."""
_VISIT_AHEAD_S = 1.0
_REFRESH_S = 0.25


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """``seconds`` None runs until stopped or until the data set ends. ``workers``: interactions processes."""

    seconds: float | None = None
    rate: float = 100.0
    workers: int = 1
    broker: BrokerKind = "embedded"
    kafka_jars: Path | None = None


async def run_demo(options: DemoOptions, display: Display, stop: asyncio.Event) -> dict[str, Any]:
    """Run the demo; returns what ``--json`` writes.

    Everything it starts ends with it, also when it is killed.

    Raises:
        EmbeddedStackError: when a server or worker does not start; with its last output.
        TailraceError: when a worker ends in the middle.
    """
    began = time.perf_counter()
    dataset = load_online_retail()
    board = Board(Scoreboard(), items=len(dataset.items), seconds=options.seconds)
    async with contextlib.AsyncExitStack() as cleanup:
        display.say("Starting a broker and Redis on this machine (nothing leaves it) ...")
        board.stage = "starting the broker and Redis"
        display.show(board)
        directory = cleanup.enter_context(workspace())
        stack = EmbeddedStack(options.broker, directory=directory, kafka_jars=options.kafka_jars)
        await cleanup.enter_async_context(stack)
        settings = load_settings(**stack.settings_overrides(), topics={"prefix": "demo"})
        overrides = {
            **stack.settings_overrides(),
            "topics": {"prefix": "demo"},
            "replica": {"directory": "off"},
            "log": {"level": "warning"},
        }
        display.say(f"  Kafka {stack.kafka}   Redis {stack.redis}")
        display.say(f"Starting Tailrace: catalogue, items and ranker, {options.workers} x interactions ...")
        board.stage = "starting Tailrace"
        display.show(board)
        # The shop's events carry no text: an encoder of their own would only compete for the processor.
        lazily = {**overrides, "encoder": {"eager": False}}
        interactions = [
            WorkerProcess(["interactions"], overrides=lazily, directory=directory) for _ in range(options.workers)
        ]
        workers = [
            WorkerProcess(["catalogue", "items", "ranker"], overrides=overrides, directory=directory),
            *interactions,
        ]
        for worker in workers:
            cleanup.push_async_callback(worker.stop)
        starting = asyncio.gather(*(worker.start() for worker in workers))
        await _unless_stopped(starting, stop)
        if not stop.is_set():
            client = await cleanup.enter_async_context(ShopClient(settings))
            session = _Session(options, display, stop, board, dataset, client, workers, interactions, began)
            await session.run()
        board.stage = "stopping"
        display.show(board)
    return board.scoreboard.summary()


async def _unless_stopped(work: asyncio.Future[Any], stop: asyncio.Event) -> None:
    """Wait for ``work`` unless somebody wants to stop."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([work, stopping], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        stopping.cancel()
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, EmbeddedStackError):
                await work


@dataclass(slots=True)
class _Session:
    """One run against a started pipeline."""

    options: DemoOptions
    display: Display
    stop: asyncio.Event
    board: Board
    dataset: Dataset
    client: ShopClient
    workers: list[WorkerProcess]
    interactions: list[WorkerProcess]
    began: float

    async def run(self) -> None:
        """Catalogue and events in, slates out, until stopped; then wait for the last slates."""
        board = self.board
        board.stage = "live"
        reading = asyncio.create_task(self._read())
        showing = asyncio.create_task(self._show())
        catalogue = asyncio.create_task(self._send_catalogue())
        buying = asyncio.create_task(self._buy())
        stopping = asyncio.create_task(self.stop.wait())
        tasks: list[asyncio.Task[Any]] = [reading, showing, catalogue, buying, stopping]
        try:
            waiting: set[asyncio.Task[Any]] = set(tasks) - {catalogue}
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            buying.cancel()
            await asyncio.gather(buying, return_exceptions=True)
            board.stage = "waiting for the last slates"
            await self.client.flush()
            await self._settle()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.display.show(board)

    async def _send_catalogue(self) -> None:
        def sent() -> None:
            self.board.items_sent += 1

        await self.client.send_items(self.dataset.items, sent)

    async def _buy(self) -> None:
        """Open loop: each event has its time; lateness counts against freshness."""
        scoreboard, rate = self.board.scoreboard, self.options.rate
        ahead = max(1, int(rate * _VISIT_AHEAD_S))
        start = time.perf_counter()
        deadline = None if self.options.seconds is None else self.began + self.options.seconds
        schedule: Iterable[tuple[Basket, Interaction]] = with_visits(baskets(self.dataset.interactions), ahead=ahead)
        for number, (basket, event) in enumerate(schedule):
            due = start + number / rate
            if deadline is not None and due > deadline:
                return
            wait = due - time.perf_counter()
            if wait > 0.001:
                await asyncio.sleep(wait)
            elif number % 256 == 0:
                await asyncio.sleep(0)
            if event is not basket.visit:
                scoreboard.basket_begins(basket)

            def acknowledged(place: RecordMetadata, event: Interaction = event, due: float = due) -> None:
                scoreboard.sent(event, partition=place.partition, offset=place.offset, at=due)

            await self.client.send(event, acknowledged)

    async def _read(self) -> None:
        scoreboard = self.board.scoreboard
        async for slate, at in self.client.slates():
            scoreboard.received(slate, at=at, since_start=at - self.began)

    async def _settle(self) -> None:
        deadline = time.perf_counter() + _SETTLE_S
        while self.board.scoreboard.uncovered and time.perf_counter() < deadline:  # noqa: ASYNC110 - wakes nobody
            await asyncio.sleep(0.05)

    async def _show(self) -> None:
        board, scoreboard = self.board, self.board.scoreboard
        samples: deque[tuple[float, int, int]] = deque([(time.perf_counter(), 0, 0)], maxlen=20)
        ticks = 0
        while True:
            now = time.perf_counter()
            board.elapsed_s = now - self.began
            samples.append((now, scoreboard.events_in, scoreboard.slates_out))
            span = max(samples[-1][0] - samples[0][0], 1e-6)
            board.rate_in = (samples[-1][1] - samples[0][1]) / span
            board.rate_out = (samples[-1][2] - samples[0][2]) / span
            if ticks % 4 == 0:
                await self._ask_workers()
                p50, _ = scoreboard.freshness()
                board.history = [*board.history[-40:], 0.0 if p50 != p50 else p50]
            self.display.show(board)
            ticks += 1
            await asyncio.sleep(_REFRESH_S)

    async def _ask_workers(self) -> None:
        for worker in self.workers:
            if not worker.running:
                raise TailraceError(f"{worker.name} ended; its last output:\n{worker.output(40)}")
        found = await asyncio.gather(*(worker.metrics() for worker in self.workers))
        lag = letters = embedded = 0.0
        for samples in found:
            for sample, value in (samples or {}).items():
                name = sample.partition("{")[0]
                if name == "tailrace_consumer_lag" and "interactions" in sample:
                    lag += value
                elif name == "tailrace_dead_letters_total":
                    letters += value
                elif name == "tailrace_index_items":
                    embedded = max(embedded, value)
        self.board.lag, self.board.dead_letters, self.board.items_embedded = int(lag), int(letters), int(embedded)
