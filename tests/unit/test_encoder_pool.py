"""The pool and what it promises when processes fail. Real processes and sockets; the model is left out for speed
(``test_encoder_model.py`` has it)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest

from stream_app.agents.interactions import InteractionsAgent
from stream_app.encoder_metrics import count_pool
from stream_app.errors import EncodeError, PoisonText, SettingsError, TooLate, Unavailable
from stream_app.metrics import Metrics
from stream_app.settings import EncoderSettings
from stream_app.stores.embedding_cache import EmbeddingCache
from stream_app.textify import text_hash
from tests.unit.encoder_process import AUTO_DEVICE, DEVICES, LOST_DEVICE, NO_ROOM, vector_of
from tests.waiting import eventually, eventually_sync
from workers import driver, faults
from workers.pool import CHARS_PER_TOKEN, EncoderPool, PoolStats, Priority

COMMAND = (sys.executable, "-m", "tests.unit.encoder_process")


@asynccontextmanager
async def running(*, cache: EmbeddingCache | None = None, **settings: Any) -> AsyncIterator[EncoderPool]:
    # One lane for all batches and one for urgent ones: what is held up does not depend on the machine's cores. And a
    # patient one: how long a start takes does.
    given = {"threads": 1, "query_deadline_s": 60, "deadline_s": 60, **settings}
    pool = EncoderPool(EncoderSettings(**given), cache=cache, command=COMMAND)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what goes wrong in the processes started from now on; nothing at all to heal them."""

    def arrange(**what: object) -> None:
        monkeypatch.setenv(faults.ENVIRONMENT, json.dumps(what))

    return arrange


def memory_cache(pool_space: str = "space", size: int = 100) -> EmbeddingCache:
    return EmbeddingCache(None, prefix="t", space=pool_space, dimensions=384, ttl_s=60, memory=size)


def assert_vectors(vectors: np.ndarray, texts: Sequence[str]) -> None:
    np.testing.assert_array_equal(vectors, np.stack([vector_of(text) for text in texts]))


async def held(pool: EncoderPool, path: Path, name: str, priority: Priority) -> asyncio.Task[np.ndarray]:
    """A call whose batch is held up until ``path`` is there; returns when the batch is with a process."""
    task = asyncio.create_task(pool.encode([f"wait:{path}#{name}"], priority))
    await asyncio.sleep(0)  # it joins the line at its first step
    await eventually(lambda: pool.queue_length == 0, what="the text is with a process")
    return task


async def at_work(pool: EncoderPool, path: Path, priority: Priority = Priority.CATALOGUE) -> asyncio.Task[np.ndarray]:
    """The same; returns when a lane of the process has begun with it."""
    task = await held(pool, path, "here", priority)
    await eventually(Path(f"{path}.here").exists, what="the process works on the batch")
    return task


async def busy(pool: EncoderPool, path: Path) -> asyncio.Future[Any]:
    """Calls that keep both lanes of a process at work, and what may be sent ahead of them; so whatever is asked
    from then on waits, until ``path`` is there."""
    tasks = [await at_work(pool, path)]
    tasks.append(await held(pool, path, "ahead", Priority.CATALOGUE))
    tasks.append(await held(pool, path, "urgent", Priority.EVENT))
    await eventually(Path(f"{path}.urgent").exists, what="the urgent lane works on the batch")
    tasks.append(await held(pool, path, "urgent ahead", Priority.EVENT))
    return asyncio.gather(*tasks, return_exceptions=True)


OF_BUSY = 4
"""Texts, and batches, of :func:`busy`."""


async def test_vectors_come_in_the_order_of_the_texts_each_text_encoded_once() -> None:
    async with running(batch=4) as pool:
        texts = [f"{'word ' * (n % 7)}{n % 20}" for n in range(50)]
        assert_vectors(await pool.encode(texts, Priority.CATALOGUE), texts)
        assert pool.stats.texts_encoded == len(set(texts))
        assert max(pool.stats.batch_sizes) <= 4
        assert pool.queue_length == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 3),
        ({"device": "cuda"}, 3),
        ({"device": "cuda:0,cuda:2"}, 2),
        ({"device": "cuda:1"}, 1),
        ({"device": "cpu"}, 1),
        ({"processes": 2}, 2),
    ],
)
async def test_there_is_a_process_per_device_the_first_process_tells_how_many(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], expected: int
) -> None:
    monkeypatch.setenv(AUTO_DEVICE, "cuda:0")
    monkeypatch.setenv(DEVICES, "3")
    async with running(batch=1, **settings) as pool:
        await pool.ready()
        await eventually(lambda: len(pool.pids) == expected, what="every process is ready")
        pool.share = 0.5
        texts = [str(number) for number in range(20)]
        assert_vectors(await pool.encode(texts, Priority.CATALOGUE), texts)
        os.kill(pool.pids[0], signal.SIGKILL)
        await eventually(lambda: pool.stats.restarts == 1 and len(pool.pids) == expected, what="one process again")
    assert pool.pids == ()


