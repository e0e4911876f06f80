"""A TCP proxy that can be slow, silent or closed: a bad network between one process and a server."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from stream_app.embedded.processes import LOOPBACK, free_port

__all__ = ["Proxy"]

_PIECE = 64 * 1_024


class Proxy:
    """Forwards connections from a loopback port to an address. Use from one event loop.

    Attributes:
        port: where it listens, the same for its whole life.
        target: ``host:port`` it forwards to; may be set after :meth:`start`.
        delay_s: each piece of data waits so long (seconds).
    """

    def __init__(self, target: str = "") -> None:
        self.port = free_port()
        self.target = target
        self.delay_s = 0.0
        self._open = True
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """``host:port`` it listens on."""
        return f"{LOOPBACK}:{self.port}"

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        await self._end_all()

    async def cut(self) -> None:
        """End all connections, and every new one at once, until :meth:`heal`."""
        self._open = False
        await self._end_all()

    def stall(self) -> None:
        """Nothing passes any more, and no connection ends, until :meth:`heal`."""
        self._flows.clear()

    def heal(self) -> None:
        """As if nothing had been."""
        self._open = True
        self.delay_s = 0.0
        self._flows.set()

    async def _end_all(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connection(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            if not self._open:
                return
            host, _, port = self.target.rpartition(":")
            there, back = await asyncio.open_connection(host, int(port))
            writers.append(back)
            pipes = [asyncio.create_task(self._pipe(reader, back)), asyncio.create_task(self._pipe(there, writer))]
            try:
                await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pipe in pipes:
                    pipe.cancel()
                await asyncio.gather(*pipes, return_exceptions=True)
        except OSError:
            pass  # the server is away: so is its proxy
        finally:
            for one in writers:
                one.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                await self._flows.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(piece)
                await writer.drain()
