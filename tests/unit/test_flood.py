"""One user, too many events: what is shed, that it is the same for whoever processes it, and that others go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from schemas.decode import decode_dead_letter
from stream_app.agents.interactions import InteractionsAgent
from stream_app.metrics import Metrics
from stream_app.settings import Settings, UserSettings, load_settings
from stream_app.users.flood import LETTERS, REASON, metered, told
from stream_app.users.fold import Folder, not_shed
from stream_app.users.stage import SourcedEvent
from stream_app.users.state import Flood, UserState, decode_state, encode_state
from tests.unit.test_overlap import Broker, Redis
from tests.unit.test_stage import NOW, START, Rig, event, make_serving
from workers.pool import Priority

T0 = START.timestamp()
LIMITED = load_settings(users={"history": 6, "events_per_s": 2, "events_burst": 3}, slate={"size": 5})
SERVING = make_serving(LIMITED)


def run(appended: Sequence[float], occurred: Sequence[float], settings: UserSettings) -> list[bool]:
    """Which of a user's events are shed."""
    flood, shed = Flood(), []
    for appended_s, occurred_s in zip(appended, occurred, strict=True):
        flood, full = metered(flood, appended_s=appended_s, occurred_s=occurred_s, settings=settings)
        shed.append(full)
    return shed


def sourced(count: int, *, first: int = 0, user: str = "u", every_s: float = 0.0) -> list[SourcedEvent]:
    """Events that are appended when they happen."""
    made = []
    for offset in range(first, first + count):
        after = every_s * (offset - first)
        made.append(event(offset, user=user, minute=after / 60, appended_s=T0 + after))
    return made


def test_what_comes_faster_than_the_rate_for_longer_than_the_burst_is_shed():
    users = UserSettings(events_per_s=2, events_burst=3)
    at = [T0] * 5 + [T0 + 1.0] * 5
    assert run(at, at, users) == [False] * 3 + [True] * 2 + [False] * 2 + [True] * 3


def test_a_person_and_a_long_invoice_stay_far_below_the_default():
    day = [T0 + second for second in range(0, 86_400, 2) for _ in range(10)]
    assert not any(run(day, day, UserSettings())), "five a second, the whole day"
    assert not any(run([T0] * 5_000, [T0] * 5_000, UserSettings()))


def test_an_import_at_full_speed_is_not_shed_and_what_follows_it_live_neither():
    occurred = [T0 - 86_400.0 * day for day in range(365, 0, -1) for _ in range(100)]
    live = [T0 + 10.0 + second for second in range(100)]
    assert not any(run([T0] * len(occurred) + live, occurred + live, UserSettings(events_burst=100)))


def test_a_replay_after_an_outage_has_the_times_of_the_first_time():
    users = UserSettings(events_per_s=2, events_burst=3)
    at = [T0 + 0.1 * number for number in range(200)]
    assert run(at, at, users) == run(at, at, users), "nothing of it is when it is processed"
    slow = [T0 + number for number in range(200)]
    assert not any(run(slow, slow, users))


def test_without_a_limit_nothing_is_held():
    flood, shed = metered(Flood(), appended_s=T0, occurred_s=T0, settings=UserSettings(events_per_s=0))
    assert (flood, shed) == (Flood(), False)


times = st.lists(st.tuples(st.floats(0, 50), st.floats(-1_000, 50)), max_size=60)


