"""A data set as files: ``items.jsonl`` and ``interactions.jsonl``, one message of the contract per line.

Fields at their default are left out, which makes the files a third of the size and readable. A file appears under
its name only when it is complete.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import IO

import msgspec
import zstandard

from stream_app.datasets.dataset import Dataset
from stream_app.errors import DatasetError

__all__ = ["write_dataset"]

_REPORT_EVERY = 2_000
"""Lines between two calls of ``on_progress``."""


def write_dataset(
    dataset: Dataset,
    directory: Path,
    *,
    compress: bool = False,
    on_progress: Callable[[str, int], None] = lambda _name, _lines: None,
) -> tuple[Path, Path]:
    """Write the data set into ``directory`` (made when missing); the paths of the two files.

    Args:
        compress: Zstandard, names end in ``.zst``.
        on_progress: told the file's name and how many lines it has so far.

    Raises:
        DatasetError: when the files cannot be written.
    """
    suffix = ".jsonl.zst" if compress else ".jsonl"
    items, interactions = directory / f"items{suffix}", directory / f"interactions{suffix}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, messages in ((items, dataset.items), (interactions, dataset.interactions)):
            with _replacing(path) as file:
                _write_lines(file, messages, partial(on_progress, path.name))
    except OSError as error:
        raise DatasetError(f"{directory}: cannot be written: {error.strerror or error}") from error
    return items, interactions


def _write_lines(file: IO[bytes], messages: Iterable[msgspec.Struct], on_progress: Callable[[int], None]) -> None:
    encoder = msgspec.json.Encoder()
    line = bytearray()
    lines = 0
    for message in messages:
        encoder.encode_into(_without_defaults(message), line)
        line += b"\n"
        file.write(line)
        lines += 1
        if lines % _REPORT_EVERY == 0:
            on_progress(lines)
    on_progress(lines)


def _without_defaults(message: msgspec.Struct) -> dict[str, object]:
    defaults = _defaults(type(message))
    values = ((name, getattr(message, name)) for name in message.__struct_fields__)
    return {name: value for name, value in values if name not in defaults or value != defaults[name]}


@cache
def _defaults(type_: type[msgspec.Struct]) -> dict[str, object]:
    """The default of every optional field."""
    defaults = {}
    for field in msgspec.structs.fields(type_):
        if field.default is not msgspec.NODEFAULT:
            defaults[field.name] = field.default
        elif field.default_factory is not msgspec.NODEFAULT:
            defaults[field.name] = field.default_factory()
    return defaults


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of ``path`` when the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as raw:
            if path.suffix == ".zst":
                compressor = zstandard.ZstdCompressor(level=10).stream_writer(raw, closefd=False)
                with io.BufferedWriter(compressor, 1 << 16) as file:  # type: ignore[type-var]
                    yield file
            else:
                yield raw
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
