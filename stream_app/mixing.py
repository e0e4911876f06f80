"""Random choices that are the same everywhere: hashes and seeds mixed into numbers, no generator, no state to keep.

SplitMix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195): a sequence is ``mixed(seed + GOLDEN * n)``. A
replay or another replica draws the same, whatever its rows are.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from stream_app.compiled import compiled

__all__ = ["GOLDEN", "below", "mixed"]

GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_U30, _U27, _U31, _U32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@compiled
def mixed(state: np.uint64) -> np.uint64:
    """64 bits, each of which depends on all of ``state``."""
    value = (state ^ (state >> _U30)) * _FIRST
    value = (value ^ (value >> _U27)) * _SECOND
    return np.uint64(value ^ (value >> _U31))


@compiled
def below(drawn: np.uint64, count: int) -> int:
    """A whole number from 0 to ``count - 1`` (below 2^32) for 64 random bits."""
    return int((drawn >> _U32) * np.uint64(count) >> _U32)
