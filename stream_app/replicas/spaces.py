"""The record of ``space-control.v1``: read, written, and followed for as long as a process lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import lru_cache

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
    settings: Settings, first: Callable[[], SpaceControl], *, patience_s: float | None = None
) -> tuple[SpaceControl, int]:
    """What holds now, and the offset of the record that says so (-1: there is none, what ``first`` makes holds).

    Raises:
        Unavailable, TopicError: as ``read_to_end``.
    """
    control: SpaceControl | None = None
    offset = -1
    async for record in read_to_end(settings, Topics(settings).space_control, patience_s=patience_s):
        understood, found = _decoded(record)
        if understood:
            control, offset = found, record.offset
    return control or first(), offset


async def write_control(
    settings: Settings, publisher: Publisher, control: SpaceControl, *, based_on: int, patience_s: float | None = None
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
    async for record in read_to_end(settings, topic, patience_s=patience_s):
        _, found = _decoded(record)
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


def _decoded(record: ConsumerRecord) -> tuple[bool, SpaceControl | None]:
    """Whether a record can be understood, which is logged where not; and what it says, None: nothing holds any more."""
    try:
        return True, decode_space_control(record.key, record.value)
    except InvalidMessage as error:
        _log.warning("record left out", topic=record.topic, offset=record.offset, error=str(error))
        return False, None


class SpaceWatch:
    """Follows the record.

    Args:
        settings: of this process.
        first: makes what holds where there is no record; asked only then.

    Attributes:
        failed: completes with what ended the reading.
    """

    def __init__(self, settings: Settings, first: Callable[[], SpaceControl]) -> None:
        self._control: SpaceControl | None = None
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settings = settings
        self._first = lru_cache(maxsize=1)(first)
        self._changes = 0
        self._changed = asyncio.Condition()
        self._caught_up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def recorded(self) -> bool:
        """Whether a record says what holds, as far as was read."""
        return self._control is not None

    @property
    def control(self) -> SpaceControl:
        """What holds, as far as was read.

        Raises:
            SettingsError: where there is no record, and the model of the settings is not here.
        """
        return self._control or self._first()

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
                control = self._control
                for record in records:
                    understood, found = _decoded(record)
                    if understood:
                        control = found
                if control != self._control:
                    async with self._changed:
                        self._control = control
                        self._changes += 1
                        self._changed.notify_all()
                if caught_up:
                    self._caught_up.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.failed.cancel()
        elif (error := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(error)
