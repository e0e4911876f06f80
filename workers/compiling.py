"""torch.compile for a transformer: one program for the whole model, for batches of any shape.

What cannot be compiled as a whole is an error, never a part that is computed as before: whoever sets
``encoder.compile`` wants to know. PyTorch 2's compiler is that of Ansel et al. 2024 (doi 10.1145/3620665.3640366); on
a processor it writes C++ and calls the machine's compiler, on a GPU it writes Triton. Programs are kept
(:mod:`workers.program_folder`).
"""

from __future__ import annotations

import workers.environment  # noqa: F401 - before torch and transformers

# isort: split
import os
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import torch

from workers.program_folder import CACHE_VARIABLE, drop_damaged, marked, program_folder

__all__ = ["MOST_PROGRAMS", "TRIED_SHAPES", "CompiledModel", "what_is_missing", "what_turns_it_off"]

_PROCESSES_VARIABLE: Final = "TORCHINDUCTOR_COMPILE_THREADS"
_OFF_VARIABLES: Final = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")
MOST_PROGRAMS: Final = 16
"""A model that needs more of them for its shapes would compile for ever; the next shape is then an error."""
TRIED_SHAPES: Final = ((7, 24), (1, 24), (7, 2), (1, 2), (2, 3), (3, 8), (5, 9), (4, 16), (6, 33))
"""Rows and tokens of the batches that are tried at the start, and those of one row and of many at the limit of tokens.

The first is a usual one, and its sizes differ from each other: sizes that are equal count as the same one. One row
is always a program of its own. The others are there for what a model decides by length: windows, multiples of eight.
"""
_SAID: Final = 400
"""Characters of the compiler's message; a C++ compiler's has hundreds of lines."""
_configured: ContextVar[bool] = ContextVar("tailrace_compiling_configured", default=False)
"""Whether torch is configured here. Its configuration is kept in context variables, too, of which a new thread has
none: there, torch goes back to its defaults."""


class CompiledModel:
    """A model as one compiled program per kind of shape, made when the first batch of that kind is computed.

    Several threads may call it at a time; one compiles, and the others wait for it only when they need to compile, too.
    Configures torch in every thread that calls it.

    Attributes:
        folder: where programs are kept.
        programs: how many there are, those found in the folder included. None are made where torch.compile is turned
            off (:func:`what_turns_it_off`).

    Raises:
        SettingsError: when there is no folder to keep programs in.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.folder: Path = program_folder()
        drop_damaged(self.folder)
        os.environ[CACHE_VARIABLE] = str(self.folder)
        self.programs = 0
        self._mark: ExitStack | None = None
        _configure()
        from torch._dynamo import lookup_backend

        self._backend: Callable[..., Any] = lookup_backend("inductor")
        self._transform: Callable[..., Any] = torch.compile(model, dynamic=True, fullgraph=True, backend=self._make)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """What the model gives."""
        _configure()
        return self._transform(*inputs, **named)

    def _make(self, graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Callable[..., Any]:
        """A program; torch lets one thread at a time make one."""
        if self._mark is None:
            self._mark = ExitStack()
            self._mark.enter_context(marked(self.folder))
        # An exception may also ask torch for another graph, which comes here next: the mark stays until one is done.
        program: Callable[..., Any] = self._backend(graph, examples)
        self._mark.close()
        self._mark = None
        self.programs += 1
        return program


def what_turns_it_off() -> str:
    """The variables that torch.compile is turned off by, as in ``TORCHDYNAMO_DISABLE=1``."""
    found = [f"{name}={os.environ[name]}" for name in _OFF_VARIABLES if os.environ.get(name, "0") != "0"]
    return " and ".join(found) or " or ".join(_OFF_VARIABLES)


def what_is_missing(error: BaseException, device: torch.device, folder: Path) -> str:
    """Why a model was not compiled, and what to do, in one sentence without the model's name."""
    said = " ".join(str(error).split())
    said = said[:_SAID] + ("..." if len(said) > _SAID else "")
    if device.type == "cuda":
        needed = "the package triton, a C compiler (Debian: apt-get install gcc) and Python's headers (python3-dev)"
    else:
        needed = (
            "a C++ compiler (Debian: apt-get install g++; CXX names another one) and Python's headers (python3-dev)"
        )
    return (
        f"{type(error).__name__}: {said}; compiling for {device} takes {needed}, room in {folder} and leave to run "
        f"what is there (no noexec mount): see to these, empty {folder} where a program in it may be damaged, or set "
        "encoder.compile = false"
    )


def _configure() -> None:
    """Set torch's configuration where that was not done: once per thread, for it costs more than a short text does."""
    if _configured.get():
        return
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
    _configured.set(True)
