"""Lines of a JSONL file, compressed or not, or of a pipe, in bounded memory and without blocking the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Final, Protocol

import zstandard

from schemas.decode import MAX_VALUE_BYTES
from stream_app.errors import DatasetError

__all__ = ["STDIN", "Line", "LineReader"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

STDIN: Final = "-"

_READ_BYTES: Final = 1 << 17
_QUEUED_READS: Final = 4
_PIECE_BYTES: Final = 1_024

Line = tuple[int, bytes | None]
"""Number, counted from 1, and the line without its end; None for one longer than any record may be."""


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Decompressed:
    """The content of a Zstandard file, which must be whole: the library's own reader ends silently where the file
    was cut off. Fed in small pieces, because a piece can grow 32,000-fold."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj(read_across_frames=False)
        self._begun = False
        self._pending = b""

    def read(self, size: int, /) -> bytes:
        out = bytearray()
        while len(out) < size:
            data = self._pending or self._raw.read(_PIECE_BYTES)
            self._pending = b""
            if not data:
                if self._begun and not self._frame.eof:
                    raise zstandard.ZstdError("the file ends in the middle of its compressed data")
                break
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj(read_across_frames=False)
            self._begun = True
            out += self._frame.decompress(data)
            if self._frame.eof:
                self._pending = self._frame.unused_data
        return bytes(out)


class LineReader:
    """Reads ``path`` (``-``: standard input; ``.zst``: Zstandard) and splits it into lines.

    Reading happens in a thread, so a slow pipe does not stop the event loop; what has arrived is handed over
    without waiting for more. At most a few hundred kilobytes, or one line, are held.

    Attributes:
        size: bytes of the file, None for standard input.
        position: bytes of the file consumed so far (compressed bytes, where it is compressed).
    """

    def __init__(self, path: str, *, max_line_bytes: int = MAX_VALUE_BYTES) -> None:
        self._path = path
        self._max = max_line_bytes
        self._stack = ExitStack()
        self._raw = self._open()
        self._source: _Source = self._raw
        if path.endswith(".zst"):
            self._source = _Decompressed(self._raw)
        self.size = None if path == STDIN else Path(path).stat().st_size
        self.position = 0

    def _open(self) -> IO[bytes]:
        # Unbuffered: read() gives what is there, and a thread waiting in it holds no lock that exit would need.
        source: str | int = 0 if self._path == STDIN else self._path
        try:
            return self._stack.enter_context(open(source, "rb", buffering=0, closefd=self._path != STDIN))
        except OSError as error:
            raise DatasetError(f"{self._path}: {error.strerror or error}; is the path right?") from error

    async def chunks(self) -> AsyncGenerator[list[Line], None]:
        """Lists of lines, in order; empty lines are left out.

        Raises:
            DatasetError: when the file cannot be read or decompressed.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[bytes | Exception] = asyncio.Queue(_QUEUED_READS)

        def read() -> None:
            with suppress(RuntimeError, CancelledError):  # the loop has ended: nobody wants more
                while True:
                    got: bytes | Exception
                    try:
                        got = self._source.read(_READ_BYTES)
                    except ValueError:  # the file was closed: nobody wants more
                        return
                    except (OSError, zstandard.ZstdError) as error:
                        got = DatasetError(f"{self._path}: cannot be read: {error}")
                    asyncio.run_coroutine_threadsafe(queue.put(got), loop).result()
                    if not got or isinstance(got, Exception):
                        return

        threading.Thread(target=read, name="read lines", daemon=True).start()
        number, rest, skipping = 0, b"", False
        while True:
            data = await queue.get()
            if isinstance(data, Exception):
                raise data
            self.position = self._raw.tell() if self.size is not None else self.position + len(data)
            lines = (rest + data).split(b"\n") if data else [rest, b""]
            rest = lines.pop()
            chunk: list[Line] = []
            for line in lines:
                number += 1
                if skipping or len(line) > self._max:
                    skipping = False
                    chunk.append((number, None))
                elif stripped := (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).strip():
                    chunk.append((number, stripped))
            if skipping or len(rest) > self._max:
                rest, skipping = b"", True
            if chunk:
                yield chunk
            if not data:
                return

    def close(self) -> None:
        """Close the file."""
        self._stack.close()
