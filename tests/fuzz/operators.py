"""What people at a command line give and get: files of lines, dead letters to be replayed, requests in Redis."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import orjson
import zstandard
from aiokafka.structs import ConsumerRecord

from schemas.cloudevents import event_type, headers
from stream_app.cli.dead_letters import letter_rows
from stream_app.cli.producing import Kind, produce_file
from stream_app.cli.textified import read_with, textified_items
from stream_app.delivery.dead_letters import dead_letter
from stream_app.delivery.records import InRecord
from stream_app.delivery.replay import REPLAYED_MARK, Filter, Letter, Letters, original_record
from stream_app.errors import DatasetError, InvalidMessage
from stream_app.evaluation.files import read_log
from stream_app.rebuild.recommendations import Standing
from stream_app.settings import load_settings
from stream_app.stores.requests import SlateRebuild, SlateRebuilds
from tests.fuzz.mutate import Form, json_bytes
from tests.fuzz.target import Sample, Target, from_file, loop, never

__all__ = ["targets"]

GOLDEN = Path(__file__).parents[1] / "golden" / "messages"
_KEYS = {"items": "item_id", "interactions": "user_id", "users": "user_id", "rules": "rule_id"}
_KINDS: tuple[Kind, ...] = ("items", "interactions", "users", "rules")
_AT = datetime(2026, 11, 23, 12, tzinfo=UTC)


def targets(folder: Path) -> list[Target]:
    """Dead letters, requests, and files of lines, which are written below ``folder``."""
    return [*_replays(), *_requests(), *_lines(folder)]


def _golden(topic: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(GOLDEN.glob(f"{topic}.*.json"))]


# Dead letters.


def _replays() -> list[Target]:
    settings = load_settings()
    record: list[ConsumerRecord[bytes, bytes]] = []

    class Given(Letters):
        """The topic as it would be read: one record."""

        async def _records(self) -> AsyncGenerator[ConsumerRecord, None]:
            for one in record:
                yield one

    async def read(sample: Sample) -> object:
        said = tuple(sample.headers)
        value = sample.value
        record[:] = [ConsumerRecord("d", 0, 7, 0, 1, sample.key, value, None, 0, 0, said)]  # type: ignore[arg-type]
        letters = await Given.open(settings, patience_s=1.0)
        refused: list[InvalidMessage] = []
        async for letter in letters.read(Filter()):
            letter_rows(letter)
            letters.marker(letter)
            # The whole value of a truncated one would be asked of a broker.
            whole = Letter(
                id=letter.id, message=msgspec.structs.replace(letter.message, truncated=False), replayed=letter.replayed
            )
            for rekey in (False, True):
                try:
                    again = await original_record(whole, settings, rekey=rekey)
                except InvalidMessage as error:  # the command says it of this letter, and goes on
                    refused.append(error)
                else:
                    _sendable(again.partition, again.key, again.value, again.headers)
        if refused:
            raise refused[0]
        return None

    letters = [
        dead_letter(
            InRecord(f"tailrace.{topic}.v1", 2, 17, orjson.loads(value)[key].encode(), value, said, 1.0),  # type: ignore[arg-type]
            InvalidMessage("invalid_field", "price: expected a number"),
            topic="d",
            stage="catalogue",
            attempts=1,
            now=_AT.timestamp(),
            max_message_bytes=65_536,
        )
        for topic, key in _KEYS.items()
        for value in _golden(topic)
        for said in [headers(event_type("items"), source="/shop", id="1", time=_AT)]
    ]
    corpus = [Sample(one.value, one.key, tuple(one.headers)) for one in letters]
    corpus += [Sample(None, b"2:17", ((REPLAYED_MARK, b"2:17"),)), Sample(None, b"2:17", (("other", None),))]
    return [Target("dead-letter: replay", corpus, lambda one: loop().run_until_complete(read(one)))]


def _sendable(partition: int | None, key: bytes | None, value: bytes | None, said: Any) -> None:
    if partition is not None and not 0 <= partition < 2**31:
        never("a partition that no topic has")
    if not all(one is None or isinstance(one, bytes) for one in (key, value)):
        never("a record that is not bytes")
    if not all(isinstance(name, str) and isinstance(content, bytes) for name, content in said):
        never("headers that cannot be sent")


# Requests in Redis.


def _requests() -> list[Target]:
    settings = load_settings()

    def asked(sample: Sample) -> object:
        class Holds:
            async def get(self, key: str) -> bytes | None:
                return sample.value

        found = loop().run_until_complete(SlateRebuilds(Holds(), settings).asked())  # type: ignore[arg-type]
        if found is None:  # it says so, and goes on
            return None
        # What an owner does with it.
        standing = Standing(found.ends)
        for partition in range(3):
            standing.take(b"u", partition, 5, gone=False)
        return 1 / found.users_per_s > 0 or never("a pace that nobody can keep")

    corpus = [
        Sample(msgspec.json.encode(one))
        for one in (SlateRebuild("1a", {0: 7, 1: 0, 2: 2**40}, 200.0), SlateRebuild("", {}, 0.5))
    ]
    return [Target("requests: slates", corpus, asked, (), share=0.5)]


# Files of lines.


def _lines(folder: Path) -> list[Target]:
    settings = load_settings()
    reading = read_with(settings.encoder, estimate=True)

    def sent(kind: Kind) -> Callable[[Path], object]:
        def read(path: Path) -> object:
            outcome = loop().run_until_complete(produce_file(settings, kind, str(path), check=True))
            return (outcome.sent + outcome.refused >= 0) or never("a line is neither sent nor refused")

        return read

    def textified(path: Path) -> object:
        shown: list[object] = []
        return loop().run_until_complete(
            textified_items(settings, str(path), reading, shown.append, lambda number, why: shown.append(why))
        )

    def target(name: str, kind: str, suffix: str, read: Callable[[Path], object]) -> Target:
        path = folder / f"{name}-{kind}{suffix}"
        corpus = [Sample(_PACKED[suffix](lines)) for lines in _files_of(kind)]
        form = _JSONL if suffix == ".jsonl" else None
        return Target(f"lines: {name} {kind}{suffix}", corpus, from_file(path, read), (DatasetError,), form, share=0.05)

    found = [target("produce", kind, ".jsonl", sent(kind)) for kind in _KINDS]
    found.append(target("produce", "items", ".jsonl.zst", sent("items")))
    found.append(target("textify", "items", ".jsonl", textified))
    found += [
        target("a log's", "interactions", suffix, lambda path: read_log(None, path, settings)) for suffix in _PACKED
    ]
    catalogue = folder / "catalogue.jsonl"
    events = folder / "events.jsonl"
    events.write_bytes(_files_of("interactions")[0])
    found.append(
        Target(
            "lines: a log's items.jsonl",
            [Sample(lines) for lines in _files_of("items")],
            from_file(catalogue, lambda path: read_log(path, events, settings)),
            (DatasetError,),
            _JSONL,
            share=0.05,
        )
    )
    return found


def _files_of(kind: str) -> list[bytes]:
    """One with every golden message of the kind, and one with a mark at its beginning, blank lines and no last end."""
    lines = [orjson.dumps(orjson.loads(one)) for one in _golden(kind)]
    return [b"\n".join(lines) + b"\n", b"\xef\xbb\xbf" + b"\r\n\n ".join(itertools.chain(lines, lines))]


_PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.zst": zstandard.ZstdCompressor().compress,
    ".jsonl.gz": lambda data: gzip.compress(data, mtime=0),
}


def _documents(data: bytes) -> list[Any]:
    return [orjson.loads(line) for line in data.splitlines() if line.strip()]


def _written(documents: Any) -> bytes:
    if not isinstance(documents, list):
        raise TypeError("no lines any more")
    return b"\n".join(json_bytes(one) for one in documents) + b"\n"


_JSONL: Form = (_documents, _written)
