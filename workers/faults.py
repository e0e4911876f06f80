"""Faults on demand, for tests of what the pool promises. Without the environment variable nothing here is active.

``TAILRACE_ENCODER_FAULTS`` holds JSON: ``{"exit_on": TEXT, "hang_on": TEXT, "memory_above": N}``. The encoder
process ends at once, hangs, or reports that its memory does not hold more than N texts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from workers.process import Encoder

__all__ = ["ENVIRONMENT", "Faults", "FaultyEncoder", "with_faults"]

ENVIRONMENT = "TAILRACE_ENCODER_FAULTS"
EXIT_CODE = 86


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong, and when."""

    exit_on: str | None = None
    hang_on: str | None = None
    memory_above: int | None = None


class FaultyEncoder:
    """An encoder that fails as told and otherwise does what the real one does."""

    def __init__(self, encoder: Encoder, faults: Faults) -> None:
        self._encoder = encoder
        self._faults = faults
        self.space = encoder.space
        self.dimensions = encoder.dimensions
        self.device = encoder.device
        self.precision = encoder.precision
        self.at_once = encoder.at_once
        self.devices = encoder.devices

    @property
    def tokens_read(self) -> int:
        return self._encoder.tokens_read

    @property
    def tokens_computed(self) -> int:
        return self._encoder.tokens_computed

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As the encoder inside, unless it is time to fail."""
        if self._faults.exit_on in texts:
            os._exit(EXIT_CODE)
        if self._faults.hang_on in texts:
            signal.pause()
        if self._faults.memory_above is not None and len(texts) > self._faults.memory_above:
            raise MemoryError(f"test fault: {len(texts)} texts at once")
        return self._encoder.encode(texts)


def with_faults(encoder: Encoder) -> Encoder:
    """``encoder``, made to fail when the environment says so."""
    wanted = os.environ.get(ENVIRONMENT)
    return FaultyEncoder(encoder, msgspec.json.decode(wanted, type=Faults)) if wanted else encoder
