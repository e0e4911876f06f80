"""The threads of one encoder process: each takes a batch that waits, computes it and answers.

Several threads with a core each do more than one batch on several cores: the computation of short texts is hundreds of
small steps, and cores that share each step wait for one another. And while one thread tokenizes or answers, another
computes.

* One thread, beside the others, is for urgent batches only: a query starts at once, however full the catalogue's line
  is, instead of waiting for a batch to end. And where there are more threads than cores the kernel lets it go first:
  the others are nicer.
* Of the others the first takes the catalogue's batches first, so that no stream of queries starves them; the rest takes
  urgent ones first.

How many there are is decided in the process, which alone knows the device. A model that computes one batch at a time
has one lane, and an urgent batch waits for the one that is computed.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable

from workers.frames import Encode

__all__ = ["MOST_LANES", "Inbox", "lanes_for", "start_lanes"]

MOST_LANES = 4
"""They share one interpreter, which each batch needs for part of its time; beyond these, each gets more threads."""
_NICER = 5
_NICEST = 19
_LANES_OF_A_GPU = 2
"""One batch is on the card, the next is tokenized."""


def lanes_for(device: str, threads: int) -> tuple[int, int]:
    """How many lanes a process on ``device`` with ``threads`` (at least 1) gets, and the threads of each. ``auto``, for
    a device that is not known yet, counts as a processor."""
    lanes = _LANES_OF_A_GPU if device.startswith("cuda") else min(threads, MOST_LANES)
    return lanes, max(1, threads // lanes)


class Inbox:
    """Batches that wait for a thread, urgent ones apart. The parent bounds them: it knows what is not answered yet."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._urgent: deque[Encode] = deque()
        self._others: deque[Encode] = deque()

    def put(self, batch: Encode) -> None:
        """One more; in order of arrival among its kind."""
        with self._changed:
            (self._urgent if batch.urgent else self._others).append(batch)
            self._changed.notify_all()

    def take(self, *, others: bool, urgent_first: bool) -> Encode:
        """The next batch, waiting for one. ``others`` False leaves those that are not urgent alone."""
        queues = [self._urgent, self._others] if urgent_first else [self._others, self._urgent]
        if not others:
            queues = [self._urgent]
        with self._changed:
            while True:
                for queue in queues:
                    if queue:
                        return queue.popleft()
                self._changed.wait()


def start_lanes(inbox: Inbox, answer: Callable[[Encode], None], *, lanes: int) -> None:
    """Start the threads; they end with the process.

    Args:
        inbox: where batches come from.
        answer: computes a batch and sends the answer; called from several threads. What it raises ends the process,
            with a traceback on stderr, except that the parent is gone.
        lanes: for all batches; one more is for urgent ones.
    """

    def work(number: int) -> None:
        if number < lanes:
            _be_nicer()
        try:
            while True:
                answer(inbox.take(others=number < lanes, urgent_first=number > 0))
        except ConnectionError:
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    for number in range(lanes + 1):
        threading.Thread(target=work, args=(number,), name=f"lane-{number}", daemon=True).start()


def _be_nicer() -> None:
    """Let the calling thread give way to the others of this process. Only Linux has a priority per thread."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(now + _NICER, _NICEST))
