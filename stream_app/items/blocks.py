"""Many short lists in a few flat arrays: blocks of doubling sizes, freed blocks kept in one list per size.

A list of ``n`` entries lies in a block of the smallest size that holds it: 4, 8, 16, ... entries. A freed block is
used again by the next list of its size and never split or merged, so the arrays hold at most, per size, as many
blocks as were in use at one time: with every list at its longest less than twice its entries.

A free block says in its first two entries where the next free one of its size begins, so that compiled functions
need only these arrays: ``numbers`` int32 [entries] and ``free`` int64 [sizes + 1] (the first free block by size, -1 for
none; the last holds how many entries were handed out from the untouched end).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled

__all__ = ["SIZES", "allocate", "block_size", "no_blocks", "release", "size_of"]

SIZES = 26
"""Blocks hold 4 to 4 * 2^25 entries."""
_LOW = 31
_MASK = (1 << _LOW) - 1


def no_blocks() -> NDArray[np.int64]:
    """``free`` of arrays that hold nothing."""
    free = np.full(SIZES + 1, -1, np.int64)
    free[SIZES] = 0
    return free


@compiled
def size_of(entries: int) -> int:
    """The smallest size that holds ``entries``."""
    size = 0
    while (4 << size) < entries:
        size += 1
    return size


@compiled
def block_size(size: int) -> int:
    """Entries of a block."""
    return 4 << size


@compiled
def allocate(size: int, numbers: NDArray[np.int32], free: NDArray[np.int64]) -> int:
    """Where a block of ``size`` begins; the caller has seen to it that the untouched end is long enough."""
    start: int = free[size]
    if start < 0:
        start = free[SIZES]
        free[SIZES] = start + (4 << size)
    elif numbers[start] < 0:
        free[size] = -1
    else:
        free[size] = (np.int64(numbers[start]) << _LOW) | np.int64(numbers[start + 1])
    return start


@compiled
def release(start: int, size: int, numbers: NDArray[np.int32], free: NDArray[np.int64]) -> None:
    """Give a block back."""
    following = free[size]
    numbers[start] = -1 if following < 0 else following >> _LOW
    numbers[start + 1] = 0 if following < 0 else following & _MASK
    free[size] = start
