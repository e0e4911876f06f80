"""Agents, evaluation and the state make their texts with the settings' templates and masks: all of them the same."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.decode import encode
from schemas.messages import Interaction, Item, ItemVector, User
from stream_app.agents.catalogue import CatalogueAgent
from stream_app.agents.interactions import InteractionsAgent
from stream_app.delivery.publisher import OutRecord
from stream_app.delivery.records import InRecord
from stream_app.evaluation import run as evaluation
from stream_app.evaluation.files import Log
from stream_app.metrics import Metrics
from stream_app.settings import Settings, load_settings
from stream_app.textify import text_hash
from stream_app.users.behaviours import behaviours_of
from stream_app.users.state import HistoryEntry
from tests.unit.test_stage import Rig, event, make_serving
from tests.waiting import eventually

SONG = Item(item_id="a", title="Blue in Green", attributes={"domain": "music", "artist": "Ann", "ref": "K-17"})
SAID = "about K-17, to ann@example.org"
MASKED = "about [case], to [email]"


@pytest.fixture(name="settings")
def _settings(tmp_path: Path) -> Settings:
    (tmp_path / "en.toml").write_text(
        '[attributes]\nref = ["ref"]\n[domains.music]\nparts = ["{title}", "von {artist}", "{ref}"]\n'
    )
    return load_settings(
        textify={"templates": tmp_path, "masks": {"case": r"K-\d+"}}, users={"history": 6}, slate={"size": 5}
    )


TEXT = "Blue in Green. von Ann. [case]"


class Edges:
    """What an agent needs around it: takes what is published and embedded."""

    space = "s"
    started = True

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.records: list[OutRecord] = []

    async def encode_items(self, texts: Sequence[str], _image_urls: Sequence[str | None]) -> list[Any]:
        return await self.encode_each(texts, None)

    async def encode_each(self, texts: Sequence[str], _priority: object, *, kind: str = "document") -> list[Any]:
        self.texts += texts
        return [np.zeros(2, np.float32) for _ in texts]

    async def publish(self, records: Sequence[OutRecord]) -> None:
        self.records += records


def faust(topic: str, key: str, value: bytes) -> Any:
    message = SimpleNamespace(
        topic=topic, partition=0, offset=0, key=key.encode(), value=value, headers=(), timestamp=0.0
    )
    return SimpleNamespace(message=message, ack=lambda: None)


async def test_the_catalogue_role_embeds_and_publishes_what_the_template_says(settings: Settings) -> None:
    edges: Any = Edges()
    agent = CatalogueAgent(settings, edges, Metrics(), edges)
    await agent.handle([faust(agent.topic, "a", encode(SONG))])
    await eventually(lambda: edges.records, what="the part is published")
    assert edges.texts == [TEXT]
    vector = msgspec.json.decode(edges.records[0].value, type=ItemVector)
    assert (vector.text, vector.text_hash) == (TEXT, text_hash(TEXT))


async def test_the_interactions_role_masks_profiles_and_embeds_what_the_state_will_say(settings: Settings) -> None:
    edges: Any = Edges()
    nothing: Any = None
    agent = InteractionsAgent(settings, edges, Metrics(), users=nothing, stage=nothing, serving=nothing, pool=edges)
    user = User(user_id="u", text=SAID, interests=["K-17"])
    profile = agent._sources.profile(InRecord("t", 0, 0, b"u", encode(user), (), 0.0)).profile
    assert profile is not None
    assert profile.texts == (MASKED, "[case]")
    search = event(0, None, "search", text=SAID)
    assert set(await agent._text_vectors([search], {})) == {MASKED}
    rig = Rig(make_serving(settings), settings)
    rig.process([search])
    assert [entry.text for entry in rig.state("u").history] == [MASKED]


def test_an_evaluation_encodes_the_same(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def vectors(texts: Any, *_: object, **__: object) -> tuple[str, dict[str, Any]]:
        asked.extend(texts)
        return "s", dict.fromkeys(asked, np.zeros(2, np.float32))

    monkeypatch.setattr(evaluation, "text_vectors", vectors)
    search = Interaction(
        event_id="e", user_id="u", type="search", occurred_at=datetime(2026, 1, 1, tzinfo=UTC), text=SAID
    )
    log: Any = SimpleNamespace(items=[SONG], interactions=[search], without_text=frozenset())
    encoded = evaluation.encode_log(log, settings, cache=tmp_path)
    assert asked == [TEXT, MASKED]
    assert (set(encoded.items), set(encoded.texts)) == ({"a"}, {MASKED})
    assert {"items", "interactions", "without_text"} <= set(Log.__dataclass_fields__)


class TestBehaviours:
    ITEMS = {name: Item(item_id=name, title=name.capitalize()) for name in ("mug", "lamp", "vase")}

    def behaviours(self, *entries: tuple[str, str, float, str], decay: float = 0.9) -> list[tuple[str, str, int, bool]]:
        history = [
            HistoryEntry(item, kind, float(at), weight, at, text)
            for at, (item, kind, weight, text) in enumerate(entries)
        ]
        found = behaviours_of(history, self.ITEMS, decay=decay)
        return [(one.item.item_id if one.item else one.text, one.type, one.count, one.against) for one in found]

    def test_the_strongest_come_first_and_of_equals_the_newest(self) -> None:
        assert self.behaviours(
            ("vase", "click", 1.0, ""),
            ("mug", "purchase", 4.0, ""),
            ("vase", "hide", -1.0, ""),
            ("lamp", "click", 1.0, ""),
        ) == [
            ("mug", "purchase", 1, False),
            ("lamp", "click", 1, False),
            ("vase", "hide", 1, True),
            ("vase", "click", 1, False),
        ]

    def test_the_same_again_is_one_and_weighs_more(self) -> None:
        many = [("mug", "click", 1.0, "")] * 3
        assert self.behaviours(*many, ("lamp", "cart", 2.0, ""))[0] == ("mug", "click", 3, False)
        assert self.behaviours(("lamp", "purchase", 4.0, ""), *many)[0] == ("lamp", "purchase", 1, False)

    def test_what_counts_against_is_another(self) -> None:
        found = self.behaviours(("mug", "rating", 3.0, ""), ("mug", "rating", -3.0, ""))
        assert found == [("mug", "rating", 1, True), ("mug", "rating", 1, False)]

    def test_searches_by_what_they_say(self) -> None:
        found = self.behaviours(
            ("", "search", 1.0, "red lamp"), ("", "search", 1.0, "vase"), ("", "search", 1.0, "red lamp")
        )
        assert found == [("red lamp", "search", 2, False), ("vase", "search", 1, False)]

    def test_the_time_is_the_last_and_the_words_are_the_newest(self) -> None:
        history = [
            HistoryEntry("mug", "review", 9.0, 3.0, 0, "Good"),
            HistoryEntry("mug", "review", 5.0, 3.0, 1, "Better"),  # came late
            HistoryEntry("mug", "review", 7.0, 3.0, 2),
        ]
        (found,) = behaviours_of(history, self.ITEMS, decay=0.9)
        assert (found.at, found.text, found.count) == (9.0, "Better", 3)

    def test_what_nobody_knows_is_left_out(self) -> None:
        assert self.behaviours(("gone", "click", 1.0, ""), ("gone", "review", 3.0, "Good")) == [
            ("Good", "review", 1, False)
        ]
