"""The replay: what counts as a test, what counts as a hit, and that nothing is learned before it is predicted."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from math import log2
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from schemas.messages import Interaction, Item
from stream_app.errors import DatasetError
from stream_app.evaluation import __main__ as runner
from stream_app.evaluation.files import first_only, read_interactions, read_items
from stream_app.evaluation.metrics import Tally
from stream_app.evaluation.prequential import Options, Prequential
from stream_app.settings import DEFAULT_EVENT_TYPES, Settings, SlateSettings

DAY = 86_400.0
PLAIN = Settings(slate=SlateSettings(diversity=0.0, cold_places=0))


def buy(number: int, user: str, item: str, at: float, type_: str = "purchase") -> Interaction:
    return Interaction(
        event_id=str(number), user_id=user, type=type_, item_id=item, occurred_at=datetime.fromtimestamp(at, UTC)
    )


def events(*bought: tuple[str, str, float]) -> list[Interaction]:
    return [buy(number, *fields) for number, fields in enumerate(bought)]


def catalogue(count: int) -> list[Item]:
    return [Item(item_id=f"i{number}", title=f"Item {number}") for number in range(count)]


def replay(items: list[Item], happened: list[Interaction], **options: float) -> Prequential:
    prequential = Prequential(PLAIN, items, {}, space="none", options=Options(**({"train_share": 0.0} | options)))  # type: ignore[arg-type]
    prequential.run(happened, len(happened))
    return prequential


def test_metrics_are_those_of_their_definitions() -> None:
    tally = Tally()
    for rank, cold in ((1, False), (3, True), (11, False), (50, True), (51, False), (None, True)):
        tally.add(rank, cold=cold)
    tally.show(list(range(20)))
    tally.show([3, 30])
    scores = tally.scores(44)
    assert (scores.tests, scores.cold_tests) == (6, 3)
    assert scores.hr_at_10 == pytest.approx(2 / 6)
    assert scores.hr_at_50 == pytest.approx(4 / 6)
    assert scores.ndcg_at_10 == pytest.approx((1 / log2(2) + 1 / log2(4)) / 6)
    assert scores.mrr == pytest.approx((1 + 1 / 3 + 1 / 11 + 1 / 50 + 1 / 51) / 6)
    assert (scores.cold_hr_at_10, scores.cold_hr_at_50) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert scores.coverage_at_10 == pytest.approx(11 / 44)
    assert Tally().scores(0).hr_at_10 == 0.0


def test_only_new_items_of_known_users_are_tests() -> None:
    happened = events(
        ("u", "i0", 1.0),  # the first event of a user: nothing is known
        ("u", "i1", 2.0),  # a test
        ("u", "i0", 3.0),  # bought before
        ("v", "i0", 4.0),
        ("v", "unheard of", 5.0),  # not in the catalogue
        ("v", "i2", 6.0),  # a test
        ("v", "i2", 6.0),  # the same item again in the basket
    )
    assert replay(catalogue(4), happened).report().slates.tests == 2


def test_the_first_share_only_trains() -> None:
    happened = events(*[("u", f"i{number}", float(number)) for number in range(10)])
    assert replay(catalogue(10), happened, train_share=0.5).report().slates.tests == 5


def test_other_items_of_the_basket_do_not_count_against_an_item() -> None:
    items = catalogue(30)
    happened = events(*[("v", f"i{number}", float(number)) for number in range(12)], ("u", "i29", 20.0))
    basket = events(*[("u", f"i{number}", 30.0) for number in range(12)])
    report = replay(items, [*happened, *basket]).report()
    assert report.slates.hr_at_50 * report.slates.tests >= 12
    # Twelve popular items in one basket: each stands first but for the others, so all are within ten.
    own = replay(items, happened)
    before = own.report().slates
    own.run(basket, len(basket))
    after = own.report().slates
    assert after.tests - before.tests == 12
    assert after.hr_at_10 * after.tests - before.hr_at_10 * before.tests == pytest.approx(12)


def test_a_basket_is_predicted_before_any_of_it_is_learned() -> None:
    # Two items that nobody has bought yet are bought together, again and again by new users: had the first taught
    # before the second was tested, the second would be found.
    happened = []
    for number in range(12):
        happened += [("u", f"i{2 * number}", float(number)), ("u", f"i{2 * number + 1}", float(number))]
    quiet = replay(catalogue(300), events(("w", "i299", 0.0), *happened))
    assert quiet.report().slates.cold_tests == quiet.report().slates.tests == 22
    learned = quiet.serving.signals.neighbours(quiet.serving.catalogue.row("i0"))
    assert "i1" in {quiet.serving.catalogue.item_id(row) for row in learned.rows.tolist()}


def test_it_finds_what_follows_what() -> None:
    # Whoever buys an even item buys the next one a day later.
    rng = np.random.default_rng(1)
    happened, clock = [], 0.0
    for user in range(150):
        even = 2 * int(rng.integers(50))
        happened += [(f"u{user}", f"i{even}", clock), (f"u{user}", f"i{even + 1}", clock + DAY)]
        clock += DAY + 1.0
    report = replay(catalogue(100), events(*happened), train_share=0.6).report()
    assert report.slates.tests == 60
    assert report.slates.hr_at_10 > 0.7
    assert report.weights["links_symmetric"] > 0


def test_lag_delays_what_is_served_and_loses_nothing() -> None:
    happened = events(*[(f"u{number % 7}", f"i{number % 23}", float(number)) for number in range(200)])
    at_once, late = replay(catalogue(30), happened), replay(catalogue(30), happened, publish_every=50)
    assert late.report().slates.tests == at_once.report().slates.tests
    late._publish()
    rows = np.arange(30)
    assert np.array_equal(late.serving.signals.popularity(200.0, rows), at_once.serving.signals.popularity(200.0, rows))


def test_every_source_can_be_scored_alone() -> None:
    happened = events(*[(f"u{number % 7}", f"i{number % 23}", float(number)) for number in range(200)])
    vectors = {f"i{number}": np.eye(30, dtype=np.float32)[number] for number in range(30)}
    options = Options(train_share=0.0, sources=True)
    prequential = Prequential(PLAIN, catalogue(30), vectors, space="test", options=options)
    report = prequential.run(happened, len(happened))
    assert set(report.sources) == {
        "text_slow",
        "text_fast",
        "transitions",
        "trending_1d",
        "trending_7d",
        "trending_30d",
        "new",
    }
    assert all(scores.tests == report.slates.tests for scores in report.sources.values())
    assert report.sources["transitions"].hr_at_10 > 0


def write(path: Path, messages: list[Item] | list[Interaction]) -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(message) + b"\n" for message in messages))
    return path


def test_files_are_read_in_the_contract(tmp_path: Path) -> None:
    happened = events(("u", "i0", 1.0), ("u", "i1", 2.0), ("u", "i0", 3.0))
    file = write(tmp_path / "interactions.jsonl", happened)
    assert read_interactions(file, types=DEFAULT_EVENT_TYPES) == happened
    assert read_interactions(file, types=DEFAULT_EVENT_TYPES, limit=1) == happened[:1]
    assert first_only(happened) == happened[:2]
    items = [*catalogue(2), Item(item_id="i0", title="again")]
    assert [item.title for item in read_items(write(tmp_path / "items.jsonl", items))] == ["again", "Item 1"]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (b'{"item_id": 5}\n', "line 1"),
        (msgspec.json.encode(buy(0, "u", "i", 1.0, "stare")), "line 1: unknown event type 'stare'"),
        (b"\n".join(msgspec.json.encode(buy(0, "u", "i", at)) for at in (2.0, 1.0)), "line 2.*sort"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, lines: bytes, says: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines)
    with pytest.raises(DatasetError, match=says):
        read_interactions(tmp_path / "x.jsonl", types=DEFAULT_EVENT_TYPES)


def test_a_file_that_is_not_there_or_not_compressed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is the path right"):
        read_items(tmp_path / "nothing.jsonl")
    (tmp_path / "items.jsonl.zst").write_bytes(b"plain")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_items(tmp_path / "items.jsonl.zst")


def test_the_command_prints_a_table_and_writes_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vectors(items: list[Item], *_: object, **__: object) -> tuple[str, dict[str, NDArray[np.float32]]]:
        return "test", {item.item_id: np.eye(8, dtype=np.float32)[place % 8] for place, item in enumerate(items)}

    monkeypatch.setattr(runner, "item_vectors", vectors)  # the model has tests of its own
    happened = events(*[(f"u{number % 5}", f"i{number % 9}", float(number)) for number in range(40)])
    arguments = [
        str(write(tmp_path / "items.jsonl", catalogue(10))),
        str(write(tmp_path / "interactions.jsonl", happened)),
        "--sources",
        "--json",
        str(tmp_path / "report.json"),
    ]
    result = CliRunner().invoke(runner.main, arguments)
    assert result.exit_code == 0, result.output
    assert "HR@10" in result.output
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report["events"] == 40
    assert 0 <= report["slates"]["hr_at_10"] <= 1
    assert "transitions" in report["sources"]
    wrong = CliRunner().invoke(runner.main, [str(tmp_path / "none"), str(tmp_path / "none")])
    assert wrong.exit_code == 1
    assert "is the path right" in wrong.output
