"""The benchmarks of the parts: that they measure what they say, not how fast it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from stream_app.bench import growth, ranking
from stream_app.bench.child import Progress
from stream_app.bench.growth import GROUPS, GrowthJob, _grew_most, array_bytes, growth_line, object_bytes
from stream_app.bench.index import index_figures
from stream_app.bench.ranking import PARTS, STAGES, ranking_figures
from stream_app.bench.shop import MadeUpShop, made_up_shop
from stream_app.cli import main
from stream_app.errors import TailraceError
from stream_app.ranking.ordering import order_candidates
from stream_app.ranking.recommender import Recommender
from stream_app.retrieval.candidates import find_candidates
from stream_app.retrieval.links import clear
from stream_app.settings import IndexSettings, RetrievalSettings, Settings, UserSettings


def shop(settings: Settings | None = None) -> MadeUpShop:
    return made_up_shop(settings or Settings(), items=300, users=40, events=640, history=8, dimensions=16)


def test_a_made_up_shop_is_the_same_whenever_it_is_made_and_has_a_past() -> None:
    one, other = shop(), shop()
    assert one.records == other.records
    assert len(one.records) == 640
    assert one.states == other.states
    assert sum(state.events for state in one.states.values()) == 40 * 8
    assert len(one.serving.index) == 300
    assert one.serving.signals.total(np.arange(300)).sum() > 200
    assert one.serving.factors.has[:300].all()


@pytest.mark.parametrize("whole", [True, False])
def test_every_stage_is_measured_and_every_event_is_covered_by_a_slate(whole: bool) -> None:
    made = shop(Settings() if whole else Settings(retrieval=RetrievalSettings(whole_below=0)))
    figures = ranking_figures(made, batch=32)
    sources = {f"source {source.name}" for source in Recommender(made.settings, made.serving).sources}
    # Nothing is searched for where everything is looked at, or where the neighbours of all that was taken are kept.
    assert set(figures["us_per_event"]) | {"search", "neighbours"} == set(STAGES)
    assert "search" not in figures["us_per_event"]
    assert whole != ("neighbours" in figures["us_per_event"])
    assert {*figures["us_of_candidates"], *figures["us_of_order"]} == {*PARTS, *sources}
    assert sources < set(figures["us_of_candidates"])
    for group in ("us_per_event", "us_of_candidates", "us_of_order"):
        assert all(took >= 0.0 for took in figures[group].values())
        assert sum(figures[group].values()) > 0
    # Several events of one user in a batch cost one slate.
    assert 0.3 < figures["slates_per_event"] < 1.0
    assert figures["p50_us"] <= figures["p99_us"]
    assert sum(state.events for state in made.states.values()) == 40 * 8 + 640


@pytest.mark.parametrize("whole", [True, False])
def test_part_by_part_calls_find_and_order_what_they_do_whole(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    compared = {"candidates": 0, "order": 0}
    candidate_parts, order_parts = ranking._candidate_parts, ranking._order_parts

    def candidates(timed: Any, call: SimpleNamespace, names: list[str]) -> None:
        rows = candidate_parts(timed, call, names)
        assert (call.find.slot == -1).all()
        assert (call.find.link_slot == -1).all()
        assert rows.tolist() == call.rows.tolist()
        count, links = find_candidates(*vars(call.find).values())
        clear(call.find.links[:links], call.find.link_slot)
        assert rows.tolist() == call.find.rows[:count].tolist()
        compared["candidates"] += 1

    def order(timed: Any, call: SimpleNamespace) -> None:
        places = order_parts(timed, call).copy()
        assert places.tolist() == call.order[: order_candidates(*vars(call).values())].tolist()
        compared["order"] += 1

    monkeypatch.setattr(ranking, "_candidate_parts", candidates)
    monkeypatch.setattr(ranking, "_order_parts", order)
    ranking_figures(shop(Settings() if whole else Settings(retrieval=RetrievalSettings(whole_below=0))), batch=32)
    assert min(compared.values()) > 50


def test_too_few_events_are_refused() -> None:
    with pytest.raises(ValueError, match="640 records are too few"):
        ranking_figures(shop(), batch=512)


@pytest.mark.parametrize("command", ["ranking", "growth"])
def test_too_few_events_are_refused_before_a_shop_is_made(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", command, "--events", "256", "--batch", "32"]) == 2
    assert "at least 320" in capsys.readouterr().err


def test_the_command_shows_a_table_and_writes_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    command = ["bench", "ranking", "--items", "200", "--users", "20", "--events", "256", "--batch", "16"]
    assert main([*command, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "microseconds per event" in printed
    assert "source text_slow" in printed
    (figures,) = json.loads(file.read_text())
    assert figures["benchmark"] == "ranking"
    assert (figures["items"], figures["users"], figures["batch"], figures["seed"]) == (200, 20, 16, 0)


@pytest.mark.parametrize(("exact_below", "kind", "least"), [(20_000, "scan", 1.0), (100, "graph", 0.9)])
def test_an_index_is_measured_against_brute_force(exact_below: int, kind: str, least: float) -> None:
    told: list[tuple[str, int, int]] = []
    (figures,) = index_figures(
        IndexSettings(exact_below=exact_below),
        sizes=[400],
        dimensions=24,
        on_progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert (figures["vectors"], figures["kind"]) == (400, kind)
    assert least <= figures["recall"] <= 1.0
    assert (figures["build_s"] > 0.0) == (kind == "graph")
    for name in ("fill_per_s", "change_us", "query_us", "list_us"):
        assert figures[name] > 0.0
    # The vectors in float32 and in codes, at least.
    assert figures["bytes_per_vector"] >= 24 * 4 + 32
    assert told[-1] == ("400 vectors", 400, 400)


def test_the_index_command_takes_several_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert main(["bench", "index", "--sizes", "50,120", "--dimensions", "8", "--json", str(file)]) == 0
    assert "recall" in capsys.readouterr().out
    assert [line["vectors"] for line in json.loads(file.read_text())] == [50, 120]
    for wrong in ("", "ten", "0", "6000000"):
        assert main(["bench", "index", "--sizes", wrong]) == 2
        assert "whole numbers from 1 to 5,000,000" in capsys.readouterr().err


SMALL = GrowthJob(items=300, users=40, history=8, events=256, batch=16)


def test_what_a_shop_costs_is_said_by_group_and_by_part() -> None:
    told: list[str] = []
    line = growth_line(Settings(), SMALL, on_progress=lambda what, _done, _total: told.append(what))
    assert (line["items"], line["users"], line["history"]) == (300, 40, 8)
    assert line["events_per_s"] == pytest.approx(1e6 / line["us_per_event"], rel=0.01)
    assert set(line["us_by_group"]) == {*GROUPS, "other"}
    assert sum(line["us_by_group"].values()) == pytest.approx(sum(line["us_by_stage"].values()), abs=1.0)
    # Vectors of 384 float32 and their codes; two times 64 float32.
    assert line["bytes_by_part"]["index"] > 384 * 5
    assert line["bytes_by_part"]["factors"] > 2 * 64 * 4
    assert 0 < line["state_bytes"] < line["cached_state_bytes"]
    assert {"history", "items", "measured events"} <= set(told)


def test_the_stage_that_grew_most_is_named_where_one_did() -> None:
    first = {"fold": 10.0, "order": 50.0, "search": 1.0}
    assert _grew_most(first, {"fold": 12.0, "order": 20.0, "search": 91.5}) == {"search": 90.5}
    assert _grew_most(first, {"fold": 10.0, "order": 50.0, "search": 1.0, "new": 4.0}) == {"new": 4.0}
    assert _grew_most(first, first) == {}
    assert _grew_most(first, {"fold": 9.0, "order": 49.0, "search": 0.5}) == {}


def test_longer_histories_are_kept_whole() -> None:
    short = growth_line(Settings(), SMALL, on_progress=lambda _what, _done, _total: None)
    long = growth_line(
        Settings(), msgspec.structs.replace(SMALL, history=90), on_progress=lambda _what, _done, _total: None
    )
    assert long["state_bytes"] > 3 * short["state_bytes"]


def test_arrays_are_counted_once_and_with_all_they_keep() -> None:
    made = shop().serving
    assert array_bytes(made.factors) >= made.factors.context.nbytes + made.factors.target.nbytes
    assert array_bytes((np.zeros(100)[:10], np.zeros(0))) == 800
    both = np.zeros(100)
    assert array_bytes((both, both[5:], (both,))) == 800
    assert array_bytes({"not": both}) == 0
    assert object_bytes(["a" * 1_000, "b"]) > 1_000


def test_a_shop_that_does_not_fit_is_refused_before_any_is_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth.psutil, "virtual_memory", lambda: SimpleNamespace(available=8_000_000_000))
    growth.need_memory([SMALL], [100])
    with pytest.raises(TailraceError, match=r"5,000,000,000 items and 2,000 users.* GB are free"):
        growth.need_memory([SMALL, GrowthJob(items=5_000_000_000)], [])
    assert main(["bench", "growth", "--redis-users", "100000000"]) != 0
    assert "Redis with 100,000,000 users: about 500.0 GB" in " ".join(capsys.readouterr().err.split())


async def test_a_shop_is_measured_in_a_process_of_its_own() -> None:
    told: list[str] = []
    settings = Settings(users=UserSettings(history=4))
    line = await growth._in_a_child(settings, SMALL, "a shop", lambda what, _done, _total: told.append(what))
    assert (line["items"], line["users"], line["history"], line["events"]) == (300, 40, 8, 256)
    assert line["bytes_per_item"] > 0
    assert told
    assert all(what.startswith("a shop: ") for what in told)


def test_growth_is_measured_along_every_axis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def here(settings: Settings, job: GrowthJob, _name: str, on_progress: Progress) -> dict[str, Any]:
        small = msgspec.structs.replace(job, items=min(job.items, 400), users=min(job.users, 40))
        return growth_line(settings, small, on_progress=on_progress) | {"items": job.items, "users": job.users}

    monkeypatch.setattr(growth, "_in_a_child", here)
    monkeypatch.setattr(growth, "_STATES", 50)
    file = tmp_path / "figures.json"
    command = ["bench", "growth", "--items", "300", "--users", "20,40", "--history", "4", "--events", "256"]
    assert main([*command, "--batch", "16", "--redis-users", "100,2000", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "which stages grow" in printed
    lines = json.loads(file.read_text())
    assert [(line["axis"], line["users" if line["axis"] == "redis" else line["axis"]]) for line in lines] == [
        ("items", 300), ("users", 20), ("users", 40), ("history", 4), ("redis", 100), ("redis", 2_000)
    ]  # fmt: skip
    assert {line["benchmark"] for line in lines} == {"growth"}
    assert lines[2]["grew_most"] == _grew_most(lines[1]["us_by_stage"], lines[2]["us_by_stage"])
    assert lines[-1]["redis_bytes_per_user"] > lines[-1]["state_bytes"]
    for wrong in (["--items", "ten"], ["--history", "0"], ["--events", "256", "--batch", "100"]):
        assert main(["bench", "growth", *wrong]) == 2
