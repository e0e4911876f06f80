"""The user-keyed stage as one pure function: a batch of events in, new states, slates, transitions, examples out.

It runs in the interactions agent, in evaluation and in the benchmarks. Time and everything it reads are
arguments; what it keeps between batches (the last candidates of recent users) only saves work.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import pack_float32
from schemas.messages import Interaction, SlateItem, TrainingExample, Transition
from stream_app.ranking.recommender import Choice, RankRequest, Recommender
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.users.fold import Folder
from stream_app.users.state import UserState

__all__ = ["NewSlate", "SourcedEvent", "StageResult", "UserStage"]


@dataclass(frozen=True, slots=True)
class SourcedEvent:
    """A valid interaction and where it was in ``interactions.v1``; ``appended_s`` is the broker's append time."""

    event: Interaction
    partition: int
    offset: int
    appended_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NewSlate:
    """A fresh slate and the event that caused it (None: an item change did)."""

    user_id: str
    items: list[SlateItem]
    trigger: SourcedEvent | None


@dataclass(slots=True)
class StageResult:
    """What a batch of events amounts to.

    Attributes:
        states: the new state of every user the batch moved.
        partitions: the partition that moved it.
        slates: one per user that needs a fresh one, in order of the users' last events.
        transitions: by source partition, in order of offsets.
        examples: by source partition, in order of offsets.
        skipped: how many events had no effect, by why.
    """

    states: dict[str, UserState] = field(default_factory=dict)
    partitions: dict[str, int] = field(default_factory=dict)
    slates: list[NewSlate] = field(default_factory=list)
    transitions: dict[int, list[Transition]] = field(default_factory=lambda: defaultdict(list))
    examples: dict[int, list[TrainingExample]] = field(default_factory=lambda: defaultdict(list))
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Seen:
    """Candidates of a user's last rankings: ``rows`` of one that knew the history up to event time ``known_to``
    (a visit adds nothing to it), and ``before_rows`` of the last one that knew less."""

    known_to: float
    rows: NDArray[np.int32]
    before_rows: NDArray[np.int32] | None


