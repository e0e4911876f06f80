"""Run a program that ends when the process that asked for it ends, however that ends.

Started as a script with nothing but the standard library, never imported::

    python -I -S guardian.py MODE PARENT_PID PROGRAM [ARGUMENT ...]

``exec`` (Linux)
    The kernel is asked to send SIGKILL when the parent goes (``prctl(PR_SET_PDEATHSIG)``, kept across ``exec``),
    then the program takes this process's place: no extra process stays behind and the process id is its own.
    The signal is sent when the *thread* that forked ends, so the caller forks from a thread that lives as long
    as the process does.
``watch`` (other POSIX systems)
    The program runs as a child; standard input is a pipe whose other end only the parent holds. End of file means
    that the parent is gone, and the program is killed.

A SIGTERM handler in the parent could do neither: SIGKILL leaves it no chance to run.
"""

import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1
"""From ``linux/prctl.h``; the number is part of the kernel's stable interface."""

CANNOT_RUN = 127
"""Exit status when the program could not be started, as shells have it."""


def become(parent_pid: int, argv: list[str]) -> None:
    """Take on the program in this process, bound to the parent's life. Returns only by exception."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it went before the request took effect, so no signal would ever come
        raise SystemExit(f"the parent {parent_pid} is gone already")
    os.execv(argv[0], argv)  # noqa: S606 - no shell is the point


def watch(argv: list[str]) -> None:
    """Run the program as a child, and kill it at the end of standard input. Does not return."""
    # The parent signals the whole group; the program decides when to end, this process follows it.
    signal.signal(signal.SIGTERM, lambda *_: None)  # a handler, not SIG_IGN, which the program would inherit
    program = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def follow() -> None:
        status = program.wait()
        os._exit(status if status >= 0 else 128 - status)

    threading.Thread(target=follow, daemon=True).start()
    while os.read(0, 1024):
        pass
    program.kill()
    program.wait()
    os._exit(128 + signal.SIGKILL)


def main() -> None:
    """Parse the command line, and run the program."""
    mode, parent_pid, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    try:
        if mode == "exec":
            become(parent_pid, argv)
        else:
            watch(argv)
    except OSError as error:
        sys.stderr.write(f"{argv[0]} cannot be run: {error}\n")
        raise SystemExit(CANNOT_RUN) from None


if __name__ == "__main__":
    main()
