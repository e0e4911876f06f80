"""Changing the model while serving: what the commands of ``tailrace spaces`` do, without the terminal.

build    a further space is put into the record of ``space-control.v1``; every catalogue process begins to embed the
         catalogue for it at a bounded share of its time, every serving process to index the vectors beside its own
cutover  one record says which space is served; each process changes when it has everything
rollback the same, back
retire   the record forgets a space; its topic is deleted

Whoever is ended between two steps of these leaves a topic of vectors that belongs to no space: ``left_over`` finds it,
``delete_left_over`` deletes it, and no build takes it over, for each makes a topic of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from aiokafka.structs import ConsumerRecord

from schemas.decode import decode_factor_basis, decode_item_vector, decode_vector_space
from schemas.messages import ModelSpace, SpaceControl
from stream_app.delivery.admin import create_vectors_topic, delete_topic, group_lag, group_members, vectors_topics
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.delivery.reading import follow, read_to_end
from stream_app.encoder_space import describe_encoder
from stream_app.encoders import deciding_settings
from stream_app.errors import InvalidMessage, SpaceError, Unavailable
from stream_app.metrics import Metrics
from stream_app.replicas.spaces import read_control, write_control
from stream_app.settings import Settings
from stream_app.space_settings import changed_encoder, usable_encoder
from stream_app.spaces.building import Building
from stream_app.spaces.control import (
    EncoderValue,
    cut_over,
    find_space,
    first_control,
    retire,
    roll_back,
    served_space,
    with_space,
)
from stream_app.spaces.served import adapted
from stream_app.topics import Topics

__all__ = [
    "Progress",
    "Standstill",
    "build_space",
    "consumers_of",
    "control_of",
    "cut_over_to",
    "delete_left_over",
    "follow_build",
    "hindrances",
    "left_over",
    "present_control",
    "retire_space",
    "roll_back_space",
]

PATIENCE_S = 10.0
"""How long a broker is waited for (seconds)."""
_TELL_EVERY_S = 0.5
_LEFT_WITHIN_S = 30.0
"""How long processes are waited for that still work on a space that is retired."""
_RECORDED_WITHIN_S = 30.0
"""A build writes its record within this time of making its topic (seconds), unless it was ended between the two: it
waits until the broker shows the topic (``delivery.admin``), and connects."""
_ITEM_MAY_LACK = 0.001
"""Share of the items that may lack a vector in a space that is served next: those that come just now, and those whose
text the model cannot embed, which are dead-lettered."""


class _Hash(msgspec.Struct):
    text_hash: str


_hash = msgspec.json.Decoder(_Hash)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a space is.

    Attributes:
        items: that the served space has vectors of.
        done: of these, with a vector in the new space.
        caught_up: whether both topics were read to where they ended.
        waiting: items that are made of another text there, and changes of the catalogue are on their way.
        missing: ids of some that are missing.
    """

    items: int
    done: int
    caught_up: bool
    waiting: int = 0
    missing: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the new space has what it needs to be served."""
        return self.caught_up and not self.waiting and self.items - self.done <= _ITEM_MAY_LACK * self.items


class Standstill:
    """Notices that a build does not move.

    Args:
        after_s: for so long (seconds).
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._seen: tuple[int, int] | None = None
        self._since = 0.0

    def noticed(self, progress: Progress, now: float) -> bool:
        """Whether nothing has moved for the time, told once in each of it.

        Args:
            progress: as it is.
            now: of any clock that does not go back (seconds).
        """
        seen = (progress.done, progress.waiting)
        if seen != self._seen:
            self._seen, self._since = seen, now
        if now - self._since < self._after_s:
            return False
        self._since = now
        return True


async def present_control(settings: Settings) -> tuple[SpaceControl, int]:
    """Which spaces are kept and which is served, and the offset of the record that says so.

    Raises:
        SettingsError: when the model of the settings is not here.
        Unavailable, TopicError: when the broker or the topic is not there.
    """
    return await read_control(settings, lambda: control_of(settings), patience_s=PATIENCE_S)


def control_of(settings: Settings) -> SpaceControl:
    """What holds where there is no record: the model of the settings, alone.

    Raises:
        SettingsError: when the model is not here.
    """
    model = describe_encoder(settings.encoder)
    return first_control(model.space, model.dimensions, deciding_settings(settings.encoder))


