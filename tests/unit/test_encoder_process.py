"""What an encoder process says on its socket; in this process, around an encoder without a model."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.frames import Configure, Encode, FromChild, Ready, Vectors, pack_frame
from workers.process import serve

CONFIGURE = Configure(
    model="m",
    device="auto",
    precision="auto",
    max_tokens=128,
    threads=4,
    batch=8,
    batch_tokens=0,
    nice=0,
    index=0,
)


class OneAtATime:
    """An encoder that must not be called by two threads at a time, and notices when it is."""

    space = "s"
    dimensions = 1
    device = "cpu"
    precision = "float32"
    tokens_read = tokens_computed = 0
    at_once: int | None = 1
    devices = 1

    def __init__(self) -> None:
        self.beside_another = threading.Event()
        self._turn = threading.Lock()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not self._turn.acquire(blocking=False):
            self.beside_another.set()
            return np.zeros((len(texts), 1), np.float32)
        # The others, which wait for a turn, would come meanwhile.
        self.beside_another.wait(0.05)
        self._turn.release()
        return np.zeros((len(texts), 1), np.float32)


def answer(connection: socket.socket) -> FromChild:
    head = connection.recv(12, socket.MSG_WAITALL)
    header, payload = (int.from_bytes(head[start : start + 4], "little") for start in (4, 8))
    body = connection.recv(header + payload, socket.MSG_WAITALL)
    return msgspec.msgpack.decode(body[:header], type=FromChild)


def test_an_encoder_that_computes_one_batch_at_a_time_has_one_lane_and_no_company() -> None:
    encoder = OneAtATime()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        serving = threading.Thread(target=serve, args=(theirs, lambda _: encoder), daemon=True)
        serving.start()
        ours.sendall(pack_frame(CONFIGURE))
        ready = answer(ours)
        assert isinstance(ready, Ready)
        assert ready.lanes == 1
        for number in range(4):
            ours.sendall(pack_frame(Encode(batch=number, urgent=number % 2 == 0, texts=["a"])))
        answers = [answer(ours) for _ in range(4)]
        assert sorted(one.batch for one in answers if isinstance(one, Vectors)) == [0, 1, 2, 3]
        ours.shutdown(socket.SHUT_WR)
        serving.join(20)
    assert not encoder.beside_another.is_set()
