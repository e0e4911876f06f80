"""A user's state: the last events, what is consumed and hidden, and how far the topic was applied.

The state is a fold of the user's events and profiles and nothing else: no vectors, no clock, no index. Interest
vectors are derived from the history when a request is ranked (``stream_app.retrieval.interests``), so an item that
arrives after its events takes effect at once, a change of the vector space needs no migration, and two processes that
fold the same records hold equal states. 50 events cost about 4 KB packed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

import msgspec

__all__ = ["STATE_VERSION", "HistoryEntry", "Profile", "UserState", "decode_state", "encode_state", "id_hash"]

STATE_VERSION = 3


@lru_cache(maxsize=16_384)
def id_hash(value: str) -> int:
    """63-bit hash of an id (BLAKE2b). Two of a million ids collide with probability 5e-8."""
    return int.from_bytes(blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


class Profile(msgspec.Struct, frozen=True, array_like=True):
    """What ``users.v1`` says of a user, as ranking needs it. ``liked`` are item ids, most liked first; ``blocked`` id
    hashes; ``blocked_labels`` as ``Catalogue.labels`` writes them; ``language`` is empty for the setting's."""

    texts: tuple[str, ...] = ()
    liked: tuple[str, ...] = ()
    blocked: tuple[int, ...] = ()
    blocked_labels: tuple[str, ...] = ()
    language: str = ""


class HistoryEntry(msgspec.Struct, frozen=True, array_like=True):
    """One event of the history. ``at`` is event time in seconds since 1970; ``weight`` carries the polarity's
    sign; ``text`` is the (shortened) free text of a search or review, empty otherwise. ``share`` is how much of what
    such an event says about items this one may (``stream_app.users.influence``), 0 to 1."""

    item_id: str
    type: str
    at: float
    weight: float
    offset: int
    text: str = ""
    share: float = 1.0


@dataclass(slots=True)
class UserState:
    """State of one user. ``history`` is oldest first. ``applied`` maps a partition to its last applied offset.

    ``consumed`` and ``hidden`` hold id hashes in order of insertion (oldest first), as dict keys. The value of a
    consumed item is the event time (seconds since 1970) up to which it is not recommended again, inf for ever.
    ``profile_applied`` is to ``users.v1`` what ``applied`` is to ``interactions.v1``. ``forgotten_at`` is when the user
    was forgotten last (broker's append time, seconds since 1970; 0: never): events from before do not count.

    ``added`` and ``spent`` bound what others learn from the user (``stream_app.users.influence``): by hash of an item,
    oldest first, how much the user added to it lately, as of an event time; and how much of the budget was spent, as of
    an event time. ``seen`` are the last impressions (``stream_app.users.impressions``): by hash of an item, in the
    order shown, when it was shown last (-inf: taken since) and when that counted last (-inf: never), event times; and
    ``seen_spent`` is their budget.
    """

    user_id: str
    history: tuple[HistoryEntry, ...] = ()
    consumed: dict[int, float] = field(default_factory=dict)
    hidden: dict[int, None] = field(default_factory=dict)
    recent_event_ids: dict[int, None] = field(default_factory=dict)
    applied: dict[int, int] = field(default_factory=dict)
    events: int = 0
    profile: Profile | None = None
    profile_applied: dict[int, int] = field(default_factory=dict)
    forgotten_at: float = 0.0
    added: dict[int, tuple[float, float]] = field(default_factory=dict)
    spent: tuple[float, float] = (0.0, 0.0)
    seen: dict[int, tuple[float, float]] = field(default_factory=dict)
    seen_spent: tuple[float, float] = (0.0, 0.0)

    def copy(self) -> UserState:
        """A copy that can be folded further without touching this one."""
        return UserState(
            self.user_id,
            self.history,
            dict(self.consumed),
            dict(self.hidden),
            dict(self.recent_event_ids),
            dict(self.applied),
            self.events,
            self.profile,
            dict(self.profile_applied),
            self.forgotten_at,
            dict(self.added),
            self.spent,
            dict(self.seen),
            self.seen_spent,
        )

    @property
    def forgotten(self) -> bool:
        """Whether nothing is known of the user but that everything was to be forgotten."""
        return self.forgotten_at > 0 and not self.events and self.profile is None

    def excludes(self, item_hash: int, at: float) -> bool:
        """Whether the item with this hash must not be recommended to the user at event time ``at``."""
        return item_hash in self.hidden or self.consumed.get(item_hash, -math.inf) > at

    def excluded(self, at: float) -> list[int]:
        """Hashes of the items that must not be recommended to the user at event time ``at``."""
        return [*self.hidden, *(item_hash for item_hash, until in self.consumed.items() if until > at)]


class _Packed(msgspec.Struct, array_like=True):
    version: int
    history: tuple[HistoryEntry, ...]
    consumed: list[int]
    hidden: list[int]
    recent_event_ids: list[int]
    applied: dict[int, int]
    events: int
    consumed_until: dict[int, float] = {}
    profile: Profile | None = None
    profile_applied: dict[int, int] = {}
    forgotten_at: float = 0.0
    added: dict[int, tuple[float, float]] = {}
    spent: tuple[float, float] = (0.0, 0.0)
    seen: dict[int, tuple[float, float]] = {}
    seen_spent: tuple[float, float] = (0.0, 0.0)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Packed)


def encode_state(state: UserState) -> bytes:
    """The state as MessagePack, version first."""
    return _encoder.encode(
        _Packed(
            STATE_VERSION,
            state.history,
            list(state.consumed),
            list(state.hidden),
            list(state.recent_event_ids),
            state.applied,
            state.events,
            {item_hash: until for item_hash, until in state.consumed.items() if until != math.inf},
            state.profile,
            state.profile_applied,
            state.forgotten_at,
            state.added,
            state.spent,
            state.seen,
            state.seen_spent,
        )
    )


def decode_state(user_id: str, data: bytes) -> UserState:
    """The state packed by :func:`encode_state`, of this version or an older one: in 1 all was
    consumed for ever, up to 2 nothing was noted of the user's influence and of impressions.

    Raises:
        ValueError: when the bytes are not a state of a version this code knows.
    """
    try:
        packed = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"state of user {user_id!r} cannot be read: {error}") from error
    if not 1 <= packed.version <= STATE_VERSION:
        raise ValueError(
            f"state of user {user_id!r} has version {packed.version}, this code knows 1 to {STATE_VERSION}"
        )
    return UserState(
        user_id,
        packed.history,
        {item_hash: packed.consumed_until.get(item_hash, math.inf) for item_hash in packed.consumed},
        dict.fromkeys(packed.hidden),
        dict.fromkeys(packed.recent_event_ids),
        packed.applied,
        packed.events,
        packed.profile,
        packed.profile_applied,
        packed.forgotten_at,
        packed.added,
        packed.spent,
        packed.seen,
        packed.seen_spent,
    )
