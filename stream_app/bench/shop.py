"""A made-up shop of any size, with the state it would have after some weeks.

Items lie in groups, as the texts of a catalogue do; popularity follows a power law; users keep to a few groups. Nothing
in it is drawn but from the seed, so processes that are told the same :class:`ShopPlan` know the same shop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.arrays import pack_float32
from schemas.decode import encode
from schemas.messages import Interaction, Item, ItemVector, TrainingExample, Transition, Transitions, VectorSpace
from stream_app.delivery.reading import default_partition
from stream_app.factors.basis import fit_basis
from stream_app.factors.learner import FactorLearner
from stream_app.items.statistics import ItemStatistics
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.spaces.served import axes_within, describe
from stream_app.spaces.whitening import Statistics, fit
from stream_app.textify import Textifier
from stream_app.users.fold import Folder
from stream_app.users.state import UserState

__all__ = ["MadeUpPast", "MadeUpShop", "ShopPlan", "clustered", "made_up_past", "made_up_shop", "opened", "served"]

_SPACE = "made-up"
_START = datetime(2026, 1, 1, tzinfo=UTC)
_SECONDS_APART = 20.0
_GROUP = 25
"""Items in a group."""
_LIKED_GROUPS = 4
_LOYALTY = 0.7
"""Share of a user's events that stay within the liked groups."""
_HOT_USER = _HOT_ITEM = 0
_HOT = 1
"""Tells the draw of hot keys from the others."""
_AT_ONCE = 512
_FITTED_ON = 20_000
"""Vectors that basis and space are fitted to at most."""


class ShopPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the shop is made from; small enough to be told to another process.

    Attributes:
        items, users: how many.
        events: those that nothing knows of yet, after the history.
        history: events per user before those.
        dimensions: of the vectors.
        space: name of their space.
        partitions: of ``interactions.v1``; a user's is chosen as Kafka's clients do.
        starts_at: event time of the first event, seconds since 1970.
        hot_item: share of all events, those of the history too, that are of item 0.
        hot_user: share that are of user 0.
    """

    items: int
    users: int
    events: int
    history: int = 20
    dimensions: int = 384
    seed: int = 0
    space: str = _SPACE
    partitions: int = 1
    starts_at: float = _START.timestamp()
    hot_item: float = 0.0
    hot_user: float = 0.0

    @property
    def past(self) -> int:
        """Events of all histories; the first of the others has this number."""
        return self.users * self.history

    @property
    def span_s(self) -> float:
        """Seconds of event time from the first event to the last."""
        return _SECONDS_APART * max(self.past + self.events - 1, 0)

    def interactions(self, first: int, count: int) -> Iterator[tuple[int, int, Interaction]]:
        """Events by number, in order of time, each with its partition and its offset there.

        They are those of a topic that holds the shop's events from number 0 on, and nothing else.
        """
        taken = _choices(
            self.items, self.users, self.past + self.events, seed=self.seed + 1, hot=(self.hot_user, self.hot_item)
        )
        partition = np.array([self.partition(user) for user in range(self.users)])[taken[:, 0]]
        offset = np.empty(len(taken), np.int64)
        for number in range(self.partitions):
            offset[partition == number] = np.arange(np.count_nonzero(partition == number))
        start = datetime.fromtimestamp(self.starts_at, UTC)
        chosen = slice(first, first + count)
        places = zip(partition[chosen].tolist(), offset[chosen].tolist(), taken[chosen].tolist(), strict=True)
        for number, (where, at, (user, item)) in enumerate(places, start=first):
            yield where, at, _event(number, user, item, start)

    @property
    def hot_user_id(self) -> str | None:
        """The user with a share of all events; None where there is none."""
        return f"user-{_HOT_USER}" if self.hot_user else None

    @property
    def hot_item_id(self) -> str | None:
        """The item with a share of all events; None where there is none."""
        return _item_id(_HOT_ITEM) if self.hot_item else None

    def partition(self, user: int) -> int:
        """Of the user's events."""
        return default_partition(f"user-{user}".encode(), self.partitions) if self.partitions > 1 else 0

    def item(self, number: int) -> Item:
        """An entry of the catalogue."""
        group = number // _GROUP
        return Item(item_id=_item_id(number), title=f"Article {number} of group {group}", categories=[f"group {group}"])

    def item_vector(self, number: int, vector: NDArray[np.float32]) -> ItemVector:
        """Its record of ``item-vectors.v1``."""
        return ItemVector(
            item_id=_item_id(number),
            space=self.space,
            text_hash="",
            dimensions=self.dimensions,
            vector=pack_float32(vector),
        )


