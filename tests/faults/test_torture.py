"""Many things go wrong in one run, one after the other and at once: as if nothing had happened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, cast

import pytest

from stream_app.torture.faults import possible_kinds
from stream_app.torture.outcome import Outcome
from stream_app.torture.run import torture
from stream_app.torture.schedule import make_schedule
from stream_app.torture.stream import make_stream
from tests.conftest import require, stack_kind

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(600)]

RUNS = int(os.environ.get("TORTURE_RUNS", "2"))
EVENTS = int(os.environ.get("TORTURE_EVENTS", "4000"))
PROCESSES = 3
FAULTS = 8

_calm: dict[str, Outcome] = {}


@pytest.mark.parametrize("seed", range(RUNS))
async def test_nothing_is_left_of_what_went_wrong(
    pytestconfig: pytest.Config, tmp_path: Path, topic_prefix: str, seed: int
) -> None:
    kind = stack_kind(pytestconfig)
    if kind not in ("embedded", "kafka"):
        pytest.skip(f"--stack={kind}: its servers are not ours to kill")
    require(kind, pytestconfig)
    broker = cast("Literal['embedded', 'kafka']", kind)
    stream = make_stream(7, items=120, users=120, events=EVENTS)
    if kind not in _calm:
        undisturbed = await torture(
            stream, (), broker=broker, directory=tmp_path / "calm", processes=PROCESSES, prefix=topic_prefix
        )
        assert undisturbed.outcome is not None
        assert undisturbed.outcome.unexpected() == []
        assert len(undisturbed.outcome.slates) == len(stream.users)
        assert undisturbed.outcome.examples > 0
        _calm[kind] = undisturbed.outcome
    schedule = make_schedule(seed, events=EVENTS, processes=PROCESSES, faults=FAULTS, kinds=possible_kinds(broker))
    report = await torture(
        stream, schedule, broker=broker, directory=tmp_path / "faults", processes=PROCESSES, prefix=topic_prefix
    )
    assert len(report.faults) == FAULTS
    assert report.outcome is not None
    assert _calm[kind].differences(report.outcome) == [], report.logs
    assert report.ended == [], "nothing ends by itself"
