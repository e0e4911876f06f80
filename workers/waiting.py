"""The texts that wait for an encoder process: by priority, bounded, each text once. No I/O; one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import TailraceError
from workers.batching import like_length

__all__ = ["DEATHS_ALONE", "Batch", "Outcome", "Priority", "Ticket", "WaitingTexts", "same_error"]

_Error = TypeVar("_Error", bound=TailraceError)

Outcome = NDArray[np.float32] | TailraceError
"""What becomes of a text: its vector, float32 [dimensions], or why there is none."""

DEATHS_ALONE = 2
"""A text that ended so many processes alone is poison. After one it may be innocent: they end for other reasons."""
_SUSPECTED = 4_096
"""Texts that are remembered to have been with a process that ended, at most; of more the oldest are forgotten."""
_WINDOW = 1_024
"""Texts looked at to find some of like length."""
_TURN = 8
"""After this many batches of higher priority, what waits below gets one: nothing waits for ever."""


class Priority(IntEnum):
    """Who waits for a text. A lower value goes first."""

    QUERY = 0
    """A person waits for an answer."""
    EVENT = 1
    """The event path waits: nothing of the user's partition is processed meanwhile."""
    CATALOGUE = 2
    """An item becomes recommendable a little later."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One text on its way, shared by all who asked for it. ``outcome`` never holds an exception, only a result.
    ``tokens`` is an estimate. ``cached``: one of them has put the vector into the cache."""

    text_hash: str
    text: str
    priority: Priority
    outcome: asyncio.Future[Outcome]
    tokens: int = 1
    askers: int = 0
    cached: bool = False


@dataclass(eq=False, slots=True)
class Batch:
    """Texts encoded together.

    A ``suspect`` is one text that was with a process that ended. It has a process for itself from then on: of a death
    ``beside_others`` any of them may have been the cause.
    """

    tickets: list[Ticket]
    priority: Priority
    suspect: bool = False
    beside_others: bool = False

    def split(self, count: int) -> list[Batch]:
        """This batch as batches of at most ``count`` texts."""
        parts = range(0, len(self.tickets), count)
        return [Batch(self.tickets[start : start + count], self.priority) for start in parts]


@dataclass(eq=False, slots=True)
class _Line:
    """Those waiting with one priority: suspects, other batches to try again, then fresh texts in order of arrival."""

    room: asyncio.Semaphore
    suspects: deque[Batch] = field(default_factory=deque)
    again: deque[Batch] = field(default_factory=deque)
    fresh: dict[str, Ticket] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.again or self.fresh)

    def __len__(self) -> int:
        return len(self.fresh) + sum(len(batch.tickets) for batch in (*self.suspects, *self.again))


