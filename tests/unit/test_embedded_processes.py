"""Child processes: output, signals, errors, and that they end with their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from stream_app.embedded import ChildProcess, Command, Server, free_port
from stream_app.embedded.processes import LOOPBACK, OUTPUT_LINES, Lifeline
from stream_app.errors import EmbeddedStackError
from tests.waiting import eventually_sync

ROOT = Path(__file__).parents[2]
LIFELINES: list[Lifeline] = ["exec", "watch"] if sys.platform == "linux" else ["watch"]

WAIT_FOREVER = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
IGNORE_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + WAIT_FOREVER


def python(code: str, *, lifeline: Lifeline = LIFELINES[0]) -> ChildProcess:
    return ChildProcess(Command(argv=[sys.executable, "-c", code]), name="program", lifeline=lifeline)


def announced_pid(process: ChildProcess) -> int:
    return int(eventually_sync(process.output, what="the program prints its process id"))


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("lifeline", LIFELINES)
def test_output_and_status_are_the_programs(lifeline: Lifeline) -> None:
    process = python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)", lifeline=lifeline)
    assert process.wait(20) == 7
    assert set(process.output().split()) == {"out", "err"}
    assert not process.running


def test_output_is_bounded_and_keeps_the_newest() -> None:
    process = python(f"for i in range({OUTPUT_LINES * 3}): print(i)\nprint('x' * 100_000)")
    assert process.wait(20) == 0
    assert len(process.output().split("\n")) <= OUTPUT_LINES
    assert process.output(1).strip("x") == ""


@pytest.mark.parametrize("lifeline", LIFELINES)
def test_terminate_is_sigterm(lifeline: Lifeline) -> None:
    process = python(WAIT_FOREVER, lifeline=lifeline)
    pid = announced_pid(process)
    process.terminate(grace_s=20)
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert gone(pid)


@pytest.mark.parametrize("lifeline", LIFELINES)
def test_a_program_deaf_to_sigterm_is_killed_after_the_grace_time(lifeline: Lifeline) -> None:
    process = python(IGNORE_SIGTERM, lifeline=lifeline)
    pid = announced_pid(process)
    process.terminate(grace_s=0.1)
    assert process.returncode == -signal.SIGKILL
    eventually_sync(lambda: gone(pid), what="the program ends")


@pytest.mark.parametrize("lifeline", LIFELINES)
@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_program_ends_with_its_parent(lifeline: Lifeline, how: str) -> None:
    code = (
        "import sys\n"
        "from tests.unit.test_embedded_processes import *\n"
        f"process = python(IGNORE_SIGTERM, lifeline={lifeline!r})\n"
        "print(announced_pid(process), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        if how == "killed":
            parent.send_signal(signal.SIGKILL)
        else:
            parent.stdin.close()
    assert parent.returncode == (-signal.SIGKILL if how == "killed" else 0)
    eventually_sync(lambda: gone(pid), what=f"process {pid} ends with its parent")


def test_a_program_outlives_the_thread_that_started_it() -> None:
    started: list[ChildProcess] = []
    thread = threading.Thread(target=lambda: started.append(python(WAIT_FOREVER)))
    thread.start()
    thread.join()
    (process,) = started
    try:
        announced_pid(process)
        assert process.wait(0.2) is None
    finally:
        process.kill()


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedStackError, match=r"program: .*/nothing is not there or not executable"):
        ChildProcess(Command(argv=[str(tmp_path / "nothing")]), name="program")


def test_a_program_that_cannot_be_executed_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF but not really")
    broken.chmod(0o755)
    process = ChildProcess(Command(argv=[str(broken)]), name="program")
    assert process.wait(20) == 127
    assert "cannot be run: [Errno 8]" in process.output()


def test_free_ports_are_free_distinct_and_not_for_outgoing_connections() -> None:
    ports = {free_port() for _ in range(32)}
    assert len(ports) == 32
    for port in ports:
        with closing(socket.socket()) as listener:
            listener.bind((LOOPBACK, port))
    if sys.platform == "linux":
        low, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        assert max(ports) < low


class Listener(Server):
    """Listens on its port, or does what ``code`` says."""

    name = "listener"

    def __init__(self, *, directory: Path, code: str = "listen") -> None:
        super().__init__(directory=directory)
        self.code = code
        self.ports: list[int] = []

    def _choose_ports(self) -> None:
        super()._choose_ports()
        self.ports.append(self.port)

    def _command(self) -> Command:
        listen = f"import socket; s = socket.socket(); s.bind(({LOOPBACK!r}, {self.port})); s.listen();" + WAIT_FOREVER
        return Command(argv=[sys.executable, "-c", listen if self.code == "listen" else self.code])

    async def _answers(self) -> bool:
        return True


async def test_a_server_that_ends_while_starting_shows_its_output(tmp_path: Path) -> None:
    server = Listener(directory=tmp_path, code="raise SystemExit('the disk is full')")
    with pytest.raises(EmbeddedStackError, match=r"listener ended while starting .*\n.*the disk is full"):
        await server.start()
    assert not server.running


async def test_a_server_that_never_answers_is_ended(tmp_path: Path) -> None:
    server = Listener(directory=tmp_path, code=WAIT_FOREVER)
    server.start_timeout_s = 0.3
    with pytest.raises(EmbeddedStackError, match=r"did not answer on 127\.0\.0\.1:\d+ within 0\.3 s"):
        await server.start()
    assert not server.running


async def test_a_server_whose_port_was_taken_meanwhile_takes_another(tmp_path: Path) -> None:
    class Unlucky(Listener):
        def _choose_ports(self) -> None:
            super()._choose_ports()
            if len(self.ports) == 1:
                self.port = taken

    with closing(socket.socket()) as somebody:
        somebody.bind((LOOPBACK, 0))  # taken and not listening, so nobody answers there
        taken = somebody.getsockname()[1]
        server = Unlucky(directory=tmp_path)
        await server.start()
        assert server.port != taken
        assert len(server.ports) == 2
        await server.stop()


async def test_port_stays_through_kill_and_restart(tmp_path: Path) -> None:
    server = Listener(directory=tmp_path)
    await server.start()
    port, first = server.port, server.pid
    await server.start()
    assert server.pid == first
    await server.kill()
    assert server.pid is None
    await server.start()
    await server.restart()
    assert server.port == port
    assert server.ports == [port]
    await server.stop()