async def test_a_share_set_before_the_devices_are_known_is_that_of_every_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(AUTO_DEVICE, "cuda:0")
    monkeypatch.setenv(DEVICES, "2")
    async with running() as pool:
        pool.share = 0.25
        await eventually(lambda: len(pool.pids) == 2, what="both processes are ready")
        assert [driver.share for driver in pool._drivers] == [0.25, 0.25]


async def test_texts_may_be_given_before_a_process_is_ready_and_no_texts_at_all() -> None:
    async with running() as pool:
        assert pool.pids == ()
        assert (await pool.encode([], Priority.QUERY)).shape == (0, 384)
        assert_vectors(await pool.encode(["a"], Priority.QUERY), ["a"])
        await pool.ready()
        assert len(pool.pids) == 1


async def test_the_same_text_wanted_twice_at_once_is_encoded_once(tmp_path: Path) -> None:
    async with running() as pool:
        first = await busy(pool, tmp_path / "go")
        others = [asyncio.create_task(pool.encode(["same"], Priority.EVENT)) for _ in range(3)]
        await eventually(lambda: pool.stats.texts_shared == 2)
        (tmp_path / "go").touch()
        for vectors in await asyncio.gather(*others):
            assert_vectors(vectors, ["same"])
        await first
        assert pool.stats.texts_encoded == OF_BUSY + 1


async def test_a_text_without_utf8_form_or_of_any_length_has_a_vector() -> None:
    async with running(max_tokens=8) as pool:
        vectors = await pool.encode(["\ud800", "x" * 1_000_000, "\x00", ""], Priority.EVENT)
        assert np.isfinite(vectors).all()


async def test_queries_go_before_events(tmp_path: Path) -> None:
    async with running(batch=1) as pool:
        first = await busy(pool, tmp_path / "go")
        done: list[str] = []

        async def ask(text: str, priority: Priority) -> None:
            await pool.encode([text], priority)
            done.append(text)

        tasks = [asyncio.create_task(ask(f"event {number}", Priority.EVENT)) for number in range(8)]
        tasks.append(asyncio.create_task(ask("query", Priority.QUERY)))
        await eventually(lambda: pool.queue_length == 9)
        (tmp_path / "go").touch()
        await asyncio.gather(first, *tasks)
        assert done.index("query") < 3, "the process has two lanes, and one may be the quicker"


async def test_an_event_gets_its_turn_under_a_stream_of_queries() -> None:
    async with running(batch=1) as pool:
        done: list[str] = []

        async def ask(text: str, priority: Priority) -> None:
            await pool.encode([text], priority)
            done.append(text)

        # All of them wait before the process is ready.
        queries = [asyncio.create_task(ask(str(number), Priority.QUERY)) for number in range(40)]
        await asyncio.gather(*queries, ask("event", Priority.EVENT))
        assert done.index("event") < 20


async def test_the_queue_is_bounded_and_a_full_catalogue_does_not_hold_up_a_query(tmp_path: Path) -> None:
    async with running(queue=4, batch=2) as pool:
        first = await busy(pool, tmp_path / "go")
        texts = [str(number) for number in range(20)]
        catalogue = asyncio.create_task(pool.encode(texts, Priority.CATALOGUE))
        await eventually(lambda: pool.queue_length == 4)
        query = asyncio.create_task(pool.encode(["query"], Priority.QUERY))
        await eventually(lambda: pool.queue_length == 5)
        (tmp_path / "go").touch()
        assert_vectors(await query, ["query"])
        assert not catalogue.done()
        assert_vectors(await catalogue, texts)
        await first


async def test_a_query_does_not_wait_for_a_batch_of_the_catalogue(tmp_path: Path) -> None:
    async with running() as pool:
        catalogue = await at_work(pool, tmp_path / "go")
        assert_vectors(await pool.encode(["query"], Priority.QUERY), ["query"])
        assert not catalogue.done()
        (tmp_path / "go").touch()
        await catalogue


