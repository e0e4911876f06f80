"""Functions compiled to machine code at their first call: the inner loops over arrays.

One decorator for all of them::

    from stream_app.compiled import compiled

    @compiled
    def total(values: NDArray[np.float64]) -> float: ...

A compiled function takes and returns arrays, numbers and tuples of these, and no Python objects; it may call other
compiled functions. It runs without the global interpreter lock. What was compiled is kept on disk, next to the
module or, where that folder is read-only, in the user's cache folder (numba's ``NUMBA_CACHE_DIR`` names another), so
that only the first process of a machine compiles. Compilation is for the argument types of the first call: callers
always pass the same dtypes and contiguous arrays, or each new combination compiles once more.

What is kept is valid while the module of the function is unchanged, and all modules that it takes compiled functions
and constants from: numba itself looks at the first alone, and would go on running what another module's function was.
So beside what is kept of a module is written what it was made of, and when that changes it is deleted.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import cache
from glob import escape
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import event

__all__ = ["compiled", "compiled_sums", "compiling", "signatures"]

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """``function`` as machine code; for type checkers it stays what it is."""
    return _compiled(function)


def compiled_sums(function: _Function) -> _Function:
    """Like :func:`compiled`, and sums of floats may be taken in any order, which lets the processor add many at once.

    Results then differ in the last bits between processors; what must not (order, ties) is decided on rounded values.
    """
    return _compiled(function, fastmath={"reassoc", "contract", "nsz", "arcp"})


def signatures() -> int:
    """How many combinations of function and argument types this process has compiled or read from the disk."""
    return sum(len(function.signatures) for function in _functions)


def compiling() -> bool:
    """Whether a function is being compiled at this moment, in any thread; reading one from the disk does not count."""
    return _compilations.under_way > 0


class _Compilations(event.Listener):  # type: ignore[misc] # numba is not typed
    """Counts those that began and have not ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.under_way = 0

    def on_start(self, event: object) -> None:
        with self._lock:
            self.under_way += 1

    def on_end(self, event: object) -> None:
        with self._lock:
            self.under_way -= 1


_compilations = _Compilations()
event.register("numba:compile", _compilations)
_functions: list[Any] = []


def _compiled(function: _Function, **options: Any) -> _Function:
    try:
        made = njit(cache=True, nogil=True, **options)(function)
        _forget_others(Path(function.__code__.co_filename), Path(made.stats.cache_path))
    except RuntimeError:  # no folder to keep it in: a read-only file system without a home
        made = njit(nogil=True, **options)(function)
    _functions.append(made)
    return cast(_Function, made)


@cache
def _forget_others(module: Path, folder: Path) -> None:
    """Delete what was kept of a module when it, or what it is made of, was another."""
    try:
        made_of = blake2b(b"".join(_parts(module)), digest_size=16).hexdigest()
        note = folder / f"{module.stem}.made-of"
        if note.exists() and note.read_text() == made_of:
            return
        for kept in folder.glob(f"{escape(module.stem)}.*.nb[ci]"):
            kept.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(made_of)
    except OSError:  # read-only: numba keeps nothing there either
        return


def _parts(module: Path) -> list[bytes]:
    """The text of a module and of those that machine code of it may hold parts of, in the order of their paths.

    Followed are the imports of modules that compile; of others, what they themselves say (constants, named tuples).
    """
    texts: dict[Path, bytes] = {}
    waiting = [module]
    while waiting:
        path = waiting.pop()
        if path in texts:
            continue
        texts[path] = text = _text(path)
        if path == module or _COMPILES in text:
            waiting += [_PACKAGE.joinpath(*name.decode().split(".")).with_suffix(".py") for name in _imported(text)]
    return [texts[path] for path in sorted(texts)]


@cache
def _text(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _imported(text: bytes) -> set[bytes]:
    return set(_IMPORT.findall(text)) - _WITHOUT_CODE


_PACKAGE = Path(__file__).parent
_COMPILES = b"from stream_app.compiled import"
_IMPORT = re.compile(rb"^from stream_app\.([\w.]+) import", re.MULTILINE)
_WITHOUT_CODE = {b"settings", b"errors", b"logs"}
"""Modules that nothing compiled takes anything from, and that change often."""
