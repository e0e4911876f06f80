"""An encoder process without a language model: ``python -m tests.unit.encoder_process``, for tests of the pool.

It is the real process (``workers.process``) around an encoder that is ready in a fraction of a second. The vector of
a text is drawn from a generator seeded with the text, so a test can compute what it has to be.

* A text ``wait:PATH#NAME`` makes the file ``PATH.NAME`` and holds the batch until there is a file ``PATH``: so a test
  knows that a batch is being worked on.
* A text that begins with ``overflow`` has a vector that is not finite, as one that overflows in half precision.
* A text ``lose:PATH`` makes the file ``PATH``, and the device ``cuda:6`` is gone: the batch fails as it does on a GPU
  that fell off the bus, and no process can start on it as long as that file is there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import SettingsError
from stream_app.textify import text_hash
from workers.faults import with_faults
from workers.frames import Configure
from workers.models import describe_model
from workers.process import Encoder, main

DIMENSIONS = 384
LOST_DEVICE = "TAILRACE_TEST_LOST_DEVICE"
"""Names the file of ``lose:PATH`` for processes that start later."""
AUTO_DEVICE = "TAILRACE_TEST_AUTO_DEVICE"
"""What ``auto`` turns out to be."""
NO_ROOM = "TAILRACE_TEST_NO_ROOM"
"""The process with this index never finds room."""
DEVICES = "TAILRACE_TEST_DEVICES"
"""How many of them there are."""


def vector_of(text: str) -> NDArray[np.float32]:
    """The vector this process gives ``text``: float32 [384], unit length."""
    values = np.random.default_rng(int(text_hash(text), 16)).standard_normal(DIMENSIONS)
    return (values / np.linalg.norm(values)).astype(np.float32)


class SeededEncoder:
    """Vectors out of thin air."""

    dimensions = DIMENSIONS
    precision = "float32"
    at_once: int | None = None

    def __init__(self, space: str, device: str = "cpu") -> None:
        self.device = device
        self.devices = int(os.environ.get(DEVICES, "1"))
        self.tokens_read = 0
        self.tokens_computed = 0
        self.space = space

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        for text in texts:
            if text.startswith("wait:"):
                path, name = text.removeprefix("wait:").split("#")
                Path(f"{path}.{name}").touch()
                while not Path(path).exists():
                    time.sleep(0.005)
            if text.startswith("lose:"):
                Path(text.removeprefix("lose:")).touch()
                raise RuntimeError("CUDA error: unspecified launch failure")
        self.tokens_read += sum(len(text) for text in texts)
        self.tokens_computed += max(len(text) for text in texts) * len(texts)
        return np.stack([vector_of(text) * (np.nan if text.startswith("overflow") else 1) for text in texts])


def load(configure: Configure) -> Encoder:
    if configure.device == "cuda:7":
        raise SettingsError("encoder.device = 'cuda:7': there is no such device")
    if os.environ.get(NO_ROOM) == str(configure.index):
        raise SettingsError("no room on cuda:1")
    lost = os.environ.get(LOST_DEVICE)
    if configure.device == "cuda:6" and lost and Path(lost).exists():
        raise SettingsError("encoder.device = 'cuda:6': torch sees 0 CUDA devices here; use cpu or auto")
    device = os.environ.get(AUTO_DEVICE, "cpu") if configure.device == "auto" else "cpu"
    return with_faults(SeededEncoder(describe_model(configure).space, device))


if __name__ == "__main__":
    main(load)
