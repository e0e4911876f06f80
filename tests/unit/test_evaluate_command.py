"""``tailrace evaluate``: any log gives a clear result or a clear error, never a traceback, NaN or a silent zero."""

from __future__ import annotations

import gzip
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray

from schemas.messages import Interaction, Item
from stream_app.cli import main
from stream_app.evaluation import run
from stream_app.ranking.recommender import Recommender
from tests.logs import buy, catalogue, events, pairs_log, write_lines

START = 1e9


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def vectors(texts: Iterable[str], *_: object, **__: object) -> tuple[str, dict[str, NDArray[np.float32]]]:
        return "test", {text: np.eye(8, dtype=np.float32)[place % 8] for place, text in enumerate(dict.fromkeys(texts))}

    monkeypatch.setattr(run, "text_vectors", vectors)  # the model has tests of its own
    monkeypatch.chdir(tmp_path)


Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """Writes files, runs the command on them, and gives what ``--json`` wrote."""

    def call(interactions: list[Any], items: list[Any] | None = None, *options: str, status: int = 0) -> dict[str, Any]:
        arguments = ["evaluate", "--interactions", str(write_lines(tmp_path / "interactions.jsonl", interactions))]
        if items is not None:
            arguments += ["--items", str(write_lines(tmp_path / "items.jsonl", items))]
        report = tmp_path / "report.json"
        assert main([*arguments, "--json", str(report), *options]) == status
        text = report.read_text() if status == 0 else ""
        assert "NaN" not in text
        assert "Infinity" not in text
        return json.loads(text) if text else {}

    return call


def said(report: dict[str, Any], what: str) -> bool:
    return any(what in warning for warning in report["warnings"])


def some_purchases(users: int = 20, each: int = 6, items: int = 15) -> list[Interaction]:
    return events(
        *[(f"u{user}", f"i{(user + 2 * place) % items}", START + 100 * place + user)
          for place in range(each) for user in range(users)]
    )  # fmt: skip


def test_a_report_holds_every_figure_under_its_name(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(pairs_log(400), catalogue(100), "--seed", "3")
    assert report["tests"] > 300
    assert report["seconds"] > 0
    assert report["tests_per_s"] > 0
    figures = {"tests", "hr@10", "ndcg@10", "mrr", "hr@50", "coverage@10", "intervals"}
    assert set(report["overall"]) == figures
    assert set(report["cold"]) == {"tests", "hr@10", "hr@50", "intervals"}
    assert {"transitions", "trending_7d", "text_slow"} <= set(report["sources"])
    assert all(set(found) == figures | {"cold"} for found in report["sources"].values())
    assert report["overall"]["intervals"]["hr@10"][0] < report["overall"]["hr@10"]
    assert len(report["over_time"]) == 10
    assert sum(part["tests"] for part in report["over_time"]) == report["tests"]
    assert sum(part["tests"] for part in report["by_maturity"]) == report["tests"]
    assert sum(report["ranks"].values()) == report["tests"]
    assert (report["protocol"], report["seed"]) == ("streaming", 3)
    assert report["options"]["first_only"] is False
    data = report["data"]
    assert (data["items"], data["interactions"], data["users"], data["rejected"]) == (100, 800, 400, {})
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("HR@10", "NDCG@10", "MRR", "HR@50", "coverage@10", "cold HR@50", "95 %"))
    assert all(word in shown for word in ("transitions alone", "earlier events of the user", "tests in time"))


