"""A temporary directory that does not outlive its process for long, even when that process is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["workspace"]

_PREFIX = "tailrace-stack-"
_LOCK = "lock"
_SETTLING_S = 60.0
"""A directory younger than this may not be locked yet by its owner and is left alone."""


@contextmanager
def workspace() -> Iterator[Path]:
    """A fresh directory for the time of the context.

    The owner holds a lock on a file in it. The kernel drops the lock when the owner ends, however it ends, so the
    next process to come here recognises what a killed one left behind, and removes it.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with (directory / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for directory in parent.glob(f"{_PREFIX}*"):
        try:
            status = directory.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _SETTLING_S:
                continue
            with (directory / _LOCK).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        except OSError:  # in use, or removed by somebody else meanwhile
            continue