async def test_the_next_batch_of_the_catalogue_is_with_the_process_before_it_is_needed(tmp_path: Path) -> None:
    async with running(batch=2) as pool:
        first = await at_work(pool, tmp_path / "go")
        catalogue = asyncio.create_task(pool.encode(["a", "b", "c", "d", "e"], Priority.CATALOGUE))
        await eventually(lambda: pool.queue_length == 3)  # one batch went ahead
        assert not catalogue.done()
        (tmp_path / "go").touch()
        assert_vectors(await catalogue, ["a", "b", "c", "d", "e"])
        await first


async def test_a_gpu_that_auto_finds_has_the_lanes_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(AUTO_DEVICE, "cuda:0")
    async with running(device="auto") as pool:
        tasks = [await held(pool, tmp_path / "go", name, Priority.CATALOGUE) for name in "ab"]
        await eventually(lambda: all((tmp_path / f"go.{name}").exists() for name in "ab"), what="two lanes are at work")
        (tmp_path / "go").touch()
        await asyncio.gather(*tasks)


async def test_batches_are_bounded_by_tokens() -> None:
    async with running(batch_tokens=30) as pool:
        texts = [f"{number:06}" for number in range(100)]  # 3 tokens each, by the estimate
        assert_vectors(await pool.encode(texts, Priority.EVENT), texts)
        assert max(pool.stats.batch_sizes) == 10


async def test_what_an_event_waits_for_has_a_deadline_and_the_catalogue_has_none(tmp_path: Path) -> None:
    async with running(deadline_s=0.2, query_deadline_s=0.1, queue=2) as pool:
        first = await busy(pool, tmp_path / "go")
        item = asyncio.create_task(pool.encode(["item"], Priority.CATALOGUE))
        late = await pool.encode_each(["wanted", "by", "somebody"], Priority.EVENT)  # the third finds no room even
        assert all(isinstance(outcome, TooLate) for outcome in late), late
        assert "within 0.2 s (encoder.deadline_s)" in str(late[0])
        assert pool.stats.texts_late == 3 + 2  # two of those that hold the process up are of events
        with pytest.raises(TooLate, match=r"within 0\.1 s \(encoder\.query_deadline_s\)"):
            await pool.encode(["now"], Priority.QUERY)
        assert (pool.waiting(Priority.EVENT), pool.waiting(Priority.QUERY)) == (0, 0)  # given up, not queued
        assert not item.done()
        (tmp_path / "go").touch()
        assert_vectors(await item, ["item"])
        await first
        assert_vectors(await pool.encode(["wanted"], Priority.EVENT), ["wanted"])  # another time it may be


async def test_what_is_done_by_the_deadline_is_not_lost_with_the_rest(tmp_path: Path) -> None:
    async with running(deadline_s=0.5, batch=1) as pool:
        await pool.ready()
        done, late = await pool.encode_each(["a", f"wait:{tmp_path / 'go'}#late"], Priority.EVENT)
        assert isinstance(late, TooLate)
        np.testing.assert_array_equal(done, vector_of("a"))  # type: ignore[arg-type]
        (tmp_path / "go").touch()


async def test_ten_thousand_times_the_same_text_is_one_embedding_and_one_place_in_line() -> None:
    async with running(queue=1) as pool:
        vectors = await pool.encode(["the same"] * 10_000, Priority.CATALOGUE)
        assert vectors.shape == (10_000, 384)
        assert (vectors == vector_of("the same")).all()
        assert pool.stats.texts_encoded == 1


async def test_the_line_never_grows_beyond_its_bound_while_a_slow_process_falls_behind() -> None:
    async with running(queue=8, batch=4) as pool:
        longest = 0

        async def watch() -> None:
            nonlocal longest
            while True:
                longest = max(longest, pool.waiting(Priority.CATALOGUE))
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        callers = [[f"{caller} {number}" for number in range(50)] for caller in range(4)]
        await asyncio.gather(*(pool.encode(texts, Priority.CATALOGUE) for texts in callers))
        watching.cancel()
        assert 4 <= longest <= 8


