"""A user's state: the last events, what is consumed and hidden, and how far the topic was applied.

The state is a fold of the user's events and profiles and nothing else: no vectors, no clock, no index. Interest
vectors are derived from the history when a request is ranked (``stream_app.retrieval.interests``), so an item that
arrives after its events takes effect at once, a change of the vector space needs no migration, and two processes that
fold the same records hold equal states. 50 events take 1.4 to 2.5 KB packed.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from stream_app.errors import NewerVersion

__all__ = [
    "STATE_VERSION",
    "Flood",
    "HistoryEntry",
    "Latest",
    "Located",
    "Profile",
    "UserState",
    "appended",
    "decode_state",
    "encode_state",
    "event_hash",
    "event_seed",
    "id_hash",
    "newer_state",
    "short_hash",
]

STATE_VERSION = 4
_COMPRESSED = 4
"""The first version that is."""
_ID_BYTES, _EVENT_BYTES = 8, 6
_WORD = 8
_EVENT_SHIFT, _SHORT_SHIFT = 15, 31
"""From the 63 bits of :func:`id_hash` to those of the others."""


@lru_cache(maxsize=16_384)
def id_hash(value: str) -> int:
    """63-bit hash of an id (BLAKE2b). Two of a million ids collide with probability 5e-8."""
    return _hash(value) >> 1


def event_hash(event_id: str) -> int:
    """48-bit hash of an event's id. Told apart are only the last of one user: a new one is taken for one of 128 with
    probability 5e-13. Not kept: hardly any comes twice."""
    return _hash(event_id) >> 16


def event_seed(event_id: str) -> int:
    """:func:`id_hash` of an event's id. Not kept: it would drive out those of items."""
    return _hash(event_id) >> 1


def short_hash(item_hash: int) -> int:
    """32 bits of an :func:`id_hash`, for what is bounded per item: two of a user's 64 items share a bound with
    probability 5e-7."""
    return item_hash >> _SHORT_SHIFT


def shared_id(item_id: str) -> str:
    """The same id as the same object, as long as it is remembered: histories hold the ids of a catalogue over and over
    again."""
    found = _shared.get(item_id)
    if found is None:
        if len(_shared) >= _MOST_SHARED:
            _shared.clear()
        found = _shared[item_id] = item_id
    return found


_shared: dict[str, str] = {}
_MOST_SHARED = 262_144


