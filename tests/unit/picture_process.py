"""An image model's process without a model: ``python -m tests.unit.picture_process``, for tests of the fused pool.

It is the real process (``workers.image_process``) around an encoder that is ready in a fraction of a second. Pictures
are read and decoded within the bounds it is given. The vector of a text or of a picture is drawn from a generator
seeded with it, so a test can compute what it has to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.faults import with_faults
from workers.frames import Configure
from workers.image_models import ImageModelInfo, describe_image_model
from workers.image_process import main
from workers.picture_requests import Unusable, read_picture, refusal, requested_text
from workers.pictures import decode_picture
from workers.process import Encoder

__all__ = ["picture_vector", "text_vector"]


def picture_vector(content: bytes, dimensions: int) -> NDArray[np.float32]:
    """The vector this process gives a picture: float32 [dimensions], unit length; of its pixels, whatever the file."""
    return _seeded(decode_picture(content, max_pixels=10**8).tobytes(), dimensions)


def text_vector(text: str, dimensions: int) -> NDArray[np.float32]:
    """The vector this process gives a text: float32 [dimensions], unit length."""
    return _seeded(b"text " + text.encode(), dimensions)


def _seeded(content: bytes, dimensions: int) -> NDArray[np.float32]:
    seed = int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
    values = np.random.default_rng(seed).standard_normal(dimensions)
    return (values / np.linalg.norm(values)).astype(np.float32)


class SeededEncoder:
    """Vectors out of thin air."""

    device = "cpu"
    precision = "float32"
    tokens_read = 0
    tokens_computed = 0
    at_once: int | None = None
    devices = 1

    def __init__(self, info: ImageModelInfo, folder: Path | None, max_bytes: int, max_pixels: int) -> None:
        self.space = info.space
        self.dimensions = info.dimensions
        self._where = folder
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._row(one) for one in texts])

    def _row(self, request: str) -> NDArray[np.float32]:
        text = requested_text(request)
        if text is not None:
            return text_vector(text, self.dimensions)
        try:
            content = read_picture(request, self._where, max_bytes=self._max_bytes)
            decode_picture(content, max_pixels=self._max_pixels)
        except Unusable as error:
            return refusal(error.reason, self.dimensions)
        return picture_vector(content, self.dimensions)


def load(configure: Configure, *, folder: Path | None, max_bytes: int, max_pixels: int) -> Encoder:
    return with_faults(SeededEncoder(describe_image_model(configure.model), folder, max_bytes, max_pixels))


if __name__ == "__main__":
    main(load)