def test_settings_that_differ_are_named(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_RANKER__LEARNING_RATE", "0.07")
    assert evaluate(pairs_log(30), catalogue(100), "--no-sources")["settings"] == {"ranker.learning_rate": 0.07}


def test_leave_one_out_is_a_protocol(evaluate: Evaluate) -> None:
    report = evaluate(pairs_log(120), catalogue(100), "--protocol", "leave-one-out")
    assert (report["tests"], report["protocol"]) == (120, "leave-one-out")


def test_first_only_and_limit_cut_the_log(evaluate: Evaluate) -> None:
    twice = [*pairs_log(40), *(buy(1_000 + number, "u0", "i0", 2e9 + number) for number in range(30))]
    assert evaluate(twice, catalogue(100), "--first-only")["options"]["replayed"] < 90
    limited = evaluate(twice, catalogue(100), "--limit", "50")
    assert limited["data"]["interactions"] == 50


@pytest.mark.parametrize("suffix", [".zst", ".gz"])
def test_compressed_files_are_read(tmp_path: Path, suffix: str) -> None:
    plain = write_lines(tmp_path / "plain.jsonl", some_purchases()).read_bytes()
    packed = tmp_path / f"interactions.jsonl{suffix}"
    packed.write_bytes(gzip.compress(plain) if suffix == ".gz" else zstandard.compress(plain))
    whole = packed.read_bytes()
    assert main(["evaluate", "--interactions", str(packed), "--json", "report.json"]) == 0
    assert json.loads(Path("report.json").read_bytes())["data"]["interactions"] == 120
    packed.write_bytes(whole[:-20])
    assert main(["evaluate", "--interactions", str(packed)]) == 2


def test_with_few_tests_there_is_a_warning_and_an_interval(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate(some_purchases(5, 4), catalogue(15))
    assert 0 < report["tests"] < 100
    assert said(report, f"only {report['tests']} tests")
    low, high = report["overall"]["intervals"]["hr@10"]
    assert 0 <= low < high <= 1
    captured = capsys.readouterr()
    assert f"only {report['tests']} tests" in captured.out
    assert f"only {report['tests']} tests" in captured.err


@pytest.mark.parametrize(("items", "interactions"), [([], some_purchases()), (catalogue(3), []), ([], [])])
def test_empty_files_are_an_error_that_names_them(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str], items: list[Item], interactions: list[Interaction]
) -> None:
    evaluate(interactions, items, status=2)
    assert "the file is empty" in capsys.readouterr().err


@pytest.mark.parametrize("lines", [[b"nothing", b"{}"], [b'{"item_id": 5}', b"\xff\xfe"]])
def test_nothing_valid_is_an_error_that_shows_why(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str], lines: list[bytes]
) -> None:
    evaluate(lines, catalogue(3), status=2)
    shown = capsys.readouterr().err
    assert "no line of it is a valid interaction" in shown
    assert "line 1" in shown
    assert "line 2" in shown
    evaluate(some_purchases(), lines, status=2)
    assert "no line of it is a valid item" in capsys.readouterr().err


