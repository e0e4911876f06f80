"""A wall clock that can be moved, for one process and its children: ``clock.c``, compiled here and loaded before libc.

Linux with a C compiler; elsewhere clocks stay as they are (:func:`why_not` says why).
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

from stream_app.errors import EmbeddedStackError

__all__ = ["MovedClock", "why_not"]

_SOURCE = Path(__file__).with_name("clock.c")
_COMPILE_S = 60.0


def why_not() -> str | None:
    """Why clocks cannot be moved here, in a sentence; None when they can."""
    if sys.platform != "linux":
        return "clocks are moved on Linux only"
    if shutil.which("cc") is None:
        return "there is no C compiler (cc) to make the moved clock with"
    return None


class MovedClock:
    """The clock of one process.

    Args:
        directory: where its two files go.

    Raises:
        EmbeddedStackError: when it cannot be made, see :func:`why_not`.
    """

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc")
        if (why := why_not()) is not None or compiler is None:
            raise EmbeddedStackError(why or "there is no C compiler (cc)")
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "moved"
        self._library = directory / "clock.so"
        self.move(0.0)
        if not self._library.exists():
            compiled = subprocess.run(
                [compiler, "-O2", "-shared", "-fPIC", "-o", str(self._library), str(_SOURCE)],
                capture_output=True,
                text=True,
                timeout=_COMPILE_S,
                check=False,
            )
            if compiled.returncode:
                raise EmbeddedStackError(f"the moved clock does not compile:\n{compiled.stderr[-2_000:]}")

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to have this clock."""
        return {"LD_PRELOAD": str(self._library), "TORTURE_CLOCK": str(self._file)}

    def move(self, seconds: float) -> None:
        """From now on the clock is so many seconds ahead of the machine's (behind: negative)."""
        packed = struct.pack("=q", round(seconds * 1e9))
        if not self._file.exists():
            self._file.write_bytes(packed)
            return
        with self._file.open("r+b") as file:  # in place: processes have it in memory
            file.write(packed)