@dataclass(slots=True)
class MadeUpPast:
    """What the shop's catalogue and history amount to, by stage, as those who own it would have it.

    Attributes:
        vectors: float32 [items, dimensions], of unit length.
        learner: factors of all items, learned from the history.
        statistics: of the items in the history.
        states: by user id.
    """

    plan: ShopPlan
    vectors: NDArray[np.float32]
    learner: FactorLearner
    statistics: ItemStatistics
    states: dict[str, UserState]

    def space(self, settings: Settings) -> VectorSpace:
        """The half-whitened space that would be served: fitted to the whole catalogue."""
        statistics = Statistics(self.plan.dimensions)
        statistics.add(_sample(self.vectors))
        axes = max(1, axes_within(settings.connection.max_message_bytes, self.plan.dimensions))
        return describe(fit(statistics, axes=axes), model=self.plan.space, version=1, items=self.plan.items)


@dataclass(slots=True)
class MadeUpShop:
    """The shop.

    Attributes:
        serving: catalogue, vectors, statistics and factors.
        states: by user id.
        records: key and value of further records of ``interactions.v1``, in order of time.
        now: event time and wall clock after the last of them (seconds since 1970).
    """

    settings: Settings
    serving: ServingState
    states: dict[str, UserState]
    records: list[tuple[bytes, bytes]]
    now: float


