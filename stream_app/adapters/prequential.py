"""An adapter against its base, each part of a log ranked before anything learns from it.

The log is cut into windows of equally many events. In a window both rank with what they were when it began: the base is
the baseline ``text`` of ``tailrace evaluate``, the adapter the same with adapted vectors. Then the adapter learns from
the window, going on from where it was. So an event is only ever ranked by an adapter that saw earlier events, and what
is left after the last window has seen all. (Protocol: Gama, Sebastião and Rodrigues 2013, doi
10.1007/s10994-012-5320-9, in parts.)
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.messages import Interaction
from stream_app.adapters.adapter import Adapter
from stream_app.adapters.choices import Choices, Taken, task_of
from stream_app.adapters.scoring import Adapted, paired
from stream_app.adapters.shown import Shown, SlateShown
from stream_app.evaluation.baselines import Told
from stream_app.evaluation.baselines.text import Text
from stream_app.evaluation.ledger import Ledger
from stream_app.evaluation.metrics import Ranks, gains, hit_rate, mean
from stream_app.evaluation.prequential import baskets
from stream_app.settings import Settings
from stream_app.spaces.whitening import Statistics, Whitening, fit

__all__ = ["Comparison", "Replay", "catalogue_whitening", "compare", "report", "wins"]

_DEPTH: Final = 10
_COLD_DEPTH: Final = 50
_REPORT_EVERY: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every test of a replay, in the order they came.

    Attributes:
        base: float32 [tests], ranks by the model's half-whitened vectors, infinity for a miss.
        adapted: float32 [tests], by the adapted ones.
        shown: items that were in somebody's first ten, by the base and by the adapter.
        items: of the catalogue.
        users: int32 [tests], number of the user.
        cold: bool [tests], the item had fewer earlier events than ``retrieval.cold_events``.
        window: int32 [tests], number of the part of the log, from 0.
        untested: events that named an item and were no test, by why.
    """

    base: NDArray[np.float32]
    adapted: NDArray[np.float32]
    shown: tuple[int, int]
    items: int
    users: NDArray[np.int32]
    cold: NDArray[np.bool_]
    window: NDArray[np.int32]
    untested: Mapping[str, int]


def catalogue_whitening(vectors: NDArray[np.float32]) -> Whitening:
    """The half-whitening of a catalogue's vectors, float32 [items, dimensions]; rows of zeros (no text) say nothing."""
    statistics = Statistics(vectors.shape[1])
    statistics.add(vectors[vectors.any(axis=1)])
    return fit(statistics)


