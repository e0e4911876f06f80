"""``tailrace rebuild recommendations``: every standing slate made again by the users' owners.

The command only asks and watches: it writes down where ``recommendations.v1`` ends, and each owner ranks its users
whose slates are from before, slowly, beside events. A slate is done when the topic has a later one of the user,
whatever caused it. So whoever dies is not missed: a new owner finds what is left by the same rule, and the command can
be started again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stream_app.delivery.reading import follow, true_ends
from stream_app.settings import Settings
from stream_app.stores.requests import SlateRebuild, SlateRebuilds
from stream_app.topics import Topics

__all__ = ["Standing", "remake_slates"]

_PATIENCE_S = 30.0
_LOOK_EVERY_S = 0.2


@dataclass(slots=True)
class Standing:
    """Whose slates are from before, as far as the topic was read. Pure.

    Args:
        ends: by partition, the offset from which on slates are new.

    Attributes:
        old: users whose last slate is from before, and where it is (partition, offset).
        new: how many users have a new one instead.
        whole: whether the topic was read to where it ended.
    """

    ends: Mapping[int, int]
    old: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    new: int = 0
    whole: bool = False

    def take(self, key: bytes | None, partition: int, offset: int, *, gone: bool) -> None:
        """A record of the topic, in the order of the partition."""
        if key is None:
            return
        if offset < self.ends.get(partition, 0):
            if gone:
                self.old.pop(key, None)
            else:
                self.old[key] = partition, offset
        elif self.old.pop(key, None) is not None and not gone:
            self.new += 1

    @property
    def users(self) -> int:
        """How many there are."""
        return len(self.old) + self.new


async def remake_slates(
    settings: Settings,
    rebuilds: SlateRebuilds,
    *,
    users_per_s: float,
    quiet_s: float,
    dry_run: bool = False,
    tell: Callable[[int, int], None] = lambda _, __: None,
) -> tuple[int, list[str]]:
    """Ask the owners for new slates, or join who has asked already, and watch until all are made.

    Args:
        users_per_s: how many users each process ranks for it per second.
        quiet_s: give up when nothing happens for so long (seconds); it goes on being asked for.
        dry_run: ask nobody.
        tell: is called with how many slates are new, and how many there are.

    Returns:
        how many slates are new, and the users whose slates are not.

    Raises:
        TopicError, Unavailable: when the topic or a broker is not there.
    """
    topic = Topics(settings).recommendations
    ends = await true_ends(settings, topic, patience_s=_PATIENCE_S)
    request = SlateRebuild(f"{time.time_ns():x}", ends, users_per_s)
    if not dry_run:
        request = await rebuilds.ask(request)
    standing = Standing(request.ends)
    following = asyncio.create_task(_follow(settings, standing))
    loop = asyncio.get_running_loop()
    quiet_since, before = loop.time(), (-1, -1)
    try:
        while True:
            await asyncio.wait([following], timeout=_LOOK_EVERY_S)
            if following.done():
                following.result()  # it only ends by an error
            now = len(standing.old), standing.new
            tell(standing.new, standing.users)
            if standing.whole and (dry_run or not standing.old):
                break
            if now != before:
                quiet_since, before = loop.time(), now
            elif loop.time() - quiet_since > quiet_s:
                return standing.new, [key.decode("utf-8", "replace") for key in standing.old]
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    if not dry_run:
        await rebuilds.take_back()
    return standing.new, [key.decode("utf-8", "replace") for key in standing.old]


async def _follow(settings: Settings, standing: Standing) -> None:
    async for records, through in follow(settings, Topics(settings).recommendations):
        for record in records:
            standing.take(record.key, record.partition, record.offset, gone=record.value is None)
        standing.whole = through
