"""The search for settings: bounded, decided by its seed, never worse than the defaults where it searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_app.cli import main
from stream_app.evaluation.files import Log
from stream_app.evaluation.tune import SPACE, draw, to_toml, tune, with_values
from stream_app.settings import Settings, load_settings
from tests.logs import catalogue, events, pairs_log, write_lines


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
    first = tune(log(), ("none", {}), Settings(), trials=4, seed=1, on_progress=lambda *told: seen.append(told))
    again = tune(log(), ("none", {}), Settings(), trials=4, seed=1)
    assert first.chosen == again.chosen
    assert first.rest == again.rest
    assert not first.defaults_search.beats(first.search)
    assert 50 <= first.rest.tests == first.defaults_rest.tests <= 70
    assert first.trials[0].share == 1.0
    assert sorted(trial.share for trial in first.trials) == [0.25, 0.25, 0.5, 1.0, 1.0]
    assert {what for what, _, _ in seen} == {"search", "comparison"}
    assert all(done <= total for _, done, total in seen)


def test_the_time_bounds_the_search() -> None:
    found = tune(log(40), ("none", {}), Settings(), trials=1_000, minutes=1e-9)
    assert found.stopped
    assert found.chosen == {}
    assert found.rest == found.defaults_rest


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
    assert "the rest of the log holds no test" in captured.err
    assert "nothing beat the defaults" in captured.out
    assert main(["tune"]) == 2