async def build_space(settings: Settings, encoder: Mapping[str, EncoderValue]) -> ModelSpace:
    """Begin a further space with these settings of the encoder; the processes do the work.

    Raises:
        SettingsError: when a setting is wrong, or the model is not here or not whole; before a broker is asked.
        SpaceError: when the space is there already, or there is no place for it.
    """
    wanted = changed_encoder(settings.encoder, encoder)
    model = await asyncio.to_thread(usable_encoder, wanted)
    control, offset = await present_control(settings)
    number, deciding = control.next_number, deciding_settings(wanted)
    # Nothing is made for what is refused.
    with_space(control, model.space, model.dimensions, deciding, at=_now())
    # Who makes the topic has the number: another build at the same time gets another one, and vectors that a build left
    # that was ended here are nobody's.
    while not await create_vectors_topic(settings, number):
        number += 1
    changed = with_space(control, model.space, model.dimensions, deciding, at=_now(), number=number)
    async with _publisher(settings) as publisher:
        await write_control(settings, publisher, changed, based_on=offset, patience_s=PATIENCE_S)
    return find_space(changed, model.space)


async def follow_build(settings: Settings, space: ModelSpace) -> AsyncGenerator[Progress, None]:
    """How far a space is, told as it grows, for ever; it is the caller who ends it."""
    control, _ = await present_control(settings)
    topics, live = Topics(settings), served_space(control)
    building, caught_up = Building(), {live.number: False, space.number: False}

    async def read(number: int, apply: Callable[[str, str | None], None]) -> None:
        async for records, through in follow(settings, topics.vectors_of(number)):
            for record in records:
                _apply(record, apply)
            caught_up[number] = through

    sides = ((live.number, building.in_old), (space.number, building.in_new))
    readers = [asyncio.create_task(read(number, apply)) for number, apply in sides]
    try:
        while True:
            await asyncio.wait(readers, timeout=_TELL_EVERY_S)
            for reader in readers:
                if reader.done():
                    reader.result()
            there = all(caught_up.values())
            missing = tuple(building.some_missing(5)) if there else ()
            # Made of another text: of one that is on its way still, or, when nothing is, of other templates.
            waits = building.other_texts if building.other_texts > _ITEM_MAY_LACK * building.items else 0
            if there and waits and building.missing <= _ITEM_MAY_LACK * building.items:
                group = _catalogue_group(settings, space.number)
                with suppress(Unavailable):  # waited for, as by the readers
                    waits = min(waits, await group_lag(settings, group, topics.items))
            yield Progress(building.items, building.done, there, waits, missing)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


def _apply(record: ConsumerRecord, apply: Callable[[str, str | None], None]) -> None:
    if not record.key:
        return
    try:
        apply(record.key.decode(), None if record.value is None else _hash.decode(record.value).text_hash)
    except (UnicodeDecodeError, msgspec.MsgspecError):
        return  # nobody can use it


async def hindrances(settings: Settings, space: ModelSpace) -> list[str]:
    """What a space lacks to be served, beside vectors: a fit where the served one has one, and a basis likewise."""
    control, _ = await present_control(settings)
    live, topics = served_space(control), Topics(settings)
    whitened = await _spaces_with(settings, topics.spaces, _whitened)
    based = await _spaces_with(settings, topics.factor_basis, _based)
    missing = []
    fitted = live.space in whitened or adapted(live.space)
    if settings.spaces.whiten and fitted and space.space not in whitened and not adapted(space.space):
        missing.append("it is not fitted to the catalogue yet (the owner of partition 0 of interactions.v1 does that)")
    if live.space in based and space.space not in based:
        missing.append("learned factors have no basis in it yet (the owner of partition 0 of interactions.v1 makes it)")
    return missing


def _whitened(record: ConsumerRecord) -> tuple[str, bool]:
    space, message = decode_vector_space(record.key, record.value)
    return space, message is not None


def _based(record: ConsumerRecord) -> tuple[str, bool]:
    space, message = decode_factor_basis(record.key, record.value)
    return space, message is not None


async def _spaces_with(
    settings: Settings, topic: str, decode: Callable[[ConsumerRecord], tuple[str, bool]]
) -> set[str]:
    found: dict[str, bool] = {}
    async for record in read_to_end(settings, topic, patience_s=PATIENCE_S):
        try:
            space, there = decode(record)
        except InvalidMessage:
            continue
        found[space] = there
    return {space for space, there in found.items() if there}


async def cut_over_to(settings: Settings, name: str) -> SpaceControl:
    """Serve another space from now on. Whether it has what it needs is for the caller to ask.

    Raises:
        SpaceError: when there is no such space, or it is served.
    """
    return await _change(settings, lambda control: cut_over(control, name, at=_now()))


