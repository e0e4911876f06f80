"""Counts as people say them: 1 test, 2 tests, 1,000 tests."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["number_of", "reasons"]


def number_of(count: int, one: str, more: str | None = None) -> str:
    """``count`` with what is counted: ``one`` of it, else ``more`` (``one`` with an s)."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def reasons(untested: Mapping[str, int]) -> str:
    """Why events were no tests (``Outcome.untested``), with counts; empty without any."""
    said = ((count, reason.replace("events", "event") if count == 1 else reason) for reason, count in untested.items())
    return "; ".join(f"{count:,} {reason}" for count, reason in said)