def test_files_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--interactions", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert main(["evaluate", "online-retail", "--items", "x"]) == 2
    assert main(["evaluate", "online-retail", "--json", "nowhere/report.json"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_broken_lines_are_counted_by_reason_and_the_rest_goes_on(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    good = some_purchases()
    bad = [b"{", b"null", b'{"event_id":"x"}', msgspec.json.encode(buy(900, "u", "i1", START, "stare"))]
    report = evaluate([*good[:5], *bad, *good[5:], *([b"[1"] * 10)], catalogue(15))
    assert report["data"]["interactions"] == len(good)
    assert report["data"]["rejected"] == {
        "not_json": 11,
        "invalid_field": 1,
        "missing_field": 1,
        "unknown_event_type": 1,
    }
    shown = capsys.readouterr().err
    assert "interactions.jsonl, line 6: not_json" in shown
    assert "line 9: unknown_event_type: type: 'stare'" in shown
    assert "line 135" not in shown
    assert said(report, "14 lines of interactions.jsonl are left out")


def test_duplicate_lines_and_event_ids_count_once(evaluate: Evaluate) -> None:
    good = some_purchases()
    other_user = msgspec.structs.replace(good[0], user_id="somebody else")
    report = evaluate([*good, good[3], good[3], msgspec.structs.replace(good[7], item_id="i0"), other_user])
    assert report["data"]["rejected"] == {"duplicate_event_id": 3}
    assert report["data"]["interactions"] == len(good) + 1
    again = evaluate(good, [*catalogue(15), *catalogue(15)])
    assert again["data"]["items"] == 15
    assert said(again, "15 lines of items.jsonl repeat an item id")


def test_time_running_backwards_is_sorted_and_said(evaluate: Evaluate) -> None:
    good = some_purchases()
    forwards = evaluate(good, catalogue(15))
    backwards = evaluate([*good[60:], *good[:60]], catalogue(15))
    assert said(backwards, "60 interactions are earlier than one before them")
    assert backwards["overall"] == forwards["overall"]


def test_items_without_text_are_ranked_without_it(evaluate: Evaluate) -> None:
    lines: list[Any] = [{"item_id": f"i{number}"} for number in range(10)]
    lines += [{"item_id": "i10", "title": "", "description": "A mug"}, Item(item_id="i11", title="A bowl")]
    report = evaluate(some_purchases(), lines)
    assert report["data"]["items"] == 15
    assert report["data"]["items_without_text"] == 13
    assert said(report, "3 item ids of interactions are not in the catalogue")
    assert said(report, "10 items have no text")
    assert report["overall"]["hr@10"] > 0


def test_without_items_they_are_made_of_the_ids(evaluate: Evaluate) -> None:
    report = evaluate(some_purchases())
    assert (report["data"]["items"], report["data"]["items_without_text"]) == (15, 15)
    assert said(report, "no items were given")
    assert report["overall"]["hr@10"] > 0


def test_one_user_is_tested(evaluate: Evaluate) -> None:
    report = evaluate(events(*[("u", f"i{number}", START + number) for number in range(40)]), catalogue(40))
    assert report["tests"] == 36
    assert report["data"]["users"] == 1


def test_one_item_or_one_event_each_is_no_test_and_said(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    for happened in (
        events(*[(f"u{number % 5}", "i0", START + number) for number in range(50)]),
        events(*[(f"u{number}", f"i{number % 7}", START + number) for number in range(50)]),
        events(("u", "i0", START)),
    ):
        report = evaluate(happened)
        assert report["tests"] == 0
        assert report["overall"]["hr@10"] is report["overall"]["coverage@10"] is report["cold"]["hr@50"] is None
        assert said(report, "there was no test, so nothing is measured")
        assert "nothing was measured" in capsys.readouterr().out
        assert evaluate(happened, None, "--protocol", "leave-one-out")["tests"] == 0


def test_everything_at_one_time_is_replayed_in_the_order_of_the_file(evaluate: Evaluate) -> None:
    report = evaluate(events(*[(f"u{number % 6}", f"i{number % 11}", START) for number in range(66)]), catalogue(11))
    assert report["tests"] > 0
    assert said(report, "66 of 66 interactions happen at the same time as another user's")
    assert len(report["over_time"]) == 10
    one_by_one = evaluate(events(*[("u", f"i{number}", START) for number in range(50)]), catalogue(50))
    assert one_by_one["tests"] == 0
    assert said(one_by_one, "first events of a user")
    assert not said(one_by_one, "at the same time"), "a basket, and nobody else is there"


def test_only_nearly_all_at_one_time_is_worth_a_warning(evaluate: Evaluate) -> None:
    one_time = [(f"u{number % 6}", f"i{number % 11}", START) for number in range(90)]
    apart = [(f"u{number % 6}", f"i{number % 11}", START + 1 + number) for number in range(10)]
    assert said(evaluate(events(*one_time, *apart)), "90 of 100 interactions happen at the same time")
    assert not said(evaluate(events(*one_time[1:], *apart)), "at the same time")
    # Days instead of times: on each the order is that of the file.
    days = [(f"u{number % 6}", f"i{number % 11}", START + 86_400 * (number // 12)) for number in range(60)]
    assert said(evaluate(events(*days)), "60 of 60 interactions happen at the same time")


def test_a_user_with_more_events_than_are_remembered_is_ranked_to_the_end(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILRACE_USERS__CONSUMED", "50")
    monkeypatch.setenv("TAILRACE_USERS__HISTORY", "10")
    happened = [("bot", f"i{number % 400}", START + number) for number in range(1_000)]
    happened += [(f"u{number % 50}", f"i{number % 7}", START + number) for number in range(200)]
    report = evaluate(events(*happened), catalogue(400), "--no-sources")
    assert report["tests"] > 300
    assert report["untested"]["not new to the user"] >= 600


def test_old_events_and_unavailable_items_are_replayed_and_said(evaluate: Evaluate) -> None:
    happened = events(*[(f"u{number % 5}", f"i{number % 9}", 1_000.0 + number) for number in range(60)])
    items = [Item(item_id=f"i{number}", title="Mug", available=number > 4) for number in range(9)]
    report = evaluate(happened, items)
    assert said(report, "60 interactions are older than")
    assert said(report, "5 items are marked as not available")
    assert report["overall"]["coverage@10"] == 1.0


def test_dates_that_the_log_contradicts_are_left_out_and_said(evaluate: Evaluate) -> None:
    """A catalogue written after its log, with that day's date on every item, hid all there was: figures of zero."""
    happened = events(*[(f"u{number % 5}", f"i{number % 9}", START + number) for number in range(60)])
    plain = evaluate(happened, catalogue(9))
    later = datetime.fromtimestamp(START + 1e6, UTC)
    items = [msgspec.structs.replace(item, published_at=later) for item in catalogue(9)]
    report = evaluate(happened, items)
    assert said(report, "9 items have interactions from before it was published")
    assert report["overall"] == plain["overall"]
    assert report["overall"]["coverage@10"] == 1.0
    gone = datetime.fromtimestamp(START, UTC)
    items = [msgspec.structs.replace(item, expires_at=gone) for item in catalogue(9)]
    report = evaluate(happened, items)
    assert said(report, "9 items have interactions from after it had expired")
    assert report["overall"] == plain["overall"]


def test_dates_that_may_be_so_are_kept(evaluate: Evaluate) -> None:
    happened = events(*[(f"u{number % 5}", f"i{number % 9}", START + number) for number in range(60)])
    never = datetime.fromtimestamp(START + 1e6, UTC)
    items = [*catalogue(9), Item(item_id="later", title="Later", published_at=never)]
    report = evaluate(happened, items)
    assert not said(report, "published")
    assert report["overall"]["coverage@10"] == 0.9


def test_a_user_who_is_most_of_the_log_is_said(evaluate: Evaluate) -> None:
    bot = [("bot", f"i{number % 15}", START + number) for number in range(1_200)]
    shoppers = [(f"u{number % 50}", f"i{number % 7}", START + number) for number in range(300)]
    report = evaluate(events(*bot, *shoppers), catalogue(15), "--no-sources")
    assert said(report, "user 'bot' alone has 1,200 of 1,500 interactions (80%)")
    assert not said(evaluate(some_purchases(), catalogue(15), "--no-sources"), "alone has")


def test_a_baseline_without_texts_is_said_to_say_nothing(evaluate: Evaluate) -> None:
    assert said(evaluate(some_purchases(), None, "--compare", "text"), "the baseline text says nothing")
    assert not said(evaluate(some_purchases(), catalogue(15), "--compare", "text"), "says nothing")


def test_without_a_terminal_progress_is_lines(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_app.cli.evaluate._LINE_EVERY_S", 0.0)
    evaluate(some_purchases(), catalogue(15))
    lines = re.findall(r"interactions: 100 of 120 \(83%\), [\d,]+ per second, \d+ s left", capsys.readouterr().err)
    assert lines


def test_events_of_the_future_are_replayed_and_said(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    ahead = [("u0", "i3", now + 200.0), ("u1", "i4", now + 4_000.0), ("u2", "i4", now + 1e9)]
    happened = [*some_purchases(), *(buy(1_000 + place, *event) for place, event in enumerate(ahead))]
    report = evaluate(happened, catalogue(15))
    assert report["data"]["interactions"] == 123
    assert said(report, "2 interactions are more than 300 s in the future; they are replayed here, but live processes")
    monkeypatch.setenv("TAILRACE_EVENTS__FUTURE_TOLERANCE_S", "5000")
    assert said(evaluate(happened, catalogue(15)), "1 interaction is more than 5,000 s in the future; it is replayed")
    assert not said(evaluate(some_purchases(), catalogue(15)), "in the future")


def test_one_of_a_kind_is_said_as_one(evaluate: Evaluate, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    happened: list[Any] = [buy(1, "u", "i1", START + 5), buy(0, "u", "i0", 1_000.0), buy(3, "u", "i2", START + 9), b"{"]
    items = [{"item_id": "i0"}, {"item_id": "i0"}, Item(item_id="i1", title="Mug", available=False)]
    report = evaluate(happened, items, "--html", str(tmp_path / "page.html"))
    for warning in (
        "1 item is marked as not available today; the replay recommends it, as it was then",
        "1 interaction is older than",
        "1 line of items.jsonl repeats an item id",
        "1 line of interactions.jsonl is left out: 1 not_json",
        "1 item has no text; it is ranked without it",
        "1 interaction is earlier than one before it",
        "1 item id of interactions is not in the catalogue; it is an item without text",
    ):
        assert said(report, warning), warning
    alone = evaluate(events(("u", "i0", START)), None, "--html", str(tmp_path / "page.html"))
    assert said(alone, "no items were given: 1 item without text was made of the ids in interactions")
    assert said(alone, "(1 first event of a user)")
    assert "1 interaction of 1 user, 1 item;" in capsys.readouterr().out
    assert "1 interaction of 1 user with 1 item," in (tmp_path / "page.html").read_text()


def log_file(tmp_path: Path) -> str:
    return str(write_lines(tmp_path / "log.jsonl", some_purchases(6, 5)))


@pytest.mark.parametrize("was_there", [False, True])
def test_after_an_error_no_result_is_left_and_an_old_one_stays(tmp_path: Path, was_there: bool) -> None:
    empty = str(write_lines(tmp_path / "log.jsonl", []))
    results = [tmp_path / "a.json", tmp_path / "a.html", tmp_path / "tuned.toml"]
    (tmp_path / "link.json").symlink_to("nowhere.json")
    if was_there:
        for file in results:
            file.write_text("old")
    assert main(["evaluate", "--interactions", empty, "--json", "a.json", "--html", "a.html"]) == 2
    assert main(["evaluate", "--interactions", empty, "--json", "link.json"]) == 2
    assert main(["tune", "--interactions", empty]) == 2
    assert [file.read_text() if file.exists() else None for file in results] == 3 * ["old" if was_there else None]
    assert (tmp_path / "link.json").is_symlink()
    assert not (tmp_path / "nowhere.json").exists()


def test_results_are_written_before_anything_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``| head``: nobody reads what is printed."""

    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("stream_app.evaluation.tables.tables", gone)
    monkeypatch.setattr("stream_app.cli.os.dup2", lambda *_: None)
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1, raising=False)
    arguments = ["--interactions", log_file(tmp_path), "--json", "a.json", "--html", "a.html"]
    assert main(["evaluate", *arguments]) == 0
    assert json.loads(Path("a.json").read_bytes())["tests"] > 0
    assert "<svg" in Path("a.html").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(("full", "other"), [("--json", "--html"), ("--html", "--json")])
def test_a_result_that_cannot_be_written_is_named_and_the_other_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], full: str, other: str
) -> None:
    file = tmp_path / "other"
    assert main(["evaluate", "--interactions", log_file(tmp_path), full, "/dev/full", other, str(file)]) == 1
    captured = capsys.readouterr()
    assert "/dev/full was not written: No space left on device" in captured.err
    assert "HR@10" in captured.out
    assert file.stat().st_size > 1_000


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no names of open files")
def test_a_result_may_go_into_a_pipe(tmp_path: Path) -> None:
    """As ``--json >(jq .tests)`` of a shell."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as end:
        with os.fdopen(writing, "wb"):
            arguments = ["--interactions", log_file(tmp_path), "--json", f"/dev/fd/{writing}", "--no-sources"]
            assert main(["evaluate", *arguments]) == 0
        assert json.loads(end.read())["tests"] > 0


def test_two_results_in_one_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to("a.out")
    for name in ("a.out", str(tmp_path / "a.out"), "link"):
        assert main(["evaluate", "online-retail", "--json", "a.out", "--html", name]) == 2
        assert "--json and --html both name a.out" in capsys.readouterr().err


def test_only_visits_are_nothing_to_rank(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate([buy(number, "u", None, START + number, "visit") for number in range(3)], status=2)
    assert "no interaction names an item" in capsys.readouterr().err


PROTOCOLS = pytest.mark.parametrize("protocol", ["streaming", "leave-one-out"])


@PROTOCOLS
def test_only_ratings_below_the_threshold_are_no_test_and_said(evaluate: Evaluate, protocol: str) -> None:
    low = [
        buy(number, f"u{number % 9}", f"i{number % 15}", START + number, "rating", value=1.0) for number in range(90)
    ]
    report = evaluate(low, catalogue(15), "--protocol", protocol)
    assert report["tests"] == 0
    assert report["overall"]["hr@10"] is None
    reason = "90 not wanted" if protocol == "streaming" else "no user wanted an item"
    assert said(report, reason)


@PROTOCOLS
def test_a_catalogue_of_one_item_is_completed_from_the_log(evaluate: Evaluate, protocol: str) -> None:
    report = evaluate(some_purchases(), catalogue(1), "--protocol", protocol)
    assert (report["data"]["items"], report["data"]["items_without_text"]) == (15, 14)
    assert report["tests"] > 0
    assert said(report, "14 item ids of interactions are not in the catalogue")


@PROTOCOLS
def test_bytes_that_are_not_utf8_and_huge_lines_are_left_out_and_counted(evaluate: Evaluate, protocol: str) -> None:
    good = some_purchases()
    items = [
        *catalogue(15),
        b'{"item_id": "\xff", "title": "x"}',
        b'{"item_id": "i99", "title": "' + b"x" * 9_000 + b'"}',
    ]
    lines = [*good, b"\xff\xfe\x00", b'{"event_id": "\xc3\x28"}', b"x" * 17_000_000]
    report = evaluate(lines, items, "--protocol", protocol)
    assert report["data"]["rejected"] == {"not_utf8": 3, "invalid_field": 1, "too_large": 1}
    assert report["data"]["interactions"] == len(good)
    assert report["tests"] > 0


@PROTOCOLS
def test_lines_may_end_as_on_windows_and_the_last_one_not_at_all(tmp_path: Path, protocol: str) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"\r\n".join(msgspec.json.encode(one) for one in some_purchases()))
    assert main(["evaluate", "--interactions", str(file), "--json", "report.json", "--protocol", protocol]) == 0
    report = json.loads(Path("report.json").read_bytes())
    assert (report["data"]["interactions"], report["data"]["rejected"]) == (120, {})


def test_a_file_that_is_one_array_is_an_error_that_says_what_is_expected(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate([msgspec.json.encode(some_purchases())], catalogue(15), status=2)
    assert "expected an object, found an array" in capsys.readouterr().err


@PROTOCOLS
def test_impressions_are_replayed_and_are_no_tests(evaluate: Evaluate, protocol: str) -> None:
    good = some_purchases()
    shown = [
        buy(1_000 + number, event.user_id, None, event.occurred_at.timestamp() - 0.5, "impression", items=["i1", "i2"])
        for number, event in enumerate(good)
    ]
    with_them = evaluate([*good, *shown], catalogue(15), "--protocol", protocol)
    assert with_them["data"]["interactions"] == 2 * len(good)
    assert 0 < with_them["tests"] <= len(good)


def test_one_test_is_one_test(evaluate: Evaluate) -> None:
    report = evaluate(events(("u", "i0", START), ("u", "i1", START + 1)), None, "--protocol", "leave-one-out")
    assert report["tests"] == 1
    assert said(report, "only 1 test: look at the intervals")
    low, high = report["overall"]["intervals"]["hr@10"]
    assert 0 <= low < high <= 1


def test_a_user_with_very_many_events_costs_as_many_steps_and_not_their_square(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: what is ranked and what the user's state holds."""
    ranked: list[int] = []
    rank = Recommender.rank

    def counting(self: Recommender, requests: Any) -> Any:
        ranked.extend(len(request.user.history) + len(request.user.added) for request in requests)
        return rank(self, requests)

    monkeypatch.setattr(Recommender, "rank", counting)
    happened = [buy(number, "bot", f"i{number % 60}", START + number, "click") for number in range(4_000)]
    report = evaluate([*happened, *some_purchases()], catalogue(60), "--no-sources")
    assert report["data"]["interactions"] == 4_120
    assert len(ranked) < 300, "only what is new to a user is ranked for"
    assert max(ranked) <= 50 + 64


def test_the_module_is_the_same_command(tmp_path: Path) -> None:
    import runpy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["evaluation", "--interactions", "nowhere.jsonl"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("stream_app.evaluation", run_name="__main__")
    assert ended.value.code == 2


def test_baselines_are_compared_on_the_same_tests(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(pairs_log(200), catalogue(100), "--compare", "all", "--no-sources")
    assert set(report["compare"]) == {"popularity", "covisitation", "text", "isgd", "bpr"}
    assert all(found["tests"] == report["tests"] for found in report["compare"].values())
    assert report["compare"]["covisitation"]["hr@10"] > report["compare"]["popularity"]["hr@10"]
    assert set(report["over_time"][0]["others"]) == set(report["compare"])
    assert "covisitation (baseline)" in capsys.readouterr().out
    only = evaluate(pairs_log(60), None, "--compare", "text, bpr")
    assert list(only["compare"]) == ["text", "bpr"]
    assert main(["evaluate", "online-retail", "--compare", "text,magic"]) == 2
    assert "magic: choose from popularity" in capsys.readouterr().err
    assert main(["evaluate", "online-retail", "--compare", ","]) == 2


def test_baselines_take_the_other_protocol_and_logs_without_tests(evaluate: Evaluate) -> None:
    report = evaluate(pairs_log(120), catalogue(100), "--compare", "all", "--protocol", "leave-one-out")
    assert report["compare"]["bpr"]["tests"] == 120
    report = evaluate(events(("u", "i0", START)), None, "--compare", "all")
    assert report["compare"]["bpr"]["hr@10"] is None


def test_the_page_stands_alone_and_shows_every_plot(evaluate: Evaluate, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    hostile = [Item(item_id=f"i{number}", title="<script>alert(1)</script>") for number in range(100)]
    evaluate(pairs_log(200), hostile, "--compare", "popularity", "--html", str(page))
    text = page.read_text()
    assert text.count("<svg ") == 6
    assert "currentColor" in text
    assert "prefers-color-scheme: dark" in text
    assert "popularity (baseline)" in text
    assert "interactions.jsonl: streaming, default settings" in text
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!#)', text.replace("xlink:", ""))
    parsed = HTMLParser()
    parsed.feed(text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    evaluate(events(("u", "i0", START)), None, "--html", str(page))
    assert "there was no test" in page.read_text()
    assert "<svg" not in page.read_text()


@pytest.mark.parametrize(
    "options", [["--broker", "embedded"], ["--via", "kafka", "--protocol", "leave-one-out"], ["--via", "redis"]]
)
def test_options_of_the_live_run_that_do_not_go_together_are_refused(options: list[str]) -> None:
    assert main(["evaluate", "online-retail", *options]) == 2


def test_what_is_read_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_lines(tmp_path / "interactions.jsonl", pairs_log(10))
    before = log.read_bytes()
    assert main(["evaluate", "--interactions", str(log), "--html", str(log)]) == 2
    assert "its contents would be lost" in capsys.readouterr().err
    assert log.read_bytes() == before
