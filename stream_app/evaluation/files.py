"""The log of an evaluation: a catalogue and interactions from files in the contract, whatever shape they are in.

Lines go through the functions that decode records live (``schemas.decode``). A line that cannot be used is counted by
reason and the rest goes on; only a log with nothing valid in it is an error. What was put right on the way (order of
time, items that are missing from the catalogue, items without text) is said in the log's warnings.

Rules of the live pipeline are not applied where a log is history: how old an event may be, that an item is marked
unavailable today, and a date of publication or expiry that its interactions contradict.
"""

from __future__ import annotations

import gzip
import time
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import orjson
import zstandard

from schemas.decode import MAX_VALUE_BYTES, parse_interaction, parse_item
from schemas.messages import MAX_ID, Interaction, Item
from stream_app.datasets.dataset import Dataset
from stream_app.errors import DatasetError, InvalidMessage
from stream_app.evaluation.wording import number_of
from stream_app.settings import Settings

__all__ = ["SHOWN_BAD_LINES", "Log", "first_only", "from_dataset", "read_log"]

SHOWN_BAD_LINES: Final = 5
"""Lines that cannot be used are shown up to this number per file; all are counted."""

_READ_BYTES: Final = 1 << 17
_PIECE_BYTES: Final = 1_024
_REPORT_EVERY: Final = 2_000
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_TITLE_CHARS: Final = 200
_MANY: Final = 1_000
_LARGE_PART: Final = 0.2
"""From this number of interactions and share of all on one user is worth a warning."""
_NEARLY_ALL: Final = 0.9
"""From this share of interactions on that have another user's time, the order of the file is worth a warning."""


@dataclass(slots=True)
class Log:
    """A catalogue and what happened to it.

    Attributes:
        name: what the data is called in reports.
        items: one per id; every item that an interaction names is among them.
        interactions: in order of time; those of one time in the order of the file.
        without_text: ids of items that say nothing a language model could read.
        rejected: lines that were left out, by reason.
        bad_lines: the first of them, for people: file, line number, what is wrong.
        warnings: what was put right, for people.
    """

    name: str
    items: list[Item]
    interactions: list[Interaction]
    without_text: set[str] = field(default_factory=set)
    rejected: dict[str, int] = field(default_factory=dict)
    bad_lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """What a report says of the data."""
        times = [self.interactions[place].occurred_at for place in (0, -1)] if self.interactions else []
        return {
            "name": self.name,
            "items": len(self.items),
            "interactions": len(self.interactions),
            "users": len({event.user_id for event in self.interactions}),
            "items_without_text": len(self.without_text),
            "from": times[0].isoformat() if times else None,
            "to": times[1].isoformat() if times else None,
            "rejected": dict(self.rejected),
        }


def from_dataset(dataset: Dataset, *, limit: int | None = None) -> Log:
    """The log of a data set that ships with Tailrace; ``limit``: only the first so many interactions."""
    return Log(dataset.name, list(dataset.items), list(islice(dataset.interactions, limit)))