class WaitingTexts:
    """Waiting and running texts.

    ``limit`` bounds the fresh texts per priority, so a full catalogue never keeps a query from queueing.
    """

    def __init__(self, *, limit: int) -> None:
        self._lines = {priority: _Line(asyncio.Semaphore(limit)) for priority in Priority}
        self._tickets: dict[str, Ticket] = {}
        # How many processes a text ended alone, of those that were with one that ended and have no outcome since. Who
        # asked may be gone by then: kept, or such a text would end a process whenever it is asked for.
        self._deaths: dict[str, int] = {}
        self._change: asyncio.Future[None] | None = None
        self._in_a_row = 0
        self._turns = 0
        self._closed: TailraceError | None = None

    def __len__(self) -> int:
        """Texts waiting, those of batches to try again included; not those being encoded."""
        return sum(map(len, self._lines.values()))

    def length(self, priority: Priority) -> int:
        """The same, of one priority."""
        return len(self._lines[priority])

    async def ask(self, text_hash: str, text: str, priority: Priority, tokens: int = 1) -> tuple[Ticket, bool]:
        """Join the line for ``text``, waiting for room; a text already on its way is not queued a second time.

        ``tokens`` is about how many the text has.

        Returns:
            The ticket, to be given back with :meth:`leave`, and whether this call made it.

        Raises:
            TailraceError: the one :meth:`close` was given.
        """
        if self._closed is not None:
            raise same_error(self._closed)
        if (ticket := self._tickets.get(text_hash)) is None or self._could_move_up(ticket, priority):
            room = self._lines[priority].room
            await room.acquire()
            if self._closed is not None:
                room.release()
                raise same_error(self._closed)
            # While this call waited for room, another may have queued the text, or a process taken it.
            ticket = self._tickets.get(text_hash)
            if ticket is None:
                outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
                ticket = Ticket(text_hash, text, priority, outcome, tokens, askers=1)
                self._tickets[text_hash] = ticket
                if text_hash in self._deaths:
                    room.release()
                    self.put_back([Batch([ticket], priority, suspect=True)])
                else:
                    self._lines[priority].fresh[text_hash] = ticket
                    self._changed()
                return ticket, True
            if self._could_move_up(ticket, priority):
                self._drop_fresh(ticket)
                ticket.priority = priority
                self._lines[priority].fresh[text_hash] = ticket
                self._changed()
            else:
                room.release()
        ticket.askers += 1
        return ticket, False

    def leave(self, ticket: Ticket) -> None:
        """An asker is served or gave up. A waiting text that nobody wants any more is dropped."""
        ticket.askers -= 1
        # By identity: with this one served, somebody else may have asked for the same text again meanwhile.
        if ticket.askers == 0 and self._lines[ticket.priority].fresh.get(ticket.text_hash) is ticket:
            self._drop_fresh(ticket)
            del self._tickets[ticket.text_hash]

    def change(self) -> asyncio.Future[None]:
        """Done when something joins a line after this call; shared, so wait for it with ``asyncio.wait``."""
        if self._change is None or self._change.done():
            self._change = asyncio.get_running_loop().create_future()
        return self._change

    @property
    def suspects(self) -> bool:
        """Whether a batch waits for a process of its own; :meth:`take_suspect` gives it."""
        return any(line.suspects for line in self._lines.values())

    def take_suspect(self) -> Batch | None:
        """The most urgent text that was with a process that ended."""
        for line in self._lines.values():
            while line.suspects:
                if batch := self._still_wanted(line.suspects.popleft()):
                    return batch
        return None

    def take(self, count: int, tokens: int, among: Collection[Priority] = tuple(Priority)) -> Batch | None:
        """What is to be encoded next: texts of one of the priorities ``among``; None when none of them waits.

        At most ``count`` texts, and at most ``tokens`` tokens with padding, by their estimates. A batch that is tried
        again is bounded by ``count`` alone.
        """
        while True:
            line = self._next_line(among)
            if line is None:
                return None
            if not line.again:
                break
            if batch := self._still_wanted(_first(line.again, count)):
                return batch
        window = list(islice(line.fresh.values(), _WINDOW))
        tickets = [window[index] for index in like_length([ticket.tokens for ticket in window], count, tokens)]
        for ticket in tickets:
            self._drop_fresh(ticket)
        return Batch(tickets, tickets[0].priority)

    def put_back(self, batches: Iterable[Batch]) -> None:
        """Try these again, before what is fresh. They keep no room: they had it already."""
        for batch in batches:
            line = self._lines[batch.priority]
            (line.suspects if batch.suspect else line.again).append(batch)
            self._changed()

    def suspect(self, batch: Batch) -> Ticket | None:
        """``batch`` was with a process that ended: its texts are tried again, each with a process for itself.

        Returns:
            Its text when that ended :data:`DEATHS_ALONE` processes alone, which is not tried again; else None.
        """
        alone = len(batch.tickets) == 1 and not batch.beside_others
        for ticket in batch.tickets:
            deaths = self._deaths.pop(ticket.text_hash, 0) + alone
            if deaths >= DEATHS_ALONE:
                return ticket
            self._deaths[ticket.text_hash] = deaths
        while len(self._deaths) > _SUSPECTED:
            del self._deaths[next(iter(self._deaths))]
        self.put_back(Batch([ticket], batch.priority, suspect=True) for ticket in batch.tickets)
        return None

    def settle(self, ticket: Ticket, outcome: Outcome) -> None:
        """Tell all who asked for the text."""
        self._deaths.pop(ticket.text_hash, None)
        self._tickets.pop(ticket.text_hash, None)
        if not ticket.outcome.done():
            ticket.outcome.set_result(outcome)

    def close(self, error: TailraceError) -> None:
        """No text will be encoded any more: all who wait and all who ask from now on get ``error``."""
        self._closed = error
        for ticket in list(self._tickets.values()):
            self.settle(ticket, error)
        for line in self._lines.values():
            line.suspects.clear()
            line.again.clear()
            for ticket in list(line.fresh.values()):
                del line.fresh[ticket.text_hash]
                line.room.release()

    def _could_move_up(self, ticket: Ticket, priority: Priority) -> bool:
        return priority < ticket.priority and ticket.text_hash in self._lines[ticket.priority].fresh

    def _drop_fresh(self, ticket: Ticket) -> None:
        line = self._lines[ticket.priority]
        del line.fresh[ticket.text_hash]
        line.room.release()

    def _still_wanted(self, batch: Batch) -> Batch | None:
        """The batch without texts whose askers gave up; None when none is left."""
        for ticket in batch.tickets:
            if not ticket.askers:
                self._tickets.pop(ticket.text_hash, None)
        batch.tickets = [ticket for ticket in batch.tickets if ticket.askers]
        return batch if batch.tickets else None

    def _changed(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    def _next_line(self, among: Collection[Priority]) -> _Line | None:
        lines = [line for priority, line in self._lines.items() if line and priority in among]
        if len(among) < 2:  # no choice: it neither is a turn nor ends a row
            return lines[0] if lines else None
        if len(lines) < 2:
            self._in_a_row = 0
            return lines[0] if lines else None
        self._in_a_row += 1
        if self._in_a_row > _TURN:
            self._in_a_row = 0
            self._turns += 1
            return lines[1 + self._turns % (len(lines) - 1)]
        return lines[0]


def _first(batches: deque[Batch], count: int) -> Batch:
    """The first of the batches; what is more than ``count`` texts stays."""
    batch = batches.popleft()
    if len(batch.tickets) <= count:
        return batch
    batch, *rest = batch.split(count)
    batches.extendleft(reversed(rest))
    return batch


def same_error(error: _Error) -> _Error:
    """Another instance of ``error``: one raised again and again would collect a traceback without end."""
    return type(error)(*error.args)