@given(times, st.integers(1, 5), st.integers(1, 10))
def test_no_more_is_let_through_than_the_bound_says(steps: list[tuple[float, float]], rate: int, burst: int):
    appended, occurred = [T0 + one for one, _ in steps], [T0 + two for _, two in steps]
    users = UserSettings(events_per_s=rate, events_burst=burst)
    shed = run(appended, occurred, users)
    seconds = int(max(appended, default=T0)) - int(min(appended, default=T0)) + 1
    seconds += int(max(occurred, default=T0)) - int(min(occurred, default=T0)) + 1
    assert shed.count(False) <= burst + rate * seconds


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.integers(0, 2)), max_size=40), st.data())
def test_the_same_events_are_shed_however_they_are_cut_delivered_again_or_handed_over(
    stream: list[tuple[str, int]], data: st.DataObject
):
    at, events = 0.0, []
    for offset, (user, step) in enumerate(stream):
        at += step / 4
        events.append(event(offset, "i1", user=user, minute=at / 60, appended_s=T0 + at))
    whole, parts = Rig(SERVING, LIMITED), Rig(SERVING, LIMITED)
    whole.process(events)
    cuts = sorted({0, len(events), *data.draw(st.lists(st.integers(0, len(events)), max_size=5))})
    for start, end in pairwise(cuts):
        again = data.draw(st.integers(0, start))
        kept = not_shed(events[again:end], {name: parts.state(name) for name in "uvw"}, LIMITED.users)
        before = dict(parts.states)
        result = parts.process(events[again:end])  # from an earlier offset, as after a crash
        assert len(kept) == end - again - result.skipped.get(REASON, 0)
        assert before.keys() <= parts.states.keys()
        # The next owner has what was stored.
        parts.states = {name: decode_state(name, encode_state(state)) for name, state in parts.states.items()}
    assert parts.packed_states() == whole.packed_states()
    told_of = [(one.offset, untold) for result in parts.results for one, untold in result.shed]
    assert told_of == [(one.offset, untold) for result in whole.results for one, untold in result.shed]


def test_a_shed_event_leaves_no_trace_and_counts_when_it_is_replayed():
    rig = Rig(SERVING, LIMITED)
    rig.process(sourced(4))
    state = rig.state("u")
    assert (state.events, len(state.history), state.applied) == (3, 3, {0: 3})
    again = event(4, "i2", minute=10, appended_s=T0 + 600, event_id="e3")
    result = rig.process([again])
    assert result.skipped == {}
    assert rig.state("u").events == 4


def test_the_same_event_over_and_over_is_a_duplicate_and_takes_no_place():
    rig = Rig(SERVING, LIMITED)
    same = [event(offset, minute=0, appended_s=T0, event_id="e") for offset in range(100)]
    assert rig.process(same).skipped == {"duplicate": 99}
    assert rig.state("u").flood.events == 1


def test_letters_of_a_flood_are_few_and_say_how_many_have_none():
    users = LIMITED.users
    flood, letters, shed = Flood(), [], 0
    for _ in range(100_000):
        before = flood
        flood, full = metered(before, appended_s=T0, occurred_s=T0, settings=users)
        shed += full
        if full and (untold := told(before, flood)) is not None:
            letters.append(untold)
    assert shed == 100_000 - users.events_burst
    assert len(letters) == LETTERS + 13, "ten, then the 16th, 32nd, ... 65,536th"
    assert letters[: LETTERS + 2] == [0] * LETTERS + [5, 15]
    assert sum(letters) + len(letters) + flood.untold == shed, "nothing vanishes"
    # The first letter of a later minute says what the last one could not know.
    full = False
    while not full:
        before = flood
        flood, full = metered(before, appended_s=T0 + 60, occurred_s=T0, settings=users)
    assert told(before, flood) == shed - 65_536
    assert (flood.shed, flood.untold) == (1, 0)


def test_a_user_who_is_not_held_back_pays_thirty_bytes():
    state = UserState("u")
    Folder(LIMITED.event_types, LIMITED.users, LIMITED.items)(
        state, sourced(1)[0].event, partition=0, offset=0, appended_s=T0
    )
    without = state.copy()
    without.flood = Flood()
    assert len(encode_state(state)) - len(encode_state(without)) <= 30


def test_states_written_before_there_was_a_limit_are_read_and_those_after_by_who_knows_none():
    from stream_app.users import state as module

    after = UserState("u", applied={0: 3}, flood=Flood(7, 8, 9))
    packed = module._decompressor.decompress(encode_state(after)[1:])
    fields = msgspec.msgpack.decode(packed)
    before = module._PREFIX + module._compressor.compress(msgspec.msgpack.encode(fields[:-1]))
    assert decode_state("u", before) == UserState("u", applied={0: 3})
    more = module._PREFIX + module._compressor.compress(msgspec.msgpack.encode([*fields, "of a later release"]))
    assert decode_state("u", more) == after, "what is not known is left out"


