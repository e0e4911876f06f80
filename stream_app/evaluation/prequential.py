"""Prequential replay: every event is first predicted, then learned, through the functions that run live.

Interactions come in order of time. Consecutive events of one user with the same time are a basket. Before anything
of a basket is learned, the user is ranked; every item of it that the user has not consumed yet is one test, ranked
against everything except the other items of the basket. Then the basket goes through the user stage, the item
stage and the ranker, and what those publish reaches the serving state: after every basket, or every
``publish_every`` events to imitate the lag of a real deployment.

The first share of the events only trains; users without any earlier event are not tested. (Protocol: Gama,
Sebastião and Rodrigues 2013, doi 10.1007/s10994-012-5320-9; for recommenders Vinagre, Jorge and Gama 2014.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import pack_float32
from schemas.messages import Interaction, Item, ItemVector, TrainingExamples, Transitions
from stream_app.evaluation.metrics import Scores, Tally
from stream_app.items.statistics import ItemStatistics
from stream_app.ranking.recommender import RankRequest, Recommender
from stream_app.ranking.softmax import SoftmaxRanker
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.users.stage import SourcedEvent, UserStage
from stream_app.users.state import UserState

__all__ = ["Options", "Prequential", "Report"]

_TOPIC = "interactions"
_PARTITION = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to replay.

    Attributes:
        train_share: share of the events, from the first, that only train.
        publish_every: events between two publications of statistics and weights; 1: after every basket.
        depth: length of the tested slate.
        sources: whether every source is also tested on its own.
    """

    train_share: float = 0.1
    publish_every: int = 1
    depth: int = 50
    sources: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a replay found: scores of the slates, and of each source alone (at most as deep as it proposes)."""

    events: int
    items: int
    slates: Scores
    sources: dict[str, Scores] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


class Prequential:
    """One replay over a catalogue.

    Args:
        settings: of the process that would run live.
        items: the catalogue; all of it is there from the start.
        vectors: unit vectors by item id, float32; an item without one is served without its text.
        space: the vectors' space.
        options: how to replay.
    """

    def __init__(
        self,
        settings: Settings,
        items: Sequence[Item],
        vectors: Mapping[str, NDArray[np.float32]],
        *,
        space: str,
        options: Options,
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
        self.recommender = Recommender(settings, self.serving)
        self._stage = UserStage(settings, self.serving, self.recommender)
        self._statistics = ItemStatistics(0, 1, settings.items)
        self._ranker = SoftmaxRanker(self.recommender.feature_names, settings.ranker)
        self._states: dict[str, UserState] = {}
        self._seen: Counter[str] = Counter()
        self._slates = Tally()
        self._sources = {source.name: Tally() for source in self.recommender.sources} if options.sources else {}
        self._offset = 0
        self._unpublished = 0

    def run(
        self, interactions: Iterable[Interaction], count: int, *, on_progress: Callable[[int], None] = lambda _: None
    ) -> Report:
        """Replay ``count`` interactions, which are in order of time.

        Args:
            on_progress: told how many events are done, after every basket.
        """
        tested_from = int(count * self.options.train_share)
        for basket in _baskets(islice(interactions, count)):
            if self._offset >= tested_from:
                self._test(basket)
            self._learn(basket)
            on_progress(self._offset)
        return self.report()

    def report(self) -> Report:
        """Scores so far."""
        size = len(self.serving.catalogue)
        weights = zip(self._ranker.names, self._ranker.weights.tolist(), strict=True)
        return Report(
            events=self._offset,
            items=size,
            slates=self._slates.scores(size),
            sources={name: tally.scores(size) for name, tally in self._sources.items()},
            weights={name: round(weight, 4) for name, weight in weights},
        )

    def _test(self, basket: Sequence[Interaction]) -> None:
        state = self._states.get(basket[0].user_id)
        if state is None or not state.events:
            return
        catalogue = self.serving.catalogue
        tested: dict[int, str] = {}
        for event in basket:
            row = catalogue.row(event.item_id or "")
            if row >= 0 and event.item_id and not state.excludes(int(catalogue.id_hash[row])):
                tested[row] = event.item_id
        if not tested:
            return
        at = basket[0].occurred_at.timestamp()
        request = RankRequest(user=state, at=at, now=at, n=self.options.depth)
        self._count(self._slates, self.recommender.rank([request])[0].rows.tolist(), tested)
        if self._sources:
            for name, rows in self.recommender.propose(request).items():
                self._count(self._sources[name], rows[: self.options.depth].tolist(), tested)

    def _count(self, tally: Tally, slate: list[int], tested: Mapping[int, str]) -> None:
        tally.show(slate)
        place = {row: index for index, row in enumerate(slate)}
        others = sorted(place[row] for row in tested if row in place)
        threshold = self.settings.retrieval.cold_events
        for row, item_id in tested.items():
            index = place.get(row)
            # The other items of the basket that stand before this one do not count against it.
            rank = None if index is None else index + 1 - sum(other < index for other in others)
            tally.add(rank, cold=self._seen[item_id] < threshold)

    def _learn(self, basket: Sequence[Interaction]) -> None:
        events = [SourcedEvent(event, _PARTITION, offset) for offset, event in enumerate(basket, start=self._offset)]
        user_id = basket[0].user_id
        states = {user_id: self._states.get(user_id) or UserState(user_id)}
        result = self._stage.process(events, states, now=basket[0].occurred_at.timestamp())
        self._states.update(result.states)
        for transitions in result.transitions.values():
            self._statistics.apply(
                Transitions(source_topic=_TOPIC, source_partition=_PARTITION, rows=transitions), offset=self._offset
            )
        for examples in result.examples.values():
            self._ranker.learn(
                TrainingExamples(
                    source_topic=_TOPIC,
                    source_partition=_PARTITION,
                    feature_names=list(self.recommender.feature_names),
                    examples=examples,
                )
            )
        self._seen.update(event.item_id for event in basket if event.item_id)
        self._offset += len(basket)
        self._unpublished += len(basket)
        if self._unpublished >= self.options.publish_every:
            self._publish()

    def _publish(self) -> None:
        for item_id, signals in self._statistics.take(self._statistics.waiting):
            self.serving.apply_signals(item_id, signals)
        self._statistics.taken_are_durable()
        self.serving.apply_weights(self._ranker.weights_message())
        self._unpublished = 0


def _baskets(interactions: Iterable[Interaction]) -> Iterator[list[Interaction]]:
    """Consecutive interactions of one user at one time."""
    basket: list[Interaction] = []
    for event in interactions:
        if basket and (event.user_id, event.occurred_at) != (basket[0].user_id, basket[0].occurred_at):
            yield basket
            basket = []
        basket.append(event)
    if basket:
        yield basket
