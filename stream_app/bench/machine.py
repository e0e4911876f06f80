"""What a figure was measured on: machine, versions, commit."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stream_app import __version__

__all__ = ["about_this_machine"]

_LIBRARIES = (
    *("faust-streaming", "aiokafka", "torch", "transformers", "hnswlib", "redis"),
    *("numpy", "numba", "orjson", "msgspec"),
)


def about_this_machine(checkout: Path) -> dict[str, Any]:
    """Machine, versions, and the commit of ``checkout``; beside every result."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(checkout),
        "tailrace": __version__,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def _commit(checkout: Path) -> str:
    """Short, with a + where files differ from it; empty where there is no git."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout)  # noqa: S603
        return done.stdout.strip()
    return ""


def _cpu() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return platform.processor()