def read_log(
    items: Path | None,
    interactions: Path,
    settings: Settings,
    *,
    limit: int | None = None,
    on_progress: Callable[[int], None] = lambda _lines: None,
) -> Log:
    """Read a log from JSONL files in the contract (``.zst``: Zstandard, ``.gz``: gzip).

    Args:
        items: the catalogue; of several lines with one id the last counts. None: items are made of the ids that
            interactions name, without text.
        interactions: sorted by time here if need be.
        settings: the event types that are known.
        limit: only the first so many interactions, in order of time.
        on_progress: told the number of lines read, now and then.

    Raises:
        DatasetError: when a file cannot be read, or holds nothing that can be used.
    """
    log = Log(interactions.name, [], [])
    catalogue: dict[str, Item] = {}
    if items is not None:
        catalogue = _read_items(items, log, on_progress)
    events = _sorted(_read_interactions(interactions, log, settings.event_types, on_progress), log)
    log.interactions = events[:limit]
    _say_what_one_time_hides(log)
    _say_who_fills_the_log(log)
    _complete(catalogue, log, from_file=items is not None)
    log.items = _as_they_were(catalogue.values(), log)
    unavailable = sum(not item.available for item in catalogue.values())
    if unavailable:
        log.warnings.append(
            f"{number_of(unavailable, 'item is', 'items are')} marked as not available today; the replay recommends "
            f"{'it, as it was' if unavailable == 1 else 'them, as they were'} then"
        )
    oldest = datetime.fromisoformat(settings.events.oldest)
    too_old = sum(event.occurred_at < oldest for event in log.interactions)
    if too_old:
        log.warnings.append(_refused_live(too_old, f"older than {settings.events.oldest}", "events.oldest"))
    latest = time.time() + settings.events.future_tolerance_s
    too_new = sum(event.occurred_at.timestamp() > latest for event in log.interactions)
    if too_new:
        ahead = f"more than {settings.events.future_tolerance_s:,.0f} s in the future"
        log.warnings.append(_refused_live(too_new, ahead, "events.future_tolerance_s"))
    return log


def _refused_live(count: int, what: str, setting: str) -> str:
    they, them = ("it is", "it") if count == 1 else ("they are", "them")
    return (
        f"{number_of(count, 'interaction is', 'interactions are')} {what}; {they} replayed here, but live processes "
        f"refuse {them} (setting {setting})"
    )


def first_only(events: Iterable[Interaction]) -> list[Interaction]:
    """The events without a user's later interactions with the same item."""
    seen: set[tuple[str, str | None]] = set()
    kept = []
    for event in events:
        pair = (event.user_id, event.item_id)
        if event.item_id is None or pair not in seen:
            seen.add(pair)
            kept.append(event)
    return kept


def _read_items(path: Path, log: Log, on_progress: Callable[[int], None]) -> dict[str, Item]:
    catalogue: dict[str, Item] = {}
    again = 0

    def take(value: bytes) -> None:
        nonlocal again
        try:
            item, has_text = parse_item(value), True
        except InvalidMessage:
            found = _without_title(value)
            if found is None:
                raise
            item, has_text = found
        again += item.item_id in catalogue
        catalogue[item.item_id] = item
        (log.without_text.discard if has_text else log.without_text.add)(item.item_id)

    _take_lines(path, take, log, on_progress)
    if not catalogue:
        raise DatasetError(_nothing(path, "item", log))
    if again:
        repeat = "repeats" if again == 1 else "repeat"
        log.warnings.append(
            f"{number_of(again, 'line')} of {path.name} {repeat} an item id; the last line of each counts"
        )
    if log.without_text:
        they = "it is" if len(log.without_text) == 1 else "they are"
        count = number_of(len(log.without_text), "item has", "items have")
        log.warnings.append(f"{count} no text; {they} ranked without it")
    return catalogue


def _without_title(value: bytes) -> tuple[Item, bool] | None:
    """An item whose only fault is a missing title, with a title made of what it has, and whether that is text."""
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict) or document.get("title") or not isinstance(document.get("item_id"), str):
        return None
    try:
        item = msgspec.convert({**document, "title": document["item_id"] or "?"}, Item)
    except msgspec.ValidationError:
        return None
    said = next(filter(None, (item.description, ", ".join(item.categories), ", ".join(item.tags), item.brand)), "")
    title = said.strip()[:_TITLE_CHARS]
    return (msgspec.structs.replace(item, title=title), True) if title else (item, False)