class Replay:
    """Base and adapter side by side over a log.

    Args:
        settings: event types, and what is a cold item.
        rows: row of an item by id.
        vectors: float32 [items, dimensions], the model's unit vectors by row, zeros where there is none.
        adapted: float32 [items, dimensions], those to begin with.
        choices: told what there is to learn.
        slates: what was shown, in order of time, beside the impressions of the log.
    """

    def __init__(
        self,
        settings: Settings,
        rows: Mapping[str, int],
        vectors: NDArray[np.float32],
        adapted: NDArray[np.float32],
        *,
        choices: Choices,
        slates: Sequence[SlateShown] = (),
    ) -> None:
        def row_of(item_id: str) -> int:
            return rows.get(item_id, -1)

        self._settings, self._row_of = settings, row_of
        self._ledger = Ledger(settings, row_of, len(vectors))
        self._shown = Shown(row_of, slates)
        self._choices = choices
        self._rankings = (Text(vectors), Adapted(adapted))
        self._ranks = (Ranks(len(vectors)), Ranks(len(vectors)))
        self._users, self._window = array("i"), array("i")
        self._items = len(vectors)
        self._events = 0

    def serve(self, adapted: NDArray[np.float32]) -> None:
        """From now on rank with these adapted vectors, float32 [items, dimensions]."""
        self._rankings[1].serve(adapted)

    def take(
        self,
        events: Sequence[Interaction],
        *,
        window: int,
        counted: Callable[[int, Interaction], bool],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Test the events, basket by basket, and tell what they say.

        Args:
            events: in order of time, whole baskets.
            window: number of the part.
            counted: told how many events came before and the first of a basket: whether it is a test.
            on_progress: told how many events are done, now and then.
        """
        done = self._events
        for basket in baskets(events):
            self._basket(basket, window, counted=counted(self._events, basket[0]))
            self._events += len(basket)
            if self._events - done >= _REPORT_EVERY:
                done = self._events
                on_progress(done)
        on_progress(self._events)

    def comparison(self) -> Comparison:
        """The tests so far."""
        base, adapted = self._ranks
        return Comparison(
            base=base.values,
            adapted=adapted.values,
            shown=(base.shown, adapted.shown),
            items=self._items,
            users=np.array(self._users, np.int32),
            cold=self._ledger.cold,
            window=np.array(self._window, np.int32),
            untested=dict(self._ledger.untested),
        )

    def _basket(self, basket: Sequence[Interaction], window: int, *, counted: bool) -> None:
        at = basket[0].occurred_at.timestamp()
        tests = self._ledger.tests(basket, at=at, counted=counted)
        if tests is not None:
            had = np.fromiter(tests.had, np.int32, len(tests.had))
            for ranking, ranks in zip(self._rankings, self._ranks, strict=True):
                ranks.add(*ranking.test(tests.user, at, had, tests.rows))
            self._users.extend([tests.user] * len(tests.rows))
            self._window.extend([window] * len(tests.rows))
        user, wanted = self._ledger.remember(basket)
        if len(wanted):
            told = Told(user, at, wanted)
            for ranking in self._rankings:
                ranking.learn(told)
            self._choices.add(user, self._taken(basket), self._shown.before(basket[0].user_id, at))
        for event in basket:
            self._shown.note(event)

    def _taken(self, basket: Sequence[Interaction]) -> list[Taken]:
        found = []
        for event in basket:
            if event.item_id is not None and self._ledger.wanted(event):
                kind = self._settings.event_types[event.type]
                found.append(Taken(self._row_of(event.item_id), task_of(kind), kind.weight))
        return found


def compare(
    settings: Settings,
    events: Sequence[Interaction],
    rows: Mapping[str, int],
    vectors: NDArray[np.float32],
    adapter: Adapter,
    *,
    counted: Callable[[int, Interaction], bool],
    on_progress: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """A finished adapter against its base, over a log that it does not learn from.

    Args:
        settings: event types, and what is a cold item.
        events: in order of time.
        rows: row of an item by id.
        vectors: float32 [items, dimensions], the model's unit vectors by row, zeros where there is none.
        adapter: of this model.
        counted: told how many events came before and the first of a basket: whether it is a test.
        on_progress: told how many events are done, now and then.
    """
    replay = Replay(settings, rows, vectors, adapter.apply(vectors), choices=Choices(len(vectors)))
    replay.take(events, window=0, counted=counted, on_progress=on_progress)
    return replay.comparison()


def wins(found: Mapping[str, Any]) -> bool:
    """Whether a report says that the adapter is the better of the two: NDCG@10 is, beyond chance, and new items are
    not found less often, beyond chance."""
    better = found["difference"]["ndcg@10"]
    cold = found["difference"]["cold hr@50"]
    return better is not None and better[1] > 0 and (cold is None or cold[2] >= 0)


def report(found: Comparison) -> dict[str, Any]:
    """The figures: ``tests``, ``base`` and ``adapted`` (as ``tailrace evaluate`` counts them), ``difference`` (value
    and 95 % interval over users), ``windows``, ``untested``."""
    both = {"base": (found.base, found.shown[0]), "adapted": (found.adapted, found.shown[1])}
    windows = []
    for number in np.unique(found.window).tolist():
        mine = found.window == number
        windows.append(
            {
                "window": number,
                "tests": int(mine.sum()),
                **{name: hit_rate(ranks[mine], _DEPTH).value for name, (ranks, _) in both.items()},
            }
        )

    def difference(of: Callable[[NDArray[np.float32]], NDArray[np.float64]], mine: NDArray[np.bool_]) -> Any:
        if not mine.any():
            return None
        estimate = paired(of(found.adapted[mine]) - of(found.base[mine]), found.users[mine])
        return [estimate.value, estimate.low, estimate.high]

    everything = np.ones(len(found.base), np.bool_)
    return {
        "tests": len(found.base),
        "cold_tests": int(found.cold.sum()),
        **{name: _figures(ranks, found.cold, shown, found.items) for name, (ranks, shown) in both.items()},
        "difference": {
            "hr@10": difference(lambda ranks: (ranks <= _DEPTH).astype(np.float64), everything),
            "ndcg@10": difference(lambda ranks: gains(ranks, _DEPTH), everything),
            "cold hr@50": difference(lambda ranks: (ranks <= _COLD_DEPTH).astype(np.float64), found.cold),
        },
        "windows": windows,
        "untested": dict(found.untested),
    }


def _figures(ranks: NDArray[np.float32], cold: NDArray[np.bool_], shown: int, items: int) -> dict[str, float | None]:
    return {
        "hr@10": hit_rate(ranks, _DEPTH).value,
        "ndcg@10": mean(gains(ranks, _DEPTH)).value,
        "hr@50": hit_rate(ranks, _COLD_DEPTH).value,
        "cold hr@10": hit_rate(ranks[cold], _DEPTH).value,
        "cold hr@50": hit_rate(ranks[cold], _COLD_DEPTH).value,
        "coverage@10": shown / items if items else None,
    }
