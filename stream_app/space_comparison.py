"""What ``tailrace spaces compare`` reads and says."""

from __future__ import annotations

import msgspec
import numpy as np

from schemas.arrays import unpack_float32, unpack_float64
from schemas.decode import decode_item_signals, decode_item_vector
from schemas.messages import ItemVector, ModelSpace
from stream_app.delivery.reading import read_to_end
from stream_app.errors import InvalidMessage, SpaceError
from stream_app.settings import Settings
from stream_app.space_operations import PATIENCE_S, present_control
from stream_app.spaces.comparison import mean_cosine, nearest, overlap, taken_near
from stream_app.spaces.control import served_space
from stream_app.topics import Topics
from stream_app.users.state import id_hash

__all__ = ["Compared", "Shown", "compare_spaces", "items_taken_together", "vectors_of_space"]

NEIGHBOURS = 10
_NEAR = 50
"""Neighbours among which what is taken together is looked for."""


class Shown(msgspec.Struct, frozen=True):
    """An item's text, and the texts of its nearest in the served and in the other space."""

    text: str
    neighbours: tuple[list[str], list[str]]


class Compared(msgspec.Struct, frozen=True):
    """The served space and another one.

    Attributes:
        served: its name.
        items: in both, of the sample.
        overlap: of the 10 nearest to an item, the share that are the same.
        spread: mean cosine of two items, in each.
        taken: of the items that are taken together with an item, the share that are among its 50 nearest, in each.
        taken_items: items about which that is known.
        shown: some items.
    """

    served: str
    items: int
    overlap: float
    spread: tuple[float, float]
    taken: tuple[float, float]
    taken_items: int
    shown: list[Shown]


async def compare_spaces(settings: Settings, target: ModelSpace, *, count: int, show: int) -> Compared:
    """Compare a space with the one that is served, on a sample of items: those with the smallest hash of their id, so
    that it is the same sample every time.

    Raises:
        SpaceError: when it is served, or too few items are in both.
    """
    control, _ = await present_control(settings)
    live = served_space(control)
    if live.space == target.space:
        raise SpaceError(f"{target.space} is the one that is served; compare another one with it")
    # Twice as many: an item may be in one of them only.
    old, new = [await vectors_of_space(settings, space, most=2 * count) for space in (live, target)]
    ids = sorted(old.keys() & new.keys(), key=lambda item_id: (id_hash(item_id), item_id))[:count]
    if len(ids) <= _NEAR:
        raise SpaceError(f"{len(ids)} items are in both spaces; more than {_NEAR} are needed to compare them")
    tables = [np.stack([unpack_float32(side[item_id].vector) for item_id in ids]) for side in (old, new)]
    near = [nearest(table, _NEAR) for table in tables]
    place = {item_id: number for number, item_id in enumerate(ids)}
    taken = await items_taken_together(settings, place)
    texts = [old[item_id].text for item_id in ids]
    return Compared(
        served=live.space,
        items=len(ids),
        overlap=overlap(near[0][:, :NEIGHBOURS], near[1][:, :NEIGHBOURS]),
        spread=(mean_cosine(tables[0]), mean_cosine(tables[1])),
        taken=(taken_near(near[0], taken), taken_near(near[1], taken)),
        taken_items=len(taken),
        shown=[
            Shown(texts[item], ([texts[one] for one in near[0][item, :5]], [texts[one] for one in near[1][item, :5]]))
            for item in range(min(show, len(ids)))
        ],
    )


async def vectors_of_space(settings: Settings, space: ModelSpace, *, most: int) -> dict[str, ItemVector]:
    """The vectors that a space has, by item; of more than ``most`` items, those with the smallest hash of their id."""
    found: dict[str, ItemVector] = {}
    largest = 1 << 63
    async for record in read_to_end(settings, Topics(settings).vectors_of(space.number), patience_s=PATIENCE_S):
        try:
            item_id, vector = decode_item_vector(record.key, record.value)
        except InvalidMessage:
            continue
        if id_hash(item_id) > largest:
            continue
        if vector is None:
            found.pop(item_id, None)
        elif vector.space == space.space and vector.dimensions == space.dimensions:
            found[item_id] = vector
        if len(found) > 2 * most:
            largest = sorted(map(id_hash, found))[most - 1]
            found = {item_id: vector for item_id, vector in found.items() if id_hash(item_id) <= largest}
    return dict(sorted(found.items(), key=lambda pair: id_hash(pair[0]))[:most])


async def items_taken_together(settings: Settings, place: dict[str, int]) -> dict[int, list[int]]:
    """The ten items most taken together with an item, most first, of those in the sample.

    Args:
        place: numbers of the items in the sample, by id.

    Returns:
        Numbers of items, by number; none empty.
    """
    found: dict[int, list[int]] = {}
    async for record in read_to_end(settings, Topics(settings).item_signals, patience_s=PATIENCE_S):
        try:
            item_id, signals = decode_item_signals(record.key, record.value)
        except InvalidMessage:
            continue
        if item_id not in place:
            continue
        found.pop(place[item_id], None)
        if signals is None:
            continue
        weights = unpack_float64(signals.symmetric)
        best = [signals.neighbours[row] for row in np.argsort(-weights, kind="stable").tolist()]
        others = [place[one] for one in best if one in place][:NEIGHBOURS]
        if others:
            found[place[item_id]] = others
    return found
