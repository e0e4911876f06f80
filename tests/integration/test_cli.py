"""The command line on a real broker and Redis: what people do with it, and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka.structs import ConsumerRecord

from schemas.arrays import pack_float32, pack_float64
from schemas.decode import decode_interaction, decode_item, encode
from schemas.messages import ItemSignals, ItemVector, Reason, Slate, SlateItem, Trigger, Versions
from stream_app.cli import main
from stream_app.delivery.admin import create_topics
from stream_app.delivery.dead_letters import dead_letter
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.delivery.reading import default_partition, read_to_end
from stream_app.delivery.records import InRecord
from stream_app.delivery.replay import REPLAYED_FROM
from stream_app.errors import InvalidMessage
from stream_app.items.partitions import item_partition
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.stores.redis_client import connect_redis
from stream_app.stores.users import UserStore
from stream_app.topics import TOPICS, Topics
from stream_app.users.state import HistoryEntry, UserState
from tests.environment import to_environment
from tests.waiting import eventually_sync

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
PATIENCE_S = 20.0


@pytest.fixture(name="environment", autouse=True)
def _environment(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command reads its settings as people give them: from the environment."""
    monkeypatch.chdir(tmp_path)
    to_environment(settings, monkeypatch)


def publish(settings: Settings, records: Sequence[OutRecord]) -> None:
    """Topics made, records acknowledged."""

    async def work() -> None:
        await create_topics(settings)
        publisher = Publisher(settings, Metrics())
        await publisher.start()
        try:
            await publisher.publish(records)
        finally:
            await publisher.stop()

    asyncio.run(work())


def records(settings: Settings, topic: str) -> list[ConsumerRecord]:
    async def work() -> list[ConsumerRecord]:
        return [record async for record in read_to_end(settings, topic, patience_s=PATIENCE_S)]

    return asyncio.run(work())


def slate(user: str, item: str = "sku-2", *, at: datetime = NOW) -> Slate:
    return Slate(
        slate_id=f"s-{user}-{item}",
        user_id=user,
        generated_at=at,
        items=[
            SlateItem(
                item_id=item,
                rank=1,
                score=1.25,
                sources=["transitions"],
                reason=Reason(code="taken_together", params={"item_id": "sku-1"}, text="Chosen together with Mug"),
            )
        ],
        trigger=Trigger(topic="t", partition=3, offset=7, event_id="e-1", occurred_at=NOW),
        versions=Versions(space="space-a", index="7", ranker="12"),
    )


class TestTopics:
    def test_create_then_list(self, capsys: pytest.CaptureFixture[str], topic_prefix: str) -> None:
        assert main(["topics", "list"]) == 0
        assert "create it with: tailrace topics create" in capsys.readouterr().out
        assert main(["topics", "create"]) == 0
        assert capsys.readouterr().out.count("created") == len(TOPICS)
        assert main(["topics", "list", "--json"]) == 0
        listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert f"{topic_prefix}.items.v1" in [topic["name"] for topic in listed]
        assert all(topic["differences"] == [] for topic in listed)


