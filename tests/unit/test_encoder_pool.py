"""The pool and what it promises when processes fail. Real processes and sockets; the model is left out for speed
(``test_encoder_model.py`` has it)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest

from stream_app.agents.interactions import InteractionsAgent
from stream_app.errors import PoisonText, SettingsError, Unavailable
from stream_app.settings import EncoderSettings
from stream_app.stores.embedding_cache import EmbeddingCache
from tests.unit.encoder_process import vector_of
from tests.waiting import eventually, eventually_sync
from workers import faults
from workers.pool import CHARS_PER_TOKEN, EncoderPool, Priority

COMMAND = (sys.executable, "-m", "tests.unit.encoder_process")


@asynccontextmanager
async def running(*, cache: EmbeddingCache | None = None, **settings: Any) -> AsyncIterator[EncoderPool]:
    pool = EncoderPool(EncoderSettings(**settings), cache=cache, command=COMMAND)
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


async def busy(pool: EncoderPool, path: Path, priority: Priority = Priority.CATALOGUE) -> asyncio.Task[np.ndarray]:
    """A call that keeps a process at work until ``path`` is there; returns when the process has begun."""
    task = asyncio.create_task(pool.encode([f"wait:{path}"], priority))
    await eventually(Path(f"{path}.here").exists, what="the process works on the batch")
    return task


async def test_vectors_come_in_the_order_of_the_texts_each_text_encoded_once() -> None:
    async with running(batch=4) as pool:
        texts = [f"{'word ' * (n % 7)}{n % 20}" for n in range(50)]
        assert_vectors(await pool.encode(texts, Priority.CATALOGUE), texts)
        assert pool.stats.texts_encoded == len(set(texts))
        assert max(pool.stats.batch_sizes) <= 4
        assert pool.queue_length == 0


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
        assert pool.stats.texts_encoded == 2


async def test_a_text_without_utf8_form_or_of_any_length_has_a_vector() -> None:
    async with running(max_tokens=8) as pool:
        vectors = await pool.encode(["\ud800", "x" * 1_000_000, "\x00", ""], Priority.EVENT)
        assert np.isfinite(vectors).all()


async def test_queries_go_before_events_before_the_catalogue(tmp_path: Path) -> None:
    async with running() as pool:
        first = await busy(pool, tmp_path / "go")
        done: list[Priority] = []

        async def ask(priority: Priority) -> None:
            await pool.encode([priority.name], priority)
            done.append(priority)

        tasks = [asyncio.create_task(ask(priority)) for priority in reversed(Priority)]
        await eventually(lambda: pool.queue_length == 3)
        (tmp_path / "go").touch()
        await asyncio.gather(first, *tasks)
        assert done == [Priority.QUERY, Priority.EVENT, Priority.CATALOGUE]


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
        assert pool.stats.texts_encoded == 2


async def test_a_process_killed_in_mid_batch_is_restarted_and_the_batch_done_again(tmp_path: Path) -> None:
    async with running() as pool:
        task = await busy(pool, tmp_path / "go")
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        (tmp_path / "go").touch()
        assert_vectors(await task, [f"wait:{tmp_path / 'go'}"])
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
        task = await busy(pool, tmp_path / "go")
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
        assert pool.stats.restarts == 4  # twice as a batch, twice alone
        assert pool.stats.poison_texts == 1
        with pytest.raises(PoisonText):
            await pool.encode(["f", "poison"], Priority.EVENT)
        assert pool.stats.restarts == 4  # it is known by now


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
        tasks = [await busy(pool, tmp_path / "never")]
        tasks += [asyncio.create_task(pool.encode([text], Priority.CATALOGUE)) for text in "abc"]  # b and c: no room
        await eventually(lambda: pool.queue_length == 1)
        (pid,) = pool.pids
        await pool.close()
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


async def test_what_users_say_is_embedded_as_queries() -> None:
    async with running(query_prefix="find: ", document_prefix="item: ") as pool:
        agent = cast(InteractionsAgent, SimpleNamespace(_pool=pool))  # all that the method needs of an agent
        vectors = await InteractionsAgent._encoded(agent, {"mug"})
        assert_vectors(np.stack([vectors["mug"]]), ["find: mug"])


PARENT = """
import asyncio, sys
from stream_app.settings import EncoderSettings
from workers.pool import CHARS_PER_TOKEN, EncoderPool, Priority

async def main():
    pool = EncoderPool(EncoderSettings(), command=(sys.executable, "-m", "tests.unit.encoder_process"))
    await pool.start()
    await pool.ready()
    await pool.encode([sys.argv[1]], Priority.QUERY)

asyncio.run(main())
"""


def test_no_process_outlives_a_parent_that_is_killed_even_in_mid_batch(tmp_path: Path) -> None:
    held = tmp_path / "never"
    with subprocess.Popen([sys.executable, "-c", PARENT, f"wait:{held}"]) as parent:
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
