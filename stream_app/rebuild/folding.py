"""Users' states folded anew from their topics, to exactly where each user's owner is. Pure.

A record may be in a rebuilt state when all its effects are done: its slate, transitions and examples were published
before the owner wrote a state that holds it, or committed its offset. With fewer records the rebuilt state would set
the user back; with more the owner would take them for done and publish nothing. Records beyond that wait here, for
users whose owner goes on meanwhile.

Offsets are kept by fence: ``o3`` is partition 3 of ``interactions.v1``, ``u3`` that of ``users.v1``, as in Redis.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping

from stream_app.users.fold import Fold, Folder
from stream_app.users.profiles import fold_profile
from stream_app.users.stage import SourcedEvent, SourcedProfile
from stream_app.users.state import UserState, decode_state, encode_state

__all__ = ["Refolding", "Sourced", "fence", "fences"]

Sourced = SourcedEvent | SourcedProfile


def fence(sourced: Sourced) -> str:
    """Where the record's offset belongs."""
    return f"{'o' if isinstance(sourced, SourcedEvent) else 'u'}{sourced.partition}"


def fences(state: UserState) -> dict[str, int]:
    """The last offsets a state holds, by fence."""
    return {
        **{f"o{partition}": offset for partition, offset in state.applied.items()},
        **{f"u{partition}": offset for partition, offset in state.profile_applied.items()},
    }


class Refolding:
    """States of users while they are folded anew.

    Args:
        fold: what the owners fold with.
        unpacked: states kept ready for use, those of the last users (36 KB each with 50 events); of the others only
            the bytes are kept (1.4 to 2.5 KB).
        note: is told what each event did.
    """

    def __init__(
        self, fold: Folder, *, unpacked: int, note: Callable[[SourcedEvent, Fold], None] = lambda _, __: None
    ) -> None:
        self._fold = fold
        self._note = note
        self._unpacked = unpacked
        self._states: OrderedDict[str, UserState] = OrderedDict()
        self._packed: dict[str, bytes] = {}
        self._waiting: dict[str, list[Sourced]] = {}
        self._done: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._states) + len(self._packed)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._states or user_id in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter([*self._packed, *self._states])

    def effects_done(self, through: Mapping[str, int]) -> None:
        """Of each fence the last offset that is committed. Records up to there count for every user."""
        for name, offset in through.items():
            self._done[name] = max(offset, self._done.get(name, -1))

    def begin(self, user_id: str, *, forgotten_at: float = 0.0) -> None:
        """A user whose records follow.

        Args:
            forgotten_at: when the user was forgotten last, as far as Redis knows (seconds since 1970, 0: never): the
                record that said so may be compacted away, and events from before may still be there.
        """
        self._keep(UserState(user_id, forgotten_at=forgotten_at))

    def take(self, sourced: Sourced) -> None:
        """One more record of a user who has begun. Those of one partition come in the order of their offsets, all
        together in the order the broker took them.

        Raises:
            KeyError: when the user has not begun.
        """
        user_id = sourced.user_id
        if user_id not in self:
            raise KeyError(f"user {user_id!r} has not begun")
        if user_id not in self._waiting and sourced.offset <= self._done.get(fence(sourced), -1):
            self._apply(user_id, sourced)
        else:
            self._waiting.setdefault(user_id, []).append(sourced)

    def settle(self, user_id: str, held: Mapping[str, int]) -> UserState:
        """The user's state with everything the owner's has, and no more than is done.

        Every record up to ``held`` was taken before. Where the owner holds an offset that is no record of the user any
        more (it is refused by now, or compacted away), the state says that it holds it too: fences never go back.

        Args:
            held: the offsets of the owner's state, by fence; empty when there is none.
        """
        waiting = self._waiting.pop(user_id, [])
        later = []
        for sourced in waiting:
            name = fence(sourced)
            if sourced.offset <= max(held.get(name, -1), self._done.get(name, -1)):
                self._apply(user_id, sourced)
            else:
                later.append(sourced)
        if later:
            self._waiting[user_id] = later
        state = self._state(user_id)
        for name, offset in held.items():
            applied = state.applied if name[0] == "o" else state.profile_applied
            partition = int(name[1:])
            applied[partition] = max(offset, applied.get(partition, -1))
        return state

    def waits(self, user_id: str) -> dict[str, int]:
        """Of each fence the last offset of the user's records that wait; empty when none do."""
        return {fence(sourced): sourced.offset for sourced in self._waiting.get(user_id, ())}

    def drop(self, user_ids: Collection[str]) -> None:
        """Users who are done, or are left to another pass."""
        for user_id in user_ids:
            self._states.pop(user_id, None)
            self._packed.pop(user_id, None)
            self._waiting.pop(user_id, None)

    def _apply(self, user_id: str, sourced: Sourced) -> None:
        state = self._state(user_id)
        place = {"partition": sourced.partition, "offset": sourced.offset}
        if isinstance(sourced, SourcedEvent):
            self._note(sourced, self._fold(state, sourced.event, **place, appended_s=sourced.appended_s))
        else:
            fold_profile(state, sourced.profile, **place, appended_s=sourced.appended_s)

    def _state(self, user_id: str) -> UserState:
        state = self._states.get(user_id)
        if state is None:
            state = decode_state(user_id, self._packed.pop(user_id))
            self._keep(state)
        else:
            self._states.move_to_end(user_id)
        return state

    def _keep(self, state: UserState) -> None:
        self._states[state.user_id] = state
        self._states.move_to_end(state.user_id)
        while len(self._states) > self._unpacked:
            user_id, oldest = self._states.popitem(last=False)
            self._packed[user_id] = encode_state(oldest)
