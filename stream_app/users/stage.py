"""The user-keyed stage as one pure function: a batch of events in, new states, slates, transitions, examples out.

It runs in the interactions agent, in evaluation and in the benchmarks. Time and everything it reads are
arguments; what it keeps between batches (the last candidates of recent users) only saves work.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import pack_float32
from schemas.messages import Interaction, SlateItem, TrainingExample, Transition, Versions
from stream_app.ranking.recommender import Choice, Ranking, RankRequest, Recommender, SeenRanking
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.textify import Textifier
from stream_app.users.fold import Fold, Folder
from stream_app.users.profiles import LIKED, fold_profile, with_profile
from stream_app.users.state import Latest, Profile, UserState, event_seed, id_hash

__all__ = ["NewSlate", "SourcedEvent", "SourcedProfile", "StageResult", "UserStage"]

_AT = attrgetter("at")


@dataclass(slots=True)
class SourcedEvent:
    """A valid interaction and where it was in ``interactions.v1``; ``appended_s`` is the broker's append time.

    Not to be changed (it is not frozen because making it would take three times as long).
    """

    event: Interaction
    partition: int
    offset: int
    appended_s: float = 0.0

    @property
    def user_id(self) -> str:
        """Whose it is."""
        return self.event.user_id

    @property
    def slate_id(self) -> str:
        """Id of the slate it causes."""
        return f"{self.partition}-{self.offset}"


@dataclass(frozen=True, slots=True)
class SourcedProfile:
    """A valid profile (None: forget the user) and where it was in ``users.v1``; ``appended_s`` is the broker's append
    time."""

    user_id: str
    profile: Profile | None
    partition: int
    offset: int
    appended_s: float = 0.0

    @property
    def slate_id(self) -> str:
        """Id of the slate it causes."""
        return f"users-{self.partition}-{self.offset}"


@dataclass(frozen=True, slots=True)
class NewSlate:
    """A fresh slate.

    Attributes:
        trigger: the event or profile that caused it (None: an item change did).
        interest: float32 [dimensions], the user's slow interest vector it was made with; zeros where nothing is known.
        seen: what of the ranking is kept to learn from what the user takes next.
        known_to: event time of the newest event it knows (-inf: none).
        versions: what it was made by; what is served may be another by the time it is published.
    """

    user_id: str
    items: list[SlateItem]
    trigger: SourcedEvent | SourcedProfile | None
    interest: NDArray[np.float32] | None = None
    seen: SeenRanking | None = None
    known_to: float = -math.inf
    versions: Versions | None = None


@dataclass(slots=True)
class StageResult:
    """What a batch of events amounts to.

    Attributes:
        states: the new state of every user the batch moved.
        partitions: the partition that moved it.
        slates: one per user that needs a fresh one, in order of the users' last events.
        due: who needs one for events before those that follow, and why, in the same order.
        forgotten: users who have no slate any more.
        transitions: by source partition, in order of offsets.
        examples: by source partition, in order of offsets.
        skipped: how many events had no effect, by why.
        shed: events too many of their users that have a dead letter, each with how many were shed without one before.
    """

    states: dict[str, UserState] = field(default_factory=dict)
    partitions: dict[str, int] = field(default_factory=dict)
    slates: list[NewSlate] = field(default_factory=list)
    due: dict[str, SourcedEvent | SourcedProfile] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    transitions: dict[int, list[Transition]] = field(default_factory=lambda: defaultdict(list))
    examples: dict[int, list[TrainingExample]] = field(default_factory=lambda: defaultdict(list))
    skipped: dict[str, int] = field(default_factory=dict)
    shed: list[tuple[SourcedEvent, int]] = field(default_factory=list)

    def add(self, later: StageResult) -> None:
        """What the events that follow amount to, computed on the states of these."""
        self.states.update(later.states)
        self.partitions.update(later.partitions)
        self.slates += later.slates
        self.due.update(later.due)
        self.forgotten += later.forgotten
        for source, transitions in later.transitions.items():
            self.transitions[source] += transitions
        for source, examples in later.examples.items():
            self.examples[source] += examples
        for why, count in later.skipped.items():
            self.skipped[why] = self.skipped.get(why, 0) + count
        self.shed += later.shed


@dataclass(slots=True)
class _Seen:
    """A user's last rankings: ``last`` knew the history up to event time ``known_to`` (a visit adds nothing to it),
    ``before`` is the last one that knew less. ``slate_id`` is what ``last`` was published as."""

    known_to: float
    last: SeenRanking
    before: SeenRanking | None
    slate_id: str


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
        self._fold = Folder(settings.event_types, settings.users, settings.items, Textifier.of(settings.textify))
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._whole: OrderedDict[str, None] = OrderedDict()

    def forget(self) -> None:
        """Drop the candidates of all users."""
        self._seen.clear()
        self._whole.clear()

    def process(
        self,
        events: Sequence[SourcedEvent],
        states: Mapping[str, UserState],
        *,
        now: float,
        text_vectors: Mapping[str, NDArray[np.float32]] | None = None,
        refresh: bool = True,
        due: Mapping[str, SourcedEvent | SourcedProfile] | None = None,
        later: Container[str] = (),
    ) -> StageResult:
        """Process ``events`` in order.

        Args:
            events: of any users; the events of one user in the order of their offsets.
            states: the state of each of those users before the batch; not changed.
            now: wall clock, seconds since 1970; decides expiry and publication of items.
            text_vectors: embeddings of free texts in the events and histories, by text, as the model made them.
            refresh: whether users get fresh slates; not where each is ranked before the next event anyway.
            due: users of these events who are owed a slate for events before them, and what caused it.
            later: users of whom more events follow: their slates are left out, and ``due``.
        """
        texts = self._serving.to_space(text_vectors or {})
        result = StageResult()
        refreshed = dict(due or {})
        choices: list[tuple[SourcedEvent, Choice]] = []
        requests: dict[tuple[str, float], RankRequest] = {}
        for sourced in events:
            event = sourced.event
            user_id = event.user_id
            state = result.states.get(user_id)
            if state is None:
                state = states[user_id].copy()
            history, latest_of = state.history, state.latest_of
            fold = self._fold(
                state, event, partition=sourced.partition, offset=sourced.offset, appended_s=sourced.appended_s
            )
            if fold.outcome != "applied":
                result.skipped[fold.outcome] = result.skipped.get(fold.outcome, 0) + 1
                if fold.outcome == "replayed":
                    continue
                if fold.untold is not None:
                    result.shed.append((sourced, fold.untold))
            result.states[user_id] = state
            result.partitions[user_id] = sourced.partition
            if fold.transition is not None:
                result.transitions[sourced.partition].append(fold.transition)
            if fold.shown:
                result.transitions[sourced.partition] += self._shown(sourced, fold.shown)
            row = self._serving.catalogue.row(event.item_id or "") if fold.teaches else -1
            if row >= 0:
                at = event.occurred_at.timestamp()
                request = requests.get((user_id, at))
                if request is None:
                    # Of a basket the first event says what was known. What was excluded is taken as of the batch: a
                    # copy per event would cost more than it teaches.
                    before = states[user_id]
                    known = UserState(
                        user_id, history, before.consumed, before.hidden, events=before.events, profile=state.profile,
                        latest_of=latest_of,
                    )  # fmt: skip
                    request = requests[user_id, at] = self._request(known, at, now, texts, before=at)
                choices.append((sourced, self._choice(sourced, request, row, fold)))
            if fold.refreshes:
                refreshed.pop(user_id, None)
                refreshed[user_id] = sourced
        # Learning first: the candidates of the last slates are those from before these events.
        self._note_examples(choices, result)
        for user_id in [user_id for user_id in refreshed if user_id in later]:
            result.due[user_id] = refreshed.pop(user_id)
        if refresh:
            # Who is owed one has perhaps no event here that counts.
            moved = {**states, **result.states} if due else result.states
            result.slates = self._refresh(refreshed, moved, now, texts)
        return result

    def refresh(
        self,
        due: Mapping[str, SourcedEvent | SourcedProfile],
        states: Mapping[str, UserState],
        *,
        now: float,
        text_vectors: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> list[NewSlate]:
        """Slates that :meth:`process` left out for events that do not follow after all.

        Args:
            due: the users and what causes their slates, as in its result.
            states: of those users.
            now: wall clock, seconds since 1970.
            text_vectors: embeddings of the free texts in their histories, by text.
        """
        return self._refresh(due, states, now, self._serving.to_space(text_vectors or {}))

    def process_profiles(
        self,
        profiles: Sequence[SourcedProfile],
        states: Mapping[str, UserState],
        *,
        now: float,
        text_vectors: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> StageResult:
        """Process records of ``users.v1`` in order: who has a new profile gets a fresh slate, before any event, and
        who is to be forgotten has none any more. A profile that says what is known already causes nothing.

        Args:
            profiles: of any users; those of one user in the order of their offsets.
            states: the state of each of those users before the batch; not changed.
            now: wall clock, seconds since 1970; decides expiry and publication of items.
            text_vectors: embeddings of the texts of profiles and histories, by text.
        """
        result = StageResult()
        refreshed: dict[str, SourcedEvent | SourcedProfile] = {}
        forgotten: dict[str, None] = {}
        for sourced in profiles:
            user_id = sourced.user_id
            state = result.states.get(user_id)
            if state is None:
                state = states[user_id].copy()
            outcome = fold_profile(
                state,
                sourced.profile,
                partition=sourced.partition,
                offset=sourced.offset,
                appended_s=sourced.appended_s,
            )
            if outcome == "replayed":
                result.skipped["replayed"] = result.skipped.get("replayed", 0) + 1
                continue
            result.states[user_id] = state
            result.partitions[user_id] = sourced.partition
            if outcome == "forgotten":
                forgotten[user_id] = None
                refreshed.pop(user_id, None)
                self._seen.pop(user_id, None)
            elif outcome == "changed":
                forgotten.pop(user_id, None)
                refreshed[user_id] = sourced
        result.forgotten = list(forgotten)
        result.slates = self.refresh(refreshed, result.states, now=now, text_vectors=text_vectors)
        return result

    def shown(self, slates: Sequence[tuple[NewSlate, str]]) -> None:
        """Slates of :meth:`rerank` that were published, and their ids: what the user takes next was taken from their
        candidates."""
        for slate, slate_id in slates:
            if slate.seen is not None:
                self._remember(slate.user_id, slate.known_to, slate.seen, slate_id)

    def ranked(self, request: RankRequest, ranking: Ranking) -> None:
        """A ranking made outside of :meth:`process`, which the user chooses from next (in evaluation)."""
        self._remember(request.user.user_id, _known_to(request.user), self._seen_of(ranking), "")

    def rerank(
        self,
        states: Mapping[str, UserState],
        *,
        now: float,
        text_vectors: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> list[NewSlate]:
        """Fresh slates without an event: an item came or went. Ranked at each user's last event time."""
        texts = self._serving.to_space(text_vectors or {})
        requests = [self._request(state, _last_at(state, now), now, texts) for state in states.values()]
        rankings = self._recommender.rank_in_turn(requests)
        return [self._slate(request, ranking, None) for request, ranking in zip(requests, rankings, strict=True)]

    def _slate(self, request: RankRequest, ranking: Ranking, trigger: SourcedEvent | SourcedProfile | None) -> NewSlate:
        return NewSlate(
            user_id=request.user.user_id,
            items=self._recommender.slate_items(ranking),
            trigger=trigger,
            interest=ranking.slow_interest,
            seen=self._seen_of(ranking),
            known_to=_known_to(request.user),
            versions=self._serving.versions,
        )

    def _seen_of(self, ranking: Ranking) -> SeenRanking:
        return ranking.seen(values=self._settings.ranker.remembered > 0)

    def _request(
        self,
        state: UserState,
        at: float,
        now: float,
        texts: Mapping[str, NDArray[np.float32]],
        before: float | None = None,
    ) -> RankRequest:
        size, profile = self._settings.slate.size, state.profile
        if profile is None:
            return RankRequest(user=state, at=at, now=now, n=size, before=before, extra_vectors=texts)
        users = self._settings.users
        return RankRequest(
            user=with_profile(state, self._settings.event_types[LIKED], history=users.history),
            at=at,
            now=now,
            n=size,
            before=before,
            extra_vectors=texts,
            prior=profile.texts,
            prior_weight=users.profile_weight,
            language=profile.language or None,
            blocked_labels=frozenset(profile.blocked_labels),
        )

    def _refresh(
        self,
        due: Mapping[str, SourcedEvent | SourcedProfile],
        states: Mapping[str, UserState],
        now: float,
        texts: Mapping[str, NDArray[np.float32]],
    ) -> list[NewSlate]:
        if not due:
            return []
        requests = []
        for user_id, sourced in due.items():
            state = states[user_id]
            at = sourced.event.occurred_at.timestamp() if isinstance(sourced, SourcedEvent) else _last_at(state, now)
            requests.append(self._request(state, at, now, texts))
        slates = []
        for sourced, request, ranking in zip(
            due.values(), requests, self._recommender.rank_in_turn(requests), strict=True
        ):
            slate = self._slate(request, ranking, sourced)
            slates.append(slate)
            if slate.seen is not None:
                self._remember(slate.user_id, slate.known_to, slate.seen, sourced.slate_id)
        return slates

    def _remember(self, user_id: str, known_to: float, ranking: SeenRanking, slate_id: str) -> None:
        self._recommender.published(ranking)
        seen = self._seen.get(user_id)
        if seen is None:
            self._seen[user_id] = _Seen(known_to, ranking, None, slate_id)
        elif seen.known_to == known_to:
            seen.last, seen.slate_id = ranking, slate_id
        else:
            self._seen[user_id] = _Seen(known_to, ranking, seen.last, slate_id)
        self._seen.move_to_end(user_id)
        while len(self._seen) > self._settings.users.cache:
            self._seen.popitem(last=False)
        # Whole rankings are kept of fewer users than candidates: of the one who now falls out only these stay.
        self._whole[user_id] = None
        self._whole.move_to_end(user_id)
        while len(self._whole) > self._settings.ranker.remembered:
            fallen = self._seen.get(self._whole.popitem(last=False)[0])
            if fallen is not None:
                fallen.last = replace(fallen.last, values=None)
                fallen.before = None if fallen.before is None else replace(fallen.before, values=None)

    def _seen_before(self, user_id: str, at: float) -> SeenRanking | None:
        """The user's last ranking that knew nothing of the basket at ``at``; None when rows were freed since."""
        seen = self._seen.get(user_id)
        if seen is None:
            return None
        found = seen.last if seen.known_to < at else seen.before
        return found if found is not None and found.reclaims == self._serving.catalogue.reclaims else None

    def _passed_over(self, event: Interaction, passed: Sequence[int] = ()) -> NDArray[np.int32] | None:
        """Rows that the slate the event names showed above what was taken; when it names none that is known, those that
        the user's impressions did; None without either."""
        seen = self._seen.get(event.user_id)
        if event.slate_id and event.position is not None and seen is not None and seen.slate_id == event.slate_id:
            return seen.last.slate[: event.position]
        rows = [row for row in map(self._serving.catalogue.row_of_hash, passed) if row >= 0]
        return np.array(rows, np.int32) if rows else None

    def _shown(self, sourced: SourcedEvent, items: Sequence[str]) -> list[Transition]:
        """Notes that items were shown, for the owners of those that are new: only of these it matters, and most of what
        a shop shows is not new."""
        catalogue = self._serving.catalogue
        rows = np.array([catalogue.row(item_id) for item_id in items], np.int32)
        known = rows >= 0
        known[known] = self._serving.is_cold(rows[known])
        at = sourced.event.occurred_at.timestamp()
        return [
            Transition(
                offset=sourced.offset,
                at=at,
                item_id=item_id,
                count=0.0,
                previous=[],
                symmetric=[],
                directed=[],
                shown=1.0,
            )
            for item_id, noted in zip(items, known.tolist(), strict=True)
            if noted
        ]

    def _choice(self, sourced: SourcedEvent, request: RankRequest, row: int, fold: Fold) -> Choice:
        """What the event teaches."""
        event = sourced.event
        return Choice(
            request=request,
            row=row,
            # Of the event and not of its place, so that a replay compares with the same.
            seed=id_hash(event.user_id) ^ event_seed(event.event_id),
            seen=self._seen_before(event.user_id, request.at),
            shown=self._passed_over(event, fold.passed),
            weight=fold.share,
        )

    def _note_examples(self, choices: Sequence[tuple[SourcedEvent, Choice]], result: StageResult) -> None:
        found = self._recommender.examples([choice for _, choice in choices])
        reach = self._settings.factors.history
        previous: dict[tuple[str, float], list[str]] = {}
        for (sourced, choice), example in zip(choices, found, strict=True):
            request = choice.request
            key = (request.user.user_id, request.at)
            if key not in previous:
                previous[key] = _previous(request.user, request.before, reach)
            # A choice with nothing to learn from is sent as well: that every choice is counted exactly once can
            # then be checked, whatever the candidates happened to be.
            result.examples[sourced.partition].append(
                TrainingExample(
                    offset=sourced.offset,
                    at=request.at,
                    weight=choice.weight,
                    rows=0 if example is None else len(example.features),
                    features="" if example is None else pack_float32(example.features),
                    item_id=sourced.event.item_id or "",
                    previous=previous[key],
                    context=[] if example is None else example.context.tolist(),
                )
            )


def _previous(user: UserState, before: float | None, limit: int) -> list[str]:
    """Items of positive events before an event time (None: all), newest first, each once, at most ``limit``."""
    until = math.inf if before is None else before
    latest = user.latest()
    if latest.newest >= until:  # What was known before may be an earlier entry.
        latest = Latest.of(tuple([entry for entry in user.history if entry.at < until]))
    return [*latest.item_ids[:limit]]


def _known_to(state: UserState) -> float:
    """Event time of the newest event of the history; -inf when there is none."""
    history, held = state.history, state.latest_of
    if held is not None and held[0] is history and history and history[-1].at >= held[1].newest:
        return held[1].newest
    # An event that came late was the last, a later one has left the history, or nobody asked for the latest entries.
    return max(map(_AT, history), default=-math.inf)


def _last_at(state: UserState, now: float) -> float:
    """Event time of the user's last event; ``now`` when there is none."""
    return state.history[-1].at if state.history else now
