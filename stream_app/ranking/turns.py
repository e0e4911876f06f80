"""Two threads that share the requests of a batch: whoever is free takes the next few.

Compiled code runs without the interpreter's lock, so that a second core may take a part of it. It is handed nothing in
advance: from a common counter each takes a few requests at a time, until there are none. So a helper that comes late,
because its core has other work, costs nothing, and what is computed does not depend on who computed it.

    turns = new_turns()
    HELPER.lend(turns, look, turns, ..., scratch_of_helper)  # if it has nothing to do
    look(turns, ..., own_scratch)  # takes, computes, and is done, until there are none
    finish(turns, count)  # waits for what the helper has begun

A batch takes a tenth to a fifth less time (docs/decisions/0028-compiled-calls-count-nothing.md).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types as numba_types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.logs import get_logger

__all__ = ["AT_ONCE", "HELPER", "Helper", "done", "end", "finish", "new_turns", "take"]

_log = get_logger(__name__)
types: Any = numba_types

AT_ONCE = 4
"""Requests that are taken at once: what is read for all of them is read once, and the last ones waited for are few."""
_NEVER = 1 << 62
_NEXT, _DONE, _FAILED, _SIZE = 0, 8, 16, 24
"""Places of the counters, each in a line of the cache of its own."""


def new_turns() -> NDArray[np.int64]:
    """Counters for one batch: int64 [24], zeros."""
    return np.zeros(_SIZE, np.int64)


@intrinsic  # type: ignore[untyped-decorator]
def _added(_context: Any, numbers: Any, place: Any, more: Any) -> Any:
    """Add to a number and return what it was, undivided by what other threads do."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", builder.gep(array.data, [args[1]]), args[2], "seq_cst")

    return types.int64(numbers, types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _yield(_context: Any) -> Any:
    """Let another thread of this core run."""

    def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate


@compiled
def take(turns: NDArray[np.int64], count: int) -> int:
    """The first of the next :data:`AT_ONCE` of ``count`` requests, which are the caller's now; -1: there are none."""
    first = _added(turns, _NEXT, AT_ONCE)
    return first if first < count else -1


@compiled
def done(turns: NDArray[np.int64]) -> None:
    """What was taken last is computed."""
    _added(turns, _DONE, AT_ONCE)


@compiled
def finish(turns: NDArray[np.int64], count: int) -> bool:
    """Wait until all of ``count`` requests that were taken are computed; False: the helper failed."""
    while _added(turns, _DONE, 0) < count:
        if _added(turns, _FAILED, 0):
            return False
        _yield()
    return True


def end(turns: NDArray[np.int64]) -> None:
    """Leave nothing to be taken any more."""
    turns[_NEXT] = _NEVER


class Helper:
    """A thread that computes along, one batch at a time. It ends with the process.

    Attributes:
        cores: that this process may run on, when it was made. What a container may use of them is not looked at: where
            that is one, ``retrieval.threads`` should be.
    """

    def __init__(self) -> None:
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._renew()
        os.register_at_fork(after_in_child=self._renew)  # threads do not survive a fork

    def _renew(self) -> None:
        self._work: SimpleQueue[tuple[NDArray[np.int64], Callable[..., object], tuple[Any, ...]]] = SimpleQueue()
        self._busy = threading.Lock()
        self._thread: threading.Thread | None = None

    def lend(self, turns: NDArray[np.int64], function: Callable[..., object], *args: Any) -> bool:
        """Have ``function(*args)`` called there as well, unless there is no core for it or it is at another one still;
        whether it will be. ``function`` takes ``turns`` as long as there are any, and what it needs is not to be
        changed until :func:`finish` returns."""
        if self.cores < 2 or not self._busy.acquire(blocking=False):
            return False
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="ranking-helper", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads
                _log.warning("no second thread, batches are computed in one", error=str(error))
                self.cores = 1
                self._busy.release()
                return False
            self._thread = thread
        self._work.put((turns, function, args))
        return True

    def wait(self) -> None:
        """Until nothing of what was lent is computed any more."""
        with self._busy:
            pass

    def _run(self) -> None:
        while True:
            turns, function, args = self._work.get()
            try:
                function(*args)
            except BaseException:
                turns[_FAILED] = 1
                with contextlib.suppress(Exception):
                    _log.exception("a part of a batch failed")
            finally:
                # What was lent is not held until the next batch.
                del turns, function, args
                self._busy.release()


HELPER = Helper()
"""Of this process."""
