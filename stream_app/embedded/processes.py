"""Child processes that never outlive their parent, and servers made of them.

:class:`ChildProcess` is one run of one program. :class:`Server` is a program listening on a loopback port: started
until it really answers, stopped, killed, suspended and started again on the same port and data directory.

Built on ``subprocess`` with one thread per process that reads its output, not on asyncio's subprocesses: those
belong to one event loop, while a stack is started by one loop (or by none) and used from others, as test suites
do. Waiting is done in worker threads, so no loop is ever held up.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stream_app.errors import EmbeddedStackError

__all__ = ["LOOPBACK", "ChildProcess", "Command", "Server", "free_port", "port_is_open"]

LOOPBACK = "127.0.0.1"
OUTPUT_LINES = 400
"""Lines of output kept per process, the newest; the rest is dropped."""
OUTPUT_LINE_BYTES = 4_096
"""A longer line is cut into several."""
SHOWN_LINES = 40
"""Lines of output shown in an error."""
PORT_ATTEMPTS = 5
"""Fresh ports tried when another process takes the chosen one before the server does."""

_GUARDIAN = Path(__file__).with_name("guardian.py")
_PORT_TAKEN = re.compile(r"address (already )?in use", re.IGNORECASE)

Lifeline = Literal["exec", "watch"]


class _Launcher:
    """The thread that forks every child.

    Linux sends the parent-death signal when the forking *thread* ends, so children must not be forked from a
    thread that may end before the process does (an event loop in a thread, a test's worker).
    """

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)  # threads do not survive a fork

    def _renew(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tailrace-launcher")

    def popen(self, argv: Sequence[str], *, env: Mapping[str, str] | None, cwd: Path | None, stdin: int) -> _Popen:
        def launch() -> _Popen:
            return subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                # A session of its own: Ctrl-C in the terminal reaches us, and we stop the servers in order.
                start_new_session=True,
            )

        return self._executor.submit(launch).result()


_Popen = subprocess.Popen[bytes]
_launcher = _Launcher()


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run. ``argv[0]`` is an absolute path; ``env`` None passes this process's environment on."""

    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    cwd: Path | None = None


class ChildProcess:
    """One run of a program. It ends with this process, even when this process is killed.

    The newest :data:`OUTPUT_LINES` lines of its output (standard error included) are kept in memory.
    """

    def __init__(self, command: Command, *, name: str, lifeline: Lifeline | None = None) -> None:
        """Start the program.

        Raises:
            EmbeddedStackError: when the program is not there or may not be executed.
        """
        self.name = name
        program = Path(command.argv[0])
        if not (program.is_file() and os.access(program, os.X_OK)):
            raise EmbeddedStackError(f"{name}: {program} is not there or not executable")
        lifeline = lifeline or ("exec" if sys.platform == "linux" else "watch")
        try:
            self._process = _launcher.popen(
                [sys.executable, "-I", "-S", str(_GUARDIAN), lifeline, str(os.getpid()), *command.argv],
                env=command.env,
                cwd=command.cwd,
                stdin=subprocess.DEVNULL if lifeline == "exec" else subprocess.PIPE,
            )
        except OSError as error:
            raise EmbeddedStackError(f"{name}: cannot start a process: {error}") from error
        self._lines: deque[str] = deque(maxlen=OUTPUT_LINES)
        self._reader = threading.Thread(target=self._read, name=f"{name}-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id (and process group id). On Linux the program's own, elsewhere its guardian's."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def running(self) -> bool:
        """Whether the program has not ended yet."""
        return self.returncode is None

    def output(self, lines: int = OUTPUT_LINES) -> str:
        """The newest lines the program wrote."""
        return "\n".join(list(self._lines)[-lines:])

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Block until the program ended and its output is read. Exit status, or None after ``timeout_s``."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(timeout=5)
        if self._process.stdin is not None:
            self._process.stdin.close()
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program; nothing happens when it has ended."""
        if self.running:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def terminate(self, *, grace_s: float) -> None:
        """Block until the program ended: by SIGTERM, after ``grace_s`` seconds by SIGKILL."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a suspended process gets SIGTERM only once it continues
        if self.wait(grace_s) is None:
            self.kill()

    def kill(self) -> None:
        """Block until the program ended by SIGKILL."""
        self.signal(signal.SIGKILL)
        self.wait()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None  # noqa: S101 - asked for in the launcher
        with stream:
            while line := stream.readline(OUTPUT_LINE_BYTES):
                self._lines.append(line.decode("utf-8", "replace").rstrip("\n"))


class Server(ABC):
    """A program that listens on a loopback port.

    Not bound to an event loop, and not safe to start and stop from two tasks at once. Once started, port and
    directory stay the same for every later start, so clients reconnect to where the server was.
    """

    name: str
    start_timeout_s: float = 30.0
    """Seconds until the server must answer."""
    stop_grace_s: float = 10.0
    """Seconds between SIGTERM and SIGKILL."""
    probe_interval_s: float = 0.02
    """Seconds between two questions whether it answers yet."""

    def __init__(self, *, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self._process: ChildProcess | None = None

    @abstractmethod
    def _command(self) -> Command:
        """The command line for :attr:`port`."""

    @abstractmethod
    async def _answers(self) -> bool:
        """Whether the server does its work, asked over its own protocol. Must not raise when it is not there."""

    async def _prepare(self) -> None:  # noqa: B027 - most servers need nothing
        """What must be done on disk before each start."""

    def _choose_ports(self) -> None:
        """Choose where to listen; called until a start succeeded, never after."""
        self.port = free_port()

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process is there (it may be suspended)."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.running else None

    def output(self, lines: int = OUTPUT_LINES) -> str:
        """The newest lines the server wrote in its present or last run."""
        return self._process.output(lines) if self._process is not None else ""

    async def start(self) -> None:
        """Start the server and wait until it answers; does nothing when it runs.

        Raises:
            EmbeddedStackError: when it is not installed, ends early or does not answer in time; with its output.
        """
        if self.running:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        started_before = self.port != 0
        for attempt in range(1, PORT_ATTEMPTS + 1):
            if not started_before:
                self._choose_ports()
            try:
                await self._prepare()
                self._process = ChildProcess(self._command(), name=self.name)
                await self._await_answer(self._process)
            except BaseException as error:
                await self.kill()
                if started_before:
                    raise
                self.port = 0
                taken = isinstance(error, EmbeddedStackError) and _PORT_TAKEN.search(str(error))
                if not taken or attempt == PORT_ATTEMPTS:
                    raise
            else:
                return

    async def stop(self) -> None:
        """End the server in order: SIGTERM, after the grace time SIGKILL."""
        if self._process is not None:
            await asyncio.to_thread(self._process.terminate, grace_s=self.stop_grace_s)

    async def kill(self) -> None:
        """End the server as a crash would: SIGKILL."""
        if self._process is not None:
            await asyncio.to_thread(self._process.kill)

    async def restart(self) -> None:
        """Stop and start again, same port, same directory."""
        await self.stop()
        await self.start()

    def suspend(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open and nobody answers, like a hung machine."""
        if self._process is not None:
            self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        if self._process is not None:
            self._process.signal(signal.SIGCONT)

    async def _await_answer(self, process: ChildProcess) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while True:
            if not process.running:
                await asyncio.to_thread(process.wait)
                raise EmbeddedStackError(
                    f"{self.name} ended while starting (exit status {process.returncode}) on {self.address}. "
                    f"{self._advice(process)}Its last output:\n{process.output(SHOWN_LINES)}"
                )
            if port_is_open(self.port) and await self._answers():
                return
            if time.monotonic() > deadline:
                raise EmbeddedStackError(
                    f"{self.name} did not answer on {self.address} within {self.start_timeout_s:g} s. "
                    f"{self._advice(process)}Its last output:\n{process.output(SHOWN_LINES)}"
                )
            await asyncio.sleep(self.probe_interval_s)

    def _advice(self, process: ChildProcess) -> str:
        """What to do about a failed start, with a trailing space; empty when the output says enough."""
        return ""


@dataclass
class _Ports:
    """Hands out loopback ports from outside the range the system gives to outgoing connections.

    A client that keeps trying to reach a dead server on a port *inside* that range can be given the very same port
    as its own, connects to itself (TCP simultaneous open) and so keeps the server from ever coming back.
    """

    low: int = 15_000
    high: int = 32_000
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=64))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> int:
        chooser = random.SystemRandom()
        with self.lock:
            for _ in range(1_000):
                port = chooser.randrange(self.low, self.high)
                if port not in self.recent and _can_listen(port):
                    self.recent.append(port)
                    return port
        raise EmbeddedStackError(f"no free port on {LOOPBACK} between {self.low} and {self.high}")


_ports = _Ports()


def free_port() -> int:
    """A port nobody listens on at the moment, not handed out lately, on the loopback address."""
    return _ports.take()


def _can_listen(port: int) -> bool:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def port_is_open(port: int) -> bool:
    """Whether somebody accepts connections on the loopback port. Answers within microseconds."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0
