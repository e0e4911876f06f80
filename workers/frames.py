"""What parent and encoder process say to each other: frames on a socket.

A frame is a 12-byte head (magic, header length, payload length; little endian), a MessagePack header (one of the
structs below) and a payload of raw bytes: the vectors, float32 little endian, row by row. Nothing is pickled.

    parent                      encoder process
      Configure        ->
                       <-         Ready  (or Failed "settings")
      Encode           ->                            (several may be on their way)
                       <-         Vectors + payload  (or Failed "memory"), as they are done
      (closes)         ->         ends
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Configure",
    "Encode",
    "Failed",
    "FromChild",
    "FromParent",
    "Ready",
    "Vectors",
    "pack_frame",
    "read_frame",
    "receive_frame",
    "vectors_of",
]

_HEAD = struct.Struct("<4sII")
_MAGIC = b"TRE1"
MAX_HEADER = 256 << 20
MAX_PAYLOAD = 1 << 30
"""Anything longer is not a frame of ours; reading it would take the memory of the process."""
_AT_ONCE = 1 << 20


class Configure(msgspec.Struct, frozen=True, kw_only=True, tag="configure"):
    """The parent's first frame. Fields as in the settings of the encoder; ``index`` counts processes from 0.

    ``threads`` are those of the whole process, at least one; it shares them out among its lanes (:mod:`workers.lanes`).
    A process of images does not look at ``compile``.
    """

    model: str
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    dimensions: int = 0
    query_prefix: str | None = None
    document_prefix: str | None = None
    device: str
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    max_tokens: int
    threads: int
    batch: int
    batch_tokens: int
    nice: int
    index: int
    compile: bool = False


class Encode(msgspec.Struct, frozen=True, kw_only=True, tag="encode"):
    """Embed ``texts``; the answer carries the same ``batch``. ``urgent``: before those that are not."""

    batch: int
    urgent: bool
    texts: list[str]


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The process's first frame: the model is loaded and was tried.

    ``lanes`` batches are computed at a time, and an urgent one beside them: only here is it known which device it is.
    ``devices`` of that kind are there, this one included.
    """

    space: str
    dimensions: int
    device: str
    precision: str
    lanes: int
    devices: int = 1
    pid: int
    load_s: float


class Vectors(msgspec.Struct, frozen=True, kw_only=True, tag="vectors"):
    """The payload holds float32 [rows, dimensions]. ``seconds`` is the time the computation took.

    ``tokens_read`` and ``tokens_computed`` are the encoder's totals since it was loaded: the second counts padding.
    """

    batch: int
    rows: int
    dimensions: int
    seconds: float
    tokens_read: int
    tokens_computed: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """``settings``: the process cannot work as configured and ends. ``memory``: try fewer texts than ``batch`` has."""

    kind: Literal["settings", "memory"]
    detail: str
    batch: int = 0


FromParent = Configure | Encode
FromChild = Ready | Vectors | Failed

_encoder = msgspec.msgpack.Encoder()
_from_parent: msgspec.msgpack.Decoder[FromParent] = msgspec.msgpack.Decoder(FromParent)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def pack_frame(message: FromParent | FromChild, payload: bytes | memoryview = b"") -> bytes:
    """One frame as bytes."""
    header = _encoder.encode(message)
    body = memoryview(payload).cast("B")
    return b"".join((_HEAD.pack(_MAGIC, len(header), len(body)), header, body))


def receive_frame(connection: socket.socket) -> FromParent | None:
    """The next frame from the parent, waiting for it; None when the parent closed or is gone.

    Raises:
        ValueError: when what arrives is not a frame of the parent.
    """
    head = _receive(connection, _HEAD.size)
    if head is None:
        return None
    header_size, payload_size = _sizes(head)
    body = _receive(connection, header_size + payload_size)
    return None if body is None else _from_parent.decode(body[:header_size])


async def read_frame(reader: asyncio.StreamReader) -> tuple[FromChild, bytes]:
    """The next frame from an encoder process and its payload.

    Raises:
        EOFError: when the process closed or is gone.
        ValueError: when what arrives is not a frame of a process.
    """
    header_size, payload_size = _sizes(await reader.readexactly(_HEAD.size))
    header = await reader.readexactly(header_size)
    return _from_child.decode(header), await reader.readexactly(payload_size)


def vectors_of(message: Vectors, payload: bytes) -> NDArray[np.float32]:
    """The vectors a frame carries: float32 [rows, dimensions], read-only.

    Raises:
        ValueError: when the payload has another size.
    """
    return np.frombuffer(payload, dtype="<f4").reshape(message.rows, message.dimensions)


def _sizes(head: bytes) -> tuple[int, int]:
    magic, header_size, payload_size = _HEAD.unpack(head)
    if magic != _MAGIC or header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
        raise ValueError(f"not a frame: {head!r}")
    return header_size, payload_size


def _receive(connection: socket.socket, size: int) -> bytes | None:
    # As it comes: a length alone takes no memory.
    received = bytearray()
    while len(received) < size:
        part = connection.recv(min(size - len(received), _AT_ONCE))
        if not part:
            return None
        received += part
    return bytes(received)
