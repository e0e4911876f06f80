"""torch.compile for a transformer: one program for the whole model, for batches of any shape.

What cannot be compiled as a whole is an error, never a part that is computed as before: whoever sets
``encoder.compile`` wants to know. PyTorch 2's compiler is that of Ansel et al. 2024 (doi 10.1145/3620665.3640366); on
a processor it writes C++ and calls the machine's compiler, on a GPU it writes Triton.

Programs are kept in a folder and found there by the next process. They are loaded and run, so the folder must be one
that nobody else can write to: torch's own choice, a name in the temporary directory that anybody can foresee and make
first, is not used.
"""

from __future__ import annotations

import workers.environment  # noqa: F401 - before torch and transformers

# isort: split
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from stream_app.errors import SettingsError

__all__ = ["CACHE_VARIABLE", "MOST_PROGRAMS", "TRIED_SHAPES", "compiled", "program_folder", "what_is_missing"]

CACHE_VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"
_TORCHS_OWN: Final = "torchinductor_"
"""So begins the name of the folder that torch itself writes into the variable, when anything imports its compiler."""
_PROCESSES_VARIABLE: Final = "TORCHINDUCTOR_COMPILE_THREADS"
MOST_PROGRAMS: Final = 16
"""A model that needs more of them for its shapes would compile for ever; the next shape is then an error."""
TRIED_SHAPES: Final = ((7, 24), (1, 24), (7, 2), (1, 2), (2, 3), (3, 8), (5, 9), (4, 16), (6, 33))
"""Rows and tokens of the batches that are tried at the start, and those of one row and of many at the limit of tokens.

The first is a usual one, and its sizes differ from each other: sizes that are equal count as the same one. One row
is always a program of its own. The others are there for what a model decides by length: windows, multiples of eight.
"""
_SAID: Final = 400
"""Characters of the compiler's message; a C++ compiler's has hundreds of lines."""


def compiled(model: torch.nn.Module, *, device: torch.device) -> Callable[..., Any]:
    """``model`` as one compiled program per kind of shape, made when the first batch of that kind is computed.

    Several threads may call it at a time; one compiles, and the others wait for it only when they need to compile, too.
    Sets torch's configuration for this process.

    Raises:
        SettingsError: when there is no folder to keep programs in.
    """
    os.environ[CACHE_VARIABLE] = str(program_folder())
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    # What cannot be compiled is an error, whatever the environment says of it.
    dynamo.suppress_errors = False
    dynamo.recompile_limit = MOST_PROGRAMS
    dynamo.fail_on_recompile_limit_hit = True
    # These would lie in torch's own folder whatever the variable says.
    inductor.cpp_cache_precompile_headers = False
    if _PROCESSES_VARIABLE not in os.environ:
        # It would start a process per core, each with a torch of its own, that stay for as long as this one.
        inductor.compile_threads = 1
    function: Callable[..., Any] = torch.compile(model, dynamic=True, fullgraph=True)
    return function


def program_folder() -> Path:
    """Where programs are kept: the folder that ``TORCHINDUCTOR_CACHE_DIR`` names, which is the operator's to guard, or
    one in the temporary directory that is ours alone, made when missing.

    Raises:
        SettingsError: when the latter cannot be made, or others may write to it.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named and Path(named).name[: len(_TORCHS_OWN)] != _TORCHS_OWN:
        return Path(named)
    folder = Path(tempfile.gettempdir()) / f"tailrace-compiled-{os.getuid()}"
    otherwise = f"set {CACHE_VARIABLE} to a folder that only this user may write to, or encoder.compile = false"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise SettingsError(
            f"encoder.compile = true: programs cannot be kept in {folder}: {error.strerror or error}; {otherwise}"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise SettingsError(
            f"encoder.compile = true: others may write to {folder}, and what is there would be run; remove it, or "
            f"{otherwise}"
        )
    return folder


def what_is_missing(error: BaseException, device: torch.device) -> str:
    """Why a model was not compiled, and what to do, in one sentence without the model's name."""
    said = " ".join(str(error).split())
    said = said[:_SAID] + ("..." if len(said) > _SAID else "")
    if device.type == "cuda":
        needed = "the package triton, a C compiler (Debian: apt-get install gcc) and Python's headers (python3-dev)"
    else:
        needed = (
            "a C++ compiler (Debian: apt-get install g++; CXX names another one) and Python's headers (python3-dev)"
        )
    folder = os.environ.get(CACHE_VARIABLE)
    return (
        f"{type(error).__name__}: {said}; compiling for {device} takes {needed}, room in {folder} and leave to run "
        "what is there (no noexec mount): see to these, or set encoder.compile = false"
    )
