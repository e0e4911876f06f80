"""An adapter: from a model's vectors to those that a shop's events teach, the encoder itself untouched.

A vector is half-whitened first (``stream_app.spaces.whitening``), then a small network adds to it what was learned::

    x = half-whitened vector
    g = gelu(x A + a)                      the trunk, shared by all tasks
    y = unit(x + g (sum of share_t B_t))   one head B_t per task

Heads start at zero, so an adapter nobody trained is the half-whitened space, and what the events said nothing about
stays near it (a residual adapter, Houlsby et al. 2019, arXiv:1902.00751, here after the encoder instead of within it).
What is served is one space, not one per task: heads are linear in the trunk's output, so their mean, weighted by what
each task's events weigh, costs no more than one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_app.spaces.whitening import Whitening

__all__ = ["TASKS", "Adapter"]

TASKS: Final = ("click", "purchase")
"""What an event can be an example of; see ``stream_app.adapters.choices.task_of``."""

_BLOCK: Final = 4_096
_NO_LENGTH: Final = np.float32(1e-6)
_GELU: Final = 0.7978845608028654  # sqrt(2 / pi)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A map of unit vectors to unit vectors of the same length.

    Attributes:
        whitening: of the catalogue it was trained on.
        trunk: float32 [dimensions, hidden], ``A``.
        bias: float32 [hidden], ``a``.
        heads: float32 [hidden, dimensions] by task, ``B_t``.
        shares: by task, what each head counts in the served space; they add up to 1.
    """

    whitening: Whitening
    trunk: NDArray[np.float32]
    bias: NDArray[np.float32]
    heads: Mapping[str, NDArray[np.float32]]
    shares: Mapping[str, float]

    @property
    def dimensions(self) -> int:
        """Length of the vectors that go in, and of those that come out."""
        return self.whitening.dimensions

    @property
    def hidden(self) -> int:
        """Width of the trunk."""
        return len(self.bias)

    @cached_property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits of BLAKE2b over everything that decides a vector."""
        digest = blake2b(digest_size=4)
        whitening = self.whitening
        for array in (whitening.mean, whitening.axes, whitening.scales, self.trunk, self.bias):
            digest.update(np.ascontiguousarray(array).tobytes())
        for task in sorted(self.heads):
            digest.update(f"{task}:{self.shares.get(task, 0.0)!r}:".encode())
            digest.update(np.ascontiguousarray(self.heads[task]).tobytes())
        return digest.hexdigest()

    def space(self, base_space: str) -> str:
        """Name of the space that the vectors of the space ``base_space`` are taken to."""
        return f"{base_space}+a-{self.fingerprint}"

    @cached_property
    def _served(self) -> NDArray[np.float32]:
        """float32 [hidden, dimensions], the heads as they are served."""
        total = np.zeros((self.hidden, self.dimensions), np.float32)
        for task, head in self.heads.items():
            total += np.float32(self.shares.get(task, 0.0)) * head
        return total

    def apply(self, vectors: NDArray[np.float32], *, task: str | None = None) -> NDArray[np.float32]:
        """Adapted vectors, float32 [n, dimensions], unit length; zeros (no text) stay zeros.

        Args:
            vectors: float32 [n, dimensions], unit vectors as the model gives them (not whitened).
            task: the space of one head alone; None: the one that is served.

        Raises:
            ValueError: when the vectors have another length than the adapter's.
            KeyError: when there is no such task.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dimensions:
            raise ValueError(f"vectors of shape {vectors.shape} do not fit an adapter of {self.dimensions} dimensions")
        head = self._served if task is None else self.heads[task]
        adapted = np.empty(vectors.shape, np.float32)
        for start in range(0, len(vectors), _BLOCK):
            part = slice(start, start + _BLOCK)
            whitened = self.whitening.apply(vectors[part])
            moved = whitened + gelu(whitened @ self.trunk + self.bias) @ head
            lengths = np.linalg.norm(moved, axis=1, keepdims=True).astype(np.float32)
            # What a head takes away entirely has no direction left; it keeps the one it had.
            adapted[part] = np.where(lengths > _NO_LENGTH, moved, whitened)
            adapted[part] /= np.where(lengths > _NO_LENGTH, lengths, np.float32(1.0))
        adapted[~np.any(vectors, axis=1)] = 0.0
        return adapted


def gelu(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gaussian error linear units in their tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415), any shape."""
    inner = _GELU * (values + 0.044715 * values * values * values)
    return np.asarray(0.5 * values * (1.0 + np.tanh(inner)), np.float32)
