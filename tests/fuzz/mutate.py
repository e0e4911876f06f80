"""Valid messages made wrong: on their bytes, and on what they say.

Bytes alone are refused by the first parser that sees them. So half of the mutations change the message as a document
(another type, a number at a limit, a list too long, nesting too deep, an array with NaN in it) and write it again, and
get past the parser to what reads it.
"""

from __future__ import annotations

import binascii
import json
import random
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

__all__ = ["Form", "mutated", "mutated_document"]

Form = tuple[Callable[[bytes], Any], Callable[[Any], bytes]]
"""How bytes become a document and a document becomes bytes."""

_NUMBERS = (
    0, -1, 1, 2**31 - 1, 2**31, -(2**31) - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1,
    2**64, 10**30, -0.0, 0.1, 5e-324, 1.7976931348623157e308, -1.7976931348623157e308, 1e19, 65_536, 255, 1e-9,
)  # fmt: skip
_UNUSUAL = (float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    "", " ", "\x00", "\n", "\x7f", "a" * 257, "x" * 70_000, "漢" * 300, "😀", "\ud800", "null", "0", "-1", "NaN",
    "1e999",
    "2026-11-23T10:00:00Z", "2026-11-23T10:00:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999+23:59",
    "2026-02-30T00:00:00Z", "0000-01-01T00:00:00Z", "AAAA", "AA==", "=", "\u202e", "\ufeff", "%s%n{}", "../../etc",
    "__class__", "<b>", "a\u0301" * 50,
)  # fmt: skip
_FRAGMENTS = (
    b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5", b"\x00", b"\xef\xbb\xbf", b'"', b"{", b"}", b"[", b"]", b",", b":",
    b"\\", b"\\u0000", b"\\ud800", b"NaN", b"Infinity", b"1e999", b"-", b"null", b"[" * 2_000, b'{"a":' * 2_000,
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 2_000, b"\xc1",
    b"\xcf" + b"\xff" * 8,
    b"\xcb\x7f\xf8" + b"\x00" * 6,
)  # fmt: skip
_LARGEST = 2 << 20
"""Bytes of a mutated document; no broker brings more."""
_MOST_PLACES = 20_000
_FLOATS = (float("nan"), float("inf"), 3.4e38, -3.4e38, 0.0, 1e-45, -1.0)


def mutated(data: bytes, others: Sequence[bytes], random_: random.Random) -> bytes:
    """``data`` after one to four changes of its bytes; ``others`` are messages that parts are taken from."""
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 1, 2, 4))):
        size = len(changed)
        place = random_.randrange(size + 1)
        kind = random_.randrange(9)
        if kind == 0 and size:  # a bit
            changed[place % size] ^= 1 << random_.randrange(8)
        elif kind == 1 and size:  # a byte
            changed[place % size] = random_.randrange(256)
        elif kind == 2:  # cut off
            del changed[place:]
        elif kind == 3:  # cut out
            del changed[place : place + random_.choice((1, 2, 8, 64))]
        elif kind == 4:  # twice
            end = place + random_.choice((1, 8, 64, 512))
            changed[place:place] = changed[place:end]
        elif kind == 5:  # spliced
            other = random_.choice(others)
            cut = random_.randrange(len(other) + 1)
            changed[place:] = other[cut:]
        elif kind == 6:
            changed[place:place] = random_.choice(_FRAGMENTS)
        elif kind == 7:
            changed[place : place + 4] = random_.randbytes(random_.choice((1, 4, 16)))
        else:  # swapped
            end = place + random_.choice((1, 4, 16))
            changed[place:end] = changed[place:end][::-1]
    return bytes(changed)


def mutated_document(data: bytes, others: Sequence[bytes], form: Form, random_: random.Random) -> bytes:
    """``data`` after one to three changes of what it says; bytes that are no document come back as they are."""
    read, write = form
    try:
        document = read(data)
        for _ in range(random_.choice((1, 1, 2, 3))):
            document = _changed(document, others, read, random_)
        written = write(document)
        return written if len(written) <= _LARGEST else data
    except (ValueError, LookupError, RecursionError, OverflowError, TypeError, msgspec.MsgspecError):
        return data


def _changed(document: Any, others: Sequence[bytes], read: Callable[[bytes], Any], random_: random.Random) -> Any:
    """The document with one of its values changed."""
    places = list(islice(_places(document), _MOST_PLACES))
    if not places:
        return _value(document, random_)
    holder, key = random_.choice(places)
    kind = random_.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1:  # the value of another message at the same key, or any of it
        other = list(_places(read(random_.choice(others))))
        same = [found[name] for found, name in other if name == key]
        if same or other:
            holder[key] = random_.choice(same) if same else random_.choice(other)[0]
    elif kind == 2 and isinstance(holder, list):
        holder.extend([holder[key]] * random_.choice((1, 10, 600)))
    elif kind == 2:
        holder[random_.choice(_TEXTS)] = holder[key]
    elif kind == 3:  # a type that is like it
        holder[key] = random_.choice((str, _number, bool, _listed, _named))(holder[key])
    else:
        holder[key] = _value(holder[key], random_)
    return document


def _places(document: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    if depth > 40:
        return
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key], depth + 1)


def _value(value: Any, random_: random.Random) -> Any:
    """Something else in the place of ``value``, mostly of the same type."""
    kind = random_.randrange(10)
    if isinstance(value, str) and kind < 4:
        array = _array(value, random_)
        if array is not None:
            return array
        return random_.choice((*_TEXTS, value + value, value[: len(value) // 2], value.upper()))
    if isinstance(value, bytes) and kind < 6:
        return mutated(value, [value], random_)
    if isinstance(value, int | float) and kind < 5:
        return random_.choice((*_NUMBERS, *_UNUSUAL, -value, value + 1))
    if kind == 6:
        return _nested(random_.choice((2, 31, 33, 200, 1_200)), random_)
    if kind == 7:
        return [value] * random_.choice((0, 2, 65, 501, 1_500))
    if kind == 8:
        return {str(number): value for number in range(random_.choice((0, 1, 70)))}
    return random_.choice((None, True, False, [], {}, "", *_NUMBERS, *_UNUSUAL, *_TEXTS))


def _array(text: str, random_: random.Random) -> str | None:
    """Base64 of numbers with one of them changed, or of another length; None where the text is not that."""
    if len(text) % 4 or not text:
        return None
    try:
        content = bytearray(b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return None
    for code, size in random_.sample((("<e", 2), ("<f", 4), ("<d", 8)), 3):
        if len(content) % size == 0 and content:
            at = random_.randrange(len(content) // size) * size
            number = random_.choice(_FLOATS)
            content[at : at + size] = struct.pack(code, number if size > 2 else max(min(number, 6e4), -6e4))
            break
    if random_.randrange(6) == 0:
        del content[-random_.choice((1, 4, 8)) :]
    return b64encode(content).decode()


def _nested(depth: int, random_: random.Random) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] if random_.randrange(2) else {"a": value}
    return value


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0


def _listed(value: Any) -> Any:
    return [value]


def _named(value: Any) -> Any:
    return {"a": value}


def json_bytes(document: Any) -> bytes:
    """JSON as anybody might write it: NaN, integers of any size, escaped surrogates."""
    return json.dumps(document).encode()


def msgpack_bytes(document: Any) -> bytes:
    """MessagePack of the document; numbers beyond 64 bits are none."""
    return msgspec.msgpack.encode(document)
