"""The judge of health: what is red when, what is not although it looks like it, and what is said of it. No clocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.health.judging import PROBES, Check, Probe, judge
from stream_app.health.state import ReplicaSeen, RoleSeen, Seen, State, StreamSeen, observe, stopped
from stream_app.settings import HealthSettings

LIMITS = HealthSettings(
    loop_s=30, stalled_s=60, long_work_s=600, dead_s=15, unready_after_s=10, replica_records=100, replica_s=20
)
AWAY = {"Redis": "ConnectionError: refused"}


def role(name: str = "items", *streams: StreamSeen, **more: Any) -> RoleSeen:
    return RoleSeen(**{"name": name, "joined": True, "streams": streams or (StreamSeen(name=name),), **more})


def seen(*roles: RoleSeen, **more: Any) -> Seen:
    roles = roles or (role(),)
    return Seen(
        **{"expected": tuple(one.name for one in roles if one.counts), "roles": roles, "complete": True, **more}
    )


def after(*looks: tuple[float, Seen], state: State | None = None) -> State:
    state = state or State(at=0.0)
    for now, look in looks:
        state = observe(state, look, now)
    return state


def red(state: State, probe: Probe, now: float | None = None, **more: Any) -> list[str]:
    checks = judge(state, LIMITS, state.at if now is None else now, **more)[probe]
    return [check.name for check in checks if not check.ok]


def check(state: State, probe: Probe, name: str) -> Check:
    (found,) = [one for one in judge(state, LIMITS, state.at)[probe] if one.name == name]
    return found


def every_second(look: Seen, until: int, start: int = 0) -> list[tuple[float, Seen]]:
    return [(float(now), look) for now in range(start, until + 1)]


def test_a_process_that_does_as_it_should_is_all_green():
    state = after((0, seen()), (1, seen()))
    assert [red(state, probe) for probe in PROBES] == [[], [], []]


# The event loop.


def test_a_loop_that_does_not_turn_is_not_alive_and_not_ready_but_has_started():
    state = after((0, seen()))
    assert red(state, "live", 30.0) == []
    assert red(state, "live", 30.1) == red(state, "ready", 30.1) == ["loop"]
    assert red(state, "started", 30.1) == []
    assert "30 s (health.loop_s 30)" in judge(state, LIMITS, 30.1)["live"][0].detail


def test_it_is_alive_again_when_the_loop_turns_again():
    assert red(after((0, seen()), (500, seen())), "live") == []


def test_compiling_may_hold_the_loop_up_for_as_long_as_long_work_takes():
    state = after((0, seen()))
    assert red(state, "live", 600.0, compiling=True) == []
    assert red(state, "live", 600.1, compiling=True) == ["loop"]


def test_while_it_starts_the_loop_may_be_held_up_for_as_long_as_long_work_takes():
    state = after((0, seen(complete=False)))
    assert red(state, "live", 599.0) == []
    assert red(state, "live", 601.0) == ["loop"]
    assert red(State(at=0.0), "live", 601.0) == ["loop"], "also before the first look"


def test_a_loop_that_stands_still_is_not_taken_for_consumers_that_do():
    stuck = seen(role("items", StreamSeen(name="items", unread=5)))
    state = after((0, stuck), (59, stuck))
    assert red(state, "live", 10_000.0) == ["loop"]


# Consumers.


def stalled(**more: Any) -> Seen:
    return seen(role("items", StreamSeen(name="items", **more)))


def test_records_that_wait_on_the_broker_and_are_not_fetched_are_a_dead_consumer():
    state = after(*every_second(stalled(unread=3, position=40, done=40), 60))
    assert red(state, "live") == []
    state = after((61, stalled(unread=9, position=40, done=40)), state=state)
    assert red(state, "live") == ["consumer items"]
    assert "consumer items" in red(state, "ready")
    detail = check(state, "live", "consumer items").detail
    assert "9 records on the broker, and nothing was fetched" in detail
    assert "61 s" in detail
    assert "Start the process again" in detail


def test_records_that_were_fetched_and_are_not_acknowledged_are_a_dead_consumer_though_fetching_goes_on():
    looks = [(float(now), stalled(undone=now + 1, position=100 + now, unread=1, done=99)) for now in range(62)]
    assert red(after(*looks[:-1]), "live") == []
    assert red(after(*looks), "live") == ["consumer items"]
    assert "in the process, and nothing was acknowledged" in check(after(*looks), "live", "consumer items").detail


def test_a_consumer_for_which_nothing_waits_may_stand_still_for_ever():
    assert red(after((0, stalled(position=7, done=7)), (100_000, stalled(position=7, done=7))), "live") == []


def test_a_full_queue_is_no_dead_fetch_while_what_is_in_it_is_acknowledged():
    looks = [(float(now), stalled(unread=9_000, position=50, undone=5_000 - now, done=now)) for now in range(200)]
    assert red(after(*looks), "live") == []


def test_any_progress_gives_the_whole_time_again():
    stuck, moved = stalled(unread=3, position=1, undone=2, done=1), stalled(unread=2, position=2, undone=2, done=2)
    state = after(*every_second(stuck, 50), *every_second(moved, 110, start=51))
    assert red(state, "live") == []
    assert red(after((112, moved), state=state), "live") == ["consumer items"]


def test_work_that_shows_before_it_is_acknowledged_is_progress():
    looks = [(float(now), stalled(undone=128, done=5, work=now // 50)) for now in range(300)]
    assert red(after(*looks), "live") == []


def test_what_the_settings_let_wait_is_waited_for():
    waits = stalled(undone=1, done=5, patience_s=100.0)
    state = after(*every_second(waits, 160))
    assert red(state, "live") == []
    assert red(after((161, waits), state=state), "live") == ["consumer items"]


def test_known_long_work_may_take_long_but_not_for_ever():
    busy = stalled(undone=1, done=5, busy="taking over the ranker")
    state = after(*every_second(busy, 600))
    assert red(state, "live") == []
    assert "taking over the ranker" in check(state, "live", "consumer items").detail
    state = after((601, busy), state=state)
    assert red(state, "live") == ["consumer items"]
    assert "health.long_work_s 600" in check(state, "live", "consumer items").detail


def test_after_long_work_a_consumer_has_its_whole_time_again():
    busy, idle = stalled(undone=1, done=5, busy="taking over the ranker"), stalled(undone=1, done=5)
    state = after(*every_second(busy, 500), *every_second(idle, 560, start=501))
    assert red(state, "live") == []
    assert red(after((562, idle), state=state), "live") == ["consumer items"]


def test_each_consumer_of_a_role_is_looked_at_by_itself():
    def two(now: int) -> Seen:
        moving = StreamSeen(name="interactions", unread=5, position=now, done=now)
        return seen(role("interactions", moving, StreamSeen(name="interactions users.v1", unread=1)))

    assert red(after(*((float(now), two(now)) for now in range(62))), "live") == ["consumer interactions users.v1"]


def test_the_time_of_a_consumer_that_is_new_begins_when_it_comes():
    state = after(*every_second(stalled(unread=1), 50))
    other = seen(role("ranker", StreamSeen(name="ranker", unread=1)))
    assert red(after((51, other), (110, other), state=state), "live") == []
    assert red(after((51, other), (112, other), state=state), "live") == ["consumer ranker"]


# What is away.


@pytest.mark.parametrize("what", [{"Redis": "refused"}, {"Kafka at a:1": "TimeoutError"}])
def test_what_is_away_is_no_reason_to_start_again_however_long(what: Mapping[str, str]):
    waits = seen(role("items", StreamSeen(name="items", unread=9, undone=9)), away=what)
    state = after(*every_second(waits, 10_000))
    assert red(state, "live") == []
    assert red(state, "ready") == ["services"]
    assert "18 records with it for what is away" in check(state, "live", "consumer items").detail
    detail = check(state, "ready", "services").detail
    assert next(iter(what)) in detail
    assert "does not help" in detail


def test_when_it_is_back_a_consumer_has_its_whole_time_again_and_then_no_more():
    stuck = stalled(unread=9, undone=9)
    outage = seen(*stuck.roles, away=AWAY)
    state = after(*every_second(stuck, 50), *every_second(outage, 1_000, start=51), *every_second(stuck, 1_060, 1_001))
    assert red(state, "live") == []
    assert red(state, "ready") == []
    assert red(after((1_061.5, stuck), state=state), "live") == ["consumer items"]


def test_it_is_not_ready_only_when_something_has_been_away_for_a_while():
    outage = seen(away=AWAY)
    assert red(after((0, seen()), (1, outage), (10, outage)), "ready") == []
    assert red(after((0, seen()), (1, outage), (11, outage)), "ready") == ["services"]
    assert red(after((0, seen()), (1, outage), (9, outage), (10, seen()), (11, outage)), "ready") == []


def test_a_sentence_names_what_is_away_longest_first_and_not_all_of_a_hundred():
    many = {f"thing {number}": "x" for number in range(100)}
    detail = check(
        after((0, seen(away=AWAY)), (5, seen(away=AWAY | many)), (50, seen(away=AWAY | many))), "ready", "services"
    ).detail
    assert detail.startswith("Waits for Redis (50 s): ConnectionError: refused")
    assert "and 98 more" in detail
    assert len(detail) < 400


# The machinery around an agent.


def test_a_consumer_that_ended_and_is_not_started_again_is_not_alive():
    dead = seen(role("items", dead="Its agent tailrace.items ended"))
    assert red(after((0, dead), (14, dead)), "live") == []
    state = after((0, dead), (15, dead))
    assert red(state, "live") == ["engine items"]
    assert check(state, "live", "engine items").detail.startswith("Its agent tailrace.items ended, 15 s ago")
    assert red(after((0, dead), (14, dead), (15, seen()), (16, dead)), "live") == [], "it was started again in between"


def test_that_holds_though_something_is_away():
    dead = seen(role("items", dead="Its consumer crashed"), away=AWAY)
    assert red(after((0, dead), (15, dead)), "live") == ["engine items"]


# Groups.


def test_a_group_not_joined_yet_is_not_ready_at_once_and_one_joined_again_after_a_while():
    apart = seen(role("items", joined=False))
    assert "group items" in red(after((0, apart)), "ready")
    state = after((0, seen()), (1, apart), (10, apart))
    assert red(state, "ready") == []
    assert red(after((11, apart), state=state), "ready") == ["group items"]
    assert red(after((11, apart), state=state), "live") == []


def test_a_space_that_is_built_beside_is_looked_at_for_life_and_not_for_readiness():
    beside = RoleSeen(
        name="catalogue-1", counts=False, dead="Its agent ended", streams=(StreamSeen(name="catalogue-1", unread=1),)
    )
    both = seen(role("catalogue"), beside)
    state = after((0, both), (61, both))
    assert red(state, "live") == ["engine catalogue-1", "consumer catalogue-1"]
    assert "group catalogue-1" not in [one.name for one in judge(state, LIMITS, 61)["ready"]]


# The replica.


def with_replica(positions: Mapping[Any, int], ends: Mapping[Any, int] | None, **more: Any) -> Seen:
    fields = {"caught_up": True, "positions": positions, "ends": ends, **more}
    return seen(role("interactions"), needs_replica=True, replica=ReplicaSeen(**fields))


def test_a_replica_that_has_not_caught_up_is_not_ready_and_not_started():
    state = after((0, with_replica({}, None, caught_up=False)))
    assert red(state, "ready") == ["running", "replica"]
    assert red(state, "started") == ["replica"]
    assert red(state, "live") == []
    absent = seen(role("interactions"), needs_replica=True)
    assert red(after((0, absent)), "ready") == ["running", "replica"]


def test_a_replica_that_falls_behind_later_by_records_is_not_ready_until_it_has_caught_up():
    state = after((0, with_replica({"a": 10, "b": 5}, {"a": 10, "b": 5})))
    assert red(state, "ready") == []
    state = after((1, with_replica({"a": 10, "b": 5}, {"a": 70, "b": 45})), state=state)
    assert red(state, "ready") == [], "100 records"
    state = after((2, with_replica({"a": 10, "b": 5}, {"a": 71, "b": 45})), state=state)
    assert red(state, "ready") == ["replica"]
    assert red(state, "live") == red(state, "started") == []
    assert "101 records" in check(state, "ready", "replica").detail
    state = after((3, with_replica({"a": 71, "b": 45}, {"a": 71, "b": 45})), state=state)
    assert red(state, "ready") == []


def test_a_replica_that_stands_still_is_not_ready_when_it_is_behind_for_too_long():
    still = with_replica({"a": 10}, {"a": 11})
    state = after((0, with_replica({"a": 10}, {"a": 10})), (1, still), (21, still))
    assert red(state, "ready") == []
    state = after((21.5, still), state=state)
    assert red(state, "ready") == ["replica"]
    assert "1 record and 20 s behind" in check(state, "ready", "replica").detail


def test_a_replica_that_follows_topics_which_never_fall_silent_is_ready():
    looks = [(float(now), with_replica({"a": 10 * now}, {"a": 10 * now + 15})) for now in range(500)]
    assert red(after(*looks), "ready") == []


def test_a_replica_that_is_always_further_behind_than_allowed_is_not_ready_though_it_moves():
    looks = [(float(now), with_replica({"a": now}, {"a": now + 25})) for now in range(100)]
    assert red(after(*looks), "ready") == ["replica"]


def test_how_far_behind_is_bounded_in_memory_and_still_right_in_the_end():
    looks = [(float(now), with_replica({"a": 0}, {"a": now})) for now in range(5_000)]
    state = after(*looks)
    assert len(state.pending) <= 256
    assert red(state, "ready") == ["replica"]
    assert red(after((5_001, with_replica({"a": 6_000}, {"a": 6_000})), state=state), "ready") == []


def test_a_broker_that_does_not_say_where_topics_end_does_not_make_a_replica_late():
    state = after((0, with_replica({"a": 10}, {"a": 10})), (1_000, with_replica({"a": 10}, None)))
    assert red(state, "ready") == []


def test_partitions_that_are_read_no_more_do_not_count():
    state = after((0, with_replica({"a": 10, "b": 0}, {"a": 10, "b": 900})))
    assert red(state, "ready") == ["replica"]
    assert red(after((1, with_replica({"a": 10}, {"a": 10})), state=state), "ready") == []


# The start, the end, the encoders.


def test_it_has_started_when_every_role_has_its_first_partitions_and_then_for_good():
    apart = seen(role("items"), role("ranker", joined=False))
    state = after((0, apart))
    assert red(state, "started") == ["group ranker"]
    assert red(state, "ready") == ["running", "group ranker"]
    one_after_the_other = seen(role("items", joined=False), role("ranker"))
    state = after((1, one_after_the_other), state=state)
    assert red(state, "started") == []
    assert (
        red(after((100, seen(role("items", joined=False), role("ranker", joined=False))), state=state), "started") == []
    )


def test_before_the_roles_are_there_it_has_not_started_and_says_what_it_waits_for():
    starting = seen(expected=("items",), roles=(), complete=False, away=AWAY)
    state = after((0, starting), (100, starting))
    assert red(state, "started") == ["group items", "roles"]
    assert "Redis" in check(state, "started", "roles").detail
    assert red(state, "ready") == ["running", "services"]
    assert red(state, "live") == []


def test_a_process_with_no_look_taken_yet_is_alive_and_nothing_else():
    state = State(at=0.0)
    assert red(state, "live") == []
    assert red(state, "ready") == ["running"]
    assert red(state, "started") == ["roles"]


def test_a_process_told_to_stop_is_alive_and_not_ready():
    state = stopped(after((0, seen())))
    assert red(state, "live") == []
    assert red(state, "ready") == ["running"]
    assert "told to stop" in check(state, "ready", "running").detail


def test_encoders_that_gave_up_are_not_ready_and_say_why():
    state = after((0, seen(encoders="no GPU")))
    assert red(state, "ready") == ["encoders"]
    assert "no GPU" in check(state, "ready", "encoders").detail


# For any course of things.

streams = st.builds(
    StreamSeen,
    name=st.sampled_from(["items", "ranker"]),
    unread=st.integers(0, 3),
    position=st.integers(0, 3),
    undone=st.integers(0, 3),
    done=st.integers(0, 3),
    busy=st.sampled_from(["", "long"]),
)
looks = st.builds(
    lambda streams, joined, dead, away: seen(role("items", *streams, joined=joined, dead=dead), away=away),
    st.lists(streams, max_size=2, unique_by=lambda one: one.name),
    st.booleans(),
    st.sampled_from(["", "ended"]),
    st.sampled_from([{}, AWAY]),
)


@given(st.lists(st.tuples(st.floats(0, 100), looks), min_size=1, max_size=12))
def test_what_is_not_alive_is_not_ready_and_every_check_has_one_name_and_a_sentence(
    course: Sequence[tuple[float, Seen]],
):
    now, state = 0.0, State(at=0.0)
    for step, look in course:
        now += step
        state = observe(state, look, now)
        judged = judge(state, LIMITS, now)
        assert {one.name for one in judged["live"] if not one.ok} <= {one.name for one in judged["ready"] if not one.ok}
        for checks in judged.values():
            assert len({one.name for one in checks}) == len(checks)
            assert all(one.name and one.detail for one in checks)
        if look.away and not look.roles[0].dead:
            assert all(one.ok for one in judged["live"]), "nothing that is away is a reason to start again"
