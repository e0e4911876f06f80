"""How fast a model encodes on this device, and what lower precision changes.

``make bench ARGS=encoder-alone``, or where only torch and transformers are installed ``python -m benchmarks.encoder``.

Rates are those of the encoder process alone (:mod:`workers.transformer`), tokenizing included, without the queue before
it. Texts are the catalogue's as the pool gets them, or the lines of a file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stream_app.bench.quality import NEIGHBOURS, Quality
from workers.models import Precision, load_model

if TYPE_CHECKING:
    from workers.transformer import TransformerEncoder

__all__ = ["encoder_figures"]

_QUERIES = 200
_LEAST_S = 2.0
"""Every rate is taken over at least so long."""


def encoder_figures(
    texts: Sequence[str],
    *,
    model: str = "minilm",
    device: str = "auto",
    precisions: Sequence[Precision] = ("float32", "bfloat16", "float16"),
    batches: Sequence[int] = (32, 256, 1_024),
) -> list[dict[str, Any]]:
    """One line per precision and batch size: texts per second, a single query's time, and what changed against the
    first precision: mean cosine, the share of each text's ten nearest that are still the nearest, and whether both pass
    the quality gate.

    Args:
        texts: at least some thousands, for rates that mean something.
        model: ``minilm`` or a folder.
        device: as the setting ``encoder.device``.
        precisions: the first is what the others are compared with.
        batches: most texts computed at once.
    """
    figures: list[dict[str, Any]] = []
    reference: NDArray[np.float32] | None = None
    for precision in precisions:
        for batch in batches:
            encoder = load_model(model, device=device, precision=precision, batch=batch)
            rate, vectors = _rate(encoder, texts)
            reference = vectors if reference is None else reference
            cosines = np.einsum("nd,nd->n", vectors, reference)
            p50, p99 = _query_ms(encoder, texts)
            quality = Quality(
                mean_cosine=float(cosines.mean()), least_cosine=float(cosines.min()), overlap=_kept(vectors, reference)
            )
            figures.append(
                {
                    "benchmark": "encoder",
                    "device": _name(encoder.device),
                    "precision": precision,
                    "batch": batch,
                    "texts_per_s": round(rate),
                    "query_p50_ms": round(p50, 2),
                    "query_p99_ms": round(p99, 2),
                    "mean_cosine": round(quality.mean_cosine, 5),
                    "nearest_kept": round(quality.overlap, 4),
                    "passes": quality.passes,
                }
            )
    return figures


def _rate(encoder: TransformerEncoder, texts: Sequence[str]) -> tuple[float, NDArray[np.float32]]:
    encoder.encode(texts[:1_024])
    done, began = 0, time.perf_counter()
    while True:
        vectors = encoder.encode(texts)
        done += len(texts)
        elapsed = time.perf_counter() - began
        if elapsed >= _LEAST_S:
            return done / elapsed, vectors


def _query_ms(encoder: TransformerEncoder, texts: Sequence[str]) -> tuple[float, float]:
    times = []
    for number in range(_QUERIES):
        began = time.perf_counter()
        encoder.encode([texts[number * 37 % len(texts)]])
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.percentile(times, 50)), float(np.percentile(times, 99))


def _kept(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Share of the nearest by the reference that are among the nearest by the vectors, over a thousand texts."""
    asked = slice(0, 1_000)
    nearest = [
        np.argsort(-(table[asked] @ table.T), axis=1)[:, 1 : NEIGHBOURS + 1].tolist() for table in (vectors, reference)
    ]
    return float(np.mean([len(set(ours) & set(theirs)) / NEIGHBOURS for ours, theirs in zip(*nearest, strict=True)]))


def _name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def main() -> None:
    """Print figures as JSON lines."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--texts", type=Path, required=True, help="One text per line.")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", default="float32,bfloat16,float16")
    parser.add_argument("--batches", default="32,256,1024")
    given = parser.parse_args()
    figures = encoder_figures(
        given.texts.read_text("utf-8").splitlines(),
        model=given.model,
        device=given.device,
        precisions=given.precisions.split(","),
        batches=[int(batch) for batch in given.batches.split(",")],
    )
    for line in figures:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
