"""Pools by space: shared by who needs them, and gone with the last."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.messages import ModelSpace
from stream_app.encoders import Encoders
from stream_app.errors import SettingsError, Unavailable
from stream_app.settings import Settings
from stream_app.stores.redis_client import connect_redis
from workers.models import describe_model
from workers.pool import Priority

MODEL = describe_model("minilm")
SPACE = ModelSpace(space=MODEL.space, dimensions=MODEL.dimensions, number=0)


@pytest.fixture(name="encoders")
def _encoders() -> Encoders:
    settings = Settings()
    return Encoders(settings, connect_redis(settings))


async def test_a_pool_is_shared_and_ends_with_the_last_who_holds_it(encoders: Encoders) -> None:
    pool = encoders.pool(SPACE, "catalogue")
    assert encoders.pool(SPACE, "interactions") is pool
    await encoders.release(SPACE.space, "catalogue")
    await encoders.release(SPACE.space, "catalogue")
    assert encoders.held(SPACE.space) is pool
    assert pool.error is None
    await encoders.release(SPACE.space, "interactions")
    assert encoders.held(SPACE.space) is None
    assert isinstance(pool.error, Unavailable)
    await encoders.release("unheard of", "catalogue")


async def test_who_comes_after_a_pool_gave_up_gets_another_one(encoders: Encoders) -> None:
    pool = encoders.pool(SPACE, "interactions")
    await pool.close()
    with pytest.raises(Unavailable):
        await pool.encode(["mug"], Priority.QUERY)
    another = encoders.pool(SPACE, "catalogue")
    assert another is not pool
    await encoders.release(SPACE.space, "catalogue")
    assert encoders.held(SPACE.space) is another, "interactions hold it as well"
    await encoders.close()


async def test_what_is_not_served_has_a_share_of_the_time(encoders: Encoders) -> None:
    pool = encoders.pool(SPACE, "catalogue")
    encoders.serve("another")
    assert pool.share == Settings().spaces.build_share
    encoders.serve(SPACE.space)
    assert np.isclose(pool.share, 1.0)
    await encoders.close()


async def test_a_model_that_is_not_here_is_named(encoders: Encoders) -> None:
    gone = ModelSpace(space="s", dimensions=3, number=1, encoder={"model": "/models/gone"})
    with pytest.raises(SettingsError, match="/models/gone"):
        await encoders.describe(gone)
    with pytest.raises(SettingsError, match=r"other settings than this release has: encoder\.colour"):
        await encoders.describe(ModelSpace(space="s", dimensions=3, number=1, encoder={"colour": "red"}))