async def test_counts_are_kept_by_process_and_served_as_metrics_once_each() -> None:
    async with running() as pool:
        await pool.encode(["a", "b"], Priority.CATALOGUE)
        assert set(pool.stats.seconds_encoding) == {0}
        assert pool.stats.seconds_encoding[0] > 0.0
        # The test's encoder counts a token for each character, and pads to the longest text.
        assert 2 <= pool.stats.tokens_read <= pool.stats.tokens_computed
        metrics = Metrics()
        counted = count_pool(pool, metrics, PoolStats())
        await pool.encode(["c"], Priority.EVENT)
        count_pool(pool, metrics, counted)
        sample = metrics.registry.get_sample_value
        assert sample("tailrace_encoder_texts_total") == 3
        assert sample("tailrace_encoder_batches_total") == pool.stats.batches
        assert sample("tailrace_encoder_tokens_total", {"kind": "read"}) == pool.stats.tokens_read
        assert sample("tailrace_encoder_seconds_total", {"process": "0"}) == pytest.approx(
            pool.stats.seconds_encoding[0]
        )
        assert pool.waiting(Priority.CATALOGUE) == 0


async def test_with_a_share_of_the_time_everything_is_encoded_and_queries_do_not_wait_for_it() -> None:
    async with running(batch=2) as pool:
        pool.share = 0.1
        assert pool.share == 0.1
        names = [f"text {number}" for number in range(40)]
        catalogue = asyncio.create_task(pool.encode(names, Priority.CATALOGUE))
        assert_vectors(await pool.encode(["query"], Priority.QUERY), ["query"])
        pool.share = 1.0
        assert_vectors(await catalogue, names)


async def test_a_rest_that_ends_between_two_looks_at_the_clock_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(batch=1) as pool:
        await pool.encode(["ready"], Priority.CATALOGUE)
        pool.share = 0.5
        (only,) = pool._drivers
        only._rests_until = 0.05
        # When it asks whether to send something the rest is on; at every later look it is over.
        clock = chain([0.0], repeat(0.1))
        monkeypatch.setattr(only, "_now", lambda: next(clock))
        async with asyncio.timeout(20):
            assert_vectors(await pool.encode(["a"], Priority.CATALOGUE), ["a"])


@pytest.mark.parametrize(
    ("share", "lanes", "allowed", "rest"), [(0.5, 1, 1, 1.0), (0.5, 2, 1, 0.0), (0.25, 2, 1, 1.0), (0.75, 4, 3, 0.0)]
)
async def test_a_share_is_a_share_of_lanes_and_then_of_time(
    share: float, lanes: int, allowed: int, rest: float
) -> None:
    pool = EncoderPool(EncoderSettings(), command=COMMAND)
    (driver,) = pool._drivers
    driver._lanes = lanes
    pool.share = share
    assert driver._lanes_allowed == allowed
    before = asyncio.get_running_loop().time()
    driver._rest_after(1.0)
    assert max(driver._rests_until - before, 0.0) == pytest.approx(rest, abs=0.1)


async def test_a_caller_who_gives_up_takes_its_texts_along_but_not_those_of_others(tmp_path: Path) -> None:
    async with running() as pool:
        first = await busy(pool, tmp_path / "go")
        leaving = asyncio.create_task(pool.encode(["alone", "shared"], Priority.EVENT))
        staying = asyncio.create_task(pool.encode(["shared"], Priority.EVENT))
        await eventually(lambda: pool.stats.texts_shared == 1)
        leaving.cancel()
        await eventually(lambda: pool.queue_length == 1)
        (tmp_path / "go").touch()
        assert_vectors(await staying, ["shared"])
        await first
        assert pool.stats.texts_encoded == OF_BUSY + 1


async def test_a_process_killed_in_mid_batch_is_restarted_and_the_batch_done_again(tmp_path: Path) -> None:
    async with running() as pool:
        task = await at_work(pool, tmp_path / "go")
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        (tmp_path / "go").touch()
        assert_vectors(await task, [f"wait:{tmp_path / 'go'}#here"])
        assert pool.stats.restarts == 1
        assert pid not in pool.pids
        assert not psutil.pid_exists(pid)


async def test_a_process_killed_while_idle_is_replaced_at_once() -> None:
    async with running() as pool:
        await pool.ready()
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: pool.pids not in ((), (pid,)), what="another process is ready")
        assert_vectors(await pool.encode(["a"], Priority.QUERY), ["a"])


async def test_the_other_process_works_on_while_one_is_restarted(tmp_path: Path) -> None:
    async with running(processes=2) as pool:
        await eventually(lambda: len(pool.pids) == 2)
        task = await at_work(pool, tmp_path / "go")
        assert_vectors(await pool.encode(["meanwhile"], Priority.CATALOGUE), ["meanwhile"])
        (tmp_path / "go").touch()
        await task


