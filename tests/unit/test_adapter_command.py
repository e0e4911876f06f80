"""``tailrace adapter``: from a log, or from topics, to a file that is written only when it is worth having."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.arrays import pack_float32
from schemas.decode import encode
from schemas.messages import Interaction, Item, ItemVector, Reason, Slate, SlateItem, Trigger, Versions
from stream_app.adapters.file import AdapterFile
from stream_app.adapters.topics import Newest, Records
from stream_app.cli import main
from stream_app.errors import DatasetError
from stream_app.evaluation import run
from stream_app.settings import Settings
from tests.logs import buy, catalogue, write_lines
from tests.unit.test_adapters import moved_log
from workers import models

SPACE = "test/mean/16/raw/0"
ITEMS = 24


def _vector(text: str) -> NDArray[np.float32]:
    drawn = np.random.default_rng(list(text.encode())).normal(size=16).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def vectors(texts: Iterable[str], *_: object, **__: object) -> tuple[str, dict[str, NDArray[np.float32]]]:
        return SPACE, {text: _vector(text) for text in texts}

    monkeypatch.setattr(run, "text_vectors", vectors)  # the model has tests of its own
    monkeypatch.setattr(models, "describe_model", lambda _name: SimpleNamespace(space=SPACE))
    monkeypatch.chdir(tmp_path)


def write(interactions: list[Interaction], name: str = "log") -> list[str]:
    """The options that name a log."""
    return [
        *("--items", str(write_lines(Path(f"{name}-items.jsonl"), catalogue(ITEMS)))),
        *("--interactions", str(write_lines(Path(f"{name}.jsonl"), interactions))),
    ]


QUICK = ("--windows", "4", "--hidden", "16", "--epochs", "30", "--anchor", "0")


def test_an_adapter_that_wins_is_written_shown_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    log = write(moved_log(300))
    assert main(["adapter", "train", *log, *QUICK, "--out", "a.safetensors", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["promoted"]
    assert found["adapted"]["hr@10"] > found["base"]["hr@10"]
    assert "promoted: a.safetensors holds it" in captured.err
    assert found["space"] == AdapterFile.load(Path("a.safetensors"), base_space=SPACE).space

    assert main(["adapter", "show", "a.safetensors", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["space"] == found["space"]
    assert shown["training"]["events"] == 600
    assert main(["adapter", "show", "a.safetensors"]) == 0
    said = capsys.readouterr().out
    assert f"space:            {found['space']}" in said
    assert "base" in said

    # Of the log it was trained on nothing is left to test; another shop's log it does not know.
    assert main(["adapter", "evaluate", "a.safetensors", *log]) == 1
    assert "the log holds no test; its training ended" in capsys.readouterr().err
    other = write(moved_log(200, seed=8), "other")
    assert main(["adapter", "evaluate", "a.safetensors", *other, "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["better"]


def test_one_that_does_not_win_is_not_written_unless_it_is_to_be_kept(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    log = write([buy(n, f"u{rng.integers(30)}", f"i{rng.integers(ITEMS)}", 1e9 + 60.0 * n) for n in range(300)])
    assert main(["adapter", "train", *log, *QUICK, "--out", "a.safetensors"]) == 1
    assert "not promoted: NDCG@10 is not better beyond chance; nothing was written" in capsys.readouterr().err
    assert not Path("a.safetensors").exists()
    assert main(["adapter", "train", *log, *QUICK, "--out", "a.safetensors", "--keep"]) == 1
    assert not AdapterFile.load(Path("a.safetensors")).promoted


def test_a_file_that_is_there_is_replaced_only_when_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    log = write(moved_log(300))
    assert main(["adapter", "train", *log, *QUICK]) == 0
    first = AdapterFile.load(Path("adapter.safetensors")).space
    capsys.readouterr()
    again = ["adapter", "train", *log, *QUICK, "--seed", "1"]
    assert main(again) == 2
    assert "one per training, or replace this one with --overwrite" in " ".join(capsys.readouterr().err.split())
    assert AdapterFile.load(Path("adapter.safetensors")).space == first
    assert main([*again, "--overwrite"]) == 0
    assert AdapterFile.load(Path("adapter.safetensors")).space != first


def test_training_goes_on_from_a_file_of_the_same_model_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write(moved_log(300))
    assert main(["adapter", "train", *log, *QUICK]) == 0
    again = ["adapter", "train", *log, "--windows", "4", "--epochs", "5", "--start", "adapter.safetensors"]
    assert main([*again, "--out", "b.safetensors"]) == 0
    first = AdapterFile.load(Path("adapter.safetensors"))
    assert AdapterFile.load(Path("b.safetensors")).training.started_from == first.adapter.fingerprint
    capsys.readouterr()
    assert main([*again, "--hidden", "8"]) == 2
    assert "--hidden is that of the adapter that --start names" in capsys.readouterr().err
    monkeypatch.setattr(
        run, "text_vectors", lambda texts, *_, **__: ("other", {text: _vector(text) for text in list(texts)})
    )
    assert main([*again, "--overwrite"]) == 2
    assert f"adapter adapter.safetensors: it takes vectors of the space {SPACE}, the encoder gives other" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "name a log"),
        (["train", "--topics", "online-retail"], "--topics reads the broker"),
        (["train", "online-retail", "--out", "nowhere/a"], "nowhere/a cannot be written"),
        (["show", "none"], "adapter none cannot be read"),
        (["evaluate", "none", "online-retail"], "adapter none cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["adapter", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_catalogue_without_texts_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    log = write_lines(Path("log.jsonl"), moved_log(20))
    assert main(["adapter", "train", "--interactions", str(log)]) == 2
    assert "no item has a text, so there is nothing to adapt" in capsys.readouterr().err


def test_evaluate_serves_an_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    log = write(moved_log(300))
    assert main(["adapter", "train", *log, *QUICK]) == 0
    other = write(moved_log(150, seed=8), "other")
    assert main(["evaluate", *other, "--json", "base.json"]) == 0
    assert main(["evaluate", *other, "--json", "a.json", "--adapter", "adapter.safetensors"]) == 0
    base, adapted = (json.loads(Path(name).read_text()) for name in ("base.json", "a.json"))
    assert adapted["options"]["adapter"] == AdapterFile.load(Path("adapter.safetensors")).space
    assert base["options"]["adapter"] is None
    assert adapted["sources"]["text_fast"]["ndcg@10"] > base["sources"]["text_fast"]["ndcg@10"]
    capsys.readouterr()
    assert main(["evaluate", *other, "--adapter", "adapter.safetensors", "--via", "kafka"]) == 2
    assert "--adapter goes without --via" in capsys.readouterr().err


# --- topics ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12))), st.integers(1, 6))
def test_the_newest_are_kept_whatever_order_they_come_in(added: list[tuple[int, int]], most: int) -> None:
    newest: Newest[int] = Newest(most)
    first: dict[int, int] = {}
    for at, key in added:
        at = first.setdefault(key, at)  # a record that comes again is the same record
        newest.add(float(at), ("u", f"{key:02}"), key)
    expected = sorted((at, key) for key, at in first.items())[-most:]
    assert newest.values() == [key for _, key in expected]


def record(key: str, message: Any) -> Any:
    value = message if message is None or isinstance(message, bytes) else encode(message)
    return SimpleNamespace(key=key.encode(), value=value, headers=())


def a_slate(user: str, items: list[str], at: float) -> Slate:
    return Slate(
        slate_id=f"{user}-{at}",
        user_id=user,
        generated_at=datetime.fromtimestamp(at, UTC),
        items=[SlateItem(item, place, 0.0, [], Reason(code="x")) for place, item in enumerate(items, 1)],
        trigger=Trigger(topic="t", partition=0, offset=0),
        versions=Versions(space="s", index="i", ranker="r"),
    )


def test_what_is_on_the_topics_becomes_examples() -> None:
    at = 1.7e9
    records = Records(Settings(), space=SPACE, events=2, now=at + 1_000)

    def embedded(item_id: str, space: str = SPACE) -> ItemVector:
        vector = pack_float32(_vector(item_id))
        return ItemVector(item_id=item_id, space=space, text_hash="", dimensions=16, vector=vector)

    for item_id in ("a", "b", "c", "gone"):
        records.take(records.item, record(item_id, Item(item_id=item_id, title=item_id)))
        records.take(records.vector, record(item_id, embedded(item_id, "old" if item_id == "c" else SPACE)))
    records.take(records.item, record("gone", None))
    for number, item_id in ((3, "c"), (1, "a"), (2, "b")):
        event = buy(number, "u", item_id, at + number)
        records.take(records.interaction, record("u", event))
        records.take(records.interaction, record("u", event))
    records.take(records.interaction, record("u", b"{"))
    records.take(records.slate, record("u", a_slate("u", ["b", "a"], at)))
    records.take(records.slate, record("v", None))
    found = records.examples()
    assert [item.item_id for item in found.items] == ["a", "b", "c"]
    assert sorted(found.vectors) == ["a", "b"]
    assert [event.item_id for event in found.interactions] == ["b", "c"]
    assert [(slate.user_id, slate.items) for slate in found.slates] == [("u", ("b", "a"))]
    assert found.space == SPACE
    assert dict(records.rejected) == {"not_json": 1}


def test_topics_with_nothing_to_learn_from_say_what_is_missing() -> None:
    records = Records(Settings(), space=SPACE, events=2, now=1.8e9)
    records.take(records.interaction, record("u", b"{"))
    with pytest.raises(DatasetError, match=r"no interactions on the topics \(1 not_json\)"):
        records.examples()
    records.take(records.interaction, record("u", buy(1, "u", "a", 1.7e9)))
    with pytest.raises(DatasetError, match=f"no item on the topics has a vector of the space {SPACE}"):
        records.examples()
    bad = ItemVector(item_id="a", space=SPACE, text_hash="", dimensions=1, vector=pack_float32(np.array([np.nan])))
    records.take(records.vector, record("a", msgspec.json.encode(bad)))
    assert records.rejected["wrong_field"] == 1
