"""A bare loop around the model, as a process: what the encoder pool is compared with.

All texts are known beforehand, so their batches are perfect: sorted by their number of tokens, nothing waits for
anything, and every core works on the one batch. ``python -m stream_app.bench.encoder_loop`` is started by ``tailrace
bench encoder`` (see ``stream_app.bench.child``).
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from stream_app.bench.child import read_job, run_child, tell
from stream_app.bench.titles import made_up_items, shipped_titles
from stream_app.settings import load_settings
from stream_app.textify import item_text
from workers.driver import fair_threads
from workers.models import describe_model, load_model
from workers.tokens import ModelTokens

__all__ = ["EncoderLoopJob"]

_VECTORS_AT_ONCE = 64


class EncoderLoopJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to encode; model, pooling, prefix, device, precision, threads and ``compile`` are those of the settings.

    Attributes:
        titles: made-up titles to time; 0: none.
        batches: texts per batch; each is timed.
        vectors: a file to write the vectors of the shipped titles to (``.npy``); empty: none.
        shipped: how many of them, the first ones; 0: all.
    """

    titles: int
    batches: tuple[int, ...] = ()
    vectors: str = ""
    shipped: int = 0


def _work(job: EncoderLoopJob) -> dict[str, object]:
    settings = load_settings().encoder
    encoder = load_model(
        settings,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads or fair_threads(1),
        batch=max(job.batches, default=_VECTORS_AT_ONCE),
        compile=settings.compile,
    )
    prefix = describe_model(settings).prefix("document")
    titles = shipped_titles()
    rates: dict[str, float] = {}
    if job.titles:
        texts = [item_text(item) for item in made_up_items(titles, job.titles)]
        # The tokenizer's counts in the order of the texts; by them batches are perfect.
        counted = ModelTokens(settings)
        lengths = [counted.read(text)[0] for text in texts]
        ordered = [prefix + texts[place] for place in sorted(range(len(texts)), key=lengths.__getitem__)]
        encoder.encode(ordered[:256])
        for size in job.batches:
            began = time.perf_counter()
            for start in range(0, len(ordered), size):
                encoder.encode(ordered[start : start + size])
                tell(f"a bare loop, batches of {size}", min(start + size, len(ordered)), len(ordered))
            rates[str(size)] = len(ordered) / (time.perf_counter() - began)
        rates["tokens"] = sum(lengths) / len(lengths)
    if job.vectors:
        parts = []
        titles = titles[: job.shipped or None]
        for start in range(0, len(titles), _VECTORS_AT_ONCE):
            part = titles[start : start + _VECTORS_AT_ONCE]
            parts.append(encoder.encode([prefix + title for title in part]))
            done = min(start + _VECTORS_AT_ONCE, len(titles))
            tell(f"shipped titles in {encoder.precision}", done, len(titles))
        np.save(Path(job.vectors), np.concatenate(parts))
    return {"rates": rates, "device": encoder.device, "precision": encoder.precision}


async def _main() -> None:
    job, ending = await read_job(EncoderLoopJob)
    working = asyncio.create_task(asyncio.to_thread(_work, job))
    await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        sys.stdout.buffer.write(msgspec.json.encode(working.result()))


if __name__ == "__main__":
    run_child(_main())