async def test_a_poison_text_is_found_and_everybody_else_served(fault: Callable[..., None], tmp_path: Path) -> None:
    fault(exit_on="poison")
    async with running() as pool:
        first = await busy(pool, tmp_path / "go")  # so that what follows is one batch
        good = asyncio.create_task(pool.encode(["a", "b", "c"], Priority.CATALOGUE))
        bad = asyncio.create_task(pool.encode_each(["d", "poison", "e"], Priority.CATALOGUE))
        await eventually(lambda: pool.queue_length == 6)
        (tmp_path / "go").touch()
        assert_vectors(await good, ["a", "b", "c"])
        d, poison, e = await bad
        assert isinstance(poison, PoisonText)
        assert "poison" in str(poison)
        assert_vectors(np.stack([d, e]), ["d", "e"])  # type: ignore[list-item]
        await first
        assert pool.stats.restarts == 3  # once beside the others, twice alone
        assert pool.stats.poison_texts == 1
        with pytest.raises(PoisonText):
            await pool.encode(["f", "poison"], Priority.EVENT)
        assert pool.stats.restarts == 3  # it is known by now


async def test_what_was_beside_a_poison_text_is_not_blamed_for_its_deaths(
    fault: Callable[..., None], tmp_path: Path
) -> None:
    fault(exit_on="poison")
    async with running() as pool:
        beside = await at_work(pool, tmp_path / "go")  # a batch of one: two deaths of its own would condemn it
        bad = asyncio.create_task(pool.encode(["poison"], Priority.QUERY))
        await eventually(lambda: pool.stats.restarts >= 1)
        (tmp_path / "go").touch()
        with pytest.raises(PoisonText):
            await bad
        assert_vectors(await beside, [f"wait:{tmp_path / 'go'}#here"])
        assert pool.stats.restarts == 3  # beside the other, then twice alone
        assert pool.stats.poison_texts == 1


async def test_who_gives_a_poison_text_up_too_soon_leaves_it_no_more_processes_to_end(
    fault: Callable[..., None],
) -> None:
    fault(exit_on="poison")
    async with running() as pool:
        for deaths in (1, 2):  # a query waits for seconds, and a start may take longer
            asking = asyncio.create_task(pool.encode(["poison"], Priority.QUERY))
            await eventually(lambda deaths=deaths: pool.stats.restarts == deaths)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        with pytest.raises(PoisonText):
            await pool.encode(["poison"], Priority.QUERY)
        assert pool.stats.restarts == 2
        assert pool.stats.poison_texts == 1


async def test_a_query_does_not_wait_for_all_that_is_tried_alone(tmp_path: Path) -> None:
    async with running(batch=64) as pool:
        go = tmp_path / "go"
        names = [f"text {number}" for number in range(63)] + [f"wait:{go}#here"]
        await pool.ready()
        catalogue = asyncio.create_task(pool.encode(names, Priority.CATALOGUE))
        await eventually(Path(f"{go}.here").exists, what="the process works on the batch")
        os.kill(pool.pids[0], signal.SIGKILL)
        await eventually(lambda: pool.stats.restarts == 1)
        go.touch()
        assert_vectors(await pool.encode(["query"], Priority.QUERY), ["query"])
        assert pool.stats.texts_encoded < 32
        assert_vectors(await catalogue, names)


async def test_a_device_that_disappears_ends_the_pool_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(LOST_DEVICE, str(tmp_path / "lost"))
    async with running(device="cuda:6") as pool:
        assert_vectors(await pool.encode(["a"], Priority.CATALOGUE), ["a"])
        for _ in range(2):  # who waits, and who comes later
            with pytest.raises(SettingsError, match=r"cuda:6.*0 CUDA devices.*use cpu or auto"):
                await pool.encode([f"lose:{tmp_path / 'lost'}"], Priority.CATALOGUE)
        assert pool.stats.restarts == 1
        assert pool.stats.poison_texts == 0


