"""One reader of bytes from outside, and how its valid messages are made wrong."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from stream_app.errors import InvalidMessage
from tests.fuzz.mutate import Form, json_bytes, mutated, mutated_document

__all__ = ["RENEWED", "Read", "Sample", "Target", "from_file", "loop", "mutation", "never"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A record, or bytes alone (``value``)."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(slots=True)
class Target:
    """One reader.

    Attributes:
        name: for the summary.
        corpus: valid messages; each is read without a refusal.
        read: reads a message; what it returns is nobody's.
        refusals: what it may raise.
        form: of the messages as documents; None: bytes only.
        share: how often it gets a message, relative to the others.
        key: the field of the value that is the key; empty: none is.
        renew: makes a new ``read`` where what is read is kept; every :data:`RENEWED` messages.
    """

    name: str
    corpus: Sequence[Sample]
    read: Callable[[Sample], object]
    refusals: tuple[type[Exception], ...] = (InvalidMessage,)
    form: Form | None = (orjson.loads, json_bytes)
    share: float = 1.0
    key: str = ""
    renew: Callable[[], Callable[[Sample], object]] | None = None


RENEWED = 2_000
Read = Callable[[Sample], object]


def mutation(target: Target, random_: random.Random) -> Sample:
    """A valid message of the target, made wrong."""
    sample = random_.choice(target.corpus)
    values = [one.value for one in target.corpus if one.value is not None]
    value = sample.value
    if value is None or random_.randrange(200) == 0:
        value = None if random_.randrange(2) else random_.choice(values)
    elif target.form is not None and random_.randrange(2):
        value = mutated_document(value, values, target.form, random_)
    else:
        value = mutated(value, values, random_)
    key, said = sample.key, list(sample.headers)
    if target.key:
        kind = random_.randrange(8)
        if kind == 0 and key is not None:
            key = mutated(key, [key], random_)
        elif kind == 1:
            key = random_.choice((None, b"", key, b'"sku-1"', b"\xff", b"a" * 257, b"a\n"))
        elif kind < 6:
            key = _key_in(value, target.key, key)
    if said and random_.randrange(10) == 0:
        place = random_.randrange(len(said))
        name, content = said[place]
        said[place] = (name, random_.choice((None, b"", mutated(content or b"", [content or b""], random_))))
    return replace(sample, value=value, key=key, headers=tuple(said))


def _key_in(value: bytes | None, field: str, key: bytes | None) -> bytes | None:
    """The key that fits the value, so that it is read further."""
    with contextlib.suppress(ValueError, UnicodeEncodeError, AttributeError):
        named = orjson.loads(value or b"").get(field)
        if isinstance(named, str):
            return named.encode()
    return key


def never(what: str) -> object:
    """What must not be: a find, whatever the target's refusals are."""
    raise AssertionError(what)


_LOOP: list[asyncio.AbstractEventLoop] = []


def loop() -> asyncio.AbstractEventLoop:
    """The event loop of all readers that need one."""
    if not _LOOP:
        _LOOP.append(asyncio.new_event_loop())
    return _LOOP[0]


def from_file(path: Path, read: Callable[[Path], object], *, then: bytes | None = None) -> Read:
    """Read the bytes from a file; ``then`` is what the file holds afterwards."""

    def read_it(sample: Sample) -> object:
        path.write_bytes(sample.value or b"")
        try:
            return read(path)
        finally:
            if then is not None:
                path.write_bytes(then)

    return read_it
