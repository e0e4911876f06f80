"""An encoder process that may take little memory: ``python -m tests.unit.little_memory_process``, for tests.

It is the real process with the real model. Its address space is bounded by the kernel (``RLIMIT_AS``) to what it has
when the first batch comes and ``ROOM`` more, so an allocation beyond that fails as on a machine that has no more.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.frames import Configure
from workers.models import load_model
from workers.process import Encoder, main

ROOM = 200 << 20


def no_more_than(room: int) -> None:
    """From now on this process may have ``room`` bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, most))


class BoundedEncoder:
    """The encoder inside; bounded when every thread is there, for their stacks and arenas take room, too."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._bounded = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not self._bounded:
            self._encoder.encode(["a", "b"])
            self._bounded = True
            no_more_than(ROOM)
        return self._encoder.encode(texts)


def load(configure: Configure) -> Encoder:
    loaded = load_model(
        configure,
        device=configure.device,
        precision=configure.precision,
        threads=configure.threads,
        batch=configure.batch,
        batch_tokens=configure.batch_tokens,
    )
    bounded: Any = BoundedEncoder(loaded)
    return bounded  # type: ignore[no-any-return]


if __name__ == "__main__":
    main(load)
