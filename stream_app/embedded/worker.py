"""``tailrace up`` as a child process: for the demo, the benchmarks and the fault tests."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil

from stream_app.embedded.processes import LOOPBACK, Command, Server
from stream_app.faults import ENVIRONMENT as FAULTS
from stream_app.health.judging import Probe

__all__ = ["WorkerProcess", "environment"]

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The metrics are on this machine: a proxy of the environment is not asked for them."""


def environment(overrides: Mapping[str, Any]) -> dict[str, str]:
    """Settings as environment variables (nested groups as JSON), for :func:`stream_app.settings.load_settings`."""
    variables = {}
    for name, value in overrides.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        variables[f"TAILRACE_{name.upper()}"] = text
    return variables


class WorkerProcess(Server):
    """One process of Tailrace.

    Ready when every role takes events; asked over its metrics endpoint.

    Args:
        roles: what it does, for example ``["interactions"]``.
        overrides: settings that differ from the defaults, as for ``load_settings``.
        directory: working directory.
        faults: a folder that tells the process to fail (``stream_app.faults``); None: none.
    """

    start_timeout_s = 180.0
    stop_grace_s = 30.0
    probe_interval_s = 0.05

    def __init__(
        self, roles: Sequence[str], *, overrides: Mapping[str, Any], directory: Path, faults: Path | None = None
    ) -> None:
        super().__init__(directory=directory)
        self.roles = list(roles)
        self.name = f"tailrace {','.join(roles)}"
        self._overrides = dict(overrides)
        self._faults = {} if faults is None else {FAULTS: str(faults)}

    def _command(self) -> Command:
        overrides = {**self._overrides, "metrics": {"host": LOOPBACK, "port": self.port}}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")}
        return Command(
            argv=[sys.executable, "-m", "stream_app.cli", "up", "--role", ",".join(self.roles)],
            env={**inherited, **environment(overrides), **self._faults},
            cwd=self.directory,
        )

    async def _answers(self) -> bool:
        return await self.metric("tailrace_ready") == 1

    async def metric(self, name: str) -> float | None:
        """The sum of a metric's samples over its labels; None when the process does not answer."""
        found = await self.metrics()
        if found is None:
            return None
        values = [value for sample, value in found.items() if sample.partition("{")[0] == name]
        return sum(values) if values else None

    async def metrics(self) -> dict[str, float] | None:
        """Every sample of the process's metrics; None when it does not answer."""
        return await asyncio.to_thread(self._scrape)

    async def health(self, probe: Probe) -> tuple[int, dict[str, Any]] | None:
        """The status of an answer and what it says; None when the process does not answer."""
        return await asyncio.to_thread(self._ask, probe)

    def _ask(self, probe: Probe) -> tuple[int, dict[str, Any]] | None:
        try:
            with _direct.open(f"http://{self.address}/{probe}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except HTTPError as answer:
            with answer:
                return answer.code, json.load(answer)
        except (OSError, HTTPException, ValueError):
            return None

    def _scrape(self) -> dict[str, float] | None:
        try:
            with _direct.open(f"http://{self.address}/metrics", timeout=2) as answer:
                lines = answer.read().decode().splitlines()
            samples = {}
            for line in lines:
                if line and not line.startswith("#"):
                    sample, _, value = line.rpartition(" ")
                    samples[sample] = float(value)
        except (OSError, HTTPException, ValueError):  # away, ended in the middle, or somebody else
            return None
        return samples

    def memory_bytes(self) -> tuple[int, int]:
        """Resident memory of the process itself, and of its children (encoder processes)."""
        if self.pid is None:
            return 0, 0
        process = psutil.Process(self.pid)
        return process.memory_info().rss, sum(child.memory_info().rss for child in process.children(recursive=True))
