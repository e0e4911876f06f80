"""What is encoded next: batches of like length, priorities, bounded lines. No processes."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.errors import Unavailable
from workers.batching import estimated_tokens, like_length, split_by_length
from workers.waiting import Priority, Ticket, WaitingTexts

VECTOR = np.zeros(1, dtype=np.float32)


@given(st.lists(st.integers(1, 500), max_size=200), st.integers(1, 64), st.integers(1, 20_000))
def test_split_by_length_covers_every_text_once_in_batches_of_like_length(
    lengths: list[int], rows: int, tokens: int
) -> None:
    batches = list(split_by_length(lengths, rows=rows, tokens=tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
        assert max(lengths[i] for i in batch) <= 2 * min(lengths[i] for i in batch) + 16


@given(st.lists(st.integers(0, 500), min_size=1, max_size=200), st.integers(1, 64), st.integers(1, 4_000))
def test_like_length_takes_the_first_text_and_its_nearest_in_length(
    lengths: list[int], count: int, tokens: int
) -> None:
    chosen = like_length(lengths, count, tokens)
    assert 0 in chosen
    assert chosen == sorted(set(chosen))
    taken = [lengths[index] for index in chosen]
    assert len(chosen) == 1 or (len(chosen) <= count and len(chosen) * max(taken) <= tokens)
    passed_over = [lengths[index] for index in set(range(len(lengths))) - set(chosen)]
    assert not any(min(taken) < length < max(taken) for length in passed_over)
    # It stops for a reason: the count, or the budget for both the next shorter and the next longer text.
    size = len(chosen) + 1
    if size <= count:
        shorter = [length for length in passed_over if length <= min(taken)]
        longer = [length for length in passed_over if length >= max(taken)]
        assert not shorter or size * max(taken) > tokens
        assert not longer or size * min(longer) > tokens


def test_a_batch_is_as_long_as_the_first_text_allows() -> None:
    lengths = [10] * 6 + [100] * 3
    assert like_length(lengths, 32, 50) == [0, 1, 2, 3, 4]
    assert like_length([100, *lengths], 32, 250) == [0, 7]
    assert like_length([900], 32, 50) == [0]


@given(st.integers(0, 100_000), st.integers(8, 512))
def test_a_token_estimate_grows_with_the_text_up_to_what_the_model_reads(utf8_bytes: int, most: int) -> None:
    estimate = estimated_tokens(utf8_bytes, most)
    assert 2 <= estimate <= most
    assert estimated_tokens(utf8_bytes + 4, most) in (estimate + 1, most)


async def asked(waiting: WaitingTexts, text: str, priority: Priority = Priority.CATALOGUE) -> Ticket:
    ticket, _ = await waiting.ask(text, text, priority)
    return ticket


def taken(waiting: WaitingTexts, count: int = 8) -> list[str]:
    batch = waiting.take(count, 1_000)
    return [ticket.text for ticket in batch.tickets] if batch else []


async def test_a_text_wanted_more_urgently_moves_up() -> None:
    waiting = WaitingTexts(limit=8)
    await asked(waiting, "event", Priority.EVENT)
    first = await asked(waiting, "both")
    assert await waiting.ask("both", "both", Priority.QUERY) == (first, False)
    assert len(waiting) == 2
    assert [taken(waiting), taken(waiting), taken(waiting)] == [["both"], ["event"], []]


async def test_nothing_waits_for_ever_below_an_endless_stream_of_queries() -> None:
    waiting = WaitingTexts(limit=64)
    await asked(waiting, "event", Priority.EVENT)
    await asked(waiting, "item")
    served: list[str] = []
    for number in range(40):
        await asked(waiting, f"query {number}", Priority.QUERY)
        served += taken(waiting, 1)
    assert {"event", "item"} <= set(served)
    assert sum(text.startswith("query") for text in served) == 38


async def test_a_full_line_makes_callers_wait_in_turn_until_there_is_room() -> None:
    waiting = WaitingTexts(limit=2)
    await asked(waiting, "a")
    await asked(waiting, "b")
    third, fourth = (asyncio.create_task(asked(waiting, text)) for text in "cd")
    await asyncio.sleep(0)
    assert not third.done()
    assert taken(waiting, 1) == ["a"]
    assert (await third).text == "c"
    assert not fourth.done()
    assert len(waiting) == 2
    fourth.cancel()
    assert taken(waiting) == ["b", "c"]
    await asyncio.gather(*(asked(waiting, text) for text in "ef"))  # the cancelled caller left no hole


async def test_who_waited_for_room_joins_a_text_that_came_meanwhile() -> None:
    waiting = WaitingTexts(limit=1)
    await asked(waiting, "a")
    twins = [asyncio.create_task(asked(waiting, "b")) for _ in range(2)]
    await asyncio.sleep(0)
    assert taken(waiting) == ["a"]
    first = await twins[0]
    assert taken(waiting) == ["b"]
    assert await twins[1] is first
    waiting.settle(first, VECTOR)
    assert (await asked(waiting, "c")).text == "c"


async def test_a_text_nobody_wants_any_more_is_dropped_and_its_room_given_back() -> None:
    waiting = WaitingTexts(limit=1)
    ticket = await asked(waiting, "a")
    await asked(waiting, "a")
    waiting.leave(ticket)
    assert len(waiting) == 1
    waiting.leave(ticket)
    assert taken(waiting) == []
    await asked(waiting, "a")
    assert taken(waiting) == ["a"]


async def test_who_leaves_after_its_text_was_served_takes_nothing_from_who_asked_again() -> None:
    waiting = WaitingTexts(limit=8)
    served = await asked(waiting, "a")
    assert taken(waiting) == ["a"]
    waiting.settle(served, VECTOR)  # whoever asked waits for other texts still
    again = await asked(waiting, "a")
    assert again is not served
    waiting.leave(served)
    assert taken(waiting) == ["a"]


async def test_batches_put_back_come_first_split_to_what_the_process_can_take() -> None:
    waiting = WaitingTexts(limit=8)
    for text in "abcd":
        await asked(waiting, text)
    batch = waiting.take(4, 1_000)
    assert batch is not None
    await asked(waiting, "e")
    waiting.put_back([batch])
    assert len(waiting) == 5
    assert [taken(waiting, 3), taken(waiting, 3), taken(waiting, 3)] == [["a", "b", "c"], ["d"], ["e"]]


async def test_what_was_with_a_process_that_ended_is_tried_alone_and_also_when_it_is_asked_for_again() -> None:
    waiting = WaitingTexts(limit=8)
    tickets = [await asked(waiting, text) for text in "ab"]
    batch = waiting.take(2, 1_000)
    assert batch is not None
    assert waiting.suspect(batch) is None
    assert taken(waiting) == [], "not with others"
    for ticket in tickets:
        waiting.leave(ticket)
    assert waiting.take_suspect() is None, "nobody wants them"
    again = await asked(waiting, "a", Priority.QUERY)
    alone = waiting.take_suspect()
    assert alone is not None
    assert (alone.tickets, alone.suspect) == ([again], True)
    waiting.settle(again, VECTOR)
    await asked(waiting, "a")
    assert taken(waiting) == ["a"], "it has a vector: it was another one"


async def test_a_text_is_given_up_after_it_ended_two_processes_alone_whoever_asked_for_it() -> None:
    waiting = WaitingTexts(limit=8)
    ticket = await asked(waiting, "a")
    batch = waiting.take(1, 1_000)
    assert batch is not None
    batch.beside_others = True
    assert waiting.suspect(batch) is None, "that was no death of its own"
    for proven in (False, True):
        alone = waiting.take_suspect()
        assert alone is not None
        found = waiting.suspect(alone)
        assert found is (ticket if proven else None)
        if not proven:
            waiting.leave(ticket)
            assert waiting.take_suspect() is None
            ticket = await asked(waiting, "a")


async def test_texts_remembered_as_suspects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.waiting._SUSPECTED", 2)
    waiting = WaitingTexts(limit=8)
    for text in "abc":
        ticket = await asked(waiting, text)
        batch = waiting.take(1, 1_000)
        assert batch is not None
        waiting.suspect(batch)
        waiting.leave(ticket)
    assert waiting.take_suspect() is None
    await asked(waiting, "a")
    assert taken(waiting) == ["a"], "forgotten"
    await asked(waiting, "c")
    assert taken(waiting) == []


async def test_closing_tells_those_who_wait_and_those_who_come() -> None:
    waiting = WaitingTexts(limit=1)
    ticket = await asked(waiting, "a")
    no_room = asyncio.create_task(asked(waiting, "b"))
    await asyncio.sleep(0)
    waiting.close(Unavailable("over"))
    assert isinstance(await ticket.outcome, Unavailable)
    for late in (no_room, asked(waiting, "c")):
        with pytest.raises(Unavailable, match="over"):
            await late
    assert len(waiting) == 0
