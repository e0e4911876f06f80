"""The space that is served: a model's own, or a half-whitening of it that a record of ``spaces.v1`` describes."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import learnable, pack_float16, pack_float32, unpack_float16, unpack_float32
from schemas.messages import VectorSpace
from stream_app.spaces.whitening import Whitening

__all__ = ["ServedSpace", "adapted", "axes_within", "describe"]


class ServedSpace:
    """From a model's vectors to the served ones and back.

    Args:
        model: name of the model's space.
        message: what is served of it; None: the model's vectors as they are.

    Raises:
        ValueError: when the message's arrays do not fit together or cannot be a whitening.

    Attributes:
        name: ``model``, or ``model`` with version and checksum of the whitening: ``<model>+w3-5f2c9a``. Two fits that
            by accident got one version (two processes that took themselves for the owner) have two names.
    """

    def __init__(self, model: str, message: VectorSpace | None = None) -> None:
        self.message = message
        self.name = model
        self._whitening: Whitening | None = None
        if message is not None:
            self._whitening = _whitening(message)
            digest = hashlib.blake2b(f"{message.mean}/{message.axes}/{message.scales}".encode(), digest_size=3)
            self.name = f"{model}+w{message.version}-{digest.hexdigest()}"

    @property
    def version(self) -> int:
        """Version of the whitening, 0 without one."""
        return 0 if self.message is None else self.message.version

    @property
    def items(self) -> int:
        """How many items the catalogue had that it was fitted to, 0 for the model's own space."""
        return 0 if self.message is None else self.message.items

    def from_model(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Served vectors for the model's: float32 [n, dimensions], unit length where the model's are."""
        return vectors if self._whitening is None else self._whitening.apply(vectors)

    def to_model(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The model's vectors for served ones, equal up to rounding."""
        return vectors if self._whitening is None else self._whitening.invert(vectors)


def adapted(space: str) -> bool:
    """Whether a space is that of an adapter, by its name: it was half-whitened before it was adapted, and is served as
    it is."""
    return "+a-" in space


def describe(whitening: Whitening, *, model: str, version: int, items: int) -> VectorSpace:
    """The record of ``spaces.v1`` for a whitening fitted to a catalogue of so many ``items``."""
    return VectorSpace(
        space=model,
        version=version,
        items=items,
        dimensions=whitening.dimensions,
        mean=pack_float32(whitening.mean),
        axes=pack_float16(whitening.axes),
        scales=pack_float32(whitening.scales),
    )


def axes_within(max_message_bytes: int, dimensions: int) -> int:
    """How many axes fit into a record of at most this size; negative when not even the mean does.

    A quarter stays free for names, framing and what a broker adds.
    """
    arrays = max_message_bytes * 3 // 4 * 3 // 4  # base64 makes four bytes of three
    return (arrays - 4 * dimensions) // (2 * dimensions + 4)


def _whitening(message: VectorSpace) -> Whitening:
    mean, axes, scales = unpack_float32(message.mean), unpack_float16(message.axes), unpack_float32(message.scales)
    if len(mean) != message.dimensions or len(axes) != len(scales) * message.dimensions:
        raise ValueError(
            f"space {message.space} version {message.version}: mean of {len(mean)}, axes of {len(axes)} and "
            f"{len(scales)} scales do not fit {message.dimensions} dimensions"
        )
    finite = np.isfinite(mean).all() and np.isfinite(axes).all() and np.isfinite(scales).all()
    if not finite or not learnable(scales, mean) or np.any(scales <= 0) or float(mean @ mean) >= 1.0:
        raise ValueError(
            f"space {message.space} version {message.version}: scales must be positive, the mean shorter than 1"
        )
    return Whitening(mean=mean, axes=axes.reshape(len(scales), len(mean)), scales=scales)
