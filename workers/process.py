"""One encoder process: ``python -m workers.process --fd N --parent PID``, started by the pool.

It reads frames from the inherited socket ``N`` and answers each from one of its threads (:mod:`workers.lanes`), until
the parent closes the socket or is gone. Anything unexpected ends the process with a traceback on stderr: the pool
starts another and finds out which text was to blame, which is safer than going on with a model or a device in an
unknown state.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import SettingsError
from workers.frames import Configure, Encode, Failed, Ready, Vectors, pack_frame, receive_frame
from workers.lanes import Inbox, lanes_for, start_lanes

__all__ = ["Encoder", "main", "serve"]

_PR_SET_PDEATHSIG = 1


class Encoder(Protocol):
    """What a process needs of a model; see ``workers.transformer.TransformerEncoder``."""

    @property
    def space(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def tokens_read(self) -> int: ...
    @property
    def tokens_computed(self) -> int: ...
    @property
    def devices(self) -> int:
        """How many devices of this kind the process sees, its own included."""
        ...

    @property
    def at_once(self) -> int | None:
        """Batches it can compute at a time; None: as many as there are lanes."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Float32 [n, dimensions], unit length. Called from several threads, ``at_once`` at a time. MemoryError: fewer
        at once may fit."""
        ...


def main(load: Callable[[Configure], Encoder] | None = None) -> None:
    """Run an encoder process on the socket named by the arguments. ``load`` makes the encoder (default: the model)."""
    parser = argparse.ArgumentParser(prog="python -m workers.process", description="A Tailrace encoder process.")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the parent")
    parser.add_argument("--parent", type=int, required=True, help="the parent's process id")
    arguments = parser.parse_args()
    _end_with_parent(arguments.parent)
    # A terminal's Ctrl-C and a service manager's SIGTERM reach the whole group. The parent decides when it needs no
    # more vectors, and this process cannot outlive it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=arguments.fd) as connection, suppress(ConnectionError):
        serve(connection, load or _load)
    # Nothing is left to be written, and taking torch apart piece by piece would keep the pool waiting for seconds.
    os._exit(0)


def serve(connection: socket.socket, load: Callable[[Configure], Encoder]) -> None:
    """Answer frames from ``connection`` until the other side closes it."""
    first = receive_frame(connection)
    if first is None:
        return
    if not isinstance(first, Configure):
        raise ValueError(f"expected Configure first, got {type(first).__name__}")
    started = time.perf_counter()
    try:
        encoder = load(first)
    except SettingsError as error:
        connection.sendall(pack_frame(Failed(kind="settings", detail=str(error))))
        return
    lanes, _ = lanes_for(encoder.device, first.threads)
    turn = nullcontext() if encoder.at_once is None else threading.Semaphore(encoder.at_once)
    lanes = lanes if encoder.at_once is None else min(lanes, encoder.at_once)
    connection.sendall(
        pack_frame(
            Ready(
                space=encoder.space,
                dimensions=encoder.dimensions,
                device=encoder.device,
                precision=encoder.precision,
                lanes=lanes,
                devices=encoder.devices,
                pid=os.getpid(),
                load_s=time.perf_counter() - started,
            )
        )
    )
    inbox, sending = Inbox(), threading.Lock()

    def answer(message: Encode) -> None:
        with turn:  # waiting for it is no time of computing
            frame = _answer(encoder, message)
        with sending:
            connection.sendall(frame)

    start_lanes(inbox, answer, lanes=lanes)
    while (message := receive_frame(connection)) is not None:
        if not isinstance(message, Encode):
            raise ValueError(f"expected Encode, got {type(message).__name__}")
        inbox.put(message)


def _answer(encoder: Encoder, message: Encode) -> bytes:
    started = time.perf_counter()
    try:
        vectors = encoder.encode(message.texts)
    except MemoryError as error:
        return pack_frame(Failed(kind="memory", detail=str(error), batch=message.batch))
    rows, dimensions = vectors.shape
    seconds = time.perf_counter() - started
    header = Vectors(
        batch=message.batch,
        rows=rows,
        dimensions=dimensions,
        seconds=seconds,
        tokens_read=encoder.tokens_read,
        tokens_computed=encoder.tokens_computed,
    )
    return pack_frame(header, np.ascontiguousarray(vectors, dtype="<f4").data)


def _load(configure: Configure) -> Encoder:
    import setproctitle

    from workers.faults import with_faults
    from workers.models import load_model

    if configure.nice:
        os.nice(configure.nice)
    # Where ``auto`` turns out to be a GPU they are those of a processor's lane: there the GPU computes.
    _, threads = lanes_for(configure.device, configure.threads)
    # The libraries read these when they are loaded, so before torch is imported.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(threads)
    setproctitle.setproctitle(f"tailrace-encoder {configure.index} (loading {configure.model})")
    encoder = load_model(
        configure,
        device=configure.device,
        precision=configure.precision,
        threads=threads,
        batch=configure.batch,
        batch_tokens=configure.batch_tokens,
        index=configure.index,
        compile=configure.compile,
    )
    setproctitle.setproctitle(f"tailrace-encoder {configure.index} {configure.model} {encoder.device}")
    return with_faults(encoder)


def _end_with_parent(parent: int) -> None:
    """Have the kernel end this process with the thread that started it; the closed socket does so elsewhere.

    A process in the middle of a long batch does not read its socket, so the closed socket alone is not enough.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above took effect
        sys.exit(0)


if __name__ == "__main__":
    main()
