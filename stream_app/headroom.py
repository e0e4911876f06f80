"""How much memory may be used and is, and what follows from it: a pure policy, and two readings of the system.

A process that the kernel ends for its memory begins again with the same records and the same memory. So before that it
takes no more than it can do: new records wait at the broker, and caches give back half of what they hold. It never ends
itself. What cannot be given back (a catalogue that is too large for the limit) must not stop it for ever: records go on
a few at a time, and the log and a metric say what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stream_app.settings import MemorySettings

__all__ = ["Budget", "Headroom", "Look", "memory_budget"]

_NO_LIMIT = 1 << 60
"""What version 1 of cgroups says where there is none is close to 2**63."""
_RESUME, _RESTORE = 0.95, 0.75
"""Parts of the share at which consumption is held back: below the first it goes on, below the second caches may grow
again. Apart, so that it does not go back and forth."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit (bytes), whose it is, and how to read what is used of it (bytes)."""

    limit: int
    whose: str
    used: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the memory says.

    Attributes:
        used: bytes.
        held_back: whether new records are to wait.
        shrink: whether caches are to give back half of what they hold.
        restore: whether they may hold twice as much again.
        changed: whether ``held_back`` is another than at the look before.
    """

    used: int
    held_back: bool
    shrink: bool
    restore: bool
    changed: bool


class Headroom:
    """Decides by what is used; keeps whether consumption is held back.

    Args:
        limit: bytes.
        share: of it from which on consumption is held back.
    """

    def __init__(self, limit: int, share: float) -> None:
        self._from = limit * share
        self.held_back = False

    def look(self, used: int) -> Look:
        """What follows from ``used`` bytes."""
        before = self.held_back
        if used >= self._from:
            self.held_back = True
        elif used < self._from * _RESUME:
            self.held_back = False
        return Look(
            used,
            self.held_back,
            shrink=used >= self._from,
            restore=used < self._from * _RESTORE,
            changed=self.held_back != before,
        )


def memory_budget(settings: MemorySettings, *, system: Path = Path("/")) -> Budget | None:
    """The limit that holds for this process; None: none does.

    A limit in bytes is compared with the process's own resident memory. ``auto`` is the limit of the process's cgroup
    (a container's), compared with what all processes in it use, encoder processes included, without the files that the
    kernel can drop at any time; that is what the kernel compares before it ends one.

    Args:
        settings: what is wanted.
        system: where ``proc`` and ``sys`` are.
    """
    if settings.limit == "off":
        return None
    if settings.limit != "auto":
        return Budget(settings.limit, "memory.limit", lambda: _resident(system))
    for folder, limit_name, used_name, files_name in _groups(system):
        limit = _number(folder / limit_name)
        if limit is not None and limit < _NO_LIMIT:
            return Budget(limit, str(folder), partial(_used, folder / used_name, folder / "memory.stat", files_name))
    return None


def _resident(system: Path) -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        return int((system / "proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _groups(system: Path) -> list[tuple[Path, str, str, str]]:
    """Folders of the process's cgroup and of those above it, and the names of their files, innermost first; version 2
    before version 1. In a container its own group is most often the root of what is seen."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in sorted(lines, key=lambda one: not one.startswith("0::")):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            root = system / "sys/fs/cgroup"
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = system / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [(root.joinpath(*parts[:length]), *names) for length in range(len(parts), -1, -1)]
    return found


def _used(used: Path, stat: Path, files_name: str) -> int:
    """Bytes that are used of a cgroup's limit and cannot be dropped by the kernel."""
    return max(0, (_number(used) or 0) - _field(stat, files_name))


def _number(file: Path) -> int | None:
    """What a file says; None where it is not there, or says that there is no limit ("max")."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _field(file: Path, name: str) -> int:
    try:
        for line in file.read_text().splitlines():
            field, _, value = line.partition(" ")
            if field == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
