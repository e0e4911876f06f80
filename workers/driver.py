"""One encoder process kept running and busy: the pool has a driver per process.

A batch is formed from what waits at the moment the process has room (no timer: a lone text goes at once, a full line
goes in full batches). A process computes as many batches as it has lanes, and has one of the catalogue's beyond that,
so that it never waits for this side; urgent ones have room of their own (:mod:`workers.lanes`). What happens to the
process is dealt with here:

* It ends in mid-batch, or does not answer in time: it is started again and the texts of its batches are tried again,
  one at a time, so that each answers for itself; urgent ones go in between. One that ends two processes so, alone, is
  poison: who asks for it gets :class:`PoisonText`, everybody else their vectors.
* The batch does not fit the device's memory: it is halved, and this process gets no larger ones from then on.
* It cannot be started: tried again with growing waits, callers wait meanwhile (back-pressure). If none of the pool ever
  started, or the process says several times that it cannot work as configured and no other works, the driver gives up.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from stream_app.errors import PoisonText, SettingsError, Unavailable
from stream_app.logs import get_logger
from stream_app.settings import EncoderSettings
from workers.batching import tokens_at_once
from workers.child import ChildDied, EncoderChild
from workers.frames import Configure, Ready
from workers.waiting import DEATHS_ALONE, Batch, Priority, WaitingTexts

__all__ = ["Driver", "PoolStats", "fair_threads"]

_log = get_logger(__name__)

START_ATTEMPTS = 3
"""Tries of the very first start before giving up. Once a process was ready, starts are tried for ever."""
BACKOFF_MIN_S = 0.25
BACKOFF_MAX_S = 30.0
_CATALOGUE_TOKENS = 4
"""A batch of the catalogue has so many times the tokens that are computed at once: here lengths are estimates, and the
process, which counts, finds texts of equal length among them. An urgent one has them once: more go to another lane."""
_AHEAD = 1
_URGENT = (Priority.QUERY, Priority.EVENT)
SHOWN_CHARS = 80
"""Of a text, in the error that names it."""


@dataclass(slots=True)
class PoolStats:
    """Counts since the pool was made, for metrics.

    ``batch_sizes`` maps a size to how often it occurred. ``seconds_encoding`` is what each process (by index) computed,
    summed over its lanes. ``tokens_computed`` counts padding, ``tokens_read`` does not. ``texts_late`` were not encoded
    by their deadline.
    """

    texts_encoded: int = 0
    texts_shared: int = 0
    batches: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)
    restarts: int = 0
    poison_texts: int = 0
    memory_failures: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    texts_late: int = 0
    tokens_read: int = 0
    tokens_computed: int = 0
    seconds_encoding: dict[int, float] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Use:
    """A process at work: the most it is given at once, and what it was given."""

    child: EncoderChild
    most: int
    tokens: int
    done: int = 0
    tokens_read: int = 0
    tokens_computed: int = 0
    urgent_last: bool = False
    """Whether the last batch went ahead of texts that are to be alone."""
    running: dict[asyncio.Task[None], Batch] = field(default_factory=dict)

    @property
    def urgent(self) -> int:
        return sum(batch.priority in _URGENT for batch in self.running.values())

    @property
    def others(self) -> int:
        return len(self.running) - self.urgent

    @property
    def alone(self) -> bool:
        """Whether it has a batch that must be the only one."""
        return any(batch.suspect for batch in self.running.values())

    def start(self, work: Coroutine[Any, Any, None], batch: Batch) -> None:
        batch.beside_others = bool(self.running)
        for other in self.running.values():
            other.beside_others = True
        self.running[asyncio.create_task(work)] = batch

    def end(self, task: asyncio.Task[None]) -> None:
        """Raises what ended the task."""
        del self.running[task]
        task.result()


class Driver:
    """See the module. ``child`` is the process while it is ready. ``free`` are the drivers (by index) whose processes
    could begin a batch at once, ``failing`` those that could start none for :data:`START_ATTEMPTS` times in a row; the
    drivers of a pool share them. ``on_ready`` is told what each process says when it is ready, ``on_poison`` of a text
    that is given up, by its hash."""

    def __init__(
        self,
        index: int,
        *,
        settings: EncoderSettings,
        space: str,
        command: Sequence[str],
        waiting: WaitingTexts,
        stats: PoolStats,
        ready: asyncio.Event,
        free: set[int],
        failing: set[int],
        on_ready: Callable[[Ready], None],
        on_poison: Callable[[str, PoisonText], None],
    ) -> None:
        self.child: EncoderChild | None = None
        self.share = 1.0
        """Share of its time that the process may compute for the catalogue, above 0 to 1."""
        self.processes = 1
        """Of the pool, which share the processor's cores."""
        self._on_ready = on_ready
        self._on_poison = on_poison
        self._rests_until = 0.0
        self._index = index
        self._settings = settings
        self._space = space
        self._command = command
        self._waiting = waiting
        self._stats = stats
        self._ready = ready
        self._free = free
        self._failing = failing
        self._device: str | None = None
        self._lanes = 1  # until a process is ready and says how many it has

    async def run(self) -> None:
        """Start processes and feed them until cancelled; then the process is ended.

        Raises:
            SettingsError: when the process says that it cannot work as configured, and none ever did, or none of the
                pool can any more.
            Unavailable: when no process of the pool could be started.
        """
        failures = 0  # starts and processes that came to nothing, one after the other
        while True:
            try:
                child = await self._start()
            except (Unavailable, OSError, SettingsError) as error:
                failures += 1
                if failures >= START_ATTEMPTS:
                    self._failing.add(self._index)
                # What worked before may work again: the device has no room just now, the folder is not mounted. And
                # of several devices one that never works is no reason to give up the others, one being loaded included.
                worked = self._ready.is_set() and len(self._failing) < self.processes
                if isinstance(error, SettingsError) and not worked:
                    raise
                _log.warning("encoder not started", index=self._index, failures=failures, error=str(error))
                if failures >= START_ATTEMPTS and not self._ready.is_set():
                    raise Unavailable(f"no encoder process could be started, last: {error}") from error
            else:
                self._failing.discard(self._index)
                useful = await self._use(child)
                failures = 0 if useful else failures + 1
                self._stats.restarts += 1
            await asyncio.sleep(_backoff_s(failures))

    async def _start(self) -> EncoderChild:
        settings = self._settings
        child = await EncoderChild.start(
            self._command,
            Configure(
                model=settings.model,
                pooling=settings.pooling,
                dimensions=settings.dimensions,
                query_prefix=settings.query_prefix,
                document_prefix=settings.document_prefix,
                device=settings.device,
                precision=settings.precision,
                max_tokens=settings.max_tokens,
                threads=settings.threads or fair_threads(self.processes),
                batch=settings.batch,
                batch_tokens=settings.batch_tokens,
                nice=settings.nice,
                index=self._index,
                compile=settings.compile,
            ),
            timeout_s=settings.start_timeout_s,
        )
        if child.ready.space != self._space:
            await child.kill()
            raise SettingsError(f"an encoder process has vector space {child.ready.space}, the pool {self._space}")
        return child

    async def _use(self, child: EncoderChild) -> bool:
        """Feed ``child`` until it dies. Returns whether it encoded anything."""
        ready = child.ready
        _log.info(
            "encoder ready",
            index=self._index,
            pid=child.pid,
            device=ready.device,
            precision=ready.precision,
            load_s=round(ready.load_s, 2),
        )
        if self._device not in (None, ready.device):
            _log.warning("encoder on another device than before", before=self._device, now=ready.device)
        self._device = ready.device
        self._lanes = ready.lanes
        self.child = child
        self._on_ready(ready)
        self._ready.set()
        tokens = self._settings.batch_tokens or tokens_at_once(ready.device)
        use = _Use(child, most=self._settings.batch, tokens=tokens)
        try:
            while True:
                now = self._now()
                while (batch := self._next_batch(use, now)) is not None:
                    use.start(self._encode(use, batch), batch)
                    # The other processes' turn: they may have nothing to do.
                    await asyncio.sleep(0)
                    now = self._now()
                await self._something_happens(use, now)
        except ChildDied as death:
            _log.warning("encoder ended", index=self._index, pid=child.pid, batches=use.done, reason=str(death))
            return use.done > 0
        finally:
            self.child = None
            self._free.discard(self._index)
            # Each batch under way is put back.
            if use.running:
                await child.kill()
            await asyncio.gather(*use.running, return_exceptions=True)
            await child.reap()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _next_batch(self, use: _Use, now: float) -> Batch | None:
        """What ``use``'s process is to be sent at ``now``; None: nothing, for now."""
        if use.child.ended.done():
            raise ChildDied(f"exit code {use.child.ended.result()}")
        self._free.discard(self._index)
        if use.alone:
            return None
        if self._waiting.suspects:
            # What may have ended a process has the next for itself. Who is in a hurry waits for one of these texts at
            # most, and not for hundreds.
            if use.running:
                return None
            if not use.urgent_last and (batch := self._waiting.take(use.most, use.tokens, _URGENT)) is not None:
                use.urgent_last = True
                return batch
            use.urgent_last = False
            if (batch := self._waiting.take_suspect()) is not None:
                return batch
        lanes = self._lanes
        if use.urgent <= lanes and (batch := self._waiting.take(use.most, use.tokens, _URGENT)) is not None:
            return batch
        if self.share < 1.0:
            return self._bounded_batch(use, now)
        if use.others < lanes:
            self._free.add(self._index)
        elif use.others >= lanes + _AHEAD or self._free:
            # One more lies ready in the process, unless another process could begin with it at once.
            return None
        return self._waiting.take(use.most, _CATALOGUE_TOKENS * use.tokens, (Priority.CATALOGUE,))

    def _bounded_batch(self, use: _Use, now: float) -> Batch | None:
        """The catalogue's next batch for a process that may compute only a share of its time: on a share of its lanes,
        and where that is less than one, with rests in between. Nothing is sent ahead."""
        if use.others >= self._lanes_allowed or now < self._rests_until:
            return None
        return self._waiting.take(use.most, use.tokens, (Priority.CATALOGUE,))

    @property
    def _lanes_allowed(self) -> int:
        return max(1, int(self.share * self._lanes))

    def _rest_after(self, seconds: float) -> None:
        """A batch of the catalogue was computed for so long."""
        busy = min(1.0, self.share * self._lanes / self._lanes_allowed)
        if busy < 1.0:
            self._rests_until = self._now() + seconds * (1.0 - busy) / busy

    async def _something_happens(self, use: _Use, now: float) -> None:
        """Until a text comes, a batch is done, a rest is over that was not at ``now``, or the process ends.

        Raises:
            ChildDied: when a batch was with a process that ended.
        """
        parts: list[asyncio.Future[Any]] = [self._waiting.change(), use.child.ended, *use.running]
        # Not by the clock of this moment: a rest that ended since would end nothing, and texts would wait for ever.
        rest_s = self._rests_until - now
        timeout_s = max(rest_s, 0.001) if self._waiting.length(Priority.CATALOGUE) and rest_s > 0 else None
        await asyncio.wait(parts, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in use.running if task.done()]:
            use.end(task)

    async def _encode(self, use: _Use, batch: Batch) -> None:
        """Have the process encode ``batch``. Too large for the device, it waits again in parts."""
        texts = len(batch.tickets)
        try:
            vectors, said = await use.child.encode(
                [ticket.text for ticket in batch.tickets],
                urgent=batch.priority in _URGENT,
                timeout_s=self._settings.batch_timeout_s,
            )
        except MemoryError as error:
            self._stats.memory_failures += 1
            _log.warning("encoder out of memory", index=self._index, texts=texts, error=str(error))
            if texts > 1:
                use.most = max(1, min(use.most, texts // 2))
                self._waiting.put_back(batch.split((texts + 1) // 2))
                return
            self._after_death(batch)
            raise ChildDied("out of memory with a single text") from error
        except ChildDied:
            self._after_death(batch)
            raise
        for ticket, vector in zip(batch.tickets, vectors, strict=True):
            self._waiting.settle(ticket, vector)
        use.done += 1
        if batch.priority not in _URGENT:
            self._rest_after(said.seconds)
        stats = self._stats
        stats.batches += 1
        stats.batch_sizes[texts] += 1
        stats.texts_encoded += texts
        stats.seconds_encoding[self._index] = stats.seconds_encoding.get(self._index, 0.0) + said.seconds
        if said.tokens_computed > use.tokens_computed:  # answers of lanes may come in another order
            stats.tokens_read += said.tokens_read - use.tokens_read
            stats.tokens_computed += said.tokens_computed - use.tokens_computed
            use.tokens_read, use.tokens_computed = said.tokens_read, said.tokens_computed

    def _after_death(self, batch: Batch) -> None:
        """The batch was with a process that died: try again, text by text, or not at all."""
        ticket = self._waiting.suspect(batch)
        if ticket is None:
            return
        self._stats.poison_texts += 1
        _log.error("poison text", text_hash=ticket.text_hash, characters=len(ticket.text))
        shown = ticket.text[:SHOWN_CHARS]
        error = PoisonText(
            f"the text {ticket.text_hash} ({len(ticket.text)} characters, begins {shown!r}) ended {DEATHS_ALONE} "
            "encoder processes, alone"
        )
        self._on_poison(ticket.text_hash, error)
        self._waiting.settle(ticket, error)


def _backoff_s(failures: int) -> float:
    return min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** (failures - 1)) if failures else 0.0


def fair_threads(processes: int) -> int:
    """The processor's cores, shared out among the processes of the pool."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)
