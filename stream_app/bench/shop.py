"""A made-up shop of any size, with the state it would have after some weeks.

Items lie in groups, as the texts of a catalogue do; popularity follows a power law; users keep to a few groups. Nothing
in it is drawn but from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import pack_float32
from schemas.decode import encode
from schemas.messages import Interaction, Item, ItemVector, TrainingExample, Transitions
from stream_app.factors.basis import fit_basis
from stream_app.factors.learner import FactorLearner
from stream_app.items.statistics import ItemStatistics
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.users.fold import Folder
from stream_app.users.state import UserState

__all__ = ["MadeUpShop", "clustered", "made_up_shop"]

_SPACE = "made-up"
_START = datetime(2026, 1, 1, tzinfo=UTC)
_SECONDS_APART = 20.0
_GROUP = 25
"""Items in a group."""
_LIKED_GROUPS = 4
_LOYALTY = 0.7
"""Share of a user's events that stay within the liked groups."""
_AT_ONCE = 512


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


def made_up_shop(
    settings: Settings,
    *,
    items: int,
    users: int,
    events: int,
    history: int = 20,
    dimensions: int = 384,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> MadeUpShop:
    """Make it.

    Args:
        items, users: how many.
        events: further records wanted, which nothing knows of yet.
        history: events per user before those.
        dimensions: of the vectors.
        on_progress: told what is being made, how much of it is done, and of how much.
    """
    serving = ServingState(settings, space=_SPACE, dimensions=dimensions)
    vectors = clustered(items, dimensions, seed=seed)
    factors = settings.factors
    sample = vectors[:: max(1, items // 20_000)]
    serving.factors.basis = fit_basis(sample, space=_SPACE, factors=factors.dimensions, length=factors.start_length)
    learner = FactorLearner(factors, serving.factors.basis)
    for number, vector in enumerate(vectors):
        item_id = f"item-{number}"
        title = f"Article {number} of group {number // _GROUP}"
        serving.apply_item(item_id, Item(item_id=item_id, title=title, categories=[f"group {number // _GROUP}"]))
        serving.apply_vector(
            item_id,
            ItemVector(item_id=item_id, space=_SPACE, text_hash="", dimensions=dimensions, vector=pack_float32(vector)),
        )
        learner.put(item_id, vector)
        if number % _AT_ONCE == 0:
            on_progress("items", number, items)
    serving.index.maybe_rebuild()
    taken = _choices(items, users, users * history + events, seed=seed + 1)
    statistics = ItemStatistics(0, 1, settings.items)
    states: dict[str, UserState] = {}
    fold = Folder(settings.event_types, settings.users, settings.items)
    records: list[tuple[bytes, bytes]] = []
    transitions, examples = [], []
    warm = users * history
    event = _event(0, 0, 0)
    for offset, (user, item) in enumerate(taken.tolist()):
        event = _event(offset, user, item)
        if offset >= warm:
            records.append((event.user_id.encode(), encode(event)))
            continue
        state = states.setdefault(event.user_id, UserState(event.user_id))
        transition = fold(state, event, partition=0, offset=offset).transition
        if transition is not None:
            transitions.append(transition)
            examples.append(
                TrainingExample(
                    offset=offset, at=transition.at, weight=1.0, rows=0, features="", item_id=transition.item_id,
                    previous=transition.previous,
                )
            )  # fmt: skip
        if len(transitions) >= _AT_ONCE or offset == warm - 1:
            rows = Transitions(source_topic="interactions", source_partition=0, rows=transitions)
            statistics.apply(rows, offset=offset)
            learner.learn(examples, partition=0, offset=offset)
            transitions, examples = [], []
            on_progress("events", offset, warm)
    serving.apply_statistics(statistics)
    for row in range(0, items, _AT_ONCE):
        places = np.arange(row, min(row + _AT_ONCE, items))
        learner.copy_to(serving.factors, np.arange(items, dtype=np.int32), places)
    return MadeUpShop(settings, serving, states, records, event.occurred_at.timestamp())


def _choices(items: int, users: int, count: int, *, seed: int) -> NDArray[np.int64]:
    """Who takes what: int64 [count, 2], users and items."""
    rng = np.random.default_rng(seed)
    user = rng.permutation(np.arange(count) % users)
    liked = rng.integers(0, items // _GROUP + 1, size=(users, _LIKED_GROUPS))
    group = liked[user, rng.integers(0, _LIKED_GROUPS, size=count)]
    near = np.minimum(group * _GROUP + rng.integers(0, _GROUP, size=count), items - 1)
    popularity = 1.0 / (1.0 + rng.permutation(items))
    anywhere = rng.choice(items, size=count, p=popularity / popularity.sum())
    return np.stack([user, np.where(rng.random(count) < _LOYALTY, near, anywhere)], axis=1)


def _event(offset: int, user: int, item: int) -> Interaction:
    return Interaction(
        event_id=f"event-{offset}",
        user_id=f"user-{user}",
        type="click",
        occurred_at=_START + timedelta(seconds=_SECONDS_APART * offset),
        item_id=f"item-{item}",
    )
