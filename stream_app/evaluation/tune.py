"""Settings that suit a log: random search with successive halving on its first part, judged on the rest.

Many settings are replayed over a short beginning of the part, the better half of them over twice as much, and so on;
the last ones over all of it (K. Jamieson and A. Talwalkar 2016, arXiv 1502.07943, on settings drawn at random as in
Bergstra and Bengio 2012). The defaults take part to the end. What is chosen is then replayed over the whole log, next
to the defaults, and compared on the tests after the part: nothing there had a say in the choice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from stream_app.evaluation.files import Log
from stream_app.evaluation.metrics import Ranks, gains, hit_rate, mean
from stream_app.evaluation.prequential import Options, Outcome, Prequential
from stream_app.evaluation.run import Encoded
from stream_app.settings import Settings

__all__ = ["SPACE", "Score", "Trial", "Tuned", "draw", "to_toml", "tune", "with_values"]

_RUNGS: Final = (0.25, 0.5, 1.0)
"""Shares of the part that are replayed, one after the other; between two of them the worse half drops out."""

_DEPTH: Final = 10

Draw = Callable[[np.random.Generator], Any]


def _log(low: float, high: float) -> Draw:
    return lambda rng: _round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _even(low: float, high: float) -> Draw:
    return lambda rng: _round(float(rng.uniform(low, high)))


def _one_of(*choices: Any) -> Draw:
    return lambda rng: choices[int(rng.integers(len(choices)))]


def _round(value: float) -> float:
    """Three digits: more would only pretend."""
    return float(f"{value:.3g}")


SPACE: Final[dict[str, Draw]] = {
    "ranker.learning_rate": _log(0.02, 0.5),
    "ranker.l2": _log(1e-6, 1e-2),
    "ranker.negatives": _one_of(20, 40, 80),
    "users.slow_decay": _even(0.9, 0.995),
    "users.fast_decay": _even(0.4, 0.9),
    "items.half_lives_days": _one_of((1.0, 7.0, 30.0), (0.5, 3.0, 14.0), (2.0, 14.0, 90.0), (7.0, 30.0, 180.0)),
    "items.transition_half_life_days": _log(10, 720),
    "items.symmetric_decay": _even(0.7, 0.98),
    "items.directed_decay": _even(0.4, 0.9),
    "retrieval.slow": _one_of(30, 60, 100),
    "retrieval.fast": _one_of(30, 60, 100),
    "retrieval.transitions": _one_of(60, 120, 200),
    "retrieval.recent_items": _one_of(15, 40, 80),
    "retrieval.trending": _one_of(20, 30, 60),
    "slate.diversity": _one_of(0.0, 0.02, 0.05, 0.1),
}
"""What is searched: a setting, and how a value of it is drawn. ``docs/evaluation.md`` has the same list."""


@dataclass(frozen=True, slots=True)
class Score:
    """NDCG@10 and HR@10, this with its 95 % interval, over some tests; None without tests."""

    tests: int
    ndcg: float | None
    hr: float | None
    low: float | None = None
    high: float | None = None

    def beats(self, other: Score) -> bool:
        """Whether it is better: NDCG@10 decides, then HR@10."""
        return (self.ndcg or 0.0, self.hr or 0.0) > (other.ndcg or 0.0, other.hr or 0.0)


@dataclass(slots=True)
class Trial:
    """Settings and what they gave, by the share of the part that was replayed. ``values`` is empty for the defaults."""

    values: dict[str, Any]
    scores: dict[float, Score] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The most of the part that was replayed."""
        return max(self.scores, default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a search found.

    Attributes:
        chosen: values by setting; empty when the defaults were the best.
        search: the chosen settings on the first part, or what of it was replayed.
        defaults_search: the defaults there.
        rest: the chosen settings on the tests after the part.
        defaults_rest: the defaults there.
        won: tests of the rest that the chosen settings have among the first ten and the defaults have not.
        lost: the other way round.
        trials: every trial, in the order they were drawn.
        stopped: the time was over before every trial had its turn.
        untested: events of the whole log that named an item and were no test of the rest, by why.
    """

    chosen: dict[str, Any]
    search: Score
    defaults_search: Score
    rest: Score
    defaults_rest: Score
    won: int
    lost: int
    trials: list[Trial]
    stopped: bool
    untested: Mapping[str, int] = field(default_factory=dict)

    @property
    def by_chance(self) -> bool:
        """Whether as many hits more or less are to be expected (1 in 20) of settings that are no better or worse.

        McNemar's test (1947, doi 10.1007/BF02295996): only tests on which the two differ say something.
        """
        return abs(self.won - self.lost) <= 1.96 * math.sqrt(self.won + self.lost)


class _TimeIsOver(Exception):
    """Ends a replay in the middle."""


def draw(rng: np.random.Generator) -> dict[str, Any]:
    """One set of values for :data:`SPACE`."""
    return {name: drawn(rng) for name, drawn in SPACE.items()}


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """``settings`` with other values for some (``group.name``)."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, _, own = name.partition(".")
        groups.setdefault(group, {})[own] = value
    return settings.model_copy(
        update={group: getattr(settings, group).model_copy(update=changes) for group, changes in groups.items()}
    )


def tune(
    log: Log,
    encoded: Encoded,
    settings: Settings,
    *,
    trials: int,
    share: float = 0.5,
    minutes: float | None = None,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> Tuned:
    """Search.

    Args:
        log: the data, in order of time.
        encoded: its texts (``stream_app.evaluation.run.encode_log``).
        settings: the defaults to start from and compare with.
        trials: sets of values that are drawn.
        share: of the interactions, from the first, that are searched on.
        minutes: the search ends after so long with the best so far; the comparison at the end is not in it.
        seed: of what is drawn.
        on_progress: told what is being done, how much of it is done, and of how much.
    """
    deadline = math.inf if minutes is None else time.monotonic() + 60.0 * minutes
    part = int(len(log.interactions) * share)
    rng = np.random.default_rng(seed)
    defaults = Trial({})
    everything = [defaults, *(Trial(draw(rng)) for _ in range(trials))]
    alive, stopped = list(everything), False
    work, done, challenging = 0, 0, trials
    for rung in _RUNGS:
        work += int(part * rung) * (1 + challenging)
        challenging = max(1, challenging // 2)

    def replay(trial: Trial, events: int, train_share: float, until: float, what: str, total: int) -> Outcome:
        def advance(now: int) -> None:
            if time.monotonic() > until:
                raise _TimeIsOver
            on_progress(what, done + now, total)

        replayed = Prequential(
            with_values(settings, trial.values),
            log.items,
            encoded.items,
            space=encoded.space,
            options=Options(train_share=train_share, seed=seed),
            texts=encoded.texts,
        )
        return replayed.run(log.interactions, events, on_progress=advance)

    try:
        for rung in _RUNGS:
            events = int(part * rung)
            for trial in alive:
                trial.scores[rung] = _score(replay(trial, events, 0.1, deadline, "search", work).slates)
                done += events
            challengers = sorted((t for t in alive if t is not defaults), key=_order, reverse=True)
            alive = [defaults, *challengers[: max(1, len(challengers) // 2)]]
    except _TimeIsOver:
        stopped = True
    # Only on the same events can anything be compared: on the most that the defaults and one more were replayed over.
    compared = max((trial.share for trial in everything if trial is not defaults), default=0.0)
    compared = min(compared, defaults.share)
    unknown = Score(0, None, None)
    best = defaults
    for trial in everything:
        if compared in trial.scores and trial.scores[compared].beats(best.scores[compared]):
            best = trial
    done, total = 0, 2 * len(log.interactions)
    outcome = replay(defaults, len(log.interactions), share, math.inf, "comparison", total)
    done += len(log.interactions)
    chosen = outcome if best is defaults else replay(best, len(log.interactions), share, math.inf, "comparison", total)
    on_progress("comparison", total, total)
    hits, defaults_hits = (one.slates.values <= _DEPTH for one in (chosen, outcome))
    return Tuned(
        chosen=dict(best.values),
        search=best.scores.get(compared, unknown),
        defaults_search=defaults.scores.get(compared, unknown),
        rest=_score(chosen.slates),
        defaults_rest=_score(outcome.slates),
        won=int(np.count_nonzero(hits & ~defaults_hits)),
        lost=int(np.count_nonzero(defaults_hits & ~hits)),
        trials=everything,
        stopped=stopped,
        untested=outcome.untested,
    )


def _order(trial: Trial) -> tuple[float, float]:
    score = trial.scores[trial.share]
    return score.ndcg or 0.0, score.hr or 0.0


def _score(slates: Ranks) -> Score:
    ranks = slates.values
    hits = hit_rate(ranks, _DEPTH)
    return Score(len(ranks), mean(gains(ranks, _DEPTH)).value, hits.value, hits.low, hits.high)


def to_toml(values: Mapping[str, Any], *, comments: Sequence[str] = ()) -> str:
    """Settings (``group.name``) as a file that ``TAILRACE_CONFIG`` takes."""
    lines = [f"# {comment}" for comment in comments]
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        group, _, own = name.partition(".")
        shown = f"[{', '.join(map(repr, value))}]" if isinstance(value, tuple) else repr(value)
        groups.setdefault(group, []).append(f"{own} = {shown}")
    for group, settings in groups.items():
        lines += ["", f"[{group}]", *settings]
    return "\n".join(lines) + "\n"
