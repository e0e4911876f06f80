"""Processes of the benchmarks' own: told what to do in one line of JSON, ended with whoever started them.

A child reads its job from standard input, which stays open for as long as it may live, writes its result as JSON to
standard output, and says how far it is in lines of JSON on standard error (anything else there is for people).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from stream_app.embedded.worker import environment
from stream_app.errors import TailraceError

__all__ = ["Child", "Progress", "child", "read_job", "run_child", "tell"]

T = TypeVar("T")
_GRACE_S = 10.0
_LINES = 40
_LINE_BYTES = 1_048_576


Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


class _Line(msgspec.Struct):
    """A line on standard error."""

    what: str
    done: int
    total: int


class Child:
    """A running child; see :func:`child`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, on_progress: Progress) -> None:
        self.name = name
        self._process = process
        self._on_progress = on_progress
        self._messages: deque[str] = deque(maxlen=_LINES)
        self._told: dict[str, asyncio.Event] = {}
        self._reading = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def told(self, what: str) -> None:
        """Wait until it says that all of ``what`` is done.

        Raises:
            TailraceError: when it ends before; with its last messages.
        """
        event = asyncio.create_task(self._told.setdefault(what, asyncio.Event()).wait())
        try:
            await asyncio.wait([event, self._reading], return_when=asyncio.FIRST_COMPLETED)
        finally:
            event.cancel()
        if not self._told[what].is_set():
            raise self._ended()

    async def result(self) -> dict[str, Any]:
        """What it writes at its end.

        Raises:
            TailraceError: when it fails; with its last messages.
        """
        assert self._process.stdout is not None  # noqa: S101 - asked for when it was started
        written = await self._process.stdout.read()
        await self._reading
        if await self._process.wait() != 0 or not written:
            raise self._ended()
        result: dict[str, Any] = msgspec.json.decode(written)
        return result

    def end_input(self) -> None:
        """Tell it that it may end."""
        assert self._process.stdin is not None  # noqa: S101 - asked for when it was started
        self._process.stdin.close()

    def _ended(self) -> TailraceError:
        said = "\n".join(self._messages)
        return TailraceError(f"{self.name} ended (exit status {self._process.returncode}). Its last output:\n{said}")

    async def _read(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - asked for when it was started
        async for line in self._process.stderr:
            try:
                progress = msgspec.json.decode(line, type=_Line)
            except msgspec.DecodeError:
                self._messages.append(line.decode("utf-8", "replace").rstrip())
                continue
            if progress.done >= progress.total:
                self._told.setdefault(progress.what, asyncio.Event()).set()
            self._on_progress(progress.what, progress.done, progress.total)

    async def stop(self) -> None:
        """End it, by SIGKILL when it does not go."""
        if self._process.returncode is None:
            self.end_input()
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _GRACE_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


@asynccontextmanager
async def child(
    module: str,
    job: msgspec.Struct,
    *,
    overrides: Mapping[str, Any],
    on_progress: Progress = lambda _what, _done, _total: None,
) -> AsyncIterator[Child]:
    """Run ``python -m module`` with settings ``overrides``; it is gone at the end of the context.

    Args:
        job: what it is told.
        on_progress: told what it does, how much of it is done, and of how much.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**inherited, **environment(overrides)},
        # A session of its own: Ctrl-C in the terminal reaches us, and we end everything in order.
        start_new_session=True,
        limit=_LINE_BYTES,
    )
    running = Child(module, process, on_progress)
    try:
        assert process.stdin is not None  # noqa: S101 - asked for above
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        yield running
    finally:
        await running.stop()


async def read_job(kind: type[T]) -> tuple[T, asyncio.Task[None]]:
    """In a child: what it is told to do, and a task that is done when it is to end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    job = msgspec.json.decode(await reader.readline(), type=kind)

    async def until_end() -> None:
        while await reader.read(4_096):
            pass

    return job, asyncio.create_task(until_end())


def run_child(work: Coroutine[Any, Any, None]) -> None:
    """In a child: do the work; a failure that has a name is said in its words, with exit status 1."""
    import uvloop

    from stream_app.logs import configure_logs
    from stream_app.settings import LogSettings

    configure_logs(LogSettings(level="error", format="text"))
    try:
        uvloop.run(work)
    except TailraceError as error:
        raise SystemExit(str(error)) from None


def tell(what: str, done: int, total: int) -> None:
    """In a child: say how far it is."""
    sys.stderr.buffer.write(msgspec.json.encode(_Line(what, done, total)) + b"\n")
    sys.stderr.buffer.flush()