def _hash(value: str) -> int:
    return int.from_bytes(blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class Profile(msgspec.Struct, frozen=True, array_like=True):
    """What ``users.v1`` says of a user, as ranking needs it. ``liked`` are item ids, most liked first; ``blocked`` id
    hashes; ``blocked_labels`` as ``Catalogue.labels`` writes them; ``language`` is empty for the setting's."""

    texts: tuple[str, ...] = ()
    liked: tuple[str, ...] = ()
    blocked: tuple[int, ...] = ()
    blocked_labels: tuple[str, ...] = ()
    language: str = ""


class Flood(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How fast a user's events come (``stream_app.users.flood``).

    ``events`` are in the bucket, as of the latest append time and the latest event time (whole seconds since 1970);
    ``shed`` is how many were shed in the minute of that append time, ``untold`` how many of all since the last that has
    a dead letter.
    """

    events: int = 0
    appended_s: int = 0
    occurred_s: int = 0
    shed: int = 0
    untold: int = 0


_NO_FLOOD = Flood()


class HistoryEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
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


class Latest(NamedTuple):
    """What links and examples need of a history: of each item the last entry that speaks for it (its weight is
    positive), the newest first. Apart from the entries, which lie all over memory: to touch those of a user who was
    away for a while takes longer than what is done with them.

    Attributes:
        item_ids: of these entries.
        shares: of these entries.
        numbers: of these entries, counted from the first of the history that was ever seen here.
        next: the number of the next entry.
        newest: no entry of the history has a later event time.
    """

    item_ids: tuple[str, ...]
    shares: tuple[float, ...]
    numbers: array[int]
    next: int
    newest: float

    @classmethod
    def of(cls, history: tuple[HistoryEntry, ...]) -> Latest:
        """Of a whole history."""
        found: dict[str, int] = {}
        for number in range(len(history) - 1, -1, -1):
            entry = history[number]
            if entry.weight > 0 and entry.item_id:
                found.setdefault(entry.item_id, number)
        return cls(
            tuple(map(shared_id, found)),
            tuple([history[number].share for number in found.values()]),
            array("q", found.values()),
            len(history),
            max([entry.at for entry in history], default=-math.inf),
        )

    def then(self, entry: HistoryEntry, kept: int) -> Latest:
        """The same after one more entry, when ``kept`` entries are kept of the history. What it costs is felt: it is
        done for every event."""
        item_ids, shares, numbers, number, newest = self
        if entry.weight > 0 and entry.item_id:
            item_id = entry.item_id
            end = start = item_ids.index(item_id) if item_id in item_ids else len(item_ids)
            end += 1
            item_ids = (item_id, *item_ids[:start], *item_ids[end:])
            shares = (entry.share, *shares[:start], *shares[end:])
            numbers = array("q", (number,)) + numbers[:start] + numbers[end:]
        while numbers and numbers[-1] <= number - kept:
            item_ids, shares, numbers = item_ids[:-1], shares[:-1], numbers[:-1]
        return Latest(item_ids, shares, numbers, number + 1, max(newest, entry.at))


class Located(NamedTuple):
    """A history as ranking reads it, in some process.

    Attributes:
        history: which.
        numbering: of the catalogue, see ``Catalogue.numbering``.
        rows: int32 [entries], of the items, newest first; -1 where there is none.
        weights: float64 [entries].
    """

    history: tuple[HistoryEntry, ...]
    numbering: int
    rows: NDArray[np.int32]
    weights: NDArray[np.float64]


class _Written(NamedTuple):
    """A history in MessagePack: its entries one after the other, and how long each is (bytes)."""

    history: tuple[HistoryEntry, ...]
    entries: bytes
    lengths: array[int]


def appended(before: tuple[HistoryEntry, ...], history: tuple[HistoryEntry, ...]) -> int:
    """How many entries were added to ``before`` to get ``history``, the oldest left out for them; -1 when it is not
    that, or not worth looking."""
    if not before or not history:
        return -1
    for more in range(min(_MOST_APPENDED, len(history) - 1) + 1):
        if history[-1 - more] is before[-1]:
            kept = len(history) - more
            # Nearly always the same objects, which is seen at once.
            same = kept <= len(before) and before[len(before) - kept :] == history[:kept]
            return more if same else -1
    return -1


_MOST_APPENDED = 8


@dataclass(slots=True)
class UserState:
    """State of one user. ``history`` is oldest first. ``applied`` maps a partition to its last applied offset.

    ``consumed`` and ``hidden`` hold id hashes in order of insertion (oldest first), as dict keys. The value of a
    consumed item is the event time (seconds since 1970) up to which it is not recommended again, inf for ever.
    ``profile_applied`` is to ``users.v1`` what ``applied`` is to ``interactions.v1``. ``forgotten_at`` is when the user
    was forgotten last (broker's append time, seconds since 1970; 0: never): events from before do not count.

    ``added`` and ``spent`` bound what others learn from the user (``stream_app.users.influence``): by
    :func:`short_hash` of an item, oldest first, how much the user added to it lately, as of an event time; and how much
    of the budget was spent, as of an event time. ``seen`` are the last impressions (``stream_app.users.impressions``):
    by hash of an item, in the order shown, when it was shown last (-inf: taken since) and when that counted last (-inf:
    never), event times; and ``seen_spent`` is their budget. ``flood`` bounds how many events count per second.

    ``generation`` is that of the last rebuild the state comes from (0: none); it is stored beside the state and not in
    it, so that a rebuild that changes nothing changes no byte.
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
    flood: Flood = _NO_FLOOD
    latest_of: tuple[tuple[HistoryEntry, ...], Latest] | None = field(default=None, compare=False, repr=False)
    """A history and its :meth:`latest`. Nothing of it is stored."""
    located: Located | None = field(default=None, compare=False, repr=False)
    """A history and its rows. Nothing of it is stored."""
    written: _Written | None = field(default=None, compare=False, repr=False)
    """A history as it was stored last, in MessagePack; itself it is not stored."""
    generation: int = field(default=0, compare=False, repr=False)

    def latest(self) -> Latest:
        """The last entries that speak for an item."""
        held = self.latest_of
        if held is None or held[0] is not self.history:
            held = self.latest_of = self.history, Latest.of(self.history)
        return held[1]

    def append(self, entry: HistoryEntry, limit: int) -> None:
        """Add an entry to the history, of which the last ``limit`` stay."""
        latest = self.latest()
        self.history = (*self.history, entry)[-limit:]
        self.latest_of = self.history, latest.then(entry, limit)

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
            self.flood,
            self.latest_of,
            self.located,
            self.written,
            self.generation,
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
        consumed = self.consumed
        if consumed and min(consumed.values()) <= at:
            return [*self.hidden, *(item_hash for item_hash, until in consumed.items() if until > at)]
        # Nearly always: consumed for ever.
        return [*self.hidden, *consumed]


class _Packed(msgspec.Struct, array_like=True):
    """A state; hashes as bytes one after the other, big-endian. ``consumed_until`` names those not consumed for ever by
    their place."""

    history: tuple[HistoryEntry, ...]
    consumed: bytes
    hidden: bytes
    recent_event_ids: bytes
    applied: dict[int, int]
    events: int
    consumed_until: dict[int, float]
    profile: Profile | None
    profile_applied: dict[int, int]
    forgotten_at: float
    added: dict[int, tuple[float, float]]
    spent: tuple[float, float]
    seen: dict[int, tuple[float, float]]
    seen_spent: tuple[float, float]
    flood: Flood = _NO_FLOOD
    """Not there in states written before it was; who does not know it leaves it out."""


class _PackedBefore(msgspec.Struct, array_like=True):
    """As versions 1 to 3 were written, not compressed."""

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


_PREFIX = bytes([STATE_VERSION])
_LARGEST_BYTES = 1 << 26
"""A state says of itself how large it is; one that says more is none."""
_FEW, _MANY = 1 << 4, 1 << 16
"""Entries from which on MessagePack writes the length of an array in two bytes, and in four."""
_LAST_VERSION = 0x1F
"""No version is greater: bytes that begin with one are text or damaged, and of no newer release."""
_ARRAY = 0x90
"""What older versions begin with: an array, and then the version."""
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Packed)
_decoder_before = msgspec.msgpack.Decoder(_PackedBefore)
_compressor = zstandard.ZstdCompressor(level=-1, write_checksum=False, write_content_size=True)
_decompressor = zstandard.ZstdDecompressor()


def encode_state(state: UserState) -> bytes:
    """The state: a byte for the version, then MessagePack compressed by Zstandard. Not for use in several threads.

    Compressing takes 6 us of a processor for 50 events and leaves less than half (level 1: 10 us, and not a byte less).
    Columns (times as differences, each value once) take a fifth off that, and five times as long in Python.
    """
    until = [(place, at) for place, at in enumerate(state.consumed.values()) if at != math.inf]
    # The fields of _Packed, the history in MessagePack already.
    fields: tuple[object, ...] = (
        msgspec.Raw(_history_in_bytes(state)),
        _in_bytes(state.consumed, _ID_BYTES),
        _in_bytes(state.hidden, _ID_BYTES),
        _in_bytes(state.recent_event_ids, _EVENT_BYTES),
        state.applied,
        state.events,
        dict(until),
        state.profile,
        state.profile_applied,
        state.forgotten_at,
        state.added,
        state.spent,
        state.seen,
        state.seen_spent,
    )
    if state.flood != _NO_FLOOD:
        fields = (*fields, state.flood)
    return _PREFIX + _compressor.compress(_encoder.encode(fields))


def _history_in_bytes(state: UserState) -> bytes:
    """The history in MessagePack. What of it was written before is not written again: entries lie all over memory, and
    writing fifty takes twice as long as all the rest."""
    history, held = state.history, state.written
    more = -1 if held is None else appended(held.history, history)
    if held is None or more < 0:
        parts = [_encoder.encode(entry) for entry in history]
        held = _Written(history, b"".join(parts), array("I", map(len, parts)))
    elif held.history is not history:
        parts = [_encoder.encode(entry) for entry in history[len(history) - more :]]
        left_out = len(held.history) + more - len(history)
        lengths = held.lengths[left_out:]
        lengths.extend(map(len, parts))
        held = _Written(history, b"".join((held.entries[sum(held.lengths[:left_out]) :], *parts)), lengths)
    state.written = held
    count = len(history)
    start = bytes((_ARRAY | count,)) if count < _FEW else b"\xdd" + count.to_bytes(4, "big")
    if _FEW <= count < _MANY:
        start = b"\xdc" + count.to_bytes(2, "big")
    return start + held.entries


def decode_state(user_id: str, data: bytes) -> UserState:
    """The state packed by :func:`encode_state`, of this version or an older one: in 1 all was consumed for ever, up to
    2 nothing was noted of the user's influence and of impressions, up to 3 nothing was compressed and all hashes had 63
    bits. Not for use in several threads.

    Raises:
        NewerVersion: when a newer release wrote it. Its first byte is the version, whatever follows.
        ValueError: when the bytes are not a state of any version.
    """
    version = data[0] if data else 0
    if version & 0xF0 == _ARRAY and len(data) > 1:
        version = data[1]
    if not 1 <= version <= _LAST_VERSION:
        raise ValueError(f"state of user {user_id!r} has version {version}, this code knows 1 to {STATE_VERSION}")
    if version > STATE_VERSION:
        raise newer_state(user_id, version)
    try:
        if version < _COMPRESSED:
            return _before(user_id, _decoder_before.decode(data))
        content = data[len(_PREFIX) :]
        if zstandard.frame_content_size(content) > _LARGEST_BYTES:
            raise ValueError(f"state of user {user_id!r} cannot be read: it says that it is too large")
        return _unpacked(user_id, _decoder.decode(_decompressor.decompress(content)))
    except (msgspec.DecodeError, zstandard.ZstdError) as error:
        raise ValueError(f"state of user {user_id!r} cannot be read: {error}") from error


def newer_state(user_id: str, version: int | None = None) -> NewerVersion:
    """What to say of a state that a newer release wrote."""
    found = "a newer version" if version is None else f"version {version}"
    return NewerVersion(
        f"the state of user {user_id!r} has {found}, written by a newer release; this one knows 1 to {STATE_VERSION}. "
        "It was left as it is and nothing was acknowledged: upgrade this process too, or run the newer release again "
        "where it was taken back"
    )


def _unpacked(user_id: str, packed: _Packed) -> UserState:
    consumed = dict.fromkeys(_from_bytes(packed.consumed, _ID_BYTES), math.inf)
    if packed.consumed_until:
        until = packed.consumed_until
        consumed = {item_hash: until.get(place, math.inf) for place, item_hash in enumerate(consumed)}
    return UserState(
        user_id,
        packed.history,
        consumed,
        dict.fromkeys(_from_bytes(packed.hidden, _ID_BYTES)),
        dict.fromkeys(_from_bytes(packed.recent_event_ids, _EVENT_BYTES)),
        packed.applied,
        packed.events,
        packed.profile,
        packed.profile_applied,
        packed.forgotten_at,
        packed.added,
        packed.spent,
        packed.seen,
        packed.seen_spent,
        packed.flood,
    )


def _before(user_id: str, packed: _PackedBefore) -> UserState:
    if min([0, *packed.consumed, *packed.hidden, *packed.recent_event_ids]) < 0:
        raise ValueError(f"state of user {user_id!r} cannot be read: a hash is negative")
    return UserState(
        user_id,
        packed.history,
        {item_hash: packed.consumed_until.get(item_hash, math.inf) for item_hash in packed.consumed},
        dict.fromkeys(packed.hidden),
        dict.fromkeys(event_id >> _EVENT_SHIFT for event_id in packed.recent_event_ids),
        packed.applied,
        packed.events,
        packed.profile,
        packed.profile_applied,
        packed.forgotten_at,
        {short_hash(item_hash): added for item_hash, added in packed.added.items()},
        packed.spent,
        packed.seen,
        packed.seen_spent,
    )


def _in_bytes(hashes: Collection[int], size: int) -> bytes:
    """The last ``size`` bytes of each hash, one after the other."""
    packed = struct.pack(f">{len(hashes)}Q", *hashes)
    return packed if size == _WORD else np.frombuffer(packed, np.uint8).reshape(-1, _WORD)[:, -size:].tobytes()


def _from_bytes(packed: bytes, size: int) -> list[int]:
    """What :func:`_in_bytes` was given; bytes at the end that make no hash are left out."""
    count = len(packed) // size
    words = np.zeros((count, _WORD), np.uint8)
    words[:, -size:] = np.frombuffer(packed, np.uint8, count * size).reshape(count, size)
    hashes: list[int] = words.view(">u8").ravel().tolist()
    return hashes
