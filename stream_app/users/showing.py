"""What the published slates of a process's users show, so that a withdrawn item can be taken out of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter

from schemas.messages import Slate
from stream_app.users.stage import NewSlate

__all__ = ["Showing"]

_ITEM_ID = attrgetter("item_id")


class Showing:
    """The items of each user's last slate, and the partition whose owner published it.

    Holds at most ``limit`` users, the most recent: about 500 bytes each.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._users: OrderedDict[str, tuple[int, frozenset[str]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._users)

    def published(self, slates: Sequence[NewSlate]) -> None:
        """Slates an event or a profile caused."""
        for slate in slates:
            if slate.trigger is not None:
                self._put(slate.user_id, slate.trigger.partition, frozenset(map(_ITEM_ID, slate.items)))

    def replaced(self, slates: Sequence[NewSlate]) -> None:
        """Slates made again for another reason; the owner is the same. Users not known (any more) are left out."""
        for slate in slates:
            if slate.user_id in self._users:
                partition, _ = self._users[slate.user_id]
                self._put(slate.user_id, partition, frozenset(map(_ITEM_ID, slate.items)))

    def standing(self, user_id: str, slate: Slate, *, partition: int) -> None:
        """A slate read from the topic in order of offsets, and the partition its user's events are in."""
        self._put(user_id, partition, frozenset(map(_ITEM_ID, slate.items)))

    def items_of(self, user_id: str) -> frozenset[str]:
        """What the user's slate shows; nothing for users not known (any more)."""
        return self._users.get(user_id, (0, frozenset()))[1]

    def gone(self, user_id: str) -> None:
        """The user has no slate any more (a null value on the topic)."""
        self._users.pop(user_id, None)

    def add_older(self, before: Showing) -> None:
        """Take over users of whom nothing newer is known here."""
        newer = self._users
        self._users = before._users
        for user_id, (partition, items) in newer.items():
            self._put(user_id, partition, items)

    def items(self) -> set[str]:
        """Every item that is shown to anybody."""
        return set().union(*(items for _, items in self._users.values()))

    def showing(
        self, withdrawn: Mapping[str, Collection[str] | None], *, partitions: Collection[int]
    ) -> list[tuple[str, str]]:
        """Users of ``partitions`` whose slate shows an item withdrawn from it, with the first such item.

        Args:
            withdrawn: by item, from whose slates it is withdrawn; None: from everybody's.
            partitions: whose users are meant.
        """
        gone = withdrawn.keys()
        found = []
        for user_id, (partition, items) in self._users.items():
            if partition not in partitions or gone.isdisjoint(items):
                continue
            users_of = {item_id: withdrawn[item_id] for item_id in items & gone}
            shown = [item_id for item_id, users in users_of.items() if users is None or user_id in users]
            if shown:
                found.append((user_id, min(shown)))
        return found

    def _put(self, user_id: str, partition: int, items: frozenset[str]) -> None:
        self._users[user_id] = (partition, items)
        self._users.move_to_end(user_id)
        while len(self._users) > self._limit:
            self._users.popitem(last=False)