async def test_while_one_process_works_another_that_cannot_start_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost = tmp_path / "lost"
    monkeypatch.setenv(LOST_DEVICE, str(lost))
    async with running(device="cuda:6", processes=2) as pool:
        await eventually(lambda: len(pool.pids) == 2, what="both are ready")
        lost.touch()
        os.kill(pool.pids[0], signal.SIGKILL)
        await eventually(lambda: len(pool.pids) == 1, what="one is gone")
        assert_vectors(await pool.encode(["a"], Priority.CATALOGUE), ["a"])
        lost.unlink()
        await eventually(lambda: len(pool.pids) == 2, timeout_s=60, what="it is back")
        assert pool.error is None


async def test_a_device_that_comes_back_goes_on(tmp_path: Path) -> None:
    async with running(device="cuda:6") as pool:
        bad, good = (
            asyncio.create_task(pool.encode([text], Priority.CATALOGUE)) for text in (f"lose:{tmp_path / 'lost'}", "a")
        )
        with pytest.raises(PoisonText):  # it takes the device away every time
            await bad
        assert_vectors(await good, ["a"])


async def test_a_text_that_hangs_the_process_is_poison_too(fault: Callable[..., None]) -> None:
    fault(hang_on="endless")
    async with running(batch_timeout_s=1.0) as pool:
        with pytest.raises(PoisonText):
            await pool.encode(["endless"], Priority.EVENT)
        assert_vectors(await pool.encode(["a"], Priority.EVENT), ["a"])


async def test_a_batch_too_large_for_the_memory_is_halved_until_it_fits(fault: Callable[..., None]) -> None:
    fault(memory_above=3)
    async with running(batch=32) as pool:
        texts = [str(number) for number in range(100)]
        assert_vectors(await pool.encode(texts, Priority.CATALOGUE), texts)
        assert pool.stats.restarts == 0
        assert max(pool.stats.batch_sizes) <= 3
        assert 1 <= pool.stats.memory_failures <= 12  # it learns: not once per batch


async def test_a_single_text_that_never_fits_is_poison(fault: Callable[..., None]) -> None:
    fault(memory_above=0)
    async with running() as pool:
        with pytest.raises(PoisonText):
            await pool.encode(["a"], Priority.CATALOGUE)


async def test_a_process_that_cannot_work_as_configured_says_why() -> None:
    async with running(device="cuda:7") as pool:
        with pytest.raises(SettingsError, match="cuda:7"):
            await pool.ready()
        with pytest.raises(SettingsError, match="cuda:7"):
            await pool.encode(["a"], Priority.QUERY)


async def test_a_pool_whose_processes_never_start_gives_up_instead_of_waiting_for_ever() -> None:
    pool = EncoderPool(EncoderSettings(), command=("/bin/false",))
    await pool.start()
    waiting = asyncio.create_task(pool.encode(["a"], Priority.QUERY))
    with pytest.raises(Unavailable, match="exit code 1"):
        await pool.ready()
    with pytest.raises(Unavailable):
        await waiting
    await pool.close()


async def test_closing_ends_the_processes_and_tells_who_waits(tmp_path: Path) -> None:
    async with running(queue=1) as pool:
        tasks: list[asyncio.Future[Any]] = [await busy(pool, tmp_path / "never")]
        tasks += [asyncio.create_task(pool.encode([text], Priority.CATALOGUE)) for text in "abc"]  # b and c: no room
        await eventually(lambda: pool.queue_length == 1)
        (pid,) = pool.pids
        await pool.close()
        assert all(isinstance(outcome, Unavailable) for outcome in await tasks.pop(0))
        for task in tasks:
            with pytest.raises(Unavailable, match="closed"):
                await task
        assert not psutil.pid_exists(pid)
        with pytest.raises(Unavailable, match="closed"):
            await pool.encode(["d"], Priority.QUERY)


async def test_what_is_cached_is_not_encoded_again() -> None:
    cache = memory_cache()
    async with running(cache=cache) as pool:
        first = await pool.encode(["a", "b"], Priority.CATALOGUE)
        again = await pool.encode(["b", "a", "c"], Priority.CATALOGUE)
        assert_vectors(again, ["b", "a", "c"])
        np.testing.assert_array_equal(first, again[[1, 0]])
        assert pool.stats.texts_encoded == 3
        assert (pool.stats.cache_hits, pool.stats.cache_misses) == (2, 3)


