"""The threads of an encoder process: which takes what, and how many there are."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from workers.frames import Encode
from workers.lanes import Inbox, lanes_for, start_lanes


def batch(number: int, *, urgent: bool = False) -> Encode:
    return Encode(batch=number, urgent=urgent, texts=[])


def filled() -> Inbox:
    inbox = Inbox()
    for number, urgent in enumerate((False, False, True, True)):
        inbox.put(batch(number, urgent=urgent))
    return inbox


def test_one_lane_prefers_the_catalogue_and_the_others_what_is_urgent() -> None:
    first, other = filled(), filled()
    assert [first.take(others=True, urgent_first=False).batch for _ in range(4)] == [0, 1, 2, 3]
    assert [other.take(others=True, urgent_first=True).batch for _ in range(4)] == [2, 3, 0, 1]


def test_the_urgent_lane_leaves_the_catalogue_alone() -> None:
    inbox = filled()
    assert [inbox.take(others=False, urgent_first=True).batch for _ in range(2)] == [2, 3]
    taken: list[int] = []
    lane = threading.Thread(target=lambda: taken.append(inbox.take(others=False, urgent_first=True).batch), daemon=True)
    lane.start()
    inbox.put(batch(4))
    inbox.put(batch(5, urgent=True))
    lane.join(20)
    assert taken == [5]


def test_an_urgent_batch_is_answered_while_every_other_lane_is_at_work() -> None:
    inbox, go, done = Inbox(), threading.Event(), threading.Event()
    began = threading.Barrier(3)
    answered: list[int] = []

    def answer(message: Encode) -> None:
        if not message.urgent:
            began.wait(20)
            go.wait(20)
        answered.append(message.batch)
        done.set()

    start_lanes(inbox, answer, lanes=2)
    inbox.put(batch(0))
    inbox.put(batch(1))
    began.wait(20)
    inbox.put(batch(2, urgent=True))
    assert done.wait(20)
    assert answered == [2]
    go.set()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority per thread")
def test_lanes_of_the_catalogue_give_way_to_the_urgent_one() -> None:
    inbox = Inbox()
    done = threading.Event()
    priorities: dict[bool, int] = {}

    def answer(message: Encode) -> None:
        priorities[message.urgent] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        if len(priorities) == 2:
            done.set()
        else:
            done.wait(20)  # so that this lane does not take the urgent batch as well

    start_lanes(inbox, answer, lanes=1)
    inbox.put(batch(0))
    inbox.put(batch(1, urgent=True))
    assert done.wait(20)
    assert priorities[False] == min(priorities[True] + 5, 19)


@pytest.mark.parametrize(
    ("device", "threads", "expected"),
    [
        ("cpu", 1, (1, 1)),
        ("auto", 2, (2, 1)),
        ("cpu", 4, (4, 1)),
        ("cpu", 6, (4, 1)),
        ("auto", 16, (4, 4)),
        ("cuda", 16, (2, 8)),
        ("cuda:1", 1, (2, 1)),
    ],
)
def test_threads_are_shared_out_among_a_few_lanes(device: str, threads: int, expected: tuple[int, int]) -> None:
    assert lanes_for(device, threads) == expected