async def roll_back_space(settings: Settings) -> SpaceControl:
    """Serve what was served before.

    Raises:
        SpaceError: when nothing was, or it is retired.
    """
    return await _change(settings, lambda control: roll_back(control, at=_now()))


async def retire_space(settings: Settings, name: str) -> ModelSpace:
    """Keep a space no longer: processes leave it, then its topic is deleted.

    Raises:
        SpaceError: when there is no such space, or it is served.
    """
    control, _ = await present_control(settings)
    space = find_space(control, name)
    await _change(settings, lambda control: retire(control, space.space, at=_now()))
    await _forget(settings, space.space)
    if space.number:  # the first space's topic is a part of the contract, and its group checks the catalogue
        await _nobody_works_on(settings, space.number)
        await delete_topic(settings, Topics(settings).vectors_of(space.number))
    return space


async def left_over(settings: Settings) -> list[int]:
    """Numbers whose topic of vectors is there and belongs to no space, ascending: of a build or a retirement that was
    ended in the middle, or of a build that writes its record just now.
    """
    numbers = await vectors_topics(settings)  # first: a build that goes on meanwhile is in the record then
    kept = _numbers((await present_control(settings))[0])
    return [number for number in numbers if number not in kept]


async def delete_left_over(settings: Settings, number: int) -> None:
    """Delete a topic of vectors that belongs to no space. Takes half a minute: it may be of a build that goes on.

    Raises:
        SpaceError: when it belongs to one.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _RECORDED_WITHIN_S
    control = await _without(settings, number)
    while loop.time() < deadline:
        await asyncio.sleep(_TELL_EVERY_S)
        control = await _without(settings, number)
    space = await _space_in(settings, Topics(settings).vectors_of(number))
    await _nobody_works_on(settings, number)
    control = await _without(settings, number)  # looked at again, just before
    if space is not None and all(one.space != space for one in control.spaces):
        await _forget(settings, space)
    await delete_topic(settings, Topics(settings).vectors_of(number))


async def _without(settings: Settings, number: int) -> SpaceControl:
    """
    Raises:
        SpaceError: when a space with this number is kept.
    """
    control, _ = await present_control(settings)
    if number in _numbers(control):
        raise SpaceError(f"space {number} is kept, its vectors are not left over: tailrace spaces list")
    return control


def _numbers(control: SpaceControl) -> set[int]:
    return {one.number for one in control.spaces}


async def _space_in(settings: Settings, topic: str) -> str | None:
    """The space of the vectors in a topic, None where there are none."""
    async with aclosing(read_to_end(settings, topic, patience_s=PATIENCE_S)) as records:
        async for record in records:
            try:
                _, message = decode_item_vector(record.key, record.value)
            except InvalidMessage:
                continue
            if message is not None:
                return message.space
    return None


async def _forget(settings: Settings, space: str) -> None:
    """A space that is built again is fitted again."""
    topics, key = Topics(settings), space.encode()
    async with _publisher(settings) as publisher:
        await publisher.publish([OutRecord(topics.spaces, key, None), OutRecord(topics.factor_basis, key, None)])


async def _nobody_works_on(settings: Settings, number: int) -> None:
    """Wait for the processes that still make vectors of a space, for a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LEFT_WITHIN_S
    while loop.time() < deadline and await consumers_of(settings, number) != 0:  # noqa: ASYNC110 - only the broker knows
        await asyncio.sleep(_TELL_EVERY_S)


async def consumers_of(settings: Settings, number: int) -> int | None:
    """How many consumers read items to make vectors of a space; None: not to be had at the moment, as from a broker
    that never had a group.
    """
    try:
        return await group_members(settings, _catalogue_group(settings, number))
    except Unavailable:
        return None


def _catalogue_group(settings: Settings, number: int) -> str:
    return Topics(settings).group(f"catalogue-{number}" if number else "catalogue")


async def _change(settings: Settings, change: Callable[[SpaceControl], SpaceControl]) -> SpaceControl:
    control, offset = await present_control(settings)
    changed = change(control)
    async with _publisher(settings) as publisher:
        await write_control(settings, publisher, changed, based_on=offset, patience_s=PATIENCE_S)
    return changed


@asynccontextmanager
async def _publisher(settings: Settings) -> AsyncIterator[Publisher]:
    publisher = Publisher(settings, Metrics())
    await publisher.start()
    try:
        yield publisher
    finally:
        await publisher.stop()


def _now() -> datetime:
    return datetime.now(UTC)
