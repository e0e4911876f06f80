"""``tailrace evaluate --via kafka``: the slates of live processes are those of the replay, up to timing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream_app.cli import main
from tests.logs import buy, catalogue, pairs_log, write_lines

pytestmark = [pytest.mark.stack, pytest.mark.slow]


def test_live_slates_are_tested_like_those_in_process(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broker = "kafka" if request.config.getoption("--stack") == "kafka" else "embedded"
    # Clicks among the purchases: what was clicked stays in slates, and takes no place.
    clicks = [buy(5_000 + number, f"u{number}", "i3", 1e9 - 1_000 + number, "click") for number in range(20)]
    arguments = [
        "evaluate",
        "--items",
        str(write_lines(tmp_path / "items.jsonl", catalogue(100))),
        "--interactions",
        str(write_lines(tmp_path / "interactions.jsonl", [*clicks, *pairs_log(150)])),
    ]
    assert main([*arguments, "--via", "kafka", "--broker", broker, "--no-sources", "--json", "live.json"]) == 0
    report = json.loads(Path("live.json").read_bytes())
    beside = report["in_process"]
    assert report["options"]["via"] == broker
    assert report["tests"] == beside["tests"] > 100
    assert report["cold"]["tests"] == pytest.approx(beside["cold"]["tests"], abs=8)
    assert beside["overall"]["hr@10"] > 0.5
    assert report["overall"]["hr@10"] == pytest.approx(beside["overall"]["hr@10"], rel=0.1)
    assert report["overall"]["hr@50"] == pytest.approx(beside["overall"]["hr@50"], rel=0.1)
