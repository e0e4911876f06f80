"""TLS in front of a server that speaks none: the embedded Redis is built without."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["TlsProxy", "tls_proxy"]

_HANDSHAKE = b"\x16"
"""First byte of whoever begins with TLS."""


class TlsProxy:
    """Ends TLS and passes on. Who does not begin with TLS is passed on as well where ``plain_too``.

    Attributes:
        context: for the connections that come from now on.
        refused: how many handshakes failed.
    """

    def __init__(self, context: ssl.SSLContext, *, plain_too: bool = False) -> None:
        self.context = context
        self.refused = 0
        self.target = 0
        self._plain_too = plain_too
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            task = asyncio.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def cut(self) -> None:
        """End every connection there is."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        await self.cut()
        self._listener.close()

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        writers: list[asyncio.StreamWriter] = []
        try:
            tls = not self._plain_too
            if self._plain_too:
                connection.setblocking(True)
                connection.settimeout(5)
                tls = await asyncio.to_thread(connection.recv, 1, socket.MSG_PEEK) == _HANDSHAKE
                connection.setblocking(False)
            try:
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, connection, ssl=self.context if tls else None
                )
            except (ssl.SSLError, OSError):
                self.refused += 1
                return
            writers.append(asyncio.StreamWriter(transport, protocol, reader, loop))
            target_reader, target = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(target)
            both = _copy(reader, target), _copy(target_reader, writers[0])
            copying = [asyncio.create_task(one) for one in both]
            try:
                await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in copying:
                    task.cancel()
                await asyncio.gather(*copying, return_exceptions=True)
        except OSError:
            pass
        finally:
            for writer in writers:
                writer.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await writer.wait_closed()
            connection.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def tls_proxy(context: ssl.SSLContext, *, target: int = 0, plain_too: bool = False) -> AsyncIterator[TlsProxy]:
    """A proxy on a port of its own, in front of the port ``target`` of this machine."""
    proxy = TlsProxy(context, plain_too=plain_too)
    proxy.target = target
    running = asyncio.create_task(proxy.run())
    try:
        yield proxy
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await proxy.close()
