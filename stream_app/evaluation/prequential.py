"""Prequential replay: every event is first predicted, then learned, through the functions that run live.

Interactions come in order of time. Consecutive events of one user with the same time are a basket. A visit announces
it, as live, and says only that the user is there now. Before anything of a basket is learned, the user is ranked; every
item of it that is new to the user is one test, ranked against everything except the other items of the basket and what
the user had before. Then the basket goes through the user stage, the item stage and the ranker, and what those publish
reaches the serving state: after every basket, or every ``publish_every`` events to imitate the lag of a real
deployment.

The first share of the events only trains; users without any earlier event are not tested; neither are events that say
the user did not want the item. (Protocol: Gama, Sebastião and Rodrigues 2013, doi 10.1007/s10994-012-5320-9; for
recommenders Vinagre, Jorge and Gama 2014.)

Leave-one-out, the protocol of published tables, is the same replay without the last new item of each user and what
that user did afterwards; those items are tested at the end, one per user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import pack_float32
from schemas.messages import Interaction, Item, ItemVector, TrainingExamples, Transitions
from stream_app.evaluation.baselines import Baseline, Told
from stream_app.evaluation.ledger import MAX_DEPTH, Ledger
from stream_app.evaluation.metrics import Ranks, RanksBySource
from stream_app.factors.basis import fit_basis
from stream_app.factors.learner import FactorLearner
from stream_app.items.statistics import ItemStatistics
from stream_app.ranking.recommender import RankRequest, Recommender
from stream_app.ranking.softmax import SoftmaxRanker
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.users.stage import SourcedEvent, UserStage
from stream_app.users.state import UserState

__all__ = ["SLATES", "Options", "Outcome", "Prequential", "Protocol", "baskets", "leave_one_out"]

Protocol = Literal["streaming", "leave-one-out"]

SLATES: Final = "slates"
"""Name of what is published, among the rankings of an outcome."""

_TOPIC = "interactions"
_PARTITION = 0
_REPORT_EVERY = 100
_VISIT = "visit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to replay.

    Attributes:
        train_share: share of the events, from the first, that only train.
        publish_every: events between two publications of statistics and weights; 1: after every basket.
        sources: whether every source is also tested on its own.
        seed: of baselines that draw random numbers.
    """

    train_share: float = 0.1
    publish_every: int = 1
    sources: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Every test of a replay, in the order they came.

    Attributes:
        events: how many were replayed.
        items: size of the catalogue.
        maturity: int32 [tests], earlier events of the user.
        at: float64 [tests], event time (seconds since 1970).
        cold: bool [tests], the item had fewer earlier events than ``retrieval.cold_events``.
        slates: ranks in what is published.
        sources: ranks in what each source proposes, which may be shorter than the slate.
        baselines: ranks in the catalogue as each baseline orders it.
        weights: of the ranker at the end, by feature.
        untested: events that named an item and were no test, by why.
    """

    events: int
    items: int
    maturity: NDArray[np.int32]
    at: NDArray[np.float64]
    cold: NDArray[np.bool_]
    slates: Ranks
    sources: Mapping[str, Ranks] = field(default_factory=dict)
    baselines: Mapping[str, Ranks] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    untested: Mapping[str, int] = field(default_factory=dict)


class Prequential:
    """One replay over a catalogue.

    Args:
        settings: of the process that would run live.
        items: the catalogue; all of it is there from the start.
        vectors: unit vectors by item id, float32; an item without one is served without its text.
        space: the vectors' space.
        options: how to replay.
        texts: vectors of what events say, by text as ``Textifier.said`` gives it, of the same space; what has
            none counts like an event without words.
        started: vectors by item id that learned factors start from, when an adapter's are served: the model's. None:
            those served.
        baselines: simple methods that are told the same and tested on the same; made for this catalogue, its rows
            in the order of ``items``.
    """

    def __init__(
        self,
        settings: Settings,
        items: Sequence[Item],
        vectors: Mapping[str, NDArray[np.float32]],
        *,
        space: str,
        options: Options,
        baselines: Sequence[Baseline] = (),
        texts: Mapping[str, NDArray[np.float32]] | None = None,
        started: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self.settings = settings
        self.options = options
        dimensions = len(next(iter(vectors.values()))) if vectors else 1
        self.serving = ServingState(settings, space=space, dimensions=dimensions)
        for item in items:
            self.serving.apply_item(item.item_id, item)
        for item_id, vector in vectors.items():
            self.serving.apply_vector(
                item_id,
                ItemVector(
                    item_id=item_id, space=space, text_hash="", dimensions=dimensions, vector=pack_float32(vector)
                ),
            )
        if self.serving.space_due():
            self.serving.apply_space(self.serving.fit_space()())
            self.serving.advance_space(wait=True)
        # The space stays what it is now, so what is said is brought into it once.
        self._texts = texts or {}
        self._said = self.serving.to_space(self._texts)
        self.recommender = Recommender(settings, self.serving)
        self._stage = UserStage(settings, self.serving, self.recommender)
        self._statistics = ItemStatistics(0, 1, settings.items)
        self._ranker = SoftmaxRanker(self.recommender.feature_names, settings.ranker)
        self._learner = self._factor_learner(items, vectors if started is None else started, space)
        self._states: dict[str, UserState] = {}
        self._size = len(items)
        rows = self.serving.catalogue.rows
        self._baselines = {baseline.name: baseline for baseline in baselines}
        self._ledger = Ledger(settings, self.serving.catalogue.row, rows)
        self._had = np.zeros(rows, np.bool_)
        names = [source.name for source in self.recommender.sources] if options.sources else []
        self._of_source = RanksBySource(names, rows)
        self._of_baseline = {name: Ranks(rows) for name in self._baselines}
        self._offset = 0
        self._unpublished = 0

    def _factor_learner(
        self, items: Sequence[Item], vectors: Mapping[str, NDArray[np.float32]], space: str
    ) -> FactorLearner:
        """A learner whose items start from their texts, and the serving state with them."""
        settings, factors = self.settings.factors, self.serving.factors
        ids = [item.item_id for item in items if item.item_id in vectors]
        table = np.stack([vectors[item_id] for item_id in ids]) if ids else np.zeros((0, 1), np.float32)
        factors.basis = fit_basis(table, space=space, factors=settings.dimensions, length=settings.start_length)
        learner = FactorLearner(settings, factors.basis)
        for item in items:
            learner.put(item.item_id, vectors.get(item.item_id))
        factors.start(np.array([self.serving.catalogue.row(item_id) for item_id in ids], np.int32), table)
        known = learner.arrays(np.arange(len(learner)))[0]
        self._factor_rows = np.array([self.serving.catalogue.row(item_id) for item_id in known], np.int32)
        # With something published after every basket, what is learned and what is ranked with are the same.
        self._shared_factors = self.options.publish_every <= 1 and learner.share_with(factors, self._factor_rows)
        return learner

    def run(
        self, interactions: Iterable[Interaction], count: int, *, on_progress: Callable[[int], None] = lambda _: None
    ) -> Outcome:
        """Replay ``count`` interactions, which are in order of time: test, then learn.

        Args:
            on_progress: told how many events are done, now and then.
        """
        tested_from = int(count * self.options.train_share)
        reported = 0
        for basket in baskets(islice(interactions, count)):
            self._visit(basket[0])
            self._test(basket, counted=self._offset >= tested_from)
            self._learn(basket)
            self._remember(basket)
            if self._offset - reported >= _REPORT_EVERY:
                reported = self._offset
                on_progress(reported)
        on_progress(self._offset)
        return self.outcome()

    def run_leave_one_out(
        self, interactions: Sequence[Interaction], *, on_progress: Callable[[int], None] = lambda _: None
    ) -> Outcome:
        """Learn from everything but each user's last new item, then test that, at the time the log ends.

        Args:
            interactions: in order of time.
            on_progress: told how many events are done, now and then.
        """
        learned, held = leave_one_out(interactions, wanted=self._ledger.wanted)
        reported = 0
        for basket in baskets(learned):
            self._learn(basket)
            self._remember(basket)
            if self._offset - reported >= _REPORT_EVERY:
                reported = self._offset
                on_progress(reported)
        end = interactions[-1].occurred_at.timestamp() if interactions else 0.0
        for number, event in enumerate(held):
            self._test([event], at=end)
            if number % _REPORT_EVERY == 0:
                on_progress(self._offset + number)
        on_progress(len(interactions))
        return self.outcome()

    def outcome(self) -> Outcome:
        """The tests so far."""
        weights = zip(self._ranker.names, self._ranker.weights.tolist(), strict=True)
        return Outcome(
            events=self._offset,
            items=self._size,
            maturity=self._ledger.maturity,
            at=self._ledger.at,
            cold=self._ledger.cold,
            slates=self._ledger.slates,
            sources=self._of_source.by_name,
            baselines=self._of_baseline,
            weights={name: round(weight, 4) for name, weight in weights},
            untested=dict(self._ledger.untested),
        )

    def state(self, user_id: str) -> UserState:
        """The user's state so far; an empty one of somebody unknown."""
        return self._states.get(user_id) or UserState(user_id)

    def _visit(self, first: Interaction) -> None:
        """The user of a basket comes, as live (decision 0007): what folding a visit does is count one event more, and
        this is that alone, without a copy of the state."""
        if _VISIT in self.settings.event_types:
            self._states.setdefault(first.user_id, UserState(first.user_id)).events += 1

    def _of(self, state: UserState) -> Mapping[str, NDArray[np.float32]]:
        """The vectors of what the user said; as live, of the whole history. Those of the basket say nothing of it."""
        if not self._texts:
            return self._texts
        said = {entry.text for entry in state.history if entry.text}
        return {text: self._texts[text] for text in said if text in self._texts}

    def _test(self, basket: Sequence[Interaction], *, counted: bool = True, at: float | None = None) -> None:
        """Rank the user of the basket, and count its new items as tests."""
        at = basket[0].occurred_at.timestamp() if at is None else at
        tests = self._ledger.tests(basket, at=at, counted=counted)
        if tests is None:
            return
        state = self._states[basket[0].user_id]
        request = RankRequest(user=state, at=at, now=at, n=tests.depth, extra_vectors=self._said)
        ranking = self.recommender.rank([request])[0]
        # As live, where a visit comes before the basket: what is taken is taken from this ranking.
        self._stage.ranked(request, ranking)
        had = np.fromiter(tests.had, np.int32, len(tests.had))
        self._had[had] = True
        self._ledger.slates.add_slate(ranking.rows, tests.rows, self._had)
        if self._of_source.by_name:
            lengths = np.minimum(ranking.lengths, MAX_DEPTH)
            self._of_source.add(ranking.found, lengths, tests.rows, self._had)
        self._had[had] = False
        for name, baseline in self._baselines.items():
            self._of_baseline[name].add(*baseline.test(tests.user, at, had, tests.rows))

    def _remember(self, basket: Sequence[Interaction]) -> None:
        """Note what the user had, and tell the baselines what the user wanted."""
        user, wanted = self._ledger.remember(basket)
        if len(wanted):
            told = Told(user, basket[0].occurred_at.timestamp(), wanted)
            for baseline in self._baselines.values():
                baseline.learn(told)

    def _learn(self, basket: Sequence[Interaction]) -> None:
        events = [SourcedEvent(event, _PARTITION, offset) for offset, event in enumerate(basket, start=self._offset)]
        user_id, now = basket[0].user_id, basket[0].occurred_at.timestamp()
        state = self._states.get(user_id) or UserState(user_id)
        texts = self._of(state)
        result = self._stage.process(events, {user_id: state}, now=now, text_vectors=texts, refresh=False)
        self._states.update(result.states)
        for transitions in result.transitions.values():
            self._statistics.apply(
                Transitions(source_topic=_TOPIC, source_partition=_PARTITION, rows=transitions), offset=self._offset
            )
        for examples in result.examples.values():
            self._learner.learn(examples, partition=_PARTITION, offset=self._offset)
            self._ranker.learn(
                TrainingExamples(
                    source_topic=_TOPIC,
                    source_partition=_PARTITION,
                    feature_names=list(self.recommender.feature_names),
                    examples=examples,
                )
            )
        self._offset += len(basket)
        self._unpublished += len(basket)
        if self._unpublished >= self.options.publish_every:
            self._publish()

    def _publish(self) -> None:
        self.serving.apply_statistics(self._statistics)
        changed = self._learner.take_rows(len(self._learner))
        if self._shared_factors:
            self.serving.factors.changed(changed)
        else:
            self._learner.copy_to(self.serving.factors, self._factor_rows, changed)
        self.serving.ranker.follow(self._ranker)
        self._unpublished = 0


