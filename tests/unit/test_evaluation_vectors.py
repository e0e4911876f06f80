"""Vectors of a log's texts: encoded once, kept for the next run, and never the end of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.errors import SettingsError
from stream_app.evaluation import vectors
from stream_app.evaluation.vectors import text_vectors
from stream_app.settings import EncoderSettings


class Encoder:
    """Counts what it encodes."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.encoded += texts
        return np.stack([np.full(4, len(text), np.float32) for text in texts])


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    made = Encoder()
    monkeypatch.setattr(vectors, "load_model", lambda *_, **__: made)
    monkeypatch.setattr(vectors, "describe_model", lambda _: SimpleNamespace(space="test"))
    return made


def test_each_text_is_encoded_once(encoder: Encoder, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    space, found = text_vectors(
        ["a", "bb", "", "a"], EncoderSettings(), cache=tmp_path, on_progress=lambda *counts: told.append(counts)
    )
    assert (space, sorted(found), found["bb"].tolist(), told) == ("test", ["a", "bb"], [2.0] * 4, [(2, 2)])
    text_vectors(["bb", "ccc"], EncoderSettings(), cache=tmp_path)
    assert encoder.encoded == ["a", "bb", "ccc"]
    assert len(list(tmp_path.iterdir())) == 1, "nothing but the file stays"


@pytest.mark.parametrize(
    "left", [b"", b"PK\x03\x04 cut off", b"no archive"], ids=["empty", "cut off", "something else"]
)
def test_a_spoilt_file_is_written_anew(encoder: Encoder, tmp_path: Path, left: bytes) -> None:
    text_vectors(["a"], EncoderSettings(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-30] if left.startswith(b"PK") else left)
    text_vectors(["a"], EncoderSettings(), cache=tmp_path)
    text_vectors(["a"], EncoderSettings(), cache=tmp_path)
    assert encoder.encoded == ["a", "a"]


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_encoded(
    encoder: Encoder, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"file.*--cache"):
        text_vectors(["a"], EncoderSettings(), cache=tmp_path / "file" / "cache")
    assert encoder.encoded == []
