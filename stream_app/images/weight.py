"""The weight of images, learned from a fused space that was built and from what people take together."""

from __future__ import annotations

import msgspec
import numpy as np

from schemas.arrays import unpack_float32
from schemas.messages import ModelSpace
from stream_app.encoder_space import describe_encoder
from stream_app.encoders import encoder_settings
from stream_app.errors import SpaceError
from stream_app.images.fusion import recall_by_weight, split
from stream_app.settings import Settings
from stream_app.space_comparison import items_taken_together, vectors_of_space
from stream_app.users.state import id_hash

__all__ = ["LearnedWeight", "weight_of_images"]

_NEAR = 50
"""As ``tailrace spaces compare``: among so many nearest what is taken together is looked for."""


class LearnedWeight(msgspec.Struct, frozen=True):
    """Which weight of images brings together what people take together.

    Attributes:
        weight: the best one, 0 to 1; of several equal ones the least.
        built_with: the weight of the space that it was learned from.
        items: that were compared.
        taken_items: of these, items about which it is known what is taken with them.
        recalls: (weight, of the items taken together with an item the share among its 50 nearest).
    """

    weight: float
    built_with: float
    items: int
    taken_items: int
    recalls: list[tuple[float, float]]


async def weight_of_images(settings: Settings, space: ModelSpace, *, count: int) -> LearnedWeight:
    """Learn it (:func:`~stream_app.images.fusion.recall_by_weight`) from a fused space.

    A built space holds both halves of its vectors, so other weights are tried without embedding anything.

    Args:
        count: items, at most: those with the smallest hash of their id, so that it is the same sample every time.

    Raises:
        SpaceError: when the space has no images, has too few items, or nothing was taken together.
        SettingsError: when its models are not here.
    """
    encoder = encoder_settings(settings, space)
    if not encoder.image_model:
        raise SpaceError(f"{space.space} is of texts alone; build one with images first: docs/images.md")
    described = describe_encoder(encoder)
    if described.space != space.space:
        raise SpaceError(f"{space.space} was built with other models than those here, which span {described.space}")
    found = await vectors_of_space(settings, space, most=count)
    ids = sorted(found, key=lambda item_id: (id_hash(item_id), item_id))[:count]
    if len(ids) <= _NEAR:
        raise SpaceError(f"{len(ids)} items have vectors of {space.space}; more than {_NEAR} are needed")
    fused = np.stack([unpack_float32(found[item_id].vector) for item_id in ids])
    text, image, has_image = split(fused, described.text_dimensions, encoder.image_weight)
    taken = await items_taken_together(settings, {item_id: number for number, item_id in enumerate(ids)})
    if not taken:
        raise SpaceError(f"item-signals.v1 says of none of {len(ids)} items what is taken together with it")
    recalls = recall_by_weight(text, image, has_image, taken, near=_NEAR, whiten=settings.spaces.whiten)
    return LearnedWeight(
        weight=max(recalls, key=lambda one: one[1])[0],
        built_with=encoder.image_weight,
        items=len(ids),
        taken_items=len(taken),
        recalls=recalls,
    )