def _read_interactions(
    path: Path, log: Log, types: Container[str], on_progress: Callable[[int], None]
) -> list[Interaction]:
    events: list[Interaction] = []
    seen: set[tuple[str, str]] = set()

    def take(value: bytes) -> None:
        event = parse_interaction(
            value, event_types=types, now=float("inf"), oldest=float("-inf"), future_tolerance_s=0.0
        )
        identity = (event.user_id, event.event_id)
        if identity in seen:
            raise InvalidMessage(
                "duplicate_event_id",
                f"event_id: {event.event_id!r} of user {event.user_id!r} was there before; one event is one line",
            )
        seen.add(identity)
        events.append(event)

    _take_lines(path, take, log, on_progress)
    if not events:
        raise DatasetError(_nothing(path, "interaction", log))
    return events


def _take_lines(path: Path, take: Callable[[bytes], None], log: Log, on_progress: Callable[[int], None]) -> None:
    """Hand every line to ``take``; count and keep the first of those it refuses."""
    refused: Counter[str] = Counter()
    for number, line in _lines(path):
        try:
            if line is None:
                raise InvalidMessage("too_large", f"the line has more than {MAX_VALUE_BYTES:,} bytes")
            take(line)
        except InvalidMessage as error:
            refused[error.reason] += 1
            if refused.total() <= SHOWN_BAD_LINES:
                log.bad_lines.append(f"{path.name}, line {number:,}: {error.reason}: {error.detail}")
        if number % _REPORT_EVERY == 0:
            on_progress(number)
    for reason, count in refused.items():
        log.rejected[reason] = log.rejected.get(reason, 0) + count
    if refused:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in refused.most_common())
        are = "is" if refused.total() == 1 else "are"
        log.warnings.append(f"{number_of(refused.total(), 'line')} of {path.name} {are} left out: {reasons}")


def _nothing(path: Path, what: str, log: Log) -> str:
    bad = "".join(f"\n  {line}" for line in log.bad_lines if line.startswith(path.name))
    why = f"no line of it is a valid {what}:{bad}" if bad else "the file is empty"
    return f"{path}: {why}\n  one {what} per line, as in schemas/v1/{what}s.json; see docs/contracts.md"


def _sorted(events: list[Interaction], log: Log) -> list[Interaction]:
    """In order of time; events of one time stay in the order of the file."""
    latest, back = None, 0
    for event in events:
        if latest is None or event.occurred_at >= latest:
            latest = event.occurred_at
        else:
            back += 1
    if back:
        them = "interaction is earlier than one before it", "interactions are earlier than one before them"
        log.warnings.append(f"{number_of(back, *them)}; all were sorted by occurred_at")
        events.sort(key=lambda event: event.occurred_at)
    return events


def _say_what_one_time_hides(log: Log) -> None:
    """Warn where time does not say who came first, as in a log with days instead of times."""
    tied = 0
    for _, group in groupby(log.interactions, key=lambda event: event.occurred_at):
        together = list(group)
        tied += len(together) if any(event.user_id != together[0].user_id for event in together) else 0
    if tied and tied >= _NEARLY_ALL * len(log.interactions):
        log.warnings.append(
            f"{tied:,} of {number_of(len(log.interactions), 'interaction')} happen at the same time as another user's; "
            "the order among users at one time is that of the file, and the figures depend on it"
        )


def _say_who_fills_the_log(log: Log) -> None:
    """Warn where one user is a large part of it: a bound on what one user may say holds no less for an only user."""
    user_id, count = Counter(event.user_id for event in log.interactions).most_common(1)[0]
    share = count / len(log.interactions)
    if count >= _MANY and share >= _LARGE_PART:
        log.warnings.append(
            f"user {user_id[:80]!r} alone has {count:,} of {len(log.interactions):,} interactions ({share:.0%}); what "
            "everybody is shown follows from them, so leave the user out if it is not a person"
        )


