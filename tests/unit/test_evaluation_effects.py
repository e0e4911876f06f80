"""When what a basket taught has been broadcast: told by offsets, whatever the order of the records."""

from __future__ import annotations

import asyncio

import pytest

from schemas.decode import encode
from schemas.messages import TrainingExample, TrainingExamples
from stream_app.evaluation.effects import Effects
from stream_app.settings import load_settings
from stream_app.topics import Topics


def examples(*taught: tuple[int, str], partition: int = 3) -> bytes:
    made = [
        TrainingExample(offset=offset, at=0.0, weight=1.0, rows=0, features="", item_id=item_id)
        for offset, item_id in taught
    ]
    return encode(TrainingExamples(source_topic="t", source_partition=partition, feature_names=[], examples=made))


async def test_a_basket_is_over_when_every_record_of_it_is_there() -> None:
    settings = load_settings()
    topics, effects = Topics(settings), Effects(settings)
    effects._note_examples(examples((7, "a"), (8, "b"), (9, "a")))
    over = asyncio.create_task(effects.of([(3, 7), (3, 8), (3, 9), (3, 10)], patience_s=30.0))
    places = [(topics.item_signals, b"a", 9), (topics.item_factors, b"a", 9), (topics.ranker_weights, b"", 9)]
    places += [(topics.item_signals, b"b", 8), (topics.item_factors, b"b", 8)]
    for topic, key, offset in places:
        await asyncio.sleep(0)
        assert not over.done()
        effects._note((topic, key), {"3": offset - 1, "4": 100})
        effects._note((topic, key), {"3": offset, "4": 100})
    assert await over
    effects._note_examples(examples((8, "b")))
    assert await effects.of([(3, 8)], patience_s=0.0), "what was broadcast before is there at once"


async def test_what_taught_nothing_is_not_waited_for() -> None:
    assert await Effects(load_settings()).of([(0, 1), (0, 2)], patience_s=0.0)


@pytest.mark.parametrize("learning", [True, False])
async def test_what_does_not_come_is_waited_for_as_long_as_asked(learning: bool) -> None:
    settings = load_settings(factors={"learning_rate": 0.05 if learning else 0.0}, ranker={"learning_rate": 0.0})
    effects = Effects(settings)
    effects._note_examples(examples((7, "a")))
    effects._note((Topics(settings).item_signals, b"a"), {"3": 7})
    assert await effects.of([(3, 7)], patience_s=0.01) is not learning
    assert not effects._awaited
