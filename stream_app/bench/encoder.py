"""The encoder pool: against a bare loop, beside queries, end to end through the broker, in lower precision, compiled.

Every figure is taken on the product as it is: encoder processes of the pool, and for the way from ``items.v1`` to
``item-vectors.v1`` a real broker, a real Redis and a process with the catalogue role. Rates of two things are compared
in rounds, one after the other: a machine that is shared changes from minute to minute, and ratios of neighbours change
less.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Literal

import msgspec
import numpy as np
import psutil
from aiokafka import AIOKafkaConsumer
from numpy.typing import NDArray

from schemas.decode import encode
from schemas.messages import Item
from stream_app.bench.child import Progress, child
from stream_app.bench.encoder_loop import EncoderLoopJob
from stream_app.bench.publish import sender
from stream_app.bench.quality import quality_of
from stream_app.bench.titles import made_up_items, shipped_titles
from stream_app.delivery.admin import create_topics
from stream_app.delivery.connections import kafka_options, stop_consumer
from stream_app.embedded.stack import EmbeddedStack
from stream_app.embedded.worker import WorkerProcess
from stream_app.embedded.workspace import workspace
from stream_app.errors import TailraceError, Unavailable
from stream_app.settings import EncoderSettings, Settings, load_settings
from stream_app.textify import item_text
from stream_app.topics import Topics
from workers.models import reduced_precisions
from workers.placement import process_count
from workers.pool import EncoderPool, Priority

__all__ = ["compile_figures", "end_to_end_figures", "pool_figures", "precision_figures", "query_figures"]

_BATCHES_CPU: Final = (32, 64)
_BATCHES_GPU: Final = (64, 256, 1_024)
_AT_ONCE: Final = 128
"""Texts per call of the pool, and calls under way: what the catalogue role does."""
_CALLS: Final = 4
_WARM: Final = 256
_PATIENCE_S: Final = 60.0
_COMPARED: Final = 1_000
"""Texts whose compiled vectors are compared with the others."""
_START_S: Final = 3_600.0
_PROGRAMS: Final = "TORCHINDUCTOR_CACHE_DIR"
_EMBEDDED_TEXTS: Final = "tailrace_encoder_texts_total"


async def pool_figures(
    settings: Settings, *, titles: int, rounds: int, on_progress: Progress = lambda _what, _done, _total: None
) -> dict[str, Any]:
    """Texts per second of the pool and of a bare loop of perfectly sorted batches, in turns.

    Args:
        settings: the encoder's decide about model, device, precision and threads of both.
        titles: different texts of some 16 tokens; the pool gets them in no order.
        rounds: how often each is measured.
        on_progress: told what is being done, how much of it is done, and of how much.

    Returns:
        ``pool_texts_per_s`` and ``bare_texts_per_s`` (medians; the loop's best batch size), ``share`` of the loop's
        (the median of the rounds' ratios), ``padding`` (share of what the pool computed), ``device``, ``precision``,
        and ``tokens`` (mean).

    Raises:
        TailraceError: when the model cannot be used.
    """
    texts = [item_text(item) for item in made_up_items(shipped_titles(), titles)]
    pool_rates, bare_rates, shares = [], [], []
    figures: dict[str, Any] = {}
    for _ in range(rounds):
        batches = _BATCHES_GPU if settings.encoder.device.startswith("cuda") else _BATCHES_CPU
        loop = await _loop(settings, EncoderLoopJob(titles=titles, batches=batches), on_progress)
        rates = loop["rates"]
        figures = {"device": loop["device"], "precision": loop["precision"], "tokens": round(rates.pop("tokens"), 1)}
        best = max(rates, key=rates.__getitem__)
        async with _pool(settings) as pool:
            began = time.perf_counter()
            await _encoded(pool, texts, on_progress)
            rate = len(texts) / (time.perf_counter() - began)
            padding = 1 - pool.stats.tokens_read / pool.stats.tokens_computed
        pool_rates.append(rate)
        bare_rates.append(rates[best])
        shares.append(rate / rates[best])
    return {
        "benchmark": "encoder",
        "what": "pool",
        "titles": titles,
        "rounds": rounds,
        **figures,
        "pool_texts_per_s": round(median(pool_rates)),
        "bare_texts_per_s": round(median(bare_rates)),
        "bare_batch": int(best),
        "share": round(median(shares), 3),
        "padding": round(padding, 3),
    }


async def query_figures(
    settings: Settings, *, titles: int, queries: int, on_progress: Progress = lambda _what, _done, _total: None
) -> dict[str, Any]:
    """Milliseconds of one query at a time: alone, and while the catalogue's line is always full.

    Args:
        settings: the encoder's.
        titles: what the catalogue's line is filled from, again and again.
        queries: how many of each.
        on_progress: as for :func:`pool_figures`.

    Returns:
        ``alone_p50_ms``, ``alone_p99_ms``, ``beside_p50_ms``, ``beside_p99_ms``, and ``beside_texts_per_s``, what the
        catalogue got meanwhile.
    """
    base = shipped_titles()
    texts = [item_text(item) for item in made_up_items(base, titles)]
    async with _pool(settings) as pool:
        alone = await _queries(pool, base[:queries], "queries alone", on_progress)

        async def always() -> None:
            while True:
                await _encoded(pool, texts)

        filling = asyncio.create_task(always())
        try:
            while pool.waiting(Priority.CATALOGUE) < _AT_ONCE:
                await asyncio.sleep(0.01)
                if filling.done():
                    filling.result()
            began, before = time.perf_counter(), pool.stats.texts_encoded
            beside = await _queries(pool, base[-queries:], "queries beside the catalogue", on_progress)
            rate = (pool.stats.texts_encoded - before - queries) / (time.perf_counter() - began)
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)
    return {
        "benchmark": "encoder",
        "what": "queries",
        "queries": queries,
        "alone_p50_ms": round(float(np.percentile(alone, 50)), 1),
        "alone_p99_ms": round(float(np.percentile(alone, 99)), 1),
        "beside_p50_ms": round(float(np.percentile(beside, 50)), 1),
        "beside_p99_ms": round(float(np.percentile(beside, 99)), 1),
        "beside_texts_per_s": round(rate),
    }


async def end_to_end_figures(
    settings: Settings,
    *,
    broker: Literal["embedded", "kafka"],
    titles: int,
    on_progress: Progress = lambda _what, _done, _total: None,
) -> dict[str, Any]:
    """Items from ``items.v1`` to ``item-vectors.v1``, through a broker and a process with the catalogue role.

    Args:
        settings: of the process; the broker and Redis are started here.
        broker: which.
        titles: items, each with a text of its own.
        on_progress: as for :func:`pool_figures`.

    Returns:
        ``items_per_s`` from the first item sent to the last vector read, ``first_ms`` until the first vector,
        ``embedded_texts``, ``cpu_ms_per_item`` (of the process and its encoders; what else runs on the machine does not
        change it much); then the same items with another price: ``repriced_per_s``, and ``repriced_texts``, the texts
        embedded for them.

    Raises:
        TailraceError: when the broker, Redis or the process is not there any more, or a vector does not come.
    """
    base = shipped_titles()
    with workspace() as directory:
        async with EmbeddedStack(broker, directory=directory) as stack:
            given: dict[str, Any] = settings.model_dump(
                mode="json", exclude={"kafka", "redis", "connection", "metrics"}
            )
            overrides = {**given, "log": {**given["log"], "level": "warning"}, **stack.settings_overrides()}
            ours = load_settings(**overrides)
            await create_topics(ours)
            worker = WorkerProcess(["catalogue"], overrides=overrides, directory=directory)
            try:
                await worker.start()
                async with _vectors(ours) as seen:
                    # The model is loaded and the consumer reads before anything is measured.
                    warm = [msgspec.structs.replace(item, item_id=f"warm-{item.item_id}") for item in
                            made_up_items([f"warm {title}" for title in base], _WARM)]  # fmt: skip
                    await seen.until(await _sent(ours, warm), worker, lambda _done: None)
                    took = []
                    for price, what in ((9.5, "items embedded"), (8.5, "items with another price")):
                        before = await worker.metric(_EMBEDDED_TEXTS) or 0.0
                        began, busy = time.perf_counter(), _cpu_seconds(worker)
                        seen.first_at = None
                        sending = asyncio.create_task(_sent(ours, made_up_items(base, titles, price=price)))
                        done = await seen.until(titles, worker, lambda n, what=what: on_progress(what, n, titles))
                        await sending
                        await asyncio.sleep(1.5)  # the process counts once a second
                        texts = (await worker.metric(_EMBEDDED_TEXTS) or 0.0) - before
                        took.append(
                            _Way(
                                per_s=titles / (done - began),
                                first_ms=1e3 * ((seen.first_at or done) - began),
                                texts=int(texts),
                                cpu_ms=1e3 * (_cpu_seconds(worker) - busy) / titles,
                            )
                        )
            finally:
                await worker.stop()
    return {
        "benchmark": "encoder",
        "what": "end to end",
        "broker": broker,
        "items": titles,
        "items_per_s": round(took[0].per_s),
        "first_ms": round(took[0].first_ms),
        "embedded_texts": took[0].texts,
        "cpu_ms_per_item": round(took[0].cpu_ms, 2),
        "repriced_per_s": round(took[1].per_s),
        "repriced_texts": took[1].texts,
    }


async def precision_figures(
    settings: Settings, *, titles: int, on_progress: Progress = lambda _what, _done, _total: None
) -> list[dict[str, Any]]:
    """What each reduced precision that is on offer changes against float32, over the shipped titles.

    Whichever is in use: the others can be set, so they have to pass too.

    Args:
        settings: the encoder's; their precision does not count.
        titles: how many of the shipped titles at most, more than ten; the gate is meant for all of them.
        on_progress: as for :func:`pool_figures`.

    Returns:
        For each ``precision``: ``mean_cosine`` and ``least_cosine`` of each text's two vectors, ``overlap`` of the ten
        nearest (:mod:`stream_app.bench.quality`), and ``passes``, whether that passes the gate. One that cannot be used
        with this model on this device has ``refused`` instead, the reason, and does not pass. None at all where the
        model computes in float32 only.

    Raises:
        TailraceError: when the model cannot be used in float32 either.
    """
    lines: list[dict[str, Any]] = []
    reduced = reduced_precisions(settings.encoder.model)
    with workspace() as directory:

        async def vectors_in(precision: str) -> NDArray[np.float32]:
            file = directory / f"{precision}.npy"
            job = EncoderLoopJob(titles=0, vectors=str(file), shipped=titles)
            await _loop(settings, job, on_progress, precision=precision)
            vectors: NDArray[np.float32] = np.load(file)
            return vectors

        exact = await vectors_in("float32") if reduced else np.empty((0, 0), np.float32)
        for precision in reduced:
            line = {"benchmark": "encoder", "what": "precision", "titles": len(exact), "precision": precision}
            try:
                quality = quality_of(exact, await vectors_in(precision))
            except TailraceError as error:  # it overflows, say: the others are measured all the same
                lines.append({**line, "refused": str(error), "passes": False})
                continue
            lines.append(
                {
                    **line,
                    "mean_cosine": round(quality.mean_cosine, 5),
                    "least_cosine": round(quality.least_cosine, 5),
                    "overlap": round(quality.overlap, 4),
                    "passes": quality.passes,
                }
            )
    return lines


async def compile_figures(
    settings: Settings, *, titles: int, rounds: int, on_progress: Progress = lambda _what, _done, _total: None
) -> dict[str, Any]:
    """What ``encoder.compile`` is worth here: pools with it and without, alive at the same time and measured in turns.

    Time is that of the processors, which other work on the machine changes less than it changes what passes. Nothing
    compiled before is used: programs are kept in a folder of the benchmark's own.

    Args:
        settings: the encoder's; their ``compile`` does not count, and a start may take up to an hour here.
        titles: different texts of some 16 tokens.
        rounds: how often each embeds all of them.
        on_progress: as for :func:`pool_figures`.

    Returns:
        ``eager_texts_per_cpu_s`` and ``compiled_texts_per_cpu_s`` (medians), ``ratio`` of the latter to the former (the
        median of the rounds' ratios, above 1 where compiling pays) with the ``least_ratio`` and ``most_ratio`` of a
        round, and ``ratio_per_s``, the same of the time that passed (the lanes of a process may hold each other up);
        ``eager_start_s``, ``compiled_start_s``, ``compiled_again_s``: until a pool is ready, the second with nothing
        kept of an earlier one, the third with what that kept; ``mean_cosine`` and ``least_cosine`` of each text's two
        vectors.

    Raises:
        TailraceError: when the model cannot be used, or not be compiled.
    """
    texts = [item_text(item) for item in made_up_items(shipped_titles(), titles)]
    pools: dict[str, EncoderPool] = {}
    starts: dict[str, float] = {}
    speeds: dict[str, list[_Speed]] = {"eager": [], "compiled": []}
    with workspace() as directory, _environment(_PROGRAMS, str(directory / "programs")):
        async with AsyncExitStack() as stack:
            patient = {"start_timeout_s": _START_S}
            chosen = {
                name: settings.encoder.model_copy(update={**patient, "compile": name == "compiled"}) for name in speeds
            }
            async with _started(chosen["compiled"]) as (_, starts["compiled"]):
                pass
            for name in speeds:
                started = _started(chosen[name])
                pools[name], starts[f"{name}, again"] = await stack.enter_async_context(started)
                on_progress("pools started", len(pools), len(speeds))
            for number in range(rounds):
                for name in speeds if number % 2 else reversed(speeds):
                    speeds[name].append(await _speed(pools[name], texts, f"{name}, round {number + 1}", on_progress))
            quality = [await pool.encode(texts[:_COMPARED], Priority.CATALOGUE) for pool in pools.values()]
            (device,) = {device for pool in pools.values() for device in pool.devices}
    cosines = np.einsum("nd,nd->n", *quality)
    pairs = list(zip(speeds["compiled"], speeds["eager"], strict=True))
    ratios = [compiled.per_cpu_s / eager.per_cpu_s for compiled, eager in pairs]
    return {
        "benchmark": "encoder",
        "what": "compile",
        "titles": titles,
        "rounds": rounds,
        "device": device,
        "eager_texts_per_cpu_s": round(median(speed.per_cpu_s for speed in speeds["eager"]), 1),
        "compiled_texts_per_cpu_s": round(median(speed.per_cpu_s for speed in speeds["compiled"]), 1),
        "ratio": round(median(ratios), 3),
        "least_ratio": round(min(ratios), 3),
        "most_ratio": round(max(ratios), 3),
        "ratio_per_s": round(median(compiled.per_s / eager.per_s for compiled, eager in pairs), 3),
        "eager_start_s": round(starts["eager, again"], 1),
        "compiled_start_s": round(starts["compiled"], 1),
        "compiled_again_s": round(starts["compiled, again"], 1),
        "mean_cosine": round(float(cosines.mean()), 6),
        "least_cosine": round(float(cosines.min()), 6),
    }


@dataclass(frozen=True, slots=True)
class _Speed:
    """Of a pool: texts per second of the processors' time, and of time that passed."""

    per_cpu_s: float
    per_s: float


async def _speed(pool: EncoderPool, texts: Sequence[str], what: str, on_progress: Progress) -> _Speed:
    processes = [psutil.Process(pid) for pid in pool.pids]
    began, before = time.perf_counter(), _busy(processes)
    await _encoded(pool, texts, lambda _what, done, total: on_progress(what, done, total))
    return _Speed(per_cpu_s=len(texts) / (_busy(processes) - before), per_s=len(texts) / (time.perf_counter() - began))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Processes that are started meanwhile have this variable."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


async def _loop(
    settings: Settings, job: EncoderLoopJob, on_progress: Progress, *, precision: str | None = None
) -> dict[str, Any]:
    encoder = settings.encoder.model_dump(mode="json")
    if precision:
        # Compiling moves vectors by rounding, too, and takes minutes per precision.
        encoder |= {"precision": precision, "compile": False}
    overrides = {"encoder": encoder}
    async with child("stream_app.bench.encoder_loop", job, overrides=overrides, on_progress=on_progress) as running:
        return await running.result()


@asynccontextmanager
async def _pool(settings: Settings) -> AsyncIterator[EncoderPool]:
    """A pool whose processes are warm; without a cache, so that every text is computed."""
    async with _started(settings.encoder) as (pool, _):
        yield pool


@asynccontextmanager
async def _started(settings: EncoderSettings) -> AsyncIterator[tuple[EncoderPool, float]]:
    """The same, and the seconds until its first process was ready. One that came later would take texts, and the time
    it takes for them would not be counted."""
    pool = EncoderPool(settings)
    began = time.perf_counter()
    await pool.start()
    try:
        await pool.ready()
        seconds = time.perf_counter() - began
        present = 1 if pool.devices[0].startswith("cpu") else _gpus()
        wanted = process_count(settings.processes, settings.device, present)
        await _all_ready(pool, wanted, within_s=settings.start_timeout_s)
        await pool.encode([f"warm {number}" for number in range(_WARM)], Priority.CATALOGUE)
        yield pool, seconds
    finally:
        await pool.close()


async def _all_ready(pool: EncoderPool, wanted: int, *, within_s: float) -> None:
    """Wait until so many processes of the pool are ready, the first is so already.

    Raises:
        Unavailable: when they are not, ``within_s`` after the first.
    """
    until = time.perf_counter() + within_s
    while len(pool.pids) < wanted:
        if pool.error:
            raise pool.error
        if time.perf_counter() > until:
            raise Unavailable(
                f"{len(pool.pids)} of {wanted} encoder processes were ready {within_s:g} s after the first "
                "(encoder.start_timeout_s); see above what keeps the others, or set fewer encoder.processes"
            )
        await asyncio.sleep(0.02)


def _gpus() -> int:
    """How many there are; imports torch (seconds)."""
    from torch.cuda import device_count

    return device_count()


async def _encoded(
    pool: EncoderPool, texts: Sequence[str], on_progress: Progress = lambda _what, _done, _total: None
) -> None:
    """All texts through the pool, as the catalogue role gives them."""
    starts = iter(range(0, len(texts), _AT_ONCE))

    async def call() -> None:
        for start in starts:
            await pool.encode(texts[start : start + _AT_ONCE], Priority.CATALOGUE)
            on_progress("through the pool", min(start + _AT_ONCE, len(texts)), len(texts))

    await asyncio.gather(*(call() for _ in range(_CALLS)))


async def _queries(pool: EncoderPool, texts: Sequence[str], what: str, on_progress: Progress) -> list[float]:
    """Milliseconds of each text as a query, one after the other."""
    times = []
    for number, text in enumerate(texts, 1):
        began = time.perf_counter()
        await pool.encode([f"{what}: {text}"], Priority.QUERY)
        times.append(1e3 * (time.perf_counter() - began))
        on_progress(what, number, len(texts))
    return times


async def _sent(settings: Settings, items: Sequence[Item]) -> int:
    topics = Topics(settings)
    async with sender(settings) as sending:
        for item in items:
            await sending.send(topics.items, item.item_id, encode(item))
    return len(items)


@dataclass(frozen=True, slots=True)
class _Way:
    """Of all items once from topic to topic."""

    per_s: float
    first_ms: float
    texts: int
    cpu_ms: float


def _cpu_seconds(worker: WorkerProcess) -> float:
    process = psutil.Process(worker.pid)
    return _busy([process, *process.children(recursive=True)])


def _busy(processes: Sequence[psutil.Process]) -> float:
    """Seconds of the processors that they took so far."""
    times = [process.cpu_times() for process in processes]
    return sum(time.user + time.system for time in times)


class _Seen:
    """Vectors that were read."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self.first_at: float | None = None

    async def until(self, count: int, worker: WorkerProcess, told: Any) -> float:
        """Read until vectors of ``count`` items came; when the last did (``perf_counter``)."""
        keys: set[bytes] = set()
        last = time.perf_counter()
        while len(keys) < count:
            fetched: Mapping[Any, Any] = await self._consumer.getmany(timeout_ms=200)
            now = time.perf_counter()
            if fetched:
                last = now
                self.first_at = self.first_at or now
                keys.update(record.key for records in fetched.values() for record in records)
                told(len(keys))
            elif not worker.running:
                raise Unavailable(f"{worker.name} ended during the benchmark:\n{worker.output(40)}")
            elif now - last > _PATIENCE_S:
                raise Unavailable(f"{len(keys)} of {count} vectors came, and none for {_PATIENCE_S:.0f} s")
        return last


@asynccontextmanager
async def _vectors(settings: Settings) -> AsyncIterator[_Seen]:
    consumer = AIOKafkaConsumer(
        Topics(settings).item_vectors, **kafka_options(settings), auto_offset_reset="earliest", fetch_max_wait_ms=20
    )
    await consumer.start()
    try:
        yield _Seen(consumer)
    finally:
        await stop_consumer(consumer)