def test_forgetting_users_is_a_null_each(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    publish(settings, [])
    assert main(["forget", "ann", "bob", "--yes"]) == 0
    assert "2 users to be forgotten" in capsys.readouterr().out
    got = records(settings, Topics(settings).users)
    assert sorted((record.key, record.value) for record in got) == [(b"ann", None), (b"bob", None)]


class TestProduce:
    def test_lines_arrive_as_they_are_under_their_id(self, settings: Settings, tmp_path: Path) -> None:
        lines = [b'{"item_id":"i-%d", "title":"Mug %d"}' % (number, number) for number in range(700)]
        path = tmp_path / "items.jsonl"
        path.write_bytes(b"\n".join(lines))
        assert main(["produce", "items", str(path)]) == 0
        got = records(settings, Topics(settings).items)
        assert sorted(record.value for record in got) == sorted(lines)
        for record in got:
            item_id, item = decode_item(record.key, record.value, record.headers)
            assert item is not None
            assert item.item_id == item_id
        assert dict(got[0].headers)["ce_type"] == b"tailrace.items.v1"

    def test_order_of_a_user_is_the_order_of_the_file(self, settings: Settings, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        line = (
            '{"event_id":"e-%d","user_id":"u-%d","type":"click","item_id":"i","occurred_at":"2026-01-01T00:00:00Z"}\n'
        )
        path.write_text("".join(line % (number, number % 3) for number in range(1_200)))
        assert main(["produce", "interactions", str(path)]) == 0
        seen: dict[str, list[int]] = {}
        for record in records(settings, Topics(settings).interactions):
            event = decode_interaction(
                record.key,
                record.value,
                record.headers,
                event_types=settings.event_types,
                now=time.time(),
                oldest=0,
                future_tolerance_s=0,
            )
            seen.setdefault(event.user_id, []).append(int(event.event_id[2:]))
        assert {user: order == sorted(order) for user, order in seen.items()} == dict.fromkeys(seen, True)
        assert sum(map(len, seen.values())) == 1_200

    def test_bad_lines_are_left_out_and_make_the_status_1(
        self, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "items.jsonl"
        path.write_text('{"item_id":"a","title":"A"}\nnonsense\n{"item_id":"b","title":"B"}\n')
        assert main(["produce", "items", str(path)]) == 1
        assert "items.jsonl:2: not_json" in capsys.readouterr().err
        assert {record.key for record in records(settings, Topics(settings).items)} == {b"a", b"b"}

    def test_rate_is_kept(self, settings: Settings, tmp_path: Path) -> None:
        path = tmp_path / "items.jsonl"
        path.write_text("".join(f'{{"item_id":"i-{number}","title":"x"}}\n' for number in range(100)))
        main(["topics", "create"])
        started = time.monotonic()
        assert main(["produce", "items", str(path), "--rate", "200"]) == 0
        assert time.monotonic() - started > 0.45
        assert len(records(settings, Topics(settings).items)) == 100

    def test_pipe_is_sent_while_it_is_open(self, settings: Settings) -> None:
        publish(settings, [])
        command = [sys.executable, "-m", "stream_app.cli", "produce", "items", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(b'{"item_id":"a","title":"A"}\n')
            process.stdin.flush()
            eventually_sync(
                lambda: [record.key for record in records(settings, Topics(settings).items)] == [b"a"],
                timeout_s=60,
                what="the first line arrives before the pipe is closed",
            )
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0

    def test_waits_for_a_broker_and_says_so(self, unused_tcp_port: int, tmp_path: Path) -> None:
        path = tmp_path / "items.jsonl"
        path.write_text('{"item_id":"a","title":"A"}\n')
        command = [sys.executable, "-m", "stream_app.cli", "--kafka", f"127.0.0.1:{unused_tcp_port}"]
        with subprocess.Popen([*command, "produce", "items", str(path)], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert f"waiting for Kafka at 127.0.0.1:{unused_tcp_port}" in process.stderr.readline()
            process.terminate()
            process.wait(PATIENCE_S)


class TestSlates:
    def test_latest_slate_of_a_user_is_shown_with_reasons(
        self, settings: Settings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        topic = Topics(settings).recommendations
        for item in ("old", "new"):
            publish(settings, [OutRecord(topic, user.encode(), encode(slate(user, item))) for user in ("u-1", "u-2")])
        assert main(["slate", "u-1"]) == 0
        shown = capsys.readouterr().out
        assert "new" in shown
        assert "old" not in shown
        assert "Chosen together with Mug" in shown
        assert "event e-1" in shown
        assert main(["slate", "u-1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["slate_id"] == "s-u-1-new"

    def test_user_without_slate(self, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
        publish(settings, [OutRecord(Topics(settings).recommendations, b"gone", None)])
        assert main(["slate", "gone"]) == 1
        assert "has no slate any more" in capsys.readouterr().err
        assert main(["slate", "never"]) == 1
        assert "user never has no slate" in capsys.readouterr().err

    def test_tail_follows_one_user(self, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
        topic = Topics(settings).recommendations
        publish(settings, [OutRecord(topic, user.encode(), encode(slate(user))) for user in ("u-1", "u-2", "u-3")])
        publish(settings, [OutRecord(topic, b"u-2", None)])
        arguments = ["tail", "recommendations", "--from-start", "--user", "u-2", "--count", "2"]
        assert main(arguments) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert "u-2 after e-1: sku-2 (Chosen together with Mug)" in first
        assert second == "u-2: no slate any more"
        assert main([*arguments, "--json"]) == 0
        assert [json.loads(line)["user_id"] for line in capsys.readouterr().out.splitlines()] == ["u-2", "u-2"]

    def test_ctrl_c_ends_it_without_a_traceback(self, settings: Settings) -> None:
        publish(settings, [OutRecord(Topics(settings).recommendations, b"u-1", None)])
        command = [sys.executable, "-m", "stream_app.cli", "tail", "recommendations", "--from-start"]
        # Tests in the background of a script are started with the signal ignored, and hand that on.
        listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listening
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "u-1: no slate any more\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 130
            assert not process.stderr.read().strip()

    def test_reader_that_goes_away_ends_it_quietly(self, settings: Settings) -> None:
        topic = Topics(settings).recommendations
        publish(settings, [OutRecord(topic, b"u-1", None) for _ in range(3_000)])
        command = [sys.executable, "-m", "stream_app.cli", "tail", "recommendations", "--from-start"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            publish(settings, [OutRecord(topic, b"u-1", None) for _ in range(3_000)])
            assert process.wait(PATIENCE_S) in (0, 1)
            assert process.stderr.read() == ""


class TestItem:
    def test_what_is_known_is_shown(self, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
        topics = Topics(settings)
        vector = ItemVector(
            item_id="a", space="space-a", text_hash="h", dimensions=2, vector=pack_float32(np.ones(2)), text="Mug."
        )
        signals = ItemSignals(
            item_id="a",
            at=NOW.timestamp(),
            counts=[0.5, 1.5, 2.5, 3.0],
            neighbours=["weak", "strong"],
            symmetric=pack_float64(np.array([0.1, 1.9])),
            directed=pack_float64(np.array([0.0, 0.7])),
            applied={"0": 12},
        )
        publish(
            settings,
            [
                OutRecord(topics.items, b"a", b'{"item_id":"a","title":"Mug","available":false}'),
                OutRecord(topics.items, b"gone", None),
                OutRecord(topics.item_vectors, b"a", encode(vector)),
                OutRecord(topics.item_signals, b"a", encode(signals), partition=item_partition("a", 4)),
            ],
        )
        assert main(["item", "a"]) == 0
        shown = capsys.readouterr().out
        for text in ("Mug", "not available", "2 dimensions, space-a", "7 days 1.5", "all time 3", "strong"):
            assert text in shown
        assert shown.index("strong") < shown.index("weak")
        assert main(["item", "a", "--json"]) == 0
        known = json.loads(capsys.readouterr().out)
        assert known["item"]["title"] == "Mug"
        assert [one["item_id"] for one in known["neighbours"]] == ["strong", "weak"]
        assert main(["item", "gone"]) == 0
        assert "deleted" in capsys.readouterr().out
        assert main(["item", "never"]) == 1


class TestTextifyUser:
    def test_profile_and_history_in_words(self, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
        topics = Topics(settings)
        profile = {"user_id": "ann", "text": "Likes tea. ann@example.org", "liked_items": ["lamp", "gone"]}
        publish(
            settings,
            [
                OutRecord(topics.items, b"mug", b'{"item_id":"mug","title":"Old mug"}'),
                OutRecord(topics.items, b"mug", b'{"item_id":"mug","title":"CERAMIC MUG"}'),
                OutRecord(topics.items, b"lamp", b'{"item_id":"lamp","title":"Red lamp"}'),
                OutRecord(topics.items, b"gone", b'{"item_id":"gone","title":"Gone"}'),
                OutRecord(topics.items, b"gone", None),
                OutRecord(topics.users, b"ann", json.dumps(profile).encode()),
            ],
        )
        now = time.time()
        history = (
            HistoryEntry("mug", "purchase", now - 5 * 86_400, 4.0, 0),
            HistoryEntry("gone", "click", now - 4 * 86_400, 1.0, 1),
            HistoryEntry("", "search", now - 3 * 3_600 - 60, 1.0, 2, "tea cups"),
            HistoryEntry("mug", "purchase", now - 2 * 3_600 - 60, 4.0, 3),
        )
        forgotten = UserState("bob", applied={0: 3}, forgotten_at=now)
        save(settings, [UserState("ann", history, applied={0: 3}, events=4), forgotten])
        said = ["bought twice, 2 hours ago: Ceramic mug", "searched, 3 hours ago: tea cups"]
        assert main(["textify", "user", "ann", "--json"]) == 0
        known = json.loads(capsys.readouterr().out)
        assert known["behaviours"] == said
        assert known["embedded"] == ["Likes tea. [email]"]
        assert known["text"] == ". ".join(["Likes tea. [email]", "Likes Red lamp", *said])
        assert main(["textify", "user", "ann", "--max-tokens", "12"]) == 0
        shown = capsys.readouterr().out
        assert "Likes tea. [email]. Likes Red lamp  (about" in shown
        assert said[0] in shown
        assert main(["textify", "user", "bob"]) == 1
        assert "user bob was forgotten" in capsys.readouterr().err
        assert main(["textify", "user", "nobody"]) == 1
        assert "user nobody has said and done nothing known" in capsys.readouterr().err


def save(settings: Settings, states: Sequence[UserState]) -> None:
    async def work() -> None:
        redis = connect_redis(settings)
        try:
            store = UserStore(redis, settings, Metrics())
            assert not await store.save(
                {state.user_id: state for state in states}, partitions={state.user_id: 0 for state in states}
            )
        finally:
            await redis.aclose()

    asyncio.run(work())


class TestDeadLetters:
    """The letters are made as the agents make them."""

    @pytest.fixture(name="letters")
    def _letters(self, settings: Settings) -> Callable[..., None]:
        offsets = iter(range(100, 200))

        def write(
            value: bytes | None,
            reason: str,
            *,
            key: bytes | None = b"u-1",
            topic: str = "",
            max_message_bytes: int = 1_048_576,
            offset: int | None = None,
            partition: int = 1,
        ) -> None:
            topics = Topics(settings)
            record = InRecord(
                topic or topics.interactions,
                partition,
                next(offsets) if offset is None else offset,
                key,
                value,
                [("ce_id", b"e-1")],
                NOW.timestamp(),
            )
            letter = dead_letter(
                record,
                InvalidMessage(reason, f"{reason} in words"),
                topic=topics.dead_letter,
                stage="interactions",
                attempts=1,
                now=NOW.timestamp(),
                max_message_bytes=max_message_bytes,
            )
            publish(settings, [letter])

        return write

    def replayed(self, settings: Settings) -> list[ConsumerRecord]:
        return records(settings, Topics(settings).interactions)

    def listed(self, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main(["dead-letters", "list", "--json", *options]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    def test_list_filters_and_show_gives_the_record(
        self, letters: Callable[..., None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        letters(b"not json", "not_json")
        letters(b"\xff\x00", "not_utf8", key=None)
        (only,) = self.listed(capsys, "--reason", "not_json")
        assert only["letter"]["reason"] == "not_json"
        assert only["replayed"] is False
        assert len(self.listed(capsys, "--topic", "interactions.v1")) == 2
        assert self.listed(capsys, "--topic", "items.v1") == []
        assert main(["dead-letters", "list"]) == 0
        assert "2 dead letters: 1 not_json, 1 not_utf8" in capsys.readouterr().out
        assert main(["dead-letters", "show", only["id"]]) == 0
        shown = capsys.readouterr().out
        for text in ("not_json in words", "not json", "u-1", "header ce_id"):
            assert text in shown
        assert main(["dead-letters", "show", "3:99999"]) == 1
        assert main(["dead-letters", "show", "seventeen"]) == 2

    def test_replay_puts_bytes_key_headers_and_partition_back_once(
        self, settings: Settings, letters: Callable[..., None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        letters(b'{"type":"teleport"}', "unknown_event_type")
        letters(b"not json", "not_json")
        arguments = ["dead-letters", "replay", "--reason", "unknown_event_type"]
        assert main([*arguments, "--dry-run"]) == 0
        assert "1 would be replayed" in capsys.readouterr().out
        assert self.replayed(settings) == []
        assert main(arguments) == 0
        (record,) = self.replayed(settings)
        assert (record.value, record.key, record.partition) == (b'{"type":"teleport"}', b"u-1", 1)
        headers = dict(record.headers)
        assert headers["ce_id"] == b"e-1"
        assert headers[REPLAYED_FROM].startswith(Topics(settings).dead_letter.encode())
        assert [one["replayed"] for one in self.listed(capsys, "--reason", "unknown_event_type")] == [True]
        assert main(arguments) == 0
        assert "0 replayed, 1 were replayed before" in capsys.readouterr().out
        assert len(self.replayed(settings)) == 1
        assert main([*arguments, "--again"]) == 0
        assert len(self.replayed(settings)) == 2

    def test_rekey_takes_the_id_in_the_value(
        self, settings: Settings, letters: Callable[..., None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        letters(b'{"user_id":"u-9"}', "null_key", key=None)
        assert main(["dead-letters", "replay", "--all"]) == 1
        assert "--rekey takes the id in the value" in capsys.readouterr().err
        assert main(["dead-letters", "replay", "--all", "--rekey"]) == 0
        (record,) = self.replayed(settings)
        assert (record.key, record.partition) == (b"u-9", default_partition(b"u-9", 4))

    @pytest.mark.parametrize("value", [b"not json", b"[]", b'{"user_id":4}', None])
    def test_rekey_without_an_id_is_told(
        self, value: bytes | None, letters: Callable[..., None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        letters(value, "null_key", key=None)
        assert main(["dead-letters", "replay", "--all", "--rekey"]) == 1
        assert "--rekey finds no" in capsys.readouterr().err

    def test_null_value_is_replayed_as_null(self, settings: Settings, letters: Callable[..., None]) -> None:
        letters(None, "null_value")
        assert main(["dead-letters", "replay", "--all"]) == 0
        assert [record.value for record in self.replayed(settings)] == [None]

    def test_truncated_value_is_fetched_from_where_it_was(
        self, settings: Settings, letters: Callable[..., None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        long = b"x" * 50_000
        publish(settings, [OutRecord(Topics(settings).interactions, b"u-1", long, partition=2)])
        letters(long, "too_large", max_message_bytes=20_000, offset=0, partition=2)
        letters(long, "too_large", max_message_bytes=20_000, offset=5, partition=2)
        assert [one["letter"]["truncated"] for one in self.listed(capsys)] == [True, True]
        assert main(["dead-letters", "replay", "--all"]) == 1
        said = capsys.readouterr()
        assert "1 replayed" in said.out
        assert "[2]@5 is gone" in said.err
        assert [record.value for record in self.replayed(settings)] == [long, long]

    def test_letter_of_a_foreign_topic_is_not_replayed(
        self, letters: Callable[..., None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        letters(b"x", "not_json", topic="payments")
        assert main(["dead-letters", "replay", "--all"]) == 1
        assert "topic payments is not one of ours" in capsys.readouterr().err

    def test_replay_of_everything_has_to_be_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["dead-letters", "replay"]) == 2
        assert "--all" in capsys.readouterr().err


class TestDoctor:
    def findings(self, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, list[dict[str, str]]]:
        capsys.readouterr()
        self.status = main([*options, "doctor", "--skip-model", "--json"])
        found: dict[str, list[dict[str, str]]] = {}
        for line in capsys.readouterr().out.splitlines():
            finding = json.loads(line)
            found.setdefault(finding["what"], []).append(finding)
        return found

    def test_missing_topics_then_all_well(self, capsys: pytest.CaptureFixture[str]) -> None:
        before = self.findings(capsys)
        assert self.status == 1
        assert before["broker"][0]["status"] == "ok"
        assert "tailrace topics create" in before["topics"][0]["text"]
        assert main(["topics", "create"]) == 0
        after = self.findings(capsys)
        assert self.status == 0
        assert {finding["status"] for findings in after.values() for finding in findings} <= {"ok", "warn"}
        assert after["topics"][-1]["text"].startswith(f"{len(TOPICS)} of {len(TOPICS)}")

    def test_absent_services_are_named_with_what_to_do(
        self, capsys: pytest.CaptureFixture[str], unused_tcp_port: int
    ) -> None:
        nowhere = f"127.0.0.1:{unused_tcp_port}"
        found = self.findings(capsys, "--kafka", nowhere, "--redis", f"redis://:hunter2@{nowhere}/0")
        assert self.status == 1
        for service in ("broker", "redis"):
            assert found[service][0]["status"] == "fail"
            assert nowhere in found[service][0]["text"]
            assert "is the address right" in found[service][0]["text"]
        assert "hunter2" not in json.dumps(found)

    @pytest.mark.model
    def test_model_is_loaded_and_used(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["topics", "create"])
        assert main(["doctor"]) == 0
        assert "384 dimensions" in capsys.readouterr().out
