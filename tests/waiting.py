"""Waiting for conditions, so that no test sleeps and hopes."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

__all__ = ["eventually", "eventually_sync"]

T = TypeVar("T")


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]], *, timeout_s: float = ..., interval_s: float = ..., what: str = ...
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T], *, timeout_s: float = ..., interval_s: float = ..., what: str = ...
) -> T: ...
async def eventually(
    condition: Callable[[], Any], *, timeout_s: float = 20.0, interval_s: float = 0.02, what: str = ""
) -> Any:
    """The first true value of ``condition`` (a function or coroutine function), asked every ``interval_s`` seconds.

    Raises:
        AssertionError: after ``timeout_s`` seconds, with ``what`` was awaited and the last value.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}; last value {value!r}")
        await asyncio.sleep(interval_s)


def eventually_sync(
    condition: Callable[[], T], *, timeout_s: float = 20.0, interval_s: float = 0.02, what: str = ""
) -> T:
    """:func:`eventually` for code without an event loop."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}; last value {value!r}")
        time.sleep(interval_s)
    return value
