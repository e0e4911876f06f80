"""One encoder process seen from the parent: start it, give it batches, notice its end, end it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import SettingsError, Unavailable
from workers.frames import Configure, Encode, Failed, Ready, Vectors, pack_frame, read_frame, vectors_of

__all__ = ["DEFAULT_COMMAND", "ChildDied", "EncoderChild"]

DEFAULT_COMMAND = (sys.executable, "-m", "workers.process")
_GRACE_S = 2.0


class ChildDied(Exception):
    """The process ended, hung, or said something that makes no sense; it is gone now."""


class EncoderChild:
    """A running encoder process. Made by :meth:`start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._batch = 0
        self._answers: dict[int, asyncio.Future[tuple[Vectors | Failed, bytes]]] = {}
        self._reading: asyncio.Task[None] | None = None
        self.pid = process.pid
        self.ready: Ready
        self.ended = asyncio.create_task(process.wait())
        """Done when the process has ended; its exit code."""

    @classmethod
    async def start(cls, command: Sequence[str], configure: Configure, *, timeout_s: float) -> EncoderChild:
        """Start a process and wait until it is ready.

        The kernel ends the process with the *thread* that calls this, so that no fault of the parent leaves it
        behind: call it from a thread that lives as long as the process is needed (the event loop's).

        Raises:
            SettingsError: when the process says that it can never work as configured.
            Unavailable: when it ended or was not ready in time; another try may work.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *("--fd", str(theirs.fileno()), "--parent", str(os.getpid())),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                )
            child = cls(process, *await asyncio.open_connection(sock=ours))
        except BaseException:
            ours.close()
            raise
        try:
            async with asyncio.timeout(timeout_s):
                child._writer.write(pack_frame(configure))
                first, _ = await read_frame(child._reader)
        except TimeoutError:
            await child.kill()
            raise Unavailable(
                f"encoder process {child.pid} was not ready after {timeout_s:g} s (encoder.start_timeout_s)"
            ) from None
        except (EOFError, OSError, ValueError) as error:
            code = await child.reap()
            raise Unavailable(f"encoder process {child.pid} ended while starting (exit code {code})") from error
        except BaseException:
            await child.kill()
            raise
        if isinstance(first, Ready):
            child.ready = first
            child._reading = asyncio.create_task(child._read())
            return child
        await child.kill()
        if isinstance(first, Failed):
            raise SettingsError(first.detail)
        raise Unavailable(f"encoder process {child.pid} began with {type(first).__name__}")

    async def encode(self, texts: list[str], *, urgent: bool, timeout_s: float) -> tuple[NDArray[np.float32], Vectors]:
        """The vectors of ``texts``, float32 [n, dimensions], and what the process says of the batch.

        Several calls may be under way; the process computes as many at a time as it has lanes, urgent ones first.

        Raises:
            MemoryError: when the batch is too large for the device; the process goes on.
            ChildDied: when there is no answer; the process is gone, and every other call gets this too.
        """
        self._batch += 1
        number = self._batch
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            if self._reading is None or self._reading.done():
                raise EOFError("it closed its socket")
            async with asyncio.timeout(timeout_s):
                self._writer.write(pack_frame(Encode(batch=number, urgent=urgent, texts=texts)))
                await self._writer.drain()
                said, payload = await answer
            if isinstance(said, Failed):
                raise MemoryError(said.detail)
            if said.rows != len(texts):
                raise ValueError(f"answered a batch of {len(texts)} texts with {said!r}")
            return vectors_of(said, payload), said
        except TimeoutError:
            await self.kill()
            raise ChildDied(f"no answer after {timeout_s:g} s (encoder.batch_timeout_s); ended it") from None
        except (EOFError, OSError, ValueError) as error:
            code = await self.reap()
            raise ChildDied(f"exit code {code}: {error}") from error
        finally:
            del self._answers[number]

    async def _read(self) -> None:
        """Hand out answers until there are none any more; then nobody waits for one."""
        try:
            while True:
                said, payload = await read_frame(self._reader)
                if not isinstance(said, Vectors | Failed) or not 0 < said.batch <= self._batch:
                    raise ValueError(f"an answer to nothing that was asked: {said!r}")
                answer = self._answers.get(said.batch)  # none where the asker was cancelled
                if answer is not None and not answer.done():
                    answer.set_result((said, payload))
        except (EOFError, OSError, ValueError) as error:
            problem = str(error) or "it closed its socket"
        # Whoever asks from now on has no answer to wait for: the socket is closed.
        self._writer.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(EOFError(problem))

    async def reap(self) -> int:
        """Close the socket, wait for the process to end by itself, kill it if it does not; its exit code."""
        self._writer.close()
        try:
            async with asyncio.timeout(_GRACE_S):
                return await asyncio.shield(self.ended)
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """End the process now and wait for it; its exit code (minus the signal's number where one ended it)."""
        self._writer.close()
        with suppress(ProcessLookupError):
            self._process.kill()
        return await asyncio.shield(self.ended)
