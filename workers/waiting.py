"""The texts that wait for an encoder process: by priority, bounded, each text once. No I/O; one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import TailraceError
from workers.batching import like_length

__all__ = ["Batch", "Outcome", "Priority", "Ticket", "WaitingTexts", "same_error"]

_Error = TypeVar("_Error", bound=TailraceError)

Outcome = NDArray[np.float32] | TailraceError
"""What becomes of a text: its vector, float32 [dimensions], or why there is none."""

_WINDOW = 8
"""Batches' worth of texts looked at to find some of like length."""
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
    """One text on its way, shared by all who asked for it. ``outcome`` never holds an exception, only a result."""

    text_hash: str
    text: str
    priority: Priority
    outcome: asyncio.Future[Outcome]
    askers: int = 0


@dataclass(eq=False, slots=True)
class Batch:
    """Texts encoded together. ``deaths`` counts the processes that ended while they had it."""

    tickets: list[Ticket]
    priority: Priority
    deaths: int = 0

    def split(self, count: int) -> list[Batch]:
        """This batch as batches of at most ``count`` texts, without its deaths."""
        parts = range(0, len(self.tickets), count)
        return [Batch(self.tickets[start : start + count], self.priority) for start in parts]


@dataclass(eq=False, slots=True)
class _Line:
    """Those waiting with one priority: batches to try again, then fresh texts in order of arrival."""

    room: asyncio.Semaphore
    again: deque[Batch] = field(default_factory=deque)
    fresh: dict[str, Ticket] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.again or self.fresh)


class WaitingTexts:
    """Waiting and running texts.

    ``limit`` bounds the fresh texts per priority, so a full catalogue never keeps a query from queueing.
    """

    def __init__(self, *, limit: int) -> None:
        self._lines = {priority: _Line(asyncio.Semaphore(limit)) for priority in Priority}
        self._tickets: dict[str, Ticket] = {}
        self._some = asyncio.Event()
        self._in_a_row = 0
        self._turns = 0
        self._closed: TailraceError | None = None

    def __len__(self) -> int:
        """Texts waiting, those of batches to try again included; not those being encoded."""
        again = (len(batch.tickets) for line in self._lines.values() for batch in line.again)
        return sum(len(line.fresh) for line in self._lines.values()) + sum(again)

    async def ask(self, text_hash: str, text: str, priority: Priority) -> tuple[Ticket, bool]:
        """Join the line for ``text``, waiting for room; a text already on its way is not queued a second time.

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
                ticket = Ticket(text_hash, text, priority, asyncio.get_running_loop().create_future(), askers=1)
                self._tickets[text_hash] = ticket
                self._lines[priority].fresh[text_hash] = ticket
                self._some.set()
                return ticket, True
            if self._could_move_up(ticket, priority):
                self._drop_fresh(ticket)
                ticket.priority = priority
                self._lines[priority].fresh[text_hash] = ticket
            else:
                room.release()
        ticket.askers += 1
        return ticket, False

    def leave(self, ticket: Ticket) -> None:
        """An asker is served or gave up. A waiting text that nobody wants any more is dropped."""
        ticket.askers -= 1
        if ticket.askers == 0 and ticket.text_hash in self._lines[ticket.priority].fresh:
            self._drop_fresh(ticket)
            del self._tickets[ticket.text_hash]

    async def some(self) -> None:
        """Wait until a text waits. Another process may take it first: :meth:`take` says."""
        await self._some.wait()

    def take(self, count: int) -> Batch | None:
        """What is to be encoded next, at most ``count`` texts of one priority; None when nothing waits."""
        line = self._next_line()
        if line is None:
            self._some.clear()
            return None
        if line.again:
            batch = line.again.popleft()
            if len(batch.tickets) > count:
                batch, *rest = batch.split(count)
                line.again.extendleft(reversed(rest))
            return batch
        window = list(islice(line.fresh.values(), _WINDOW * count))
        tickets = [window[index] for index in like_length([len(ticket.text) for ticket in window], count)]
        for ticket in tickets:
            self._drop_fresh(ticket)
        return Batch(tickets, tickets[0].priority)

    def put_back(self, batches: Iterable[Batch]) -> None:
        """Try these again, before what is fresh. They keep no room: they had it already."""
        for batch in batches:
            self._lines[batch.priority].again.append(batch)
            self._some.set()

    def settle(self, ticket: Ticket, outcome: Outcome) -> None:
        """Tell all who asked for the text."""
        self._tickets.pop(ticket.text_hash, None)
        if not ticket.outcome.done():
            ticket.outcome.set_result(outcome)

    def close(self, error: TailraceError) -> None:
        """No text will be encoded any more: all who wait and all who ask from now on get ``error``."""
        self._closed = error
        for ticket in list(self._tickets.values()):
            self.settle(ticket, error)
        for line in self._lines.values():
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

    def _next_line(self) -> _Line | None:
        lines = [line for line in self._lines.values() if line]
        if len(lines) < 2:
            self._in_a_row = 0
            return lines[0] if lines else None
        self._in_a_row += 1
        if self._in_a_row > _TURN:
            self._in_a_row = 0
            self._turns += 1
            return lines[1 + self._turns % (len(lines) - 1)]
        return lines[0]


def same_error(error: _Error) -> _Error:
    """Another instance of ``error``: one raised again and again would collect a traceback without end."""
    return type(error)(*error.args)
