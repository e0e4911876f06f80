"""Profiles of users.v1: folded once, forgotten for good, and what they mean to the first slate."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.messages import Item, User
from stream_app.ranking.recommender import Recommender
from stream_app.settings import DEFAULT_EVENT_TYPES, UserSettings, load_settings
from stream_app.textify import Textifier, profile_texts
from stream_app.users.profiles import fold_profile, profile_of, with_profile
from stream_app.users.stage import SourcedEvent, SourcedProfile, StageResult, UserStage
from stream_app.users.state import HistoryEntry, Profile, UserState, decode_state, encode_state, id_hash
from tests.unit.test_stage import NOW, add_item, event, make_serving, unit_vector

SETTINGS = load_settings(users={"history": 6}, slate={"size": 5, "cold_places": 0})
LIKE = DEFAULT_EVENT_TYPES["like"]


def user(**fields: object) -> User:
    return User(user_id="u", **fields)  # type: ignore[arg-type]


def profile(*texts: str, **fields: object) -> Profile:
    return Profile(texts=texts, **fields)  # type: ignore[arg-type]


class TestTexts:
    def test_the_words_and_each_interest_by_itself(self) -> None:
        made = profile_texts(
            user(text=" I <b>garden</b>. ", interests=["Home > Kitchen", "home_decor", "", "jazz", "jazz"]),
            max_chars=50,
        )
        assert made == ("I garden.", "Home, Kitchen", "home decor", "jazz")

    def test_an_empty_profile_says_nothing(self) -> None:
        assert profile_texts(user(text=" <p> ", interests=[" "]), max_chars=50) == ()

    def test_long_words_are_cut(self) -> None:
        assert [len(text) for text in profile_texts(user(text="x" * 99, interests=["y" * 99]), max_chars=20)] == [
            20,
            20,
        ]


class TestFold:
    def test_each_offset_is_applied_once_and_only_changes_count(self) -> None:
        state = UserState("u")
        asked = {"partition": 2, "appended_s": 1.0}
        assert fold_profile(state, profile("a"), offset=4, **asked) == "changed"
        assert fold_profile(state, profile("b"), offset=4, **asked) == "replayed"
        assert fold_profile(state, profile("b"), offset=3, **asked) == "replayed"
        assert state.profile == profile("a")
        assert fold_profile(state, profile("a"), offset=5, **asked) == "unchanged"
        assert fold_profile(state, profile("b"), offset=6, **asked) == "changed"
        assert (state.profile, state.profile_applied) == (profile("b"), {2: 6})

    def test_it_is_packed_with_the_state(self) -> None:
        state = UserState("u")
        told = profile_of(
            user(
                text="x",
                language="zh",
                liked_items=["a", "b", "a"],
                blocked_items=["c"],
                blocked_categories=["Home "],
                blocked_brands=["B"],
            ),
            UserSettings(),
            Textifier(),
        )
        assert told == Profile(("x",), ("a", "b"), (id_hash("c"),), ("category:home", "brand:b"), "zh")
        fold_profile(state, told, partition=0, offset=7, appended_s=1.0)
        assert decode_state("u", encode_state(state)) == state

    def test_forgetting_leaves_offsets_and_the_time(self) -> None:
        state = UserState(
            "u", (HistoryEntry("a", "click", 1.0, 1.0, 3),), {1: 5.0}, {2: None}, {3: None}, {0: 3}, 9, profile("a")
        )
        assert fold_profile(state, None, partition=0, offset=1, appended_s=50.0) == "forgotten"
        assert state == UserState("u", applied={0: 3}, profile_applied={0: 1}, forgotten_at=50.0)
        assert state.forgotten
        assert not UserState("u").forgotten


class TestRanking:
    def test_liked_items_stand_before_the_first_event_and_are_not_ranked(self) -> None:
        own = HistoryEntry("x", "click", 9.0, 1.0, 0)
        state = UserState("u", (own,), hidden={1: None}, profile=profile(liked=("a", "b"), blocked=(7,)))
        seen = with_profile(state, LIKE, history=6)
        assert [entry.item_id for entry in seen.history] == ["b", "a", "x"]
        assert {entry.weight for entry in seen.history[:2]} == {LIKE.weight}
        assert list(seen.hidden) == [1, id_hash("a"), id_hash("b"), 7]
        assert (state.history, list(state.hidden)) == ((own,), [1])

    def test_liked_items_give_way_to_events(self) -> None:
        events = tuple(HistoryEntry(f"x{n}", "click", float(n), 1.0, n) for n in range(5))
        state = UserState("u", events, profile=profile(liked=("a", "b")))
        assert [entry.item_id for entry in with_profile(state, LIKE, history=6).history][:2] == ["a", "x0"]
        assert with_profile(state, LIKE, history=5).history == events

    def test_nothing_is_copied_without_a_profile(self) -> None:
        state = UserState("u")
        assert with_profile(state, LIKE, history=6) is state


class Rig:
    """A stage over thirty items, and the states it made."""

    def __init__(self) -> None:
        self.serving = make_serving(SETTINGS)
        self.stage = UserStage(SETTINGS, self.serving, Recommender(SETTINGS, self.serving))
        self.state = UserState("u")
        self.texts = {"like i3": unit_vector(3), "like i9": unit_vector(9)}
        self.offset = 0

    def told(self, *profiles: Profile | None) -> StageResult:
        records = []
        for one in profiles:
            records.append(SourcedProfile("u", one, 0, self.offset, appended_s=100.0 + self.offset))
            self.offset += 1
        result = self.stage.process_profiles(records, {"u": self.state}, now=NOW, text_vectors=self.texts)
        self.state = result.states.get("u", self.state)
        return result

    def did(self, *events: SourcedEvent) -> StageResult:
        result = self.stage.process(events, {"u": self.state}, now=NOW, text_vectors=self.texts)
        self.state = result.states.get("u", self.state)
        return result


@pytest.fixture
def rig() -> Rig:
    return Rig()


def shown(result: StageResult) -> list[str]:
    (slate,) = result.slates
    return [item.item_id for item in slate.items]


class TestStage:
    def test_a_profile_makes_the_first_slate_before_any_event(self, rig: Rig) -> None:
        result = rig.told(profile("like i3"))
        assert shown(result)[0] == "i3"
        assert isinstance(result.slates[0].trigger, SourcedProfile)
        assert result.slates[0].items[0].reason.code == "similar"

    def test_what_is_liked_is_likened_to_and_not_shown(self, rig: Rig) -> None:
        twin = unit_vector(3) + 0.05 * unit_vector(99)
        add_item(rig.serving, "twin", 0)
        rig.serving.index.upsert(
            np.array([rig.serving.catalogue.row("twin")], np.int32), (twin / np.linalg.norm(twin))[None]
        )
        result = rig.told(profile(liked=("i3",)))
        assert shown(result)[0] == "twin"
        assert "i3" not in shown(result)
        assert result.slates[0].items[0].reason.params == {"item_id": "i3", "title": "i3"}

    def test_a_change_makes_a_fresh_slate_and_the_same_again_none(self, rig: Rig) -> None:
        rig.told(profile("like i3"))
        assert rig.told(profile("like i3")).slates == []
        assert shown(rig.told(profile("like i9")))[0] == "i9"

    def test_only_the_last_of_a_batch_is_ranked(self, rig: Rig) -> None:
        result = rig.told(profile("like i3"), None, profile("like i9"))
        assert shown(result)[0] == "i9"
        assert result.forgotten == []
        result = rig.told(profile("like i3"), None)
        assert (result.slates, result.forgotten) == ([], ["u"])

    def test_blocked_items_and_categories_are_not_shown(self, rig: Rig) -> None:
        rig.serving.apply_item("i9", Item(item_id="i9", title="nine", categories=["Toys"]))
        told = profile("like i3", "like i9", blocked=(id_hash("i3"),), blocked_labels=("category:toys",))
        assert not {"i3", "i9"} & set(shown(rig.told(told)))
        place = event(0, None, "visit")
        assert not {"i3", "i9"} & set(shown(rig.did(place)))

    def test_the_language_of_the_reasons_is_the_users(self, rig: Rig) -> None:
        result = rig.told(profile("like i3", language="zh"))
        assert not any(item.reason.text.isascii() for item in result.slates[0].items)

    def test_events_from_before_the_user_was_forgotten_bring_nothing_back(self, rig: Rig) -> None:
        rig.did(event(0, "i5"))
        rig.told(None)
        late = event(1, "i6", appended_s=99.0)
        result = rig.did(late)
        assert (result.slates, result.skipped) == ([], {"forgotten": 1})
        assert rig.state.forgotten
        assert rig.state.applied == {0: 1}
        again = event(2, "i7", appended_s=200.0)
        assert rig.did(again).slates
        assert [entry.item_id for entry in rig.state.history] == ["i7"]
