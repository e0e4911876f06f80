"""Lines come out whole, numbered and bounded, however the bytes arrive."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stream_app.cli import jsonl
from stream_app.cli.jsonl import Line, LineReader
from stream_app.errors import DatasetError


async def read(path: Path, *, max_line_bytes: int = 1_000) -> list[Line]:
    reader = LineReader(str(path), max_line_bytes=max_line_bytes)
    try:
        return [line async for chunk in reader.chunks() for line in chunk]
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n\n", []),
        (b"a", [(1, b"a")]),
        (b"a\n", [(1, b"a")]),
        (b"a\r\n\n b \nc", [(1, b"a"), (3, b"b"), (4, b"c")]),
        (b"x" * 1_001 + b"\nb\n", [(1, None), (2, b"b")]),
        (b"a\n" + b"x" * 5_000, [(1, b"a"), (2, None)]),
    ],
)
@pytest.mark.parametrize("read_bytes", [1, 7, 1 << 17])
async def test_lines(
    content: bytes, lines: list[Line], read_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_READ_BYTES", read_bytes)
    path = tmp_path / "lines"
    path.write_bytes(content)
    assert await read(path) == lines


async def test_position_reaches_the_size(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"line\n" * 100_000)
    reader = LineReader(str(path))
    positions = [reader.position async for _ in reader.chunks()]
    assert len(positions) > 1
    assert positions == sorted(positions)
    assert reader.position == reader.size == 500_000
    reader.close()


async def test_compressed_file_of_several_frames(tmp_path: Path) -> None:
    path = tmp_path / "lines.zst"
    path.write_bytes(b"".join(zstandard.compress(b"%d\n" % number * 3_000) for number in (1, 2, 3)))
    assert [int(line or b"") for _, line in await read(path)] == [1] * 3_000 + [2] * 3_000 + [3] * 3_000


async def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        LineReader(str(tmp_path / "nowhere"))


@given(st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=8))
async def test_every_line_is_given_once_in_order(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines"
    content = b"\n".join(lines)
    path.write_bytes(content)
    # A byte order mark at the beginning of a file is no part of its first line.
    told = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = [(number, line.strip()) for number, line in enumerate(told, start=1) if line.strip()]
    assert await read(path) == expected


async def test_who_has_read_enough_may_close_it_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"line\n" * 1_000_000)
    reader = LineReader(str(path))
    async for chunk in reader.chunks():
        assert chunk[0] == (1, b"line")
        break
    reader.close()  # An error in the reading thread would be one of this test.