def clustered(count: int, dimensions: int, *, seed: int) -> NDArray[np.float32]:
    """Unit vectors around centres, 25 to each: float32 [count, dimensions]."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count // _GROUP + 1, dimensions)).astype(np.float32)
    vectors = centres[np.arange(count) // _GROUP]
    vectors += 0.8 * rng.normal(size=(count, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def made_up_past(
    settings: Settings,
    plan: ShopPlan,
    *,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> MadeUpPast:
    """Catalogue and history, without what serves them.

    Args:
        on_progress: told what is being made, how much of it is done, and of how much.
    """
    vectors = clustered(plan.items, plan.dimensions, seed=plan.seed)
    factors = settings.factors
    basis = fit_basis(_sample(vectors), space=plan.space, factors=factors.dimensions, length=factors.start_length)
    learner = FactorLearner(factors, basis)
    for number, vector in enumerate(vectors):
        learner.put(_item_id(number), vector)
    statistics = ItemStatistics(0, 1, settings.items)
    states: dict[str, UserState] = {}
    fold = Folder(settings.event_types, settings.users, settings.items, Textifier.of(settings.textify))
    transitions: list[tuple[int, Transition]] = []
    messages = 0
    for number, (partition, offset, event) in enumerate(plan.interactions(0, plan.past), start=1):
        state = states.setdefault(event.user_id, UserState(event.user_id))
        transition = fold(state, event, partition=partition, offset=offset).transition
        if transition is not None:
            transitions.append((partition, transition))
        if len(transitions) >= _AT_ONCE or number == plan.past:
            transitions.sort(key=lambda pair: pair[0])
            for source, rows in groupby(transitions, key=lambda pair: pair[0]):
                _learn(statistics, learner, source, [row for _, row in rows], offset=messages)
                messages += 1
            transitions = []
            on_progress("history", number, plan.past)
    return MadeUpPast(plan, vectors, learner, statistics, states)


def _learn(
    statistics: ItemStatistics, learner: FactorLearner, source: int, rows: list[Transition], *, offset: int
) -> None:
    """What the item and ranker roles do with the transitions of one message."""
    statistics.apply(Transitions(source_topic="interactions", source_partition=source, rows=rows), offset=offset)
    examples = [
        TrainingExample(
            offset=row.offset, at=row.at, weight=1.0, rows=0, features="", item_id=row.item_id, previous=row.previous
        )
        for row in rows
    ]
    learner.learn(examples, partition=source, offset=offset)


def made_up_shop(
    settings: Settings,
    *,
    items: int,
    users: int,
    events: int,
    history: int = 20,
    dimensions: int = 384,
    seed: int = 0,
    whiten: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> MadeUpShop:
    """Make it, with everything that ranking reads.

    Args:
        items, users: how many.
        events: further records wanted, which nothing knows of yet.
        history: events per user before those.
        dimensions: of the vectors.
        whiten: serve the space fitted to the catalogue, as live; else the vectors as they are.
        on_progress: told what is being made, how much of it is done, and of how much.
    """
    plan = ShopPlan(items=items, users=users, events=events, history=history, dimensions=dimensions, seed=seed)
    past = made_up_past(settings, plan, on_progress=on_progress)
    return opened(settings, past, served(settings, past, whiten=whiten, on_progress=on_progress))


def opened(settings: Settings, past: MadeUpPast, serving: ServingState) -> MadeUpShop:
    """The shop with that past and what serves it, and its further records."""
    plan = past.plan
    further = [event for _, _, event in plan.interactions(plan.past, plan.events)]
    records = [(event.user_id.encode(), encode(event)) for event in further]
    return MadeUpShop(settings, serving, past.states, records, plan.starts_at + plan.span_s)


def served(
    settings: Settings,
    past: MadeUpPast,
    *,
    whiten: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> ServingState:
    """What serves a shop with that past; for the arguments see :func:`made_up_shop`."""
    plan = past.plan
    serving = ServingState(settings, space=plan.space, dimensions=plan.dimensions)
    serving.factors.basis = past.learner.basis
    if whiten:
        serving.apply_space(past.space(settings))
        serving.advance_space(wait=True)
    for number, vector in enumerate(past.vectors):
        serving.apply_item(_item_id(number), plan.item(number))
        serving.apply_vector(_item_id(number), plan.item_vector(number, vector))
        if number % _AT_ONCE == 0:
            on_progress("items", number, plan.items)
    serving.index.maybe_rebuild()
    serving.apply_statistics(past.statistics)
    rows = np.arange(plan.items, dtype=np.int32)
    for row in range(0, plan.items, _AT_ONCE):
        past.learner.copy_to(serving.factors, rows, np.arange(row, min(row + _AT_ONCE, plan.items)))
    return serving


def _sample(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors[:: max(1, len(vectors) // _FITTED_ON)]


def _choices(
    items: int, users: int, count: int, *, seed: int, hot: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.int64]:
    """Who takes what: int64 [count, 2], users and items.

    Args:
        hot: shares (0 to 1) of user 0 and of item 0 beyond what they have anyway. They are drawn apart, so what is
            not theirs stays what it is without them.
    """
    rng = np.random.default_rng(seed)
    user = rng.permutation(np.arange(count) % users)
    hot_rng = np.random.default_rng((seed, _HOT))
    user[hot_rng.random(count) < hot[0]] = _HOT_USER
    liked = rng.integers(0, items // _GROUP + 1, size=(users, _LIKED_GROUPS))
    group = liked[user, rng.integers(0, _LIKED_GROUPS, size=count)]
    near = np.minimum(group * _GROUP + rng.integers(0, _GROUP, size=count), items - 1)
    popularity = 1.0 / (1.0 + rng.permutation(items))
    anywhere = rng.choice(items, size=count, p=popularity / popularity.sum())
    item = np.where(rng.random(count) < _LOYALTY, near, anywhere)
    item[hot_rng.random(count) < hot[1]] = _HOT_ITEM
    return np.stack([user, item], axis=1)


def _event(number: int, user: int, item: int, start: datetime) -> Interaction:
    return Interaction(
        event_id=f"event-{number}",
        user_id=f"user-{user}",
        type="click",
        occurred_at=start + timedelta(seconds=_SECONDS_APART * number),
        item_id=_item_id(item),
    )


def _item_id(number: int) -> str:
    return f"item-{number}"
