"""Programs that validate deploy/: those that ``scripts/deploy-tools.sh`` has fetched, else those on the path.

A missing one skips its tests and says what to do; with ``CI`` set it fails them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import in_ci

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "tailrace"

Run = Callable[..., str]
Render = Callable[..., list[dict[str, Any]]]


def tools_folder() -> Path:
    """Where ``scripts/deploy-tools.sh`` puts them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TAILRACE_TOOLS") or cache / "tailrace" / "tools")


def find(name: str) -> str:
    """The program's path.

    Raises:
        pytest.skip.Exception: where it is not there, outside CI.
    """
    fetched = tools_folder() / "bin" / name
    found = str(fetched) if fetched.exists() else shutil.which(name)
    if found is None:
        missing(f"{name} is not there: make deploy-check fetches it")
    assert found is not None
    return found


def missing(why: str) -> None:
    """Fail in CI, skip elsewhere."""
    if in_ci():
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a program with arguments; what it printed. What it says on failure is the test's message."""

    def run(name: str, *arguments: str | Path, stdin: str | None = None, cwd: Path = ROOT) -> str:
        done = subprocess.run(
            [find(name), *map(str, arguments)], input=stdin, capture_output=True, text=True, cwd=cwd, timeout=120
        )
        assert done.returncode == 0, f"{name} {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def render(run: Run) -> Render:
    """The chart's resources with values given as nested dictionaries."""

    def render(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        text = run(
            "helm", "template", "shop", CHART, "--namespace", "shops", "-f", "-", stdin=yaml.safe_dump(values or {})
        )
        return [document for document in yaml.safe_load_all(text) if document]

    return render
