"""What is asked of an image model's process, as the strings that the pool knows how to queue, cache and try again.

``text``: a text. ``file``: a picture below the folder of images, with the digest of its bytes, so that what is cached
is of these bytes and no others. ``data``: a picture in the string itself.

An answer is a row of numbers, a unit vector. A row for a picture that is none (:class:`Reason`) holds
minus ten and the reason's number in its first place and zeros else, which no unit vector does.
"""

from __future__ import annotations

import os
import stat
from binascii import Error as Base64Error
from enum import IntEnum
from hashlib import blake2b
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pybase64
from numpy.typing import NDArray

__all__ = [
    "MAX_RATIO",
    "MOST_CHARS",
    "Reason",
    "Unusable",
    "ask_for_data",
    "ask_for_file",
    "ask_for_text",
    "digest_of",
    "read_bounded",
    "read_picture",
    "reason_of",
    "refusal",
    "requested_text",
]

MOST_CHARS = 8_192
"""Longer requests are cut; the longest image_url of an item has 4,096 characters."""
MAX_RATIO = 32
"""A picture longer than so many times its width is none: models see squares, and bringing the short side of a strip to
their size would make the long one huge."""
_TEXT, _FILE, _DATA = "text\n", "file\n", "data\n"
_OFFSET = 10.0


class Reason(IntEnum):
    """Why an item's image is not used. The numbers go over the socket."""

    ELSEWHERE = 1
    """It is at an address; nothing is fetched."""
    OUTSIDE = 2
    """Its path leads out of the folder of images."""
    MISSING = 3
    """There is no such file, or it cannot be read."""
    TOO_LARGE = 4
    """The file has more bytes than the settings allow."""
    TOO_MANY_PIXELS = 5
    """The picture has more pixels than the settings allow."""
    STRIP = 6
    """It is longer than :data:`MAX_RATIO` times its width, or wider than so many times its height."""
    FORMAT = 7
    """It is no JPEG, PNG, WebP or GIF."""
    DAMAGED = 8
    """It begins as a picture and cannot be decoded."""
    CHANGED = 9
    """The file changed between two readings."""
    POISON = 10
    """It ended every encoder process that tried it."""


class Unusable(Exception):
    """No picture: ``reason`` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name.lower())
        self.reason = reason


def ask_for_text(text: str) -> str:
    """Ask for the vector of a text."""
    return _TEXT + text


def ask_for_file(path: str, digest: str) -> str:
    """Ask for the vector of a picture: its path below the folder of images, and :func:`digest_of` its bytes."""
    return f"{_FILE}{digest}\n{path}"


def ask_for_data(uri: str) -> str:
    """Ask for the vector of the picture that a ``data:`` URI (RFC 2397) holds."""
    return _DATA + uri


def requested_text(request: str) -> str | None:
    """The text that is asked for; None when it is a picture."""
    return request[len(_TEXT) :] if request.startswith(_TEXT) else None


def read_picture(request: str, folder: Path | None, *, max_bytes: int) -> bytes:
    """The bytes of the picture that is asked for.

    Raises:
        Unusable: when they are not there, are too many, or are not those that were asked for.
    """
    if request.startswith(_DATA):
        return _data_of(request[len(_DATA) :], max_bytes)
    digest, _, path = request.removeprefix(_FILE).partition("\n")
    if folder is None or not request.startswith(_FILE):
        raise Unusable(Reason.MISSING)
    content = read_bounded(folder / path, max_bytes=max_bytes)
    if digest_of(content) != digest:
        raise Unusable(Reason.CHANGED)
    return content


def digest_of(content: bytes) -> str:
    """32 hexadecimal digits of BLAKE2b."""
    return blake2b(content, digest_size=16).hexdigest()


def read_bounded(path: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file of at most ``max_bytes`` bytes.

    Raises:
        Unusable: when there is none, it cannot be read, is something else than a file, or has more bytes.
    """
    try:
        # A pipe without a writer would keep a blocking open waiting for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError):
        raise Unusable(Reason.MISSING) from None
    try:
        # Asked of what is open, not of the path: between the two it could be exchanged.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unusable(Reason.MISSING)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1)
    except OSError:
        raise Unusable(Reason.MISSING) from None
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise Unusable(Reason.TOO_LARGE)
    return content


def refusal(reason: Reason, dimensions: int) -> NDArray[np.float32]:
    """The row that says that a picture is none: float32 [dimensions]."""
    row = np.zeros(dimensions, np.float32)
    row[0] = -_OFFSET - reason
    return row


def reason_of(row: NDArray[np.float32]) -> Reason | None:
    """Why there is no vector; None when ``row``, float32 [dimensions], is one."""
    return Reason(round(-float(row[0]) - _OFFSET)) if row[0] <= -_OFFSET else None


def _data_of(uri: str, max_bytes: int) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise Unusable(Reason.DAMAGED)
    content = unquote_to_bytes(body)
    if head.lower().endswith(";base64"):
        try:
            content = pybase64.b64decode(content, validate=True)
        except (Base64Error, ValueError):
            raise Unusable(Reason.DAMAGED) from None
    if len(content) > max_bytes:
        raise Unusable(Reason.TOO_LARGE)
    return content
