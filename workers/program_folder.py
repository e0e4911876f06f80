"""The folder that compiled programs are kept in, and found in by the next process.

Programs are loaded and run, so it must be one that nobody else can write to: torch's own choice, a name in the
temporary directory that anybody can foresee and make first, is not used.

torch writes a program in place and never again while a file of its name is there, so one that a process left half
written ends every later start (a bus error where it is cut short). A process therefore marks the folder for as long as
programs are made and tried, and a mark whose process is gone says that the folder may be damaged. Marks are locked
files: the kernel lets a lock go with its process, whatever ended that, and a process id that is used again (as in every
container) means nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stream_app.errors import SettingsError

__all__ = ["CACHE_VARIABLE", "drop_damaged", "marked", "program_folder"]

CACHE_VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"
_TORCHS_OWN: Final = "torchinductor_"
"""So begins the name of the folder that torch itself writes into the variable, when anything imports its compiler."""
_MARK: Final = "compiling-"
_LOCK: Final = "tailrace.lock"
"""Held while marks are made and looked at: one that is made but not locked yet would look like one left behind."""
_OTHERWISE: Final = f"set {CACHE_VARIABLE} to a folder that only this user may write to, or encoder.compile = false"


def program_folder() -> Path:
    """Where programs are kept: the folder that ``TORCHINDUCTOR_CACHE_DIR`` names, which is the operator's to guard, or
    one in the temporary directory that is ours alone, made when missing.

    Raises:
        SettingsError: when the latter cannot be made, or others may write to it.
    """
    folder = _ours()
    named = os.environ.get(CACHE_VARIABLE)
    # Ours is named, too, once torch was told of it.
    if named and Path(named).absolute() != folder and not _torchs(Path(named).absolute()):
        return Path(named).absolute()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise _unusable(folder, error) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise SettingsError(
            f"encoder.compile = true: others may write to {folder}, and what is there would be run; remove it, or "
            f"{_OTHERWISE}"
        )
    return folder


def drop_damaged(folder: Path) -> None:
    """Where a process ended while it compiled: empty the folder if it is ours, else say on stderr that it may have to
    be. Not while another process compiles: it would lose what it writes, and the mark stays for the start after that.

    Raises:
        SettingsError: when the folder cannot be written to.
    """
    try:
        with _alone(folder):
            marks = list(folder.glob(f"{_MARK}*"))
            if not marks or any(map(_held, marks)):
                return
            if folder == _ours():
                for found in folder.iterdir():
                    if found.name != _LOCK:
                        _remove(found)
                return
            for mark in marks:
                mark.unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    sys.stderr.write(
        f"a process ended while it compiled into {folder} ({CACHE_VARIABLE}): where this one ends, too, or says that "
        "the model cannot be compiled, empty that folder\n"
    )


@contextmanager
def marked(folder: Path) -> Iterator[None]:
    """Marks the folder while programs are made or tried. The mark stays where that ends in an error or with the
    process: :func:`drop_damaged` finds it.

    Raises:
        SettingsError: when the folder cannot be written to.
    """
    try:
        with _alone(folder):
            handle, name = tempfile.mkstemp(prefix=f"{_MARK}{os.getpid()}-", dir=folder)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        yield
        with _alone(folder):
            Path(name).unlink(missing_ok=True)
    finally:
        os.close(handle)


def _ours() -> Path:
    return Path(tempfile.gettempdir()) / f"tailrace-compiled-{os.getuid()}"


def _torchs(folder: Path) -> bool:
    """Whether torch may have chosen this one; elsewhere a name that begins so is the operator's."""
    return folder.name.startswith(_TORCHS_OWN) and folder.parent == Path(tempfile.gettempdir())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, waiting for it: others hold it for a moment only."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _held(mark: Path) -> bool:
    """Whether the mark's process lives and still compiles."""
    try:
        with mark.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):  # the latter where somebody empties the folder meanwhile
        return True
    return False


def _remove(found: Path) -> None:
    if found.is_dir() and not found.is_symlink():
        shutil.rmtree(found)
    else:
        found.unlink(missing_ok=True)


def _unusable(folder: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"encoder.compile = true: programs cannot be kept in {folder}: {error.strerror or error}; {_OTHERWISE}"
    )