def baskets(interactions: Iterable[Interaction]) -> Iterator[list[Interaction]]:
    """Consecutive interactions of one user at one time."""
    basket: list[Interaction] = []
    for event in interactions:
        if basket and (event.user_id, event.occurred_at) != (basket[0].user_id, basket[0].occurred_at):
            yield basket
            basket = []
        basket.append(event)
    if basket:
        yield basket


def leave_one_out(
    interactions: Sequence[Interaction], *, wanted: Callable[[Interaction], bool]
) -> tuple[list[Interaction], list[Interaction]]:
    """The events to learn from, and the last of each user to be tested.

    The tested event is the user's last with an item that is new to the user and wanted; what the user did after it
    (with items that were not new) is left out, because it may name the tested item. Users with nothing before it are
    learned from whole.

    Args:
        interactions: in order of time.
        wanted: whether an event can be a test.
    """
    seen: set[tuple[str, str | None]] = set()
    first: dict[str, int] = {}
    held: dict[str, int] = {}
    for place, event in enumerate(interactions):
        pair = (event.user_id, event.item_id)
        if event.item_id is not None and pair not in seen:
            seen.add(pair)
            if event.user_id in first and wanted(event):
                held[event.user_id] = place
        first.setdefault(event.user_id, place)
    cut = len(interactions)
    learned = [event for place, event in enumerate(interactions) if place < held.get(event.user_id, cut)]
    return learned, [interactions[place] for place in sorted(held.values())]
