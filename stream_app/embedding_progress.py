"""How far the embedding of a catalogue is, for whoever waits for it: what to say, and when."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EmbeddingProgress", "Report"]

_EVERY_S = 5.0
_WORTH_A_LINE = 500
"""Records; fewer are done before a line is read."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a line says. ``seconds_left`` is None while nothing moves; ``remaining`` 0 is the last line of a run."""

    remaining: int
    texts_per_s: float
    seconds_left: float | None


class EmbeddingProgress:
    """Decides when a line is due and what it says; told the state of things, it reads no clock."""

    def __init__(self) -> None:
        self._said_at: float | None = None
        self._said_texts = 0

    def report(self, now: float, *, texts: int, remaining: int) -> Report | None:
        """What to say now; None: nothing.

        Args:
            now: monotonic seconds.
            texts: vectors that there were so far, computed or from the cache; never falls.
            remaining: records of the catalogue that are not done yet.
        """
        if self._said_at is None:
            if remaining >= _WORTH_A_LINE:
                self._said_at, self._said_texts = now, texts
            return None
        elapsed = now - self._said_at
        if remaining and elapsed < _EVERY_S:
            return None
        rate = (texts - self._said_texts) / elapsed if elapsed > 0 else 0.0
        self._said_at, self._said_texts = (now, texts) if remaining else (None, 0)
        return Report(remaining, rate, remaining / rate if rate > 0 else None)