async def test_a_vector_that_is_not_finite_is_an_error_of_its_text_and_is_not_cached() -> None:
    cache = memory_cache()
    async with running(cache=cache) as pool:
        for _ in range(2):
            mug, overflow = await pool.encode_each(["mug", "overflow"], Priority.CATALOGUE)
            assert_vectors(np.stack([mug]), ["mug"])
            assert isinstance(overflow, EncodeError)
            assert re.search(r"begins 'overflow'.*no finite vector.*encoder\.precision = 'float32'", str(overflow))
        with pytest.raises(EncodeError, match="no finite vector"):
            await pool.encode(["overflow"], Priority.QUERY)
        assert pool.stats.restarts == 0
    assert list(await cache.get_many([text_hash(text) for text in ("mug", "overflow")])) == [text_hash("mug")]


async def test_a_vector_is_cached_also_when_who_asked_first_gave_up(tmp_path: Path) -> None:
    cache = memory_cache()
    async with running(cache=cache) as pool:
        first = await busy(pool, tmp_path / "go")
        impatient = asyncio.create_task(pool.encode(["mug"], Priority.CATALOGUE))
        await eventually(lambda: pool.queue_length == 1)
        patient = asyncio.create_task(pool.encode(["mug"], Priority.CATALOGUE))
        await eventually(lambda: pool.stats.texts_shared == 1)
        impatient.cancel()
        (tmp_path / "go").touch()
        assert_vectors(await patient, ["mug"])
        await first
    assert list(await cache.get_many([text_hash("mug")])) == [text_hash("mug")]


async def test_queries_and_documents_have_prefixes_of_their_own_in_front_of_the_cache() -> None:
    cache = memory_cache()
    async with running(cache=cache, query_prefix="find: ", document_prefix="item: ", max_tokens=8) as pool:
        assert_vectors(await pool.encode(["mug"], Priority.CATALOGUE), ["item: mug"])
        assert_vectors(await pool.encode(["mug"], Priority.QUERY, kind="query"), ["find: mug"])
        (again,) = await pool.encode_each(["mug"], Priority.QUERY, kind="query")
        assert_vectors(np.stack([again]), ["find: mug"])  # type: ignore[list-item]
        assert (pool.stats.cache_hits, pool.stats.cache_misses) == (1, 2)
        long = "x" * 1_000
        cut = long[: CHARS_PER_TOKEN * 8]
        assert_vectors(await pool.encode([long], Priority.QUERY, kind="query"), [f"find: {cut}"])


async def test_a_device_that_never_works_does_not_end_the_others_when_they_start_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(AUTO_DEVICE, "cuda:0")
    monkeypatch.setenv(DEVICES, "2")
    monkeypatch.setenv(NO_ROOM, "1")
    monkeypatch.setattr(driver, "_backoff_s", lambda _: 0.01)
    async with running() as pool:
        await pool.ready()
        await eventually(lambda: 1 in pool._failing, what="the second has failed often enough to give up")
        for _ in range(3):
            (pid,) = pool.pids
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda pid=pid: pool.pids and pool.pids != (pid,), what="another process")
        assert pool.error is None
        assert_vectors(await pool.encode(["mug"], Priority.EVENT), ["mug"])


async def test_what_users_say_is_embedded_as_queries() -> None:
    async with running(query_prefix="find: ", document_prefix="item: ") as pool:
        agent = cast(InteractionsAgent, SimpleNamespace(_pool=pool))  # all that the method needs of an agent
        vectors = await InteractionsAgent._encoded(agent, {"mug"}, Priority.QUERY)
        assert_vectors(np.stack([vectors["mug"]]), ["find: mug"])


PARENT = """
import asyncio, sys
from stream_app.metrics import Metrics
from stream_app.settings import EncoderSettings
from workers.pool import EncoderPool, Priority

async def main():
    pool = EncoderPool(EncoderSettings(), command=(sys.executable, "-m", "tests.unit.encoder_process"))
    await pool.start()
    await pool.ready()
    await pool.encode([sys.argv[1]], Priority.QUERY)

asyncio.run(main())
"""


def test_no_process_outlives_a_parent_that_is_killed_even_in_mid_batch(tmp_path: Path) -> None:
    held = tmp_path / "never"
    with subprocess.Popen([sys.executable, "-c", PARENT, f"wait:{held}#here"]) as parent:
        eventually_sync(Path(f"{held}.here").exists)
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    eventually_sync(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


async def test_ctrl_c_and_sigterm_leave_the_end_to_the_parent() -> None:
    async with running() as pool:
        await pool.ready()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pool.pids[0], number)
        assert_vectors(await pool.encode(["a"], Priority.QUERY), ["a"])
        assert pool.stats.restarts == 0
