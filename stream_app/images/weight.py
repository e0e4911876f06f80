"""The weight of images, learned from a fused space that was built and from what people take together."""

from __future__ import annotations

import numpy as np

from schemas.arrays import unpack_float32
from schemas.messages import ModelSpace
from stream_app.encoders import encoder_settings
from stream_app.errors import SpaceError
from stream_app.images.fusion import LearnedWeight, learn_weight, split
from stream_app.images.space import describe_encoder
from stream_app.settings import Settings
from stream_app.space_comparison import items_taken_together, vectors_of_space
from stream_app.users.state import id_hash

__all__ = ["weight_of_images"]


async def weight_of_images(settings: Settings, space: ModelSpace, *, count: int) -> tuple[LearnedWeight, float]:
    """What :func:`~stream_app.images.fusion.learn_weight` says of a fused space, and the weight that it was built with.

    A built space holds both halves of its vectors, so another weight is found without embedding anything. It is learned
    from items that have an image; the weight moves nothing between others.

    Args:
        count: items, at most: those with the smallest hash of their id, so that it is the same sample every time.

    Raises:
        SpaceError: when the space has no images, or what people took together says nothing about them.
        SettingsError: when its models are not here.
    """
    encoder = encoder_settings(settings, space)
    if not encoder.image_model:
        raise SpaceError(f"{space.space} is of texts alone; build one with images first: docs/images.md")
    described = describe_encoder(encoder)
    if described.space != space.space:
        raise SpaceError(f"{space.space} was built with other models than those here, which span {described.space}")
    found = await vectors_of_space(settings, space)
    ids = sorted(found, key=lambda item_id: (id_hash(item_id), item_id))
    if not ids:
        raise SpaceError(f"{space.space} has no vectors yet: tailrace spaces follow {space.number}")
    fused = np.stack([unpack_float32(found[item_id].vector) for item_id in ids])
    text, image, has_image = split(fused, described.text_dimensions, encoder.image_weight)
    rows = np.flatnonzero(has_image)[:count]
    place = {ids[row]: number for number, row in enumerate(rows.tolist())}
    taken = await items_taken_together(settings, place)
    pairs = np.array([(item, other) for item, others in sorted(taken.items()) for other in others], np.int64)
    try:
        return learn_weight(text[rows], image[rows], pairs.reshape(-1, 2)), encoder.image_weight
    except ValueError as error:
        raise SpaceError(f"no weight can be learned from {space.space}: {error}") from error
