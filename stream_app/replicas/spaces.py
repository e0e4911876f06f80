"""The record of ``space-control.v1``: read, written, and followed for as long as a process lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from aiokafka.structs import ConsumerRecord

from schemas.decode import SPACES_KEY, decode_space_control, encode
from schemas.messages import SpaceControl
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.delivery.reading import follow, read_to_end
from stream_app.errors import InvalidMessage, SpaceError
from stream_app.logs import get_logger
from stream_app.settings import Settings
from stream_app.topics import Topics

__all__ = ["SpaceWatch", "control_record", "read_control", "write_control"]

_log = get_logger(__name__)


async def read_control(
    settings: Settings, first: SpaceControl, *, patience_s: float | None = None
) -> tuple[SpaceControl, int]:
    """What holds now, and the offset of the record that says so (-1: there is none, ``first`` holds).

    Raises:
        Unavailable, TopicError: as ``read_to_end``.
    """
    control, offset = first, -1
    async for record in read_to_end(settings, Topics(settings).space_control, patience_s=patience_s):
        found = _decoded(record, first)
        if found is not None:
            control, offset = found, record.offset
    return control, offset


async def write_control(
    settings: Settings, publisher: Publisher, control: SpaceControl, *, first: SpaceControl, based_on: int
) -> None:
    """Make ``control`` what holds from now on.

    Args:
        based_on: the offset that :func:`read_control` gave of what it was made from.

    Raises:
        SpaceError: when somebody else changed the spaces meanwhile; what was written last holds.
    """
    topic = Topics(settings).space_control
    await publisher.publish([control_record(settings, control)])
    between: SpaceControl | None = None
    async for record in read_to_end(settings, topic):
        found = _decoded(record, first)
        if found is None or record.offset <= based_on:
            continue
        if found == control:
            break
        between = found
    if between is not None:
        raise SpaceError(
            f"somebody else changed the spaces at the same time (version {between.version}); look at what holds now "
            "and repeat what is missing: tailrace spaces list"
        )


def control_record(settings: Settings, control: SpaceControl) -> OutRecord:
    """The record that says so."""
    return OutRecord(Topics(settings).space_control, SPACES_KEY.encode(), encode(control), partition=0)


def _decoded(record: ConsumerRecord, first: SpaceControl) -> SpaceControl | None:
    """What a record says; None when it says nothing that can be understood, which is logged."""
    try:
        return decode_space_control(record.key, record.value) or first
    except InvalidMessage as error:
        _log.warning("record left out", topic=record.topic, offset=record.offset, error=str(error))
        return None


class SpaceWatch:
    """Follows the record.

    Args:
        settings: of this process.
        first: what holds where there is no record.

    Attributes:
        control: what holds, as far as was read.
        recorded: whether a record says so; else it is ``first``.
        failed: completes with what ended the reading.
    """

    def __init__(self, settings: Settings, first: SpaceControl) -> None:
        self.control = first
        self.recorded = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settings = settings
        self._first = first
        self._changes = 0
        self._changed = asyncio.Condition()
        self._caught_up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read what is there, and go on reading."""
        self._task = asyncio.create_task(self._follow(), name="space-watch")
        self._task.add_done_callback(self._ended)
        caught_up = asyncio.ensure_future(self._caught_up.wait())
        await asyncio.wait((caught_up, self._task), return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            caught_up.cancel()
            self._task.result()

    async def stop(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def changes(self) -> AsyncIterator[SpaceControl]:
        """What holds, now and after every change, for ever; of changes in a row the last."""
        seen = -1
        while True:
            async with self._changed:
                while self._changes == seen:
                    await self._changed.wait()
                seen, control = self._changes, self.control
            yield control

    async def _follow(self) -> None:
        async with aclosing(follow(self._settings, Topics(self._settings).space_control)) as polls:
            async for records, caught_up in polls:
                control = self.control
                for record in records:
                    found = _decoded(record, self._first)
                    if found is not None:
                        control, self.recorded = found, record.value is not None
                if control != self.control:
                    async with self._changed:
                        self.control = control
                        self._changes += 1
                        self._changed.notify_all()
                if caught_up:
                    self._caught_up.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.failed.cancel()
        elif (error := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(error)
