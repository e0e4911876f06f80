"""The search for settings: bounded, decided by its seed, never worse than the defaults where it searched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.messages import Interaction
from stream_app.cli import main
from stream_app.evaluation.files import Log
from stream_app.evaluation.prequential import Prequential
from stream_app.evaluation.run import Encoded
from stream_app.evaluation.tune import SPACE, Score, Tuned, draw, to_toml, tune, with_values
from stream_app.settings import Settings, load_settings
from tests.logs import buy, catalogue, events, pairs_log, write_lines


def log(users: int = 120) -> Log:
    return Log("pairs", catalogue(60), pairs_log(users, 60))


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_drawn_is_a_valid_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    values = draw(np.random.default_rng(seed))
    assert set(values) == set(SPACE)
    (tmp_path / "tuned.toml").write_text(to_toml(values, comments=["found"]))
    monkeypatch.setenv("TAILRACE_CONFIG", str(tmp_path / "tuned.toml"))
    assert load_settings() == with_values(Settings(), values)


def test_the_search_is_decided_by_its_seed_and_compares_on_the_rest() -> None:
    seen: list[tuple[str, int, int]] = []
    first = tune(log(), Encoded(), Settings(), trials=4, seed=1, on_progress=lambda *told: seen.append(told))
    again = tune(log(), Encoded(), Settings(), trials=4, seed=1)
    assert first.chosen == again.chosen
    assert first.rest == again.rest
    assert not first.defaults_search.beats(first.search)
    assert 50 <= first.rest.tests == first.defaults_rest.tests <= 70
    assert first.trials[0].share == 1.0
    assert sorted(trial.share for trial in first.trials) == [0.25, 0.25, 0.5, 1.0, 1.0]
    assert {what for what, _, _ in seen} == {"search", "comparison"}
    assert all(done <= total for _, done, total in seen)
    # Both bars end where they said they would.
    assert {what for what, done, total in seen if done == total} == {"search", "comparison"}
    hits = round((first.rest.hr or 0.0) * first.rest.tests) - round((first.defaults_rest.hr or 0.0) * first.rest.tests)
    assert first.won - first.lost == hits


def test_the_time_bounds_the_search() -> None:
    found = tune(log(40), Encoded(), Settings(), trials=1_000, minutes=1e-9)
    assert found.stopped
    assert found.chosen == {}
    assert found.rest == found.defaults_rest


def test_when_the_time_is_over_the_last_share_that_can_be_compared_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over in the middle of the second share, after the defaults had their turn there and before anybody else."""
    replays: list[int] = []

    def counting(self: Prequential, interactions: list[Interaction], count: int, **more: Any) -> Any:
        replays.append(count)
        return run(self, interactions, count, **more)

    run = Prequential.run
    monkeypatch.setattr(Prequential, "run", counting)
    monkeypatch.setattr("stream_app.evaluation.tune.time.monotonic", lambda: 1e9 if len(replays) > 6 else 0.0)
    found = tune(log(), Encoded(), Settings(), trials=4, seed=1, minutes=1.0)
    assert found.stopped
    assert [sorted(trial.scores) for trial in found.trials] == [[0.25, 0.5], [0.25], [0.25], [0.25], [0.25]]
    assert found.search.tests == found.defaults_search.tests == found.trials[0].scores[0.25].tests
    assert not found.defaults_search.beats(found.search)


@pytest.mark.parametrize(("won", "lost", "chance"), [(0, 0, True), (12, 8, True), (30, 10, False), (2, 20, False)])
def test_a_difference_that_may_be_chance_is_known(won: int, lost: int, chance: bool) -> None:
    score = Score(100, 0.1, 0.2)
    tuned = Tuned(
        chosen={}, search=score, defaults_search=score, rest=score, defaults_rest=score, won=won, lost=lost, trials=[],
        stopped=False,
    )  # fmt: skip
    assert tuned.by_chance == chance


def tuned(tmp_path: Path, happened: list[Interaction], *options: str) -> int:
    file = write_lines(tmp_path / "log.jsonl", happened)
    out = tmp_path / "tuned.toml"
    return main(["tune", "--interactions", str(file), "--trials", "1", "--out", str(out), *options])


def test_few_tests_in_the_rest_are_said_with_an_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuned(tmp_path, pairs_log(60, 40)) == 0
    captured = capsys.readouterr()
    assert "the rest of the log holds only 30 tests: look at the intervals" in captured.err
    assert "95 %" in captured.out
    lines = [line for line in captured.out.splitlines() if "│ rest " in line]
    assert len(lines) == 2
    assert all(re.search(r"0\.\d{3}-[01]\.\d{3}", line) for line in lines)
    assert max(map(len, captured.out.splitlines()[:9])) <= 80


def test_why_the_rest_holds_no_test_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low = [buy(number, f"u{number % 4}", f"i{number % 9}", 1e9 + number, "rating", value=1.0) for number in range(36)]
    assert tuned(tmp_path, low) == 0
    assert "no test (of the whole log: 36 not wanted, or not in the catalogue)" in capsys.readouterr().err
    early = [("u", "i0", 1e9), ("u", "i1", 1e9 + 1), ("u", "i0", 1e9 + 2), ("u", "i1", 1e9 + 3)]
    assert tuned(tmp_path, events(*early)) == 0
    said = capsys.readouterr().err
    assert "1 first event of a user" in said
    assert "2 not new to the user" in said
    assert "1 in the part searched on; a smaller --share or a longer log" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_settings_that_cannot_be_written_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuned(tmp_path, pairs_log(30, 20), "--out", "/dev/full") == 1
    captured = capsys.readouterr()
    assert "/dev/full was not written: No space left on device" in captured.err
    assert "judged on the rest" in captured.out
    assert "holds" not in captured.out


def test_the_command_writes_a_file_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAILRACE_CONFIG", raising=False)
    file = write_lines(tmp_path / "log.jsonl", pairs_log(60, 40))
    assert main(["tune", "--interactions", str(file), "--trials", "2"]) == 0
    assert "judged on the rest" in capsys.readouterr().out
    monkeypatch.setenv("TAILRACE_CONFIG", "tuned.toml")
    load_settings()
    short = write_lines(tmp_path / "short.jsonl", events(("u", "i0", 1e9)))
    assert main(["tune", "--interactions", str(short), "--trials", "2"]) == 0
    captured = capsys.readouterr()
    assert "the rest of the log holds no test (of the whole log: 1 first event of a user)" in captured.err
    assert "nothing beat the defaults" in captured.out
    assert main(["tune"]) == 2
