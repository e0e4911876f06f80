"""One time through the topics, for a share of the users: read, fold, write, and look again.

A user whose owner has written in between is done again: most are quiet, so each round has fewer, and a busy one needs
the owner to leave it alone for the one round trip between asking and writing.

Written is not yet right, where Redis had lost something: the owner may have written a state with a record that is not
committed yet, Redis lost it, and the owner, sent back to the rebuilt state, goes on from there without that record. So
users with records that came since are looked at once more when those are committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stream_app.rebuild.folding import Refolding, Sourced, fences
from stream_app.rebuild.shares import Share
from stream_app.stores.rebuilt import Held, RebuiltStates, Replacement
from stream_app.users.state import decode_state, encode_state

__all__ = ["Counts", "Pass", "Records"]

_WRITTEN_AT_ONCE = 256
_MOST_ROUNDS = 50
"""How often users are tried again whose owners have written meanwhile."""
_LOOK_EVERY_S = 0.2
_AHEAD = 16_384
"""Records of each partition beyond what is committed whose users' states may be written already: an owner writes no
more without committing (``delivery.catch_up``, and once more)."""


class Records(Protocol):
    """What is read; ``source.UserRecords`` says more."""

    async def effects_done(self) -> dict[str, int]:
        """The next offset the owners have to process, by fence."""

    async def ends(self) -> dict[str, int]:
        """The next offset the broker will give, by fence."""

    def read(self, until: Mapping[str, int], share: Share) -> AsyncIterator[tuple[int, list[Sourced]]]:
        """Records not read yet."""


@dataclass(slots=True)
class Counts:
    """What became of the users of the passes so far; of a dry run, what would have.

    Attributes:
        created: of whom Redis had nothing.
        replaced: whose state was another.
        unchanged: whose state was right.
        kept: whose state knows more events than the topic still has.
        left: whose owners wrote every time; their states are what they were.
    """

    created: int = 0
    replaced: int = 0
    unchanged: int = 0
    kept: int = 0
    left: list[str] = field(default_factory=list)

    @property
    def users(self) -> int:
        """Who is done."""
        return self.created + self.replaced + self.unchanged + self.kept


class Pass:
    """See the module.

    Args:
        records: to be read from their beginning.
        states: where the states are.
        folding: with no users yet.
        share: whose users are meant.
        counts: that this pass adds to.
        most: users in memory.
        look_again_s: how long nothing may be committed while records that came since are waited for (seconds): then
            there is no owner who could have lost one.
        dry_run: write nothing.
        keep_more: keep states that know more events than the topic has.
        tell: is called with how much of the pass is read, 0 to 1.

    Attributes:
        given_away: shares of users that did not fit.
    """

    def __init__(
        self,
        records: Records,
        states: RebuiltStates,
        folding: Refolding,
        share: Share,
        counts: Counts,
        *,
        most: int,
        look_again_s: float,
        dry_run: bool = False,
        keep_more: bool = False,
        tell: Callable[[Share, float], None] = lambda _, __: None,
    ) -> None:
        self._records = records
        self._states = states
        self._folding = folding
        self._share = share
        self._counts = counts
        self._most = most
        self._look_again_s = look_again_s
        self._dry_run = dry_run
        self._keep_more = keep_more
        self._tell = tell
        self._read: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._counted: set[str] = set()
        self.given_away: list[Share] = []

    async def run(self, total: int) -> None:
        """Do it.

        Args:
            total: how many records there are, about.

        Raises:
            NewerVersion: when a newer release wrote a state.
            Unavailable: when the broker has fewer records than the states know.
        """
        await self._ask()
        until = await self._written_through()
        seen = 0
        async for count, sourced in self._records.read(until, self._share):
            await self._begin(sourced)
            self._take(sourced)
            seen += count
            self._tell(self._share, min(1.0, seen / max(1, total)))
        self._has_read(until)
        written = await self._write_all(list(self._folding))
        if not self._dry_run:
            await self._look_again(written)
        self._tell(self._share, 1.0)

    async def _write_all(self, users: Sequence[str]) -> list[str]:
        """Write, and read on for those who moved, until nobody is left; who was written."""
        left, written = list(users), []
        for _ in range(_MOST_ROUNDS):
            left, done, until = await self._write(left)
            written += done
            if not left:
                return written
            await self._ask()
            await self._read_on({name: max(end, until.get(name, 0)) for name, end in self._done.items()} | until)
        self._counts.left += left
        self._folding.drop(left)
        return written

    async def _look_again(self, users: Sequence[str]) -> None:
        """Users of whom records came while they were written, once these are committed."""
        await self._read_on(await self._written_through())
        self._folding.drop([user_id for user_id in users if not self._folding.waits(user_id)])
        left = {user_id: waits for user_id in users if (waits := self._folding.waits(user_id))}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._look_again_s
        while left:
            before = self._done
            await self._ask()
            if self._done != before:
                deadline = loop.time() + self._look_again_s
            await self._read_on(self._done)
            ready = [
                user_id
                for user_id, waits in left.items()
                if all(offset < self._done.get(name, 0) for name, offset in waits.items())
            ]
            if ready:
                self._states.generation += 1
                self._folding.drop(await self._write_all(ready))
                left = {user_id: waits for user_id, waits in left.items() if user_id not in set(ready)}
            if loop.time() > deadline:
                self._folding.drop(list(left))
                return
            if left:
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _written_through(self) -> dict[str, int]:
        """The next offset that no owner has written a state with yet, at most."""
        ends = await self._records.ends()
        return {name: max(done, min(ends.get(name, 0), done + _AHEAD)) for name, done in self._done.items()}

    async def _ask(self) -> None:
        """Where the owners are now."""
        self._done = await self._records.effects_done()
        self._folding.effects_done({name: end - 1 for name, end in self._done.items()})

    async def _read_on(self, until: Mapping[str, int]) -> None:
        """Read on for the users there are; who comes now is of the owners' making."""
        until = {name: end for name, end in until.items() if end > self._read.get(name, 0)}
        async for _, sourced in self._records.read(until, self._share):
            self._take(sourced)
        self._has_read(until)

    def _has_read(self, until: Mapping[str, int]) -> None:
        self._read.update({name: max(end, self._read.get(name, 0)) for name, end in until.items()})

    async def _begin(self, sourced: Sequence[Sourced]) -> None:
        """Make room for users not met before."""
        met = dict.fromkeys(one.user_id for one in sourced if one.user_id not in self._folding)
        new = [user_id for user_id in met if user_id.encode() in self._share]
        forgotten = await self._states.forgotten(new) if new else {}
        for user_id in new:
            self._folding.begin(user_id, forgotten_at=forgotten.get(user_id, 0.0))
        while len(self._folding) > self._most:
            self._share, others = self._share.halves()
            self.given_away.append(others)
            self._folding.drop([user_id for user_id in self._folding if user_id.encode() in others])

    def _take(self, sourced: Sequence[Sourced]) -> None:
        for one in sourced:
            if one.user_id in self._folding:
                self._folding.take(one)

    async def _write(self, users: Sequence[str]) -> tuple[list[str], list[str], dict[str, int]]:
        """Replace states: who is to be tried again, who was written, and how far the topics must be read for the
        former. Who is neither is right as it is, and done."""
        left: list[str] = []
        written: list[str] = []
        until: dict[str, int] = {}
        for start in range(0, len(users), _WRITTEN_AT_ONCE):
            part = users[start : start + _WRITTEN_AT_ONCE]
            replacements, right = [], []
            for user_id, held in zip(part, await self._states.held(part), strict=True):
                ahead = {name: end + 1 for name, end in held.fences.items() if end >= self._read.get(name, 0)}
                until.update({name: max(end, until.get(name, 0)) for name, end in ahead.items()})
                if ahead:
                    left.append(user_id)
                elif (replacement := self._replacement(user_id, held)) is None:
                    right.append(user_id)
                else:
                    replacements.append(replacement)
            self._folding.drop(right)
            for one, moved in zip(replacements, await self._replace(replacements), strict=True):
                if moved:
                    left.append(one.state.user_id)
                    continue
                written.append(one.state.user_id)
                self._count(one.state.user_id, "replaced" if one.held.packed else "created")
            self._tell(self._share, 1.0)
        return left, written, until

    async def _replace(self, replacements: Sequence[Replacement]) -> list[bool]:
        """Whether each user's owner has written meanwhile."""
        if self._dry_run or not replacements:
            return [False] * len(replacements)
        return [outcome == "moved" for outcome in await self._states.replace(replacements)]

    def _replacement(self, user_id: str, held: Held) -> Replacement | None:
        """What replaces the state that is held; None when that stays."""
        state = self._folding.settle(user_id, held.fences)
        packed, offsets = encode_state(state), fences(state)
        if not offsets:
            return None  # All records of the user are for the owner to process first.
        if packed == held.packed and offsets == held.fences:
            self._count(user_id, "unchanged")
            return None
        if self._keep_more and _events(user_id, held) > state.events:
            self._count(user_id, "kept")
            return None
        return Replacement(state, packed, offsets, held)

    def _count(self, user_id: str, what: str) -> None:
        if user_id not in self._counted:
            self._counted.add(user_id)
            setattr(self._counts, what, getattr(self._counts, what) + 1)


def _events(user_id: str, held: Held) -> int:
    """How many events a state knows; none, when it cannot be read."""
    try:
        return decode_state(user_id, held.packed).events if held.packed else 0
    except ValueError:
        return 0