class UserStage:
    """Folds events, ranks users, and notes what the ranker may learn.

    Args:
        settings: of this process.
        serving: the catalogue, index, statistics and weights to rank with.
        recommender: ranks over ``serving``.
    """

    def __init__(self, settings: Settings, serving: ServingState, recommender: Recommender) -> None:
        self._settings = settings
        self._serving = serving
        self._recommender = recommender
        self._fold = Folder(settings.event_types, settings.users, settings.items)
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def forget(self) -> None:
        """Drop the candidates of all users."""
        self._seen.clear()

    def process(
        self,
        events: Sequence[SourcedEvent],
        states: Mapping[str, UserState],
        *,
        now: float,
        text_vectors: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> StageResult:
        """Process ``events`` in order.

        Args:
            events: of any users; the events of one user in the order of their offsets.
            states: the state of each of those users before the batch; not changed.
            now: wall clock, seconds since 1970; decides expiry and publication of items.
            text_vectors: embeddings of free texts in the events and histories, by text.
        """
        texts = text_vectors or {}
        result = StageResult()
        refreshed: dict[str, SourcedEvent] = {}
        choices: list[tuple[SourcedEvent, Choice]] = []
        for sourced in events:
            event = sourced.event
            user_id = event.user_id
            state = result.states.get(user_id)
            if state is None:
                state = states[user_id].copy()
            history = state.history
            fold = self._fold(state, event, partition=sourced.partition, offset=sourced.offset)
            if fold.outcome != "applied":
                result.skipped[fold.outcome] = result.skipped.get(fold.outcome, 0) + 1
                if fold.outcome == "replayed":
                    continue
            result.states[user_id] = state
            result.partitions[user_id] = sourced.partition
            if fold.transition is not None:
                result.transitions[sourced.partition].append(fold.transition)
            if fold.teaches:
                # What was excluded is taken as of the batch: a copy per event would cost more than it teaches.
                known = UserState(user_id, history, states[user_id].consumed, states[user_id].hidden)
                choice = self._choice(sourced, known, now, texts)
                if choice is not None:
                    choices.append((sourced, choice))
            if fold.refreshes:
                refreshed.pop(user_id, None)
                refreshed[user_id] = sourced
        # Learning first: the candidates of the last slates are those from before these events.
        self._note_examples(choices, result)
        self._refresh(refreshed, result, now, texts)
        return result

    def rerank(
        self,
        states: Mapping[str, UserState],
        *,
        now: float,
        text_vectors: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> list[NewSlate]:
        """Fresh slates without an event: an item that was in them is gone. Ranked at each user's last event time."""
        requests = [
            self._request(state, state.history[-1].at if state.history else now, now, text_vectors or {})
            for state in states.values()
        ]
        rankings = self._recommender.rank(requests)
        return [
            NewSlate(user_id, self._recommender.slate_items(ranking), None)
            for user_id, ranking in zip(states, rankings, strict=True)
        ]

    def _request(
        self,
        state: UserState,
        at: float,
        now: float,
        texts: Mapping[str, NDArray[np.float32]],
        before: float | None = None,
    ) -> RankRequest:
        return RankRequest(user=state, at=at, now=now, n=self._settings.slate.size, before=before, extra_vectors=texts)

    def _refresh(
        self,
        refreshed: Mapping[str, SourcedEvent],
        result: StageResult,
        now: float,
        texts: Mapping[str, NDArray[np.float32]],
    ) -> None:
        if not refreshed:
            return
        requests = [
            self._request(result.states[user_id], sourced.event.occurred_at.timestamp(), now, texts)
            for user_id, sourced in refreshed.items()
        ]
        for (user_id, sourced), request, ranking in zip(
            refreshed.items(), requests, self._recommender.rank(requests), strict=True
        ):
            result.slates.append(NewSlate(user_id, self._recommender.slate_items(ranking), sourced))
            self._remember(request.user, ranking.candidates)

    def _remember(self, state: UserState, rows: NDArray[np.int32]) -> None:
        user_id = state.user_id
        known_to = max((entry.at for entry in state.history), default=-math.inf)
        seen = self._seen.get(user_id)
        if seen is None:
            self._seen[user_id] = _Seen(known_to, rows, None)
        elif seen.known_to == known_to:
            seen.rows = rows
        else:
            self._seen[user_id] = _Seen(known_to, rows, seen.rows)
        self._seen.move_to_end(user_id)
        while len(self._seen) > self._settings.users.cache:
            self._seen.popitem(last=False)

    def _candidates(self, user_id: str, at: float) -> NDArray[np.int32] | None:
        """The candidates of the user's last ranking that knew nothing of the basket at ``at``."""
        seen = self._seen.get(user_id)
        if seen is None:
            return None
        return seen.rows if seen.known_to < at else seen.before_rows

    def _choice(
        self,
        sourced: SourcedEvent,
        known: UserState,
        now: float,
        texts: Mapping[str, NDArray[np.float32]],
    ) -> Choice | None:
        """What the event teaches; None when the catalogue does not know the item."""
        event = sourced.event
        row = self._serving.catalogue.row(event.item_id or "")
        if row < 0:
            return None
        at = event.occurred_at.timestamp()
        return Choice(
            request=self._request(known, at, now, texts, before=at),
            row=row,
            seed=sourced.offset,
            candidates=self._candidates(event.user_id, at),
        )

    def _note_examples(self, choices: Sequence[tuple[SourcedEvent, Choice]], result: StageResult) -> None:
        found = self._recommender.examples([choice for _, choice in choices])
        for (sourced, choice), features in zip(choices, found, strict=True):
            # A choice with nothing to learn from is sent as well: that every choice is counted exactly once can
            # then be checked, whatever the candidates happened to be.
            result.examples[sourced.partition].append(
                TrainingExample(
                    offset=sourced.offset,
                    at=choice.request.at,
                    weight=1.0,
                    rows=0 if features is None else len(features),
                    features="" if features is None else pack_float32(features),
                )
            )
