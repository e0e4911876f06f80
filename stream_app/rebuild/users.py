"""``tailrace rebuild users``: every user's state made again from the topics, while their owners go on.

Memory is bounded by passes over the topics (``shares.py``); what a rebuilt state may hold is in ``folding.py``, the way
of one pass in ``passes.py``, how a state gets into Redis in ``stores/rebuilt.py``.

Ending in the middle leaves states that are right, some rebuilt and some not yet: begin again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from stream_app.rebuild.folding import Refolding
from stream_app.rebuild.passes import Counts, Pass
from stream_app.rebuild.shares import EVERYBODY, Share
from stream_app.rebuild.source import UserRecords, expect_everything
from stream_app.settings import Settings
from stream_app.stores.lock import one_at_a_time
from stream_app.stores.rebuilt import RebuiltStates
from stream_app.stores.redis_client import RedisClient, connect_redis
from stream_app.textify import Textifier
from stream_app.users.fold import Folder

__all__ = ["USERS_AT_ONCE", "Progress", "UsersOutcome", "rebuild_users"]

USERS_AT_ONCE = 200_000
"""Users whose states a pass holds in memory at most: about 0.5 GB."""
_LOOK_AGAIN_S = 5.0
"""Beside the interval at which owners commit."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is.

    Attributes:
        done, total: records of the topics that are dealt with for all users, and how many there are.
        users: whose states are done.
    """

    done: float
    total: int
    users: int


@dataclass(slots=True)
class UsersOutcome:
    """What a rebuild did; of a dry run, what it would have done.

    Attributes:
        counts: of users.
        records: read for them.
        refused: of these, that cannot be used.
        passes: over the topics.
    """

    counts: Counts = field(default_factory=Counts)
    records: int = 0
    refused: int = 0
    passes: int = 0


async def rebuild_users(
    settings: Settings,
    *,
    dry_run: bool = False,
    partial: bool = False,
    users_at_once: int = USERS_AT_ONCE,
    tell: Callable[[Progress], None] = lambda _: None,
) -> UsersOutcome:
    """Fold the topics again and put the states in place of those in Redis, where they differ.

    Users of whom the topics have nothing keep what they have.

    Args:
        dry_run: write nothing.
        partial: go on although the beginning of ``interactions.v1`` is gone; a state that knows more events than the
            topic is kept.
        users_at_once: whose states are in memory at most; more take further passes over the topics.
        tell: is called with the progress, some times a second.

    Raises:
        NewerVersion: when a newer release wrote states.
        TailraceError: when another rebuild is under way.
        TopicError: when a topic is not there, or the beginning of ``interactions.v1`` is gone and not ``partial``.
        Unavailable: when the broker does not answer, or has less than the states know.
    """
    redis = connect_redis(settings)
    fold = Folder(settings.event_types, settings.users, settings.items, Textifier.of(settings.textify))
    outcome = UsersOutcome()
    try:
        states = RebuiltStates(redis, settings, generation=int(time.time() * 1_000))
        async with _alone(settings, redis, dry_run):
            shares = [EVERYBODY]
            while shares:
                done, share = 1.0 - sum(one.fraction for one in shares), shares.pop()
                outcome.passes += 1
                async with UserRecords.open(settings) as records:
                    if not partial:
                        expect_everything(records.beginnings, settings)
                    ends = await records.ends()
                    total = sum(end - records.beginnings[name] for name, end in ends.items())

                    def told(part: Share, read: float, done: float = done, total: int = total) -> None:
                        tell(Progress((done + read * part.fraction) * total, total, outcome.counts.users))

                    one = Pass(
                        records,
                        states,
                        Refolding(fold, unpacked=settings.users.unpacked),
                        share,
                        outcome.counts,
                        most=users_at_once,
                        look_again_s=_LOOK_AGAIN_S + settings.delivery.commit_interval_s,
                        dry_run=dry_run,
                        keep_more=partial,
                        tell=told,
                    )
                    await one.run(total)
                    outcome.records += records.read_records
                    outcome.refused += records.refused
                shares += one.given_away
        return outcome
    finally:
        await redis.aclose()


@asynccontextmanager
async def _alone(settings: Settings, redis: RedisClient, dry_run: bool) -> AsyncIterator[None]:
    if dry_run:
        yield
        return
    async with one_at_a_time(redis, f"{settings.topics.prefix}:rebuild:users", "a rebuild of users"):
        yield
