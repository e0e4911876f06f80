"""One encoder process kept running and busy: the pool has a driver per process.

A batch is formed from what waits at the moment the process is free (no timer: a lone text goes at once, a full line
goes in full batches). What happens to the process is dealt with here:

* It ends in mid-batch, or does not answer in time: it is started again and the batch tried again.
* A batch that ended two processes is tried text by text. A text that ends two more, alone, is poison: who asked for
  it gets :class:`PoisonText`, everybody else their vectors.
* The batch does not fit the device's memory: it is halved, and this process gets no larger ones from then on.
* It cannot be started: tried again with growing waits, callers wait meanwhile (back-pressure). If no process ever
  started, or it says that it cannot work as configured, the driver gives up.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from stream_app.errors import PoisonText, SettingsError, Unavailable
from stream_app.logs import get_logger
from stream_app.settings import EncoderSettings
from workers.child import ChildDied, EncoderChild
from workers.frames import Configure
from workers.waiting import Batch, WaitingTexts

__all__ = ["Driver", "PoolStats"]

_log = get_logger(__name__)

DEATHS_BEFORE_SPLIT = 2
DEATHS_ALONE = 2
START_ATTEMPTS = 3
"""Tries of the very first start before giving up. Once a process was ready, starts are tried for ever."""
BACKOFF_MIN_S = 0.25
BACKOFF_MAX_S = 30.0
_SHOWN_CHARS = 80


@dataclass(slots=True)
class PoolStats:
    """Counts since the pool was made, for metrics.

    ``batch_sizes`` maps a size to how often it occurred. ``seconds_encoding`` is what the processes computed, summed.
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
    seconds_encoding: float = 0.0


class Driver:
    """See the module. ``child`` is the process while it is ready."""

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
    ) -> None:
        self.child: EncoderChild | None = None
        self.share = 1.0
        self._index = index
        self._settings = settings
        self._space = space
        self._command = command
        self._waiting = waiting
        self._stats = stats
        self._ready = ready

    async def run(self) -> None:
        """Start processes and feed them until cancelled; then the process is ended.

        Raises:
            SettingsError: when the process says that it cannot work as configured.
            Unavailable: when no process of the pool could be started.
        """
        failures = 0  # starts and processes that came to nothing, one after the other
        while True:
            try:
                child = await self._start()
            except (Unavailable, OSError) as error:
                failures += 1
                _log.warning("encoder not started", index=self._index, failures=failures, error=str(error))
                if failures >= START_ATTEMPTS and not self._ready.is_set():
                    raise Unavailable(f"no encoder process could be started, last: {error}") from error
            else:
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
                threads=settings.threads or _fair_threads(settings.processes),
                batch=settings.batch,
                nice=settings.nice,
                index=self._index,
            ),
            timeout_s=settings.start_timeout_s,
        )
        if child.ready.space != self._space:
            await child.kill()
            raise SettingsError(f"an encoder process has vector space {child.ready.space}, the pool {self._space}")
        return child

    async def _use(self, child: EncoderChild) -> bool:
        """Feed ``child`` until it dies. Returns whether it encoded anything."""
        _log.info(
            "encoder ready",
            index=self._index,
            pid=child.pid,
            device=child.ready.device,
            precision=child.ready.precision,
            load_s=round(child.ready.load_s, 2),
        )
        self.child = child
        self._ready.set()
        batches = 0
        most = self._settings.batch
        try:
            while True:
                batch = await self._next_batch(child, most)
                if await self._encode(child, batch):
                    batches += 1
                else:
                    most = max(1, len(batch.tickets) // 2)
        except ChildDied as death:
            _log.warning("encoder ended", index=self._index, pid=child.pid, batches=batches, reason=str(death))
            return batches > 0
        finally:
            self.child = None
            await child.reap()

    async def _next_batch(self, child: EncoderChild, most: int) -> Batch:
        while not child.ended.done():
            if batch := self._waiting.take(most):
                return batch
            some = asyncio.create_task(self._waiting.some())
            try:
                await asyncio.wait((some, child.ended), return_when=asyncio.FIRST_COMPLETED)
            finally:
                some.cancel()
        raise ChildDied(f"exit code {child.ended.result()} while idle")

    async def _encode(self, child: EncoderChild, batch: Batch) -> bool:
        """Have ``child`` encode ``batch``; False: it is too large for the device and waits again in parts."""
        try:
            vectors, seconds = await child.encode(
                [ticket.text for ticket in batch.tickets], timeout_s=self._settings.batch_timeout_s
            )
        except MemoryError as error:
            self._stats.memory_failures += 1
            _log.warning("encoder out of memory", index=self._index, texts=len(batch.tickets), error=str(error))
            if len(batch.tickets) > 1:
                self._waiting.put_back(batch.split((len(batch.tickets) + 1) // 2))
                return False
            self._after_death(batch)
            raise ChildDied("out of memory with a single text") from error
        except ChildDied:
            self._after_death(batch)
            raise
        for ticket, vector in zip(batch.tickets, vectors, strict=True):
            self._waiting.settle(ticket, vector)
        self._stats.batches += 1
        self._stats.batch_sizes[len(batch.tickets)] += 1
        self._stats.texts_encoded += len(batch.tickets)
        self._stats.seconds_encoding += seconds
        return True

    def _after_death(self, batch: Batch) -> None:
        """The batch was with a process that died: try again, as a whole, text by text, or not at all."""
        batch.deaths += 1
        if len(batch.tickets) > 1:
            self._waiting.put_back(batch.split(1) if batch.deaths >= DEATHS_BEFORE_SPLIT else [batch])
        elif batch.deaths < DEATHS_ALONE:
            self._waiting.put_back([batch])
        else:
            (ticket,) = batch.tickets
            self._stats.poison_texts += 1
            _log.error("poison text", text_hash=ticket.text_hash, characters=len(ticket.text))
            shown = ticket.text[:_SHOWN_CHARS]
            self._waiting.settle(
                ticket,
                PoisonText(
                    f"the text {ticket.text_hash} ({len(ticket.text)} characters, begins {shown!r}) ended "
                    f"{batch.deaths} encoder processes, alone"
                ),
            )


def _backoff_s(failures: int) -> float:
    return min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** (failures - 1)) if failures else 0.0


def _fair_threads(processes: int) -> int:
    """The processor's cores, shared out among the processes of the pool."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)
