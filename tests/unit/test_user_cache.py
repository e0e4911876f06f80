"""States in memory: bounded, the most recent, the same whether packed or not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream_app.stores.cache import UserCache
from stream_app.users.state import UserState, encode_state

USERS = "abcdef"


def state(user_id: str, events: int) -> UserState:
    return UserState(user_id, applied={0: events}, events=events)


def put(cache: UserCache, user_id: str, events: int) -> UserState:
    held = state(user_id, events)
    cache.put(user_id, held, encode_state(held))
    return held


def test_the_last_states_are_ready_and_older_ones_are_unpacked_when_asked_for():
    cache = UserCache(limit=3, unpacked=1)
    first, second = put(cache, "a", 1), put(cache, "b", 2)
    assert cache.get("b") is second
    found = cache.get("a")
    assert found == first
    assert found is not first, "it was packed"
    assert cache.get("a") is found, "and is ready now"


def test_a_user_of_whom_nothing_is_stored_is_known_to_have_nothing():
    cache = UserCache(limit=3, unpacked=1)
    cache.put("a", UserState("a"), b"")
    put(cache, "b", 1)
    assert cache.get("a") == UserState("a")


def test_who_was_not_asked_for_the_longest_leaves():
    cache = UserCache(limit=2, unpacked=2)
    put(cache, "a", 1)
    put(cache, "b", 1)
    cache.get("a")
    put(cache, "c", 1)
    assert cache.get("b") is None
    assert len(cache) == 2
    cache.drop("a")
    assert cache.get("a") is None
    cache.clear()
    assert len(cache) == 0
    assert cache.get("c") is None


@given(
    st.lists(st.tuples(st.sampled_from(["put", "get", "drop"]), st.sampled_from(USERS)), max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_whatever_is_held_is_what_was_put_last(steps: list[tuple[str, str]], limit: int, unpacked: int):
    cache = UserCache(limit=limit, unpacked=unpacked)
    last: dict[str, UserState] = {}
    for number, (step, user_id) in enumerate(steps):
        if step == "put":
            last[user_id] = put(cache, user_id, number)
        elif step == "drop":
            cache.drop(user_id)
            last.pop(user_id, None)
        else:
            found = cache.get(user_id)
            assert found is None or found == last[user_id]
        assert len(cache) <= limit
        assert len(cache._states) <= min(unpacked, len(cache))
        if step == "put":
            assert cache.get(user_id) == last[user_id]
