"""Watches the memory of a process and acts on it: closes the gate, has caches shrink, and says so."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from stream_app.delivery.gate import Gate
from stream_app.headroom import Budget, Headroom
from stream_app.logs import get_logger
from stream_app.metrics import Metrics
from stream_app.settings import MemorySettings

__all__ = ["Shrinking", "hold_back"]

_log = get_logger(__name__)
_LOOK_S = 0.5
_RESTORE_S = 60.0
"""Caches grow again step by step: what they did before brought the process to its limit."""


class Shrinking(Protocol):
    """What can do with less memory."""

    def shrink(self) -> bool:
        """Give back half; False when nothing is left to be given back."""

    def restore(self) -> bool:
        """Hold twice as much again, at most what the settings say; False when that is so already."""


async def hold_back(
    settings: MemorySettings, budget: Budget, *, gate: Gate, shrinking: Sequence[Shrinking], metrics: Metrics
) -> None:
    """Look twice a second, for ever.

    Args:
        settings: from which share of the limit on consumption is held back.
        budget: the limit and what is used of it.
        gate: closed meanwhile.
        shrinking: what gives memory back.
        metrics: of the process.
    """
    headroom = Headroom(budget.limit, settings.hold_back_at)
    metrics.memory_limit.set(budget.limit)
    restored = time.monotonic()
    while True:
        look = headroom.look(budget.used())
        metrics.memory_used.set(look.used)
        gate.closed = look.held_back
        metrics.held_back.set(look.held_back)
        if look.changed and look.held_back:
            _log.warning(
                "memory is short: new records wait at the broker, and caches give back half",
                used_mib=look.used >> 20,
                limit_mib=budget.limit >> 20,
                limit=budget.whose,
                hint="a larger limit, or smaller users.cache and users.unpacked (docs/limits.md)",
            )
        elif look.changed:
            _log.info("memory suffices again: records are taken", used_mib=look.used >> 20)
        if look.shrink:
            restored = time.monotonic()
            if sum(one.shrink() for one in shrinking):
                metrics.caches_shrunk.inc()
                _give_back()
        elif look.restore and time.monotonic() - restored >= _RESTORE_S:
            restored = time.monotonic()
            for one in shrinking:
                one.restore()
        await asyncio.sleep(_LOOK_S)


def _give_back() -> None:
    """Have the allocator return what is free to the system, which alone ends processes for it."""
    gc.collect()
    with suppress(AttributeError, OSError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)
