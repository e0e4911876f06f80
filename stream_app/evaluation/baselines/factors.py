"""Factors of users, made when a user is first told of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Factors"]


class Factors:
    """A growing table of float32 rows by user number, drawn from a normal distribution."""

    def __init__(self, width: int, *, spread: float, rng: np.random.Generator) -> None:
        self._width = width
        self._spread = spread
        self._rng = rng
        self._rows: dict[int, NDArray[np.float32]] = {}

    def __getitem__(self, user: int) -> NDArray[np.float32]:
        """The user's row, to be changed in place: float32 [width]."""
        row = self._rows.get(user)
        if row is None:
            row = self._rows[user] = self._rng.normal(0.0, self._spread, self._width).astype(np.float32)
        return row
