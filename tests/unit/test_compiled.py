"""Compiled functions run wherever the package is installed, also where nothing can be written next to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numba import njit
from numba.core import event

from stream_app import compiled as compiled_module
from stream_app.compiled import compiled, compiling

_MODULE = """
from stream_app.compiled import compiled

@compiled
def twice(value):
    return 2 * value

print(twice(21))
"""


@compiled
def _sum_of_squares(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += value * value
    return total


def test_a_compiled_function_computes_what_its_text_says() -> None:
    assert _sum_of_squares(np.array([3.0, 4.0])) == 25.0


@pytest.mark.parametrize("home", [True, False], ids=["kept in the user's cache", "kept nowhere"])
def test_a_folder_that_cannot_be_written_to_is_no_obstacle(tmp_path: Path, home: bool) -> None:
    package = tmp_path / "package"
    package.mkdir()
    module = package / "module.py"
    module.write_text(_MODULE)
    # A file where a folder would have to be made: cannot be written to, not even as root.
    (package / "__pycache__").write_text("")
    (tmp_path / "file").write_text("")
    environment = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "HOME")}
    environment["XDG_CACHE_HOME"] = environment["HOME"] = str(tmp_path / ("home" if home else "file"))
    done = subprocess.run([sys.executable, str(module)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "42\n", done.stderr
    assert home == any((tmp_path / "home").rglob("*.nbc"))


_TOLD_APART = """
from typing import NamedTuple
import numpy as np
from stream_app.compiled import compiled

class {name}(NamedTuple):
    values: np.ndarray

@compiled
def first(held):
    return held.values[0]

print(first({name}(np.array([{value}]))))
"""


def test_what_was_kept_for_an_older_release_is_no_obstacle(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    printed = []
    for age, (name, value) in enumerate([("Older", 1), ("Newer", 2)]):
        module.write_text(_TOLD_APART.format(name=name, value=value))
        # As if a minute passed from one release to the next.
        os.utime(module, times=(time.time() - 120 + 60 * age,) * 2)
        done = subprocess.run(
            [sys.executable, "-c", "import module"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
        for kept in tmp_path.rglob("*.nb[ic]"):
            os.utime(kept, times=(time.time() - 90,) * 2)
    assert printed == ["1\n", "2\n"]


_CALLER = """
from stream_app.compiled import compiled
from stream_app.called import number

@compiled
def twice():
    return 2 * number()

print(twice())
"""
_CALLED = """
from stream_app.compiled import compiled

@compiled
def number():
    return {}
"""


def test_what_calls_another_modules_function_follows_its_changes(tmp_path: Path) -> None:
    """Found as a crash: a source was added, and the caller went on running the list of sources without it."""
    package = tmp_path / "stream_app"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(compiled_module.__file__, package)
    (package / "caller.py").write_text(_CALLER)
    printed = []
    for number in (21, 4):
        (package / "called.py").write_text(_CALLED.format(number))
        done = subprocess.run(
            [sys.executable, "-c", "import stream_app.caller"],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed == ["42\n", "8\n"]


def test_a_module_is_made_of_what_it_calls_however_far_away() -> None:
    retrieval = Path(compiled_module.__file__).parent / "retrieval"
    parts = compiled_module._parts(retrieval / "candidates.py")
    for called in ("sources.py", "again.py", "source.py"):
        assert (retrieval / called).read_bytes() in parts


def test_compiling_is_known_while_it_lasts_also_when_it_fails() -> None:
    assert not compiling()
    with event.trigger_event("numba:compile"), event.trigger_event("numba:compile"):
        assert compiling()
    assert not compiling()
    with pytest.raises(ValueError, match="wrong"), event.trigger_event("numba:compile"):
        raise ValueError("wrong")
    assert not compiling()


def test_compiling_a_function_is_told() -> None:
    told = []

    class Heard(event.Listener):
        def on_start(self, one: object) -> None:
            told.append(compiling())

        def on_end(self, one: object) -> None: ...

    with event.install_listener("numba:compile", Heard()):
        njit(lambda number: number + 1)(1)
    assert told == [True]
