"""One evaluation from a log to a report: vectors, replay, figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.messages import Interaction, Item
from stream_app.adapters.file import AdapterFile
from stream_app.embedded.stack import BrokerKind
from stream_app.evaluation import files
from stream_app.evaluation.baselines import make_baselines
from stream_app.evaluation.files import Log
from stream_app.evaluation.prequential import Options, Prequential, Protocol
from stream_app.evaluation.report import Run, report
from stream_app.evaluation.vectors import default_cache, text_vectors
from stream_app.memory import settle
from stream_app.settings import Settings
from stream_app.textify import Textifier
from stream_app.warm_up import warm_up
from workers.models import describe_model

__all__ = ["Encoded", "encode_log", "evaluate_log"]

Vectors = Mapping[str, NDArray[np.float32]]

_COMPILING = "compiling (once per machine)"
_NO_TEXT = "no item has a text, so the baseline text says nothing: all items are alike to it"
_FEW_ITEMS, _FEW_EVENTS = 80, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """The texts of a log as vectors of one space; unit length, float32.

    Attributes:
        space: of the vectors.
        items: by item id, of the items that have text.
        texts: by text, of what events say (searches, reviews, the context of visits).
    """

    space: str = "none"
    items: Vectors = field(default_factory=dict)
    texts: Vectors = field(default_factory=dict)


def encode_log(
    log: Log,
    settings: Settings,
    *,
    cache: Path | None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Encoded:
    """Vectors of the items that have text, and of what events say, as live processes encode them.

    Args:
        log: the data.
        settings: the encoder, the templates, and how much of an event's text is kept.
        cache: folder for vectors; None: one in the system's folder for temporary files.
        on_progress: told how many texts are encoded, and of how many.
    """
    textifier = Textifier.of(settings.textify)
    of_items = {item.item_id: textifier.item(item) for item in log.items if item.item_id not in log.without_text}
    kept = settings.users.text_history_chars
    of_events = {textifier.said(event, max_chars=kept) for event in log.interactions} - {""}
    if not of_items and not of_events:
        return Encoded()
    model = describe_model(settings.encoder)
    of_items = {item_id: model.prefix("document") + text for item_id, text in of_items.items()}
    asked = {text: model.prefix("query") + text for text in sorted(of_events)}
    space, vectors = text_vectors(
        chain(of_items.values(), asked.values()),
        settings.encoder,
        cache=cache or default_cache(),
        on_progress=on_progress,
    )
    return Encoded(
        space=space,
        items={item_id: vectors[text] for item_id, text in of_items.items()},
        texts={text: vectors[prefixed] for text, prefixed in asked.items()},
    )


def evaluate_log(
    log: Log,
    settings: Settings,
    options: Options,
    *,
    protocol: Protocol = "streaming",
    compare: Sequence[str] = (),
    first_only: bool = False,
    limit: int | None = None,
    via: BrokerKind | None = None,
    cache: Path | None = None,
    changed: Mapping[str, Any] | None = None,
    adapter: AdapterFile | None = None,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> dict[str, Any]:
    """Evaluate, and report what was found (see ``stream_app.evaluation.report``).

    Args:
        log: the data.
        settings: of the processes that would run live.
        options: how to replay.
        protocol: streaming, or leave-one-out.
        compare: baselines to run beside it (``stream_app.evaluation.baselines.BASELINES``).
        first_only: leave out a user's later interactions with the same item.
        limit: how the log was cut, for the report.
        via: measure the slates of live processes on this broker, and in process beside it; None: only in process.
        cache: folder for vectors; None: one in the system's folder for temporary files.
        changed: settings that differ from their defaults, for the report.
        adapter: its vectors are served instead of the half-whitened ones; baselines and what learned factors start
            from stay those of the model.
        on_progress: told what is being done (compiling, ``texts``, ``interactions``), how much of it, and of how much.
    """
    on_progress(_COMPILING, 0, 1)
    _compile(tuple(compare))
    on_progress(_COMPILING, 1, 1)
    events = files.first_only(log.interactions) if first_only else log.interactions
    encoded = encode_log(log, settings, cache=cache, on_progress=lambda done, total: on_progress("texts", done, total))
    baselines = make_baselines(compare, _matrix(log, encoded.items), seed=options.seed) if compare else ()
    served = encoded
    if adapter is not None:
        served = _adapted(encoded, adapter)
        # Its space holds a half-whitening already.
        settings = settings.model_copy(update={"spaces": settings.spaces.model_copy(update={"whiten": False})})
    replay = Prequential(
        settings,
        log.items,
        served.items,
        space=served.space,
        options=options,
        baselines=baselines,
        texts=served.texts,
        started=encoded.items,
    )
    settle()
    started = time.perf_counter()

    def advance(done: int) -> None:
        on_progress("interactions", done, len(events))

    if protocol == "leave-one-out":
        outcome = replay.run_leave_one_out(events, on_progress=advance)
    else:
        outcome = replay.run(events, len(events), on_progress=advance)
    run = Run(
        data=log.facts(),
        protocol=protocol,
        seconds=time.perf_counter() - started,
        seed=options.seed,
        options={
            **asdict(options),
            "first_only": first_only,
            "compare": list(compare),
            "limit": limit,
            "replayed": len(events),
            "via": via,
            "adapter": None if adapter is None else served.space,
        },
        settings=changed or {},
        warnings=(*log.warnings, *([_NO_TEXT] if "text" in compare and not encoded.items else [])),
    )
    found = report(outcome, run)
    if via is None:
        return found
    return _live(log, events, settings, run, found, broker=via, train_share=options.train_share, told=on_progress)


@cache
def _compile(compare: tuple[str, ...]) -> None:
    """Use everything that a replay uses, on a log of nothing much: what is compiled at its first use on a machine takes
    minutes in all, which are none of the log's."""
    settings = Settings()
    warm_up(settings)
    vectors = np.random.default_rng(0).normal(size=(_FEW_ITEMS, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = [Item(item_id=f"i{number}", title="x") for number in range(_FEW_ITEMS)]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    events = [
        Interaction(
            event_id=f"e{number}",
            user_id=f"u{number % 4}",
            type="click" if number % 3 else "purchase",
            item_id=f"i{number * 7 % _FEW_ITEMS}",
            occurred_at=start + timedelta(hours=number),
        )
        for number in range(_FEW_EVENTS)
    ]
    Prequential(
        settings,
        items,
        dict(zip((item.item_id for item in items), vectors, strict=True)),
        space="warm-up",
        options=Options(sources=True),
        baselines=make_baselines(compare, vectors, seed=0) if compare else (),
    ).run(events, len(events))


def _live(
    log: Log,
    events: Sequence[Interaction],
    settings: Settings,
    run: Run,
    in_process: dict[str, Any],
    *,
    broker: BrokerKind,
    train_share: float,
    told: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The report of the live slates; sources and baselines are those measured in process."""
    # Here, because it is only needed with a broker.
    from stream_app.evaluation.live import live_outcome

    outcome, seconds = asyncio.run(
        live_outcome(log.items, events, settings, broker=broker, train_share=train_share, on_progress=told)
    )
    warnings = list(run.warnings)
    if log.without_text:
        warnings.append("live processes embed items without text by their id; in process they have no vector")
    found = report(outcome, replace(run, seconds=seconds, warnings=tuple(warnings)))
    found["sources"], found["compare"] = in_process["sources"], in_process["compare"]
    found["weights"] = in_process["weights"]
    kept = ("tests", "seconds", "tests_per_s", "overall", "cold")
    found["in_process"] = {key: in_process[key] for key in kept}
    return found


def _adapted(encoded: Encoded, adapter: AdapterFile) -> Encoded:
    """The same texts in the adapter's space."""

    def each(vectors: Vectors) -> Vectors:
        if not vectors:
            return vectors
        return dict(zip(vectors, adapter.adapter.apply(np.stack(list(vectors.values()))), strict=True))

    return Encoded(space=adapter.adapter.space(encoded.space), items=each(encoded.items), texts=each(encoded.texts))


def _matrix(log: Log, vectors: Vectors) -> NDArray[np.float32]:
    """Vectors by row, zeros where an item has none: float32 [items, dimensions]."""
    none = np.zeros(len(next(iter(vectors.values()))) if vectors else 1, np.float32)
    return np.stack([vectors.get(item.item_id, none) for item in log.items])
