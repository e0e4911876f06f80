"""One training from a log to an adapter with its facts: windows, each ranked and then learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.messages import Interaction, Item
from stream_app.adapters.choices import Choices
from stream_app.adapters.file import AdapterFile, Training
from stream_app.adapters.prequential import Replay, catalogue_whitening, report, wins
from stream_app.adapters.shown import SlateShown
from stream_app.adapters.training import Trainer, TrainingOptions
from stream_app.evaluation.prequential import baskets
from stream_app.settings import Settings

__all__ = ["Examples", "matrix", "train", "windows_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What is learned from.

    Attributes:
        name: of the data, for the file.
        items: the catalogue.
        interactions: in order of time.
        vectors: unit vectors of the model by item id, float32; an item without one has no text.
        space: the model's.
        slates: what was shown, in order of time, beside the impressions among the interactions.
    """

    name: str
    items: Sequence[Item]
    interactions: Sequence[Interaction]
    vectors: Mapping[str, NDArray[np.float32]]
    space: str
    slates: Sequence[SlateShown] = ()


def train(
    examples: Examples,
    settings: Settings,
    options: TrainingOptions,
    *,
    windows: int,
    train_share: float = 0.1,
    start: AdapterFile | None = None,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> AdapterFile:
    """Rank each window, learn from it, and say whether that was better than the base.

    Args:
        examples: the log.
        settings: event types, and what is a cold item.
        options: how to train.
        windows: equal parts of the log; the adapter that ranks one saw those before it.
        train_share: share of the interactions, from the first, that are not tests.
        start: an adapter of the same model to begin with, perhaps of another shop.
        on_progress: told what is being done, how much of it is done, and of how much.

    Returns:
        the adapter after the last window, with its facts; ``promoted`` says whether it won (``prequential.wins``).
    """
    events = examples.interactions
    vectors = matrix(examples.items, examples.vectors)
    whitening = catalogue_whitening(vectors)
    trainer = Trainer(whitening, vectors, options, start=None if start is None else start.adapter)
    shares = {} if start is None else start.adapter.shares
    choices = Choices(len(vectors), history=options.history, decay=options.decay)
    replay = Replay(
        settings,
        {item.item_id: row for row, item in enumerate(examples.items)},
        vectors,
        trainer.adapter(shares).apply(vectors),
        choices=choices,
        slates=examples.slates,
    )
    tested_from = int(len(events) * train_share)
    losses: list[float | None] = []
    for number, window in enumerate(windows_of(events, windows)):
        first = len(choices)
        replay.take(
            window,
            window=number,
            counted=lambda before, _: before >= tested_from,
            on_progress=lambda done: on_progress("interactions", done, len(events)),
        )
        told = partial(on_progress, f"window {number + 1} of {windows}")
        losses.append(trainer.learn(choices, first, on_progress=told))
        shares = choices.task_weights() or shares
        replay.serve(trainer.adapter(shares).apply(vectors))
    found: dict[str, Any] = report(replay.comparison())
    found["losses"] = losses
    counts = np.bincount(choices.tasks(), minlength=2).tolist()
    return AdapterFile(
        adapter=trainer.adapter(shares),
        base_space=examples.space,
        training=Training(
            data=examples.name,
            events=len(events),
            examples={"click": counts[0], "purchase": counts[1]},
            items=len(examples.items),
            first=events[0].occurred_at.isoformat() if events else None,
            last=events[-1].occurred_at.isoformat() if events else None,
            windows=windows,
            seed=options.seed,
            options=options.facts(),
            started_from=None if start is None else start.adapter.fingerprint,
        ),
        metrics=found,
        promoted=wins(found),
    )


def windows_of(events: Sequence[Interaction], windows: int) -> list[list[Interaction]]:
    """The events in parts of about equally many, no basket in two of them; some are empty where baskets are large."""
    parts: list[list[Interaction]] = [[] for _ in range(windows)]
    done = 0
    for basket in baskets(events):
        parts[min(done * windows // len(events), windows - 1)].extend(basket)
        done += len(basket)
    return parts


def matrix(items: Sequence[Item], vectors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Vectors by row, zeros where an item has none: float32 [items, dimensions]."""
    none = np.zeros(len(next(iter(vectors.values()))) if vectors else 1, np.float32)
    return np.stack([vectors.get(item.item_id, none) for item in items])