def _complete(catalogue: dict[str, Item], log: Log, *, from_file: bool) -> None:
    """Make items of the ids that only interactions know."""
    made = 0
    for event in log.interactions:
        if event.item_id is not None and event.item_id not in catalogue:
            catalogue[event.item_id] = Item(item_id=event.item_id, title=event.item_id)
            log.without_text.add(event.item_id)
            made += 1
    if made and from_file:
        they = (
            "item id of interactions is not in the catalogue; it is an item without text",
            "item ids of interactions are not in the catalogue; they are items without text",
        )
        log.warnings.append(number_of(made, *they))
    elif not from_file:
        were = number_of(made, "item without text was", "items without text were")
        log.warnings.append(f"no items were given: {were} made of the ids in interactions")
    if not catalogue:
        raise DatasetError(
            f"{log.name}: no interaction names an item; there is nothing to rank. Name items in item_id, "
            f"an id of 1 to {MAX_ID} characters"
        )


def _as_they_were(items: Iterable[Item], log: Log) -> list[Item]:
    """The items without what is said of them today and was not so then; dates that were left out are in the warnings.

    A catalogue is often written after its log, with the date of that day on every item. Taken at its word, it would
    hide what people had on their screens. Which date would be right is not known: the first interaction would tell
    beforehand when it comes.
    """
    first: dict[str, datetime] = {}
    last: dict[str, datetime] = {}
    for event in log.interactions:
        if event.item_id is not None:
            first.setdefault(event.item_id, event.occurred_at)
            last[event.item_id] = event.occurred_at
    as_they_were = []
    published = expired = 0
    for item in items:
        changes: dict[str, Any] = {} if item.available else {"available": True}
        if item.published_at is not None and item.item_id in first and item.published_at > first[item.item_id]:
            changes["published_at"] = None
            published += 1
        if item.expires_at is not None and item.item_id in last and item.expires_at <= last[item.item_id]:
            changes["expires_at"] = None
            expired += 1
        as_they_were.append(msgspec.structs.replace(item, **changes) if changes else item)
    for count, setting, when in (
        (published, "published_at", "before it was published"),
        (expired, "expires_at", "after it had expired"),
    ):
        if count:
            log.warnings.append(
                f"{number_of(count, 'item has', 'items have')} interactions from {when}: the date is wrong or that of "
                f"another day, and {setting} is left out"
            )
    return as_they_were


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines without blank ones; None for one longer than any record may be."""
    number, rest, skipping = 0, b"", False
    for block in _blocks(path):
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        for line in lines:
            number += 1
            if skipping or len(line) > MAX_VALUE_BYTES:
                skipping = False
                yield number, None
            elif stripped := (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).strip():
                yield number, stripped
        if skipping or len(rest) > MAX_VALUE_BYTES:
            rest, skipping = b"", True
    if skipping:
        yield number + 1, None
    elif stripped := (rest.removeprefix(_BYTE_ORDER_MARK) if number == 0 else rest).strip():
        yield number + 1, stripped


def _blocks(path: Path) -> Iterator[bytes]:
    """The content of the file, decompressed, in bounded pieces.

    Raises:
        DatasetError: when it is not there, cannot be decompressed, or ends early.
    """
    try:
        with path.open("rb") as raw:
            if path.suffix == ".zst":
                yield from _zstandard_blocks(raw)
            elif path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as file:
                    yield from iter(lambda: file.read(_READ_BYTES), b"")
            else:
                yield from iter(lambda: raw.read(_READ_BYTES), b"")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}; is the path right?") from error
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}; fetch or write the file again") from error


def _zstandard_blocks(raw: IO[bytes]) -> Iterator[bytes]:
    """Every frame of a Zstandard file. The library's own reader ends silently where a file was cut off.

    Fed in small pieces, because a piece can grow 32,000-fold.
    """
    pending = raw.read(_PIECE_BYTES)
    while pending:
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            if not pending:
                raise zstandard.ZstdError("the file ends in the middle of its compressed data")
            if block := frame.decompress(pending):
                yield block
            pending = frame.unused_data if frame.eof else raw.read(_PIECE_BYTES)
        pending = pending or raw.read(_PIECE_BYTES)
