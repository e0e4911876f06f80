"""The load generator's bookkeeping, and what the benchmark commands refuse: nothing here is timed."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.decode import encode
from stream_app.bench import cutover
from stream_app.bench.coverage import Coverage, SlateSequence, due_times, percentiles_ms
from stream_app.bench.floor import in_process_floor
from stream_app.bench.hot import latencies_apart
from stream_app.bench.shop import ShopPlan, made_up_past, made_up_shop
from stream_app.cli import main
from stream_app.delivery.reading import default_partition
from stream_app.settings import Settings
from stream_app.spaces.served import ServedSpace
from stream_app.users.state import encode_state


def test_the_schedule_is_fixed_and_even() -> None:
    assert due_times(5, 4.0).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert len(due_times(0, 4.0)) == 0
    for rate in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="greater than 0"):
            due_times(5, rate)


def test_a_slate_covers_all_events_of_its_user_up_to_the_one_that_caused_it() -> None:
    coverage = Coverage(["ann", "bob", "ann", "ann"])
    assert (len(coverage), coverage.lost, coverage.uncovered) == (4, 4, 0)
    for number in range(4):
        coverage.sent(number, due=float(number))
    assert (coverage.uncovered, coverage.most_uncovered) == (4, 4)
    assert coverage.slate("ann", 2, at=10.0) == 2
    assert coverage.slate("ann", 2, at=11.0) == 0  # published twice: the first counts
    assert coverage.slate("cyd", 3, at=11.0) == 0
    assert coverage.latencies.tolist()[:3:2] == [10.0, 8.0]
    assert (coverage.uncovered, coverage.lost) == (2, 2)
    assert coverage.slate("bob", 1, at=12.0) == 1
    assert coverage.slate("ann", 3, at=13.0) == 1
    assert coverage.latencies.tolist() == [10.0, 11.0, 8.0, 10.0]
    assert (coverage.uncovered, coverage.lost, coverage.most_uncovered) == (0, 0, 4)


def test_an_event_that_was_not_sent_is_known_to_no_slate() -> None:
    coverage = Coverage(["ann", "ann"])
    coverage.sent(0, due=0.0)
    assert coverage.slate("ann", 1, at=1.0) == 1
    assert (coverage.lost, coverage.uncovered) == (1, 0)


def test_slates_that_go_back_and_changes_of_model_are_counted() -> None:
    sequence = SlateSequence()
    for user, partition, number, space in (
        ("ann", 0, 4, "m/1"),
        ("ann", 0, 4, "m/1+w1-aa"),  # the same model; published twice
        ("bob", 1, 2, "m/1"),
        ("ann", 0, 3, "n/2+w1-bb"),  # knows less
        ("ann", 0, 6, "n/2+w1-bb"),
        ("bob", 1, 3, "m/1"),
    ):
        sequence.slate(user, partition, number, space)
    assert (sequence.older, sequence.models, sequence.changes) == (1, 2, 1)
    sequence.slate("ann", 0, 7, "m/1")
    assert (sequence.older, sequence.models, sequence.changes) == (1, 2, 2)
    assert SlateSequence().changes == 0


def test_percentiles_are_of_what_is_known_in_milliseconds() -> None:
    seconds = np.append(np.arange(1, 1_001) / 1_000, np.nan)
    found = percentiles_ms(seconds)
    assert found == {"p50_ms": 500.5, "p99_ms": 990.01, "p999_ms": 999.0, "max_ms": 1_000.0}
    assert set(percentiles_ms(np.array([np.nan])).values()) == {None}


def test_processes_that_are_told_the_same_plan_know_the_same_events_and_places() -> None:
    plan = ShopPlan(items=300, users=40, events=100, history=8, dimensions=16, partitions=4)
    whole = list(plan.interactions(0, plan.past + plan.events))
    assert list(plan.interactions(plan.past, 10)) == whole[plan.past : plan.past + 10]
    places = Counter[int]()
    for number, (partition, offset, event) in enumerate(whole):
        assert event.event_id == f"event-{number}"
        assert partition == default_partition(event.user_id.encode(), 4)
        assert offset == places[partition]
        places[partition] += 1
    assert len(places) == 4


def test_a_hot_item_and_a_hot_user_have_their_shares_and_nothing_else_changes() -> None:
    plan = ShopPlan(items=300, users=100, events=2_000, history=20, dimensions=16, partitions=4)
    hot = msgspec.structs.replace(plan, hot_item=0.3, hot_user=0.1)
    even, uneven = (list(one.interactions(0, one.past + one.events)) for one in (plan, hot))
    assert (plan.hot_user_id, plan.hot_item_id) == (None, None)
    assert list(hot.interactions(0, len(uneven))) == uneven
    events = [event for _, _, event in uneven]
    assert sum(event.user_id == hot.hot_user_id for event in events) / len(events) == pytest.approx(
        0.1 + 0.01, abs=0.02
    )
    assert sum(event.item_id == hot.hot_item_id for event in events) / len(events) == pytest.approx(0.3, abs=0.02)
    for (_, _, before), event in zip(even, events, strict=True):
        assert event.item_id in (before.item_id, hot.hot_item_id) or event.user_id == hot.hot_user_id
        assert event.user_id in (before.user_id, hot.hot_user_id)
    # The hot user's own events are in order in one partition, as everybody's.
    places = [(partition, offset) for partition, offset, event in uneven if event.user_id == hot.hot_user_id]
    assert len({partition for partition, _ in places}) == 1
    assert places == sorted(places)


def test_everything_may_be_of_one_item_and_one_user() -> None:
    plan = ShopPlan(items=300, users=40, events=10, history=2, dimensions=16, hot_item=1.0, hot_user=1.0)
    events = [event for _, _, event in plan.interactions(0, plan.past + plan.events)]
    assert {(event.user_id, event.item_id) for event in events} == {(plan.hot_user_id, plan.hot_item_id)}


def test_a_shop_with_hot_keys_keeps_bounded_rows_of_them() -> None:
    settings = Settings()
    plan = ShopPlan(items=400, users=60, events=0, history=40, dimensions=16, hot_item=0.3, hot_user=0.2)
    past = made_up_past(settings, plan)
    state = past.states[plan.hot_user_id or ""]
    assert state.events > 400
    assert len(state.history) == settings.users.history
    assert len(encode_state(state)) < 4_000
    [row] = past.statistics.stated([plan.hot_item_id or ""])
    assert len(row.neighbours) == settings.items.neighbours
    assert len(encode(row)) < 16_000


def test_what_the_hot_user_and_the_others_waited_is_told_apart() -> None:
    found = latencies_apart(
        np.array([0.010, 0.020, 0.500, np.nan]), ["hot", "beside", "far", "hot"], [1, 1, 2, 1], hot_user="hot"
    )
    assert (found["hot_user_p50_ms"], found["others_p50_ms"], found["same_partition_p50_ms"]) == (10.0, 260.0, 20.0)
    nobody = latencies_apart(np.array([0.01]), ["ann"], [0], hot_user="hot")
    assert (nobody["hot_user_p99_ms"], nobody["others_p99_ms"], nobody["same_partition_p99_ms"]) == (None, 10.0, None)


def test_the_past_says_through_which_places_it_is_complete() -> None:
    plan = ShopPlan(items=300, users=40, events=10, history=8, dimensions=16, partitions=4)
    past = made_up_past(Settings(), plan)
    last = {event.user_id: (partition, offset) for partition, offset, event in plan.interactions(0, plan.past)}
    assert {user_id: dict([place]) for user_id, place in last.items()} == {
        user_id: state.applied for user_id, state in past.states.items()
    }
    ends = Counter(partition for partition, _, _ in plan.interactions(0, plan.past))
    for item_id, signals in past.statistics.take(past.statistics.waiting):
        assert signals is not None, item_id
        assert all(offset < ends[int(partition)] for partition, offset in signals.applied.items())
    space = ServedSpace(plan.space, past.space(Settings()))
    assert (space.version, space.items) == (1, 300)


def test_a_plain_loop_is_measured_on_what_live_processes_serve() -> None:
    shop = made_up_shop(Settings(), items=300, users=40, events=300, history=8, dimensions=16, whiten=True)
    assert shop.serving.served.version == 1
    figures = in_process_floor(shop, warm=200)
    assert (figures["benchmark"], figures["events"], figures["warm"]) == ("floor", 100, 200)
    assert set(figures["us_per_event"]) == {"decode", "compute", "encode"}
    assert figures["floor_events_per_s"] > 0
    assert shop.serving.ranker.examples > 100
    with pytest.raises(ValueError, match="too few"):
        in_process_floor(shop, warm=300)


def test_a_whitened_shop_is_the_same_shop() -> None:
    options = {"items": 200, "users": 20, "events": 20, "history": 4, "dimensions": 16}
    plain, whitened = made_up_shop(Settings(), **options), made_up_shop(Settings(), **options, whiten=True)
    assert plain.records == whitened.records
    assert [encode(plain.serving.versions), len(plain.serving.index)] != [encode(whitened.serving.versions), 200]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["latency", "--rates", "0"], "--rates '0': numbers from 0.1"),
        (["latency", "--rates", "10,fast"], "comma separated"),
        (["latency", "--rates", "nan"], "comma separated"),
        (["latency", "--rates", "100000", "--seconds", "86400"], "at most 5,000,000"),
        (["latency", "--seconds", "0"], "--seconds"),
        (["latency", "--items", "1"], "--items"),
        (["latency", "--kafka", "127.0.0.1:9092"], "--kafka and --redis go together"),
        (["latency", "--kafka", "127.0.0.1", "--redis", "redis://127.0.0.1"], "is not host:port"),
        (["latency", "--kafka", "127.0.0.1:9", "--redis", "127.0.0.1"], "a Redis URL starts with"),
        (["latency", "--hot-item", "1.5"], "--hot-item"),
        (["throughput", "--hot-user", "-0.1"], "--hot-user"),
        (["throughput", "--events", "0"], "--events"),
        (["throughput", "--floor", "--processes", "2"], "leave it out with --processes"),
        (["throughput", "--processes", "5"], "interactions.v1 has 4 partitions"),
        (["floor", "--broker", "kafka", "--kafka", "a:1", "--redis", "redis://a"], "leave it out with --kafka"),
        (["start", "--items", "1000.5"], "whole numbers from 100"),
        (["start", "--json", "/nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_cluster_that_does_not_answer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "latency", "--kafka", "127.0.0.1:1", "--redis", "redis://127.0.0.1:1", "--users", "10"]
    assert main(arguments) == 2
    assert "no Kafka broker answers at 127.0.0.1:1" in capsys.readouterr().err


def phases(**wrong: int) -> list[dict[str, Any]]:
    """Of a change of the model that went well, but for what is ``wrong`` while it was said."""
    fine = {"events": 10, "lost": 0, "slates_older_than_before": 0, "most_changes_of_model": 0}
    said = fine | {"most_changes_of_model": 1}
    names = ("before", "build", "cutover", "rollback", "after")
    lines = [{"phase": name, **(said if name in ("cutover", "rollback") else fine)} for name in names]
    lines[2] |= wrong
    return lines


WRONG = [
    ({"lost": 3}, "phase 3 (cutover): 3 events are known to no slate"),
    ({"slates_older_than_before": 1}, "phase 3 (cutover): 1 slates know less of their user than one before"),
    ({"most_changes_of_model": 2}, "phase 3 (cutover): the slates of a partition went from one model to another 2"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_what_a_change_of_the_model_must_not_do_is_told_with_its_phase(wrong: dict[str, int], said: str) -> None:
    (found,) = cutover.failures(phases(**wrong))
    assert found.startswith(said)


def test_each_thing_that_is_wrong_is_told() -> None:
    assert cutover.failures(phases()) == []
    assert len(cutover.failures(phases(lost=1, slates_older_than_before=1, most_changes_of_model=2))) == 3


@pytest.mark.parametrize(("wrong", "said"), [({}, ""), *WRONG])
def test_a_change_of_the_model_that_went_wrong_is_status_1(
    wrong: dict[str, int],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    async def figures(*_: Any, **__: Any) -> list[dict[str, Any]]:
        return phases(**wrong)

    monkeypatch.setattr(cutover, "cut_over_figures", figures)
    file = tmp_path / "figures.json"
    assert main(["bench", "cutover", "--json", str(file)]) == int(bool(wrong))
    shown = capsys.readouterr()
    assert said in shown.err
    assert ("phase" in shown.err) == bool(wrong)
    assert json.loads(file.read_text()) == phases(**wrong), "written all the same"


@pytest.mark.parametrize("change", ["batch=3", "dimensions=1000"])
def test_a_space_that_cannot_be_is_refused_before_a_broker_is_started(
    change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "cutover", "--set", change, "--kafka", "127.0.0.1:1", "--redis", "redis://127.0.0.1:1"]) == 2
    shown = capsys.readouterr().err
    assert f"encoder.{change.partition('=')[0]}" in shown
    assert "Kafka" not in shown
