"""The encoder pool of an adapted space: the encoder's vectors, and an adapter over them.

What is cached are the encoder's own vectors, so an adapter over a catalogue that is embedded already embeds no text: it
costs a few matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream_app.adapters.file import AdapterFile
from stream_app.errors import EncodeError
from stream_app.settings import EncoderSettings
from workers.child import DEFAULT_COMMAND
from workers.pool import EncoderPool, Priority
from workers.texts import TextKind
from workers.vector_pool import VectorCache

__all__ = ["AdaptedPool"]


class AdaptedPool(EncoderPool):
    """A pool whose vectors are adapted.

    Args:
        settings: of the encoder.
        adapter: over its vectors.
        cache: of the encoder's own vectors.
        command: see the pool.

    Raises:
        SettingsError: at once, when the model in the settings cannot be used.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        *,
        adapter: AdapterFile,
        cache: VectorCache | None = None,
        command: Sequence[str] = DEFAULT_COMMAND,
    ) -> None:
        super().__init__(settings, cache=cache, command=command)
        self._adapter = adapter.adapter
        self.space = adapter.space
        self.dimensions = adapter.dimensions

    async def encode_each(
        self, texts: Sequence[str], priority: Priority, *, kind: TextKind = "document"
    ) -> list[NDArray[np.float32] | EncodeError]:
        """As the pool, in the adapted space."""
        outcomes = await super().encode_each(texts, priority, kind=kind)
        there = [row for row, outcome in enumerate(outcomes) if not isinstance(outcome, EncodeError)]
        if there:
            adapted = self._adapter.apply(np.stack([outcomes[row] for row in there]))  # type: ignore[misc]
            for row, vector in zip(there, adapted, strict=True):
                outcomes[row] = vector
        return outcomes
