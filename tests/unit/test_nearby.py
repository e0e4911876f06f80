"""Who a new item suits, and what waits for them: bounded, recent, of one vector space."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_app.users.nearby import NearbyUsers, Newest, best_first


def unit(*values: float) -> NDArray[np.float32]:
    vector = np.array(values, np.float32)
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def near(users: NearbyUsers, *item: float, count: int = 9, space: str = "s") -> list[str]:
    ((*found,),) = users.near(unit(*item)[None], count, space=space)
    return [user_id for user_id, _ in found]


def put(users: NearbyUsers, space: str = "s", **vectors: tuple[float, ...]) -> None:
    users.put(list(vectors), np.stack([unit(*vector) for vector in vectors.values()]), space=space)


@pytest.fixture
def users() -> NearbyUsers:
    users = NearbyUsers(limit=3)
    put(users, ann=(1, 0), bob=(1, 1))
    return users


class TestNearbyUsers:
    def test_the_nearest_come_first(self, users: NearbyUsers) -> None:
        put(users, cat=(0, 1))
        assert near(users, 1, 0.1) == ["ann", "bob", "cat"]
        assert near(users, 1, 0.1, count=1) == ["ann"]
        assert near(users, 0, 1) == ["cat", "bob", "ann"]

    def test_the_latest_interests_count(self, users: NearbyUsers) -> None:
        put(users, ann=(-1, 0))
        assert near(users, 1, 0) == ["bob", "ann"]
        put(users, ann=(0, 0))
        assert near(users, 1, 0) == ["bob"]

    def test_the_most_recent_are_kept(self, users: NearbyUsers) -> None:
        put(users, ann=(1, 0), cat=(0, 1), dan=(-1, 0))
        assert near(users, 1, 0) == ["ann", "cat", "dan"]
        put(users, **{f"u{n}": (1.0, float(n)) for n in range(5)})
        assert near(users, 1, 0) == ["u2", "u3", "u4"]

    def test_who_is_gone_is_not_found(self, users: NearbyUsers) -> None:
        users.gone("ann")
        users.gone("nobody")
        assert near(users, 1, 0) == ["bob"]
        users.clear()
        assert near(users, 1, 0) == []
        assert len(users) == 0
        put(users, cat=(0, 1))
        assert near(users, 1, 0) == ["cat"]

    def test_spaces_do_not_mix(self, users: NearbyUsers) -> None:
        assert near(users, 1, 0, space="t") == []
        put(users, space="t", cat=(0, 1, 0))
        assert near(users, 1, 0, 0, space="t") == ["cat"]
        assert near(users, 1, 0, space="s") == []
        put(users, space="t2", dan=(0, 1, 0))
        assert near(users, 1, 0, 0, space="t2") == ["dan"]

    def test_nobody_is_kept_when_none_shall_be(self) -> None:
        users = NearbyUsers(limit=0)
        put(users, ann=(1, 0))
        assert len(users) == 0
        assert near(users, 1, 0) == []

    @given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), max_size=40))
    def test_it_is_what_a_dictionary_of_the_most_recent_would_be(self, steps: list[tuple[int, int]]) -> None:
        users, kept = NearbyUsers(limit=4), dict[str, tuple[float, float]]()
        for number, what in steps:
            name = f"u{number}"
            kept.pop(name, None)
            if what:
                vector = (float(what), float(number))
                put(users, **{name: vector})
                kept[name] = vector
                kept = dict(list(kept.items())[-4:])
            else:
                users.gone(name)
        ranked = sorted(kept, key=lambda name: -float(unit(*kept[name]) @ unit(1, 0)))
        found = near(users, 1, 0)
        assert set(found) == set(kept)
        cosines = [round(float(unit(*kept[name]) @ unit(1, 0)), 5) for name in found]
        assert cosines == [round(float(unit(*kept[name]) @ unit(1, 0)), 5) for name in ranked]


class TestNewest:
    def test_the_longest_waiting_are_dropped(self) -> None:
        waiting: Newest[str, int] = Newest(limit=2)
        assert [waiting.put("a", 1), waiting.put("b", 2), waiting.put("a", 3), waiting.put("c", 4)] == [0, 0, 0, 1]
        assert list(waiting.take().items()) == [("a", 3), ("c", 4)]
        assert (len(waiting), waiting.take()) == (0, {})


def test_a_user_near_several_items_is_asked_once_and_the_nearest_first() -> None:
    found = [[("a", 0.9), ("b", 0.5)], [("c", 0.8), ("b", 0.85)], []]
    assert best_first(found, 9) == (["a", "b", "c"], 0)
    assert best_first(found, 2) == (["a", "b"], 1)
    assert best_first([], 2) == ([], 0)