def agent_with(settings: Settings) -> tuple[InteractionsAgent, Broker, Redis, Rig]:
    metrics = Metrics()
    broker, redis, rig = Broker(settings, metrics), Redis(), Rig(SERVING, settings)
    users: Any = redis
    pool: Any = None
    agent = InteractionsAgent(settings, broker, metrics, users=users, stage=rig.stage, serving=SERVING, pool=pool)
    return agent, broker, redis, rig


def delivered(offset: int, user: str, acked: list[int]) -> Any:
    body = {
        "event_id": f"e{offset}",
        "user_id": user,
        "type": "click",
        "item_id": f"i{offset % 20}",
        "occurred_at": START.isoformat(),
    }
    message = SimpleNamespace(
        topic="t", partition=0, offset=offset, key=user.encode(), headers=(), timestamp=T0,
        value=json.dumps(body).encode(),
    )  # fmt: skip
    return SimpleNamespace(message=message, ack=lambda: acked.append(offset))


async def test_others_get_their_slates_in_the_same_batches_beside_a_flood():
    settings = load_settings(
        users={"events_per_s": 1, "events_burst": 20},
        slate={"size": 5},
        delivery={"batch": 256, "catch_up": 8_192},
    )
    agent, broker, redis, _ = agent_with(settings)
    acked: list[int] = []
    # 50 events of one user for each of all others together.
    users = ["hot" if offset % 51 else f"calm-{offset // 51}" for offset in range(5_100)]
    try:
        await agent.handle([delivered(offset, user, acked) for offset, user in enumerate(users)])
        async with agent.alone():
            pass
        assert not agent.failed.done()
    finally:
        await agent.stop()
    calm = [f"calm-{number}" for number in range(100)]
    slates = [user for user, _ in broker.slates()]
    assert [user for user in slates if user != "hot"] == calm, "each has one, in the order of their events"
    assert slates.count("hot") <= 1, "who sends thousands is ranked once"
    assert acked == list(range(5_100))
    assert redis.states["hot"].events == 20
    assert all(redis.states[user].events == 1 for user in calm)
    letters = [decode_dead_letter(one.value) for one in broker.records if one.topic.endswith("dead-letter.v1")]
    assert {one.reason for one in letters} == {REASON}
    assert all(one.value for one in letters), "they can be replayed"
    assert LETTERS < len(letters) < 25
    assert "users.events_per_s" in letters[0].detail
    assert "have none" in letters[-1].detail


async def test_texts_of_shed_events_are_not_embedded():
    settings = load_settings(users={"events_per_s": 1, "events_burst": 20}, slate={"size": 5})
    agent, _, redis, _ = agent_with(settings)
    asked: list[int] = []

    async def encoded(texts: set[str], _: Priority) -> dict[str, Any]:
        asked.append(len(texts))
        return {}

    agent._encoded = encoded  # type: ignore[method-assign]
    events = []
    for offset in range(200):
        one = delivered(offset, "u", [])
        body = json.loads(one.message.value) | {"type": "search", "item_id": None, "text": f"lamp {offset}"}
        one.message.value = json.dumps(body).encode()
        events.append(one)
    try:
        await agent.handle(events)
        async with agent.alone():
            pass
    finally:
        await agent.stop()
    assert redis.states["u"].events == 20
    assert max(asked) == 20


def test_times_are_of_the_records_and_not_of_now():
    rig = Rig(SERVING, LIMITED)
    long_ago = [
        event(offset, minute=-1_000_000 + offset / 60, appended_s=T0 - timedelta(days=600).total_seconds() + offset)
        for offset in range(50)
    ]
    assert rig.process(long_ago).skipped == {}
    assert NOW > T0
