"""Shares of all users, by a hash of the record's key: how many passes over the topics a rebuild needs.

What a pass holds in memory is bounded. How many users there are is not known beforehand, so a pass begins with all that
are left and gives away the upper half of its share whenever it holds too many.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

__all__ = ["EVERYBODY", "Share"]

_HASHES = 1 << 32


@dataclass(frozen=True, slots=True)
class Share:
    """Users whose CRC-32 is at least ``begin`` and less than ``end``."""

    begin: int
    end: int

    def __contains__(self, key: bytes) -> bool:
        return self.begin <= crc32(key) < self.end

    @property
    def fraction(self) -> float:
        """How much of all it is, 0 to 1."""
        return (self.end - self.begin) / _HASHES

    def halves(self) -> tuple[Share, Share]:
        """The lower half and the upper half.

        Raises:
            ValueError: when the share is of one hash: it cannot be divided.
        """
        middle = (self.begin + self.end) // 2
        if middle == self.begin:
            raise ValueError(f"users of one hash ({self.begin}) cannot be divided further")
        return Share(self.begin, middle), Share(middle, self.end)


EVERYBODY = Share(0, _HASHES)
"""All users."""
