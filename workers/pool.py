"""The encoder pool, from the callers' side: text in, vectors out, whatever happens to the processes in between.

A text is looked up in the cache, joined with others who want the same one, queued by priority, and encoded by
whichever process is free next; see ``workers.driver`` for how processes are kept running.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import EncodeError, PoisonText, TailraceError, TooLate, Unavailable
from stream_app.settings import EncoderSettings
from stream_app.textify import text_hash
from workers.batching import estimated_tokens
from workers.child import DEFAULT_COMMAND
from workers.driver import SHOWN_CHARS, Driver, PoolStats
from workers.frames import Ready
from workers.models import ModelInfo, describe_model
from workers.placement import process_count
from workers.texts import TextKind, encodable
from workers.vector_pool import VectorCache, VectorPool
from workers.waiting import Priority, Ticket, WaitingTexts, same_error

__all__ = ["EncoderPool", "PoolStats", "Priority"]

CHARS_PER_TOKEN = 32
"""A text is cut to this many characters per token the model may read: more than any language needs, and a bound on
what is sent to a process."""
REMEMBERED_POISON = 1_024
"""Texts known to end processes: a redelivered record must not end three more."""


class EncoderPool(VectorPool):
    """Encoder processes behind one coroutine.

    Use from one event loop. ``settings`` are the encoder's. ``cache`` is asked before a process is. ``command`` starts
    a process; it gets ``--fd`` and ``--parent`` appended and speaks :mod:`workers.frames`. ``info`` is of the model in
    the settings, where it is not one of texts.

    Raises:
        SettingsError: at once, when the model in the settings cannot be used.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        *,
        cache: VectorCache | None = None,
        command: Sequence[str] = DEFAULT_COMMAND,
        info: ModelInfo | None = None,
    ) -> None:
        self._cache = cache
        self._info = info = info or describe_model(settings)
        self.space = info.space
        self.dimensions = info.dimensions
        self.stats = PoolStats()
        self._deadlines = {
            Priority.QUERY: ("encoder.query_deadline_s", settings.query_deadline_s),
            Priority.EVENT: ("encoder.deadline_s", settings.deadline_s),
        }
        self._max_tokens = min(settings.max_tokens, info.max_tokens)
        self._max_chars = CHARS_PER_TOKEN * self._max_tokens
        self._waiting = WaitingTexts(limit=settings.queue)
        self._ready = asyncio.Event()
        self._over: TailraceError | None = None
        self._poison: dict[str, PoisonText] = {}
        self._settings = settings
        self._command = tuple(command)
        self._free: set[int] = set()
        self._failing: set[int] = set()
        self._drivers: list[Driver] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._add_drivers(present=1)

    @property
    def parts(self) -> tuple[EncoderPool, ...]:
        """This one."""
        return (self,)

    @property
    def share(self) -> float:
        """Share of the time the processes may compute for the catalogue, above 0 to 1."""
        return self._drivers[0].share

    @share.setter
    def share(self, share: float) -> None:
        for driver in self._drivers:
            driver.share = share

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the processes that are ready, by index."""
        return tuple(driver.child.pid for driver in self._drivers if driver.child)

    @property
    def started(self) -> bool:
        """Whether :meth:`start` was called."""
        return bool(self._tasks)

    @property
    def error(self) -> TailraceError | None:
        """Why the pool gave up, or that it was closed; None while it works."""
        return self._over

    @property
    def queue_length(self) -> int:
        """Texts that wait for a process."""
        return len(self._waiting)

    def waiting(self, priority: Priority) -> int:
        """Texts of one priority that wait for a process; at most ``encoder.queue`` and those tried again."""
        return self._waiting.length(priority)

    @property
    def devices(self) -> tuple[str, ...]:
        """Device and precision of each ready process, for example ``("cpu bfloat16",)``."""
        ready = (driver.child.ready for driver in self._drivers if driver.child)
        return tuple(f"{process.device} {process.precision}" for process in ready)

    async def start(self) -> None:
        """Start the processes in the background. Texts may be given at once; they wait."""
        if self._tasks or self._over:
            raise RuntimeError("an encoder pool is started once")
        self._tasks = [asyncio.create_task(self._run(driver)) for driver in self._drivers]

    def _add_drivers(self, *, present: int) -> None:
        """Drivers for as many processes as there are to be with ``present`` devices; never fewer than before."""
        wanted = process_count(self._settings.processes, self._settings.device, present)
        for index in range(len(self._drivers), wanted):
            driver = Driver(
                index,
                settings=self._settings,
                space=self.space,
                command=self._command,
                waiting=self._waiting,
                stats=self.stats,
                ready=self._ready,
                free=self._free,
                failing=self._failing,
                on_ready=self._said_ready,
                on_poison=self._remember_poison,
            )
            driver.share = self._drivers[0].share if self._drivers else 1.0
            self._drivers.append(driver)
            if self._tasks:
                self._tasks.append(asyncio.create_task(self._run(driver)))
        for driver in self._drivers:
            driver.processes = len(self._drivers)

    def _said_ready(self, ready: Ready) -> None:
        """A process says how many devices there are: the other ones get theirs."""
        self._add_drivers(present=ready.devices)

    async def ready(self) -> None:
        """Wait until a process is ready.

        Raises:
            SettingsError: when the processes say that they cannot work as configured.
            Unavailable: when none could be started, or the pool was closed.
        """
        await self._ready.wait()
        if self._over:
            raise same_error(self._over)

    async def encode_each(
        self, texts: Sequence[str], priority: Priority, *, kind: TextKind = "document"
    ) -> list[NDArray[np.float32] | EncodeError]:
        """As :meth:`encode`, but each text has its own outcome: a finite vector, float32 [dimensions], or the error.

        Raises:
            Unavailable, SettingsError: when the pool is closed or could not start a process.
        """
        began = asyncio.get_running_loop().time()
        # Before anything else looks at them: to cache, queue and processes a text is what the model reads.
        prefix = encodable(self._info.prefix(kind))
        prepared = [prefix + encodable(text, self._max_chars) for text in texts]
        hashes = [text_hash(text) for text in prepared]
        wanted = dict(zip(hashes, prepared, strict=True))
        outcomes: dict[str, NDArray[np.float32] | EncodeError] = {}
        if self._cache is not None and wanted:
            outcomes.update(await self._cache.get_many(list(wanted)))
            self.stats.cache_hits += len(outcomes)
            self.stats.cache_misses += len(wanted) - len(outcomes)
        outcomes.update((key, same_error(self._poison[key])) for key in self._poison.keys() & wanted.keys())
        missing = {key: text for key, text in wanted.items() if key not in outcomes}
        if missing:
            outcomes.update(await self._encode_missing(missing, priority, began))
        return [outcomes[key] for key in hashes]

    async def close(self) -> None:
        """End the processes. Who waits gets :class:`Unavailable`. Safe to call twice."""
        self._give_up(Unavailable("the encoder pool is closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _encode_missing(
        self, texts: Mapping[str, str], priority: Priority, began: float
    ) -> dict[str, NDArray[np.float32] | EncodeError]:
        name, within_s = self._deadlines.get(priority, ("", math.inf))
        tickets: list[Ticket] = []
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(None if within_s == math.inf else began + within_s):
                    for key, text in texts.items():
                        tokens = estimated_tokens(len(text.encode()), self._max_tokens)
                        ticket, is_new = await self._waiting.ask(key, text, priority, tokens)
                        tickets.append(ticket)
                        self.stats.texts_shared += not is_new
                    # wait() leaves the futures alone when this call is cancelled: others may wait for them too.
                    await asyncio.wait([ticket.outcome for ticket in tickets])
        finally:
            for ticket in tickets:
                self._waiting.leave(ticket)
        outcomes: dict[str, NDArray[np.float32] | EncodeError] = {}
        fresh: dict[str, NDArray[np.float32]] = {}
        for ticket in tickets:
            if not ticket.outcome.done():
                continue
            outcome = ticket.outcome.result()
            if isinstance(outcome, np.ndarray):
                if not np.isfinite(outcome).all():
                    outcome = _not_finite(ticket)
                elif not ticket.cached:
                    # The first call that sees a vector stores it, whoever asked first: one write per vector.
                    ticket.cached = True
                    fresh[ticket.text_hash] = outcome
            elif not isinstance(outcome, EncodeError):
                raise same_error(outcome)
            outcomes[ticket.text_hash] = outcome
        for key in texts.keys() - outcomes.keys():
            self.stats.texts_late += 1
            outcomes[key] = TooLate(
                f"the text {key} was not embedded within {within_s:g} s ({name}); "
                "the encoder is behind or being restarted"
            )
        if self._cache is not None:
            await self._cache.put_many(fresh)
        return outcomes

    def _remember_poison(self, key: str, error: PoisonText) -> None:
        self._poison[key] = error
        while len(self._poison) > REMEMBERED_POISON:
            del self._poison[next(iter(self._poison))]

    async def _run(self, driver: Driver) -> None:
        try:
            await driver.run()
        except TailraceError as error:
            self._give_up(error)
        except Exception as error:  # a mistake in this code must not leave callers waiting for ever
            self._give_up(Unavailable(f"the encoder pool failed: {error!r}"))
            raise

    def _give_up(self, error: TailraceError) -> None:
        self._over = self._over or error
        self._waiting.close(self._over)
        self._ready.set()


def _not_finite(ticket: Ticket) -> EncodeError:
    """Of a vector that some models give for some texts where they compute in half precision."""
    return EncodeError(
        f"the text {ticket.text_hash} ({len(ticket.text)} characters, begins {ticket.text[:SHOWN_CHARS]!r}) has no "
        "finite vector: it is too much for the model in this precision; set encoder.precision = 'float32'"
    )
