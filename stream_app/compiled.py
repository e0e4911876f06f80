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

What is kept is valid while the module of the function is unchanged. What is older than the module is deleted: numba
opens it before it looks at its age, and fails on classes that are gone. It does not look at other modules: who changes
a compiled function that one of another module calls, touches that module too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

__all__ = ["compiled", "compiled_sums", "signatures"]

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


_functions: list[Any] = []


def _compiled(function: _Function, **options: Any) -> _Function:
    try:
        made = njit(cache=True, nogil=True, **options)(function)
        _forget_older(Path(function.__code__.co_filename), Path(made.stats.cache_path))
    except RuntimeError:  # no folder to keep it in: a read-only file system without a home
        made = njit(nogil=True, **options)(function)
    _functions.append(made)
    return cast(_Function, made)


@cache
def _forget_older(module: Path, folder: Path) -> None:
    """Delete what was kept of a module before it was last written."""
    try:
        written = module.stat().st_mtime
        for kept in folder.glob(f"{escape(module.stem)}.*.nbi"):
            if kept.stat().st_mtime < written:
                kept.unlink()
    except OSError:  # read-only, another process was faster, or a module without a file
        return
