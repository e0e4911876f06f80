"""``tailrace spaces`` as people give it, from the first look to a space that is retired, and what it prints."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from schemas.arrays import pack_float32
from schemas.decode import encode
from schemas.messages import Item, ItemVector
from stream_app.cli import main
from stream_app.delivery.admin import create_topics, create_vectors_topic
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.topics import Topics
from tests.checkpoints import make_bert
from tests.environment import to_environment
from tests.integration.pipeline import live
from tests.waiting import eventually
from workers.models import describe_model

WORDS = ("lamp", "rope", "cup", "novel", "drill", "violin", "tent", "bread", "scarf", "clock")
ITEMS = 60
FOLLOW = """
import signal
from stream_app.cli import main, spaces
# What runs in the background of a script, as one of two lanes of tests does, and all it starts, hears no Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
spaces._STILL_AFTER_S = 0.2
raise SystemExit(main(["spaces", "follow", "1"]))
"""

Command = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture(name="settings")
def _settings(settings: Settings) -> Settings:
    spaces = settings.spaces.model_copy(update={"first_items": ITEMS // 2 + 10, "check_interval_s": 0.05})
    return settings.model_copy(update={"spaces": spaces})


@pytest.fixture(name="command")
def _command(
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Command:
    """``tailrace spaces`` with arguments: exit status, output, errors. Settings come from the environment."""
    monkeypatch.chdir(tmp_path)
    to_environment(settings, monkeypatch)

    async def given(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = await asyncio.to_thread(main, ["spaces", *arguments])
        return (status, *capsys.readouterr())

    return given


async def publish(settings: Settings) -> None:
    """Items, and vectors of them in the space that is served; nobody runs."""
    topics, model, rng = Topics(settings), describe_model("minilm"), np.random.default_rng(0)
    records = []
    for number in range(ITEMS):
        item_id = f"i{number}"
        item = Item(item_id=item_id, title=f"{WORDS[number % 10]} {WORDS[number // 10]}")
        vector = pack_float32(rng.normal(size=model.dimensions).astype(np.float32))
        row = ItemVector(item_id=item_id, space=model.space, text_hash="", dimensions=model.dimensions, vector=vector)
        records.append(OutRecord(topics.items, item_id.encode(), encode(item)))
        records.append(OutRecord(topics.item_vectors, item_id.encode(), encode(row)))
    await create_topics(settings)
    publisher = Publisher(settings, Metrics())
    await publisher.start()
    try:
        await publisher.publish(records)
    finally:
        await publisher.stop()


async def interrupted() -> tuple[int | None, str]:
    """Exit status and errors of ``spaces follow 1`` on a terminal, where nothing comes, after Ctrl-C."""
    root = str(Path(__file__).parents[2])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FOLLOW),
        env={**os.environ, "PYTHONPATH": root, "FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "300"},
        stderr=asyncio.subprocess.PIPE,
    )
    shown = b""
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"Waiting goes on" not in shown:
            more = await process.stderr.read(65_536)
            assert more, f"it ended: {shown.decode()}"
            shown += more
        process.send_signal(signal.SIGINT)
        shown += await process.stderr.read()
        return await process.wait(), shown.decode()


async def test_a_model_is_changed_by_commands(
    settings: Settings, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The embedded broker goes on listing who has left a group, so retiring waits there for as long as it may.
    monkeypatch.setattr("stream_app.space_operations._LEFT_WITHIN_S", 3.0)
    other = make_bert(tmp_path / "other")
    await publish(settings)
    status, out, _ = await command("list")
    assert status == 0
    assert "version 1" in out
    assert out.count("served") == 1
    assert "model = minilm" in out
    assert "None" not in out
    status, _, err = await command("build", "--model", str(other), "--set", "max_tokens=32", "--no-wait")
    assert (status, err.split(":")[0]) == (0, "building space 1")
    status, _, err = await command("build", "--model", str(other), "--set", "max_tokens=32")
    assert (status, "is there already" in err) == (2, True)
    status, out, _ = await command("list", "--json")
    listed = [json.loads(line) for line in out.splitlines()]
    assert [(one["space"]["number"], one["state"]) for one in listed] == [(0, "served"), (1, "beside")]
    assert listed[1]["space"]["encoder"]["max_tokens"] == 32
    name = listed[1]["space"]["space"]

    # Nobody works on it.
    status, shown = await interrupted()
    assert status == 130
    assert f"0/{ITEMS}" in shown
    assert "no process works on it" in shown
    assert "it goes on without you: tailrace spaces follow 1" in shown
    assert "Traceback" not in shown
    status, _, err = await command("cutover", "1")
    assert status == 1
    assert f"{ITEMS} of {ITEMS} items are missing: i" in err
    assert "insist with --force" in err
    status, out, err = await command("cutover", "1", "--force")
    assert (status, out) == (0, f"served from now on: {name}; go back with: tailrace spaces rollback\n")
    assert "items are missing" in err
    status, _, err = await command("retire", "1", "--yes")
    assert (status, "is served; cut over to another one first" in err) == (2, True)
    status, out, _ = await command("rollback")
    assert (status, out.startswith("served from now on: minilm")) == (0, True)
    status, out, _ = await command("list")
    assert "served before" in out

    async with live(settings) as pipeline:
        await pipeline.indexed(ITEMS)
        replica = pipeline.tailrace.replica
        assert replica is not None
        await eventually(lambda: "+w" in replica.serving.versions.space, timeout_s=60, what="a fitted space")
        status, _, err = await command("follow", "1")
        assert status == 0
        assert f"{ITEMS}/{ITEMS}" in err
        assert "complete; look at it with: tailrace spaces compare 1" in err
        status, out, _ = await command("compare", "1", "--show", "2")
        assert status == 0
        assert f"{ITEMS} items in both" in out
        assert "the same in both: 0." in out or "the same in both: 1." in out
        status, out, _ = await command("compare", name, "--json")
        assert json.loads(out)["items"] == ITEMS

        async def accepted() -> bool:  # a basis of learned factors may be made just now
            return (await command("cutover", "1"))[0] == 0

        await eventually(accepted, timeout_s=30, what="the cut-over, not refused any more")
        await eventually(lambda: replica.serving.versions.space.startswith(name), timeout_s=60, what="the cut-over")
        assert (await command("rollback"))[0] == 0
        await eventually(lambda: replica.serving.versions.space.startswith("minilm"), timeout_s=60, what="the way back")
        status, out, _ = await command("retire", "1", "--yes")
        assert (status, out) == (0, f"retired: 1 ({name})\n")
    status, out, err = await command("list")
    assert (out.count("served"), "belongs to no space" in err) == (1, False)
    status, _, err = await command("follow", "1")
    assert (status, "'1' is none of the spaces" in err) == (2, True)


async def test_vectors_of_no_space_are_listed_and_retired(
    settings: Settings, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_app.space_operations._RECORDED_WITHIN_S", 0.5)
    await create_topics(settings)
    assert await create_vectors_topic(settings, 1)
    topic = Topics(settings).vectors_of(1)
    status, out, err = await command("list")
    assert status == 0
    assert topic not in out
    assert f"{topic} belongs to no space" in err
    assert "tailrace spaces retire 1" in err
    _, out, _ = await command("list", "--json")
    assert json.loads(out.splitlines()[-1]) == {"space": None, "state": "left over", "number": 1, "topic": topic}
    status, out, _ = await command("retire", "1", "--yes")
    assert (status, out) == (0, "deleted: vectors 1, which belonged to no space\n")
    status, _, err = await command("list")
    assert (status, err) == (0, "")
