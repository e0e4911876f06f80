"""Mutated messages: a few thousand with every test run, and what longer runs found (``python -m tests.fuzz``)."""

from __future__ import annotations

import inspect
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import decode
from schemas.arrays import LARGEST_LEARNED, learnable, pack_float32
from schemas.messages import DeadLetter
from stream_app.cli.dead_letters import _show, letter_rows
from stream_app.delivery.replay import REPLAYED_MARK, Letter, LetterId, carried, original_record
from stream_app.errors import InvalidMessage, SnapshotError
from stream_app.items.catalogue import Catalogue
from stream_app.items.signals import Signals
from stream_app.settings import ItemSettings, load_settings
from stream_app.stores.embedding_cache import EmbeddingCache
from stream_app.stores.requests import SlateRebuild, SlateRebuilds
from stream_app.textify.templates import load_languages
from stream_app.users.state import STATE_VERSION
from tests.fuzz import run, targets
from tests.fuzz.mutate import mutated, mutated_document
from tests.fuzz.run import fuzz
from tests.fuzz.target import Sample, Target

MESSAGES = 4_000


def test_every_mutated_message_is_read_or_refused(tmp_path: Path):
    report = fuzz(MESSAGES, seed=0, folder=tmp_path)
    assert report.messages == MESSAGES
    assert not report.finds, "\n\n".join(map(str, report.finds))
    assert all(report.read[name] for name in ("interactions", "items", "user states")), "some are still valid"
    assert report.refused.total() > MESSAGES / 3, "and many are not"


def decoders() -> dict[str, Callable[..., Any]]:
    """Every public function of ``schemas/decode.py`` that reads bytes."""
    return {
        name: function
        for name, function in inspect.getmembers(decode, inspect.isfunction)
        if function.__module__ == decode.__name__ and name.startswith(("decode_", "parse_"))
    }


def without_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Decoders that no target has read one of its valid messages with."""
    used: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def read(*given: Any, **named: Any) -> Any:
            found = function(*given, **named)
            used[name] += 1
            return found

        return read

    every = decoders()
    for name, function in every.items():
        monkeypatch.setattr(decode, name, counted(name, function))
    made = targets.targets(folder)
    used.clear()  # making them reads as well
    for target in made:
        for sample in target.corpus:
            target.read(sample)
    return set(every) - set(used)


def test_every_decoder_has_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert len(decoders()) > 15
    assert without_target(tmp_path, monkeypatch) == set()


def test_a_decoder_without_a_target_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def decode_parcel(value: bytes | None) -> object:
        return value

    decode_parcel.__module__ = decode.__name__
    monkeypatch.setattr(decode, "decode_parcel", decode_parcel, raising=False)
    assert without_target(tmp_path, monkeypatch) == {"decode_parcel"}


@pytest.mark.parametrize("name", ["pictures", "pictures: image_url", "dead-letter: replay", "requests", "lines"])
def test_readers_beside_the_topics_are_fuzzed_too(tmp_path: Path, name: str):
    report = fuzz(400, seed=1, folder=tmp_path, only=name)
    assert not report.finds, "\n\n".join(map(str, report.finds))
    assert report.read.total() > 20
    assert report.refused.total() > 5 or name == "requests", "and that one only says so"


def test_what_is_neither_read_nor_refused_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fragile(sample: Sample) -> object:
        return {"{": 1, "[": 2}[(sample.value or b" ")[:1].decode("latin-1")]

    monkeypatch.setattr(run, "targets", lambda folder: [Target("fragile", [Sample(b"{}")], fragile)])
    report = fuzz(300, seed=0, folder=tmp_path)
    assert len(report.finds) > 1
    assert "KeyError" in report.finds[0].problem
    assert report.found > len(report.finds) - 1


def test_what_is_kept_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept: list[object] = []
    monkeypatch.setattr(
        run,
        "targets",
        lambda folder: [Target("keeps", [Sample(b"{}")], lambda _: kept.extend([[n] for n in range(100)]))],
    )
    assert "objects" in fuzz(1_000, seed=0, folder=tmp_path).leaks()


def test_the_same_seed_gives_the_same_messages(tmp_path: Path):
    first, again = (fuzz(200, seed=5, folder=tmp_path, only="items") for _ in range(2))
    assert (first.read, first.refused) == (again.read, again.refused)


@given(st.binary(min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_mutation_of_any_bytes_gives_bytes(data: bytes, random_):
    assert isinstance(mutated(data, [data], random_), bytes)
    assert isinstance(mutated_document(data, [data], (targets.orjson.loads, targets.json_bytes), random_), bytes)


# What was found.


def test_a_state_of_a_later_version_counts_as_refused(tmp_path: Path):
    (target,) = (one for one in targets.targets(tmp_path) if one.name == "user states")
    report = run.Report()
    assert run._attempt(target, Sample(bytes([STATE_VERSION + 1]) + (target.corpus[0].value or b"")[1:]), report) == ""
    assert report.refused["user states"] == 1


@pytest.mark.parametrize("field", ["counts", "symmetric", "directed", "shown"])
def test_a_negative_count_is_refused(field: str):
    """The slates of everybody whose candidates held it were never done: a root of it is no number."""
    settings = targets.fuzz_settings()
    serving = targets.serving_state(settings)
    (sample, *_) = targets._replica_corpus(settings)["item-signals"]
    item_id, row = targets.decode.decode_item_signals(sample.key, sample.value)
    assert row is not None
    wrong = {
        "counts": [1.0, 2.0, 3.0, -(2.0**63)],
        "symmetric": targets.pack_float64(np.array([1.0, 1.0, -1.0])),
        "directed": targets.pack_float64(np.array([1.0, -0.5, 1.0])),
        "shown": -1.0,
    }[field]
    row = targets.msgspec.structs.replace(row, **{field: wrong})
    with pytest.raises(ValueError, match="negative"):
        serving.apply_signals(item_id, row)
    with pytest.raises(ValueError, match="negative"):
        serving.apply_all_signals([(item_id, row)])


@pytest.mark.parametrize("number", [2 * LARGEST_LEARNED, 3.4e38, -3.4e38, np.inf, np.nan])
def test_numbers_that_were_never_learned_are_refused(number: float):
    """Finite, but their products are not; scores that are no numbers compare with nothing."""
    values = np.zeros(targets.FACTORS, np.float32)
    values[1] = number
    assert not learnable(values)
    settings = targets.fuzz_settings()
    serving = targets.serving_state(settings)
    corpus = targets._replica_corpus(settings)
    _, row = targets.decode.decode_item_factors(corpus["item-factors"][0].key, corpus["item-factors"][0].value)
    _, basis = targets.decode.decode_factor_basis(corpus["factor-basis"][0].key, corpus["factor-basis"][0].value)
    assert row is not None
    assert basis is not None
    replace = targets.msgspec.structs.replace
    for wrong in (replace(row, context=pack_float32(values)), replace(row, bias=number)):
        with pytest.raises(ValueError, match="not finite"):
            serving.apply_factors(row.item_id, wrong)
        with pytest.raises(ValueError, match="not finite"):
            serving.apply_all_factors([(row.item_id, wrong)])
    mean = np.zeros(targets.DIMENSIONS, np.float32)
    mean[0] = number
    with pytest.raises(ValueError, match="not finite"):
        serving.apply_basis(replace(basis, mean=pack_float32(mean)))


@pytest.mark.parametrize("damage", ["cut", "byte"])
@pytest.mark.parametrize("name", ["catalogue", "signals"])
def test_a_damaged_archive_of_a_snapshot_is_refused_with_its_name(tmp_path: Path, name: str, damage: str):
    targets.serving_state(targets.fuzz_settings()).save(tmp_path)
    file = tmp_path / f"{name}.npz"
    whole = bytearray(file.read_bytes())
    if damage == "cut":
        del whole[-30:]
    else:
        whole[0] ^= 0xFF  # of the first file's head
    file.write_bytes(whole)
    load = (
        partial(Catalogue.load, unknown_items=10)
        if name == "catalogue"
        else partial(Signals.load, settings=ItemSettings())
    )
    with pytest.raises(SnapshotError, match=name):
        load(tmp_path)


def test_a_template_nested_without_end_is_refused_with_its_name(tmp_path: Path):
    (tmp_path / "da.toml").write_text("sentence = " + "[" * 5_000)
    with pytest.raises(ValueError, match=r"da\.toml"):
        load_languages(tmp_path)


async def test_a_vector_in_the_cache_that_is_not_finite_is_embedded_again():
    class Row:
        async def mget(self, keys):
            return [np.array([1.0, np.nan], "<f4").tobytes(), np.array([1.0, 0.0], "<f4").tobytes()]

    cache = EmbeddingCache(Row(), prefix="p", space="s", dimensions=2, ttl_s=60, memory=4)  # type: ignore[arg-type]
    assert list(await cache.get_many(["a", "b"])) == ["b"]


class Holds:
    """Redis with one value."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    async def get(self, key: str) -> bytes:
        return self.value


@pytest.mark.parametrize(
    "value",
    [
        b'{"id":"\xff","ends":{"0":1},"users_per_s":5}',
        b'{"more":' + b"[" * 5_000,
        b'{"id":"1","ends":{"0":1},"users_per_s":0}',
        b'{"id":"1","ends":{"0":1},"users_per_s":"nan"}',
        b'{"id":"1","ends":{"0":-1},"users_per_s":5}',
        b'{"id":"1","ends":{"-1":1},"users_per_s":5}',
    ],
)
async def test_a_request_that_nobody_can_do_is_none(value: bytes):
    """The task that looks for requests ended, or divided by nothing."""
    rebuilds = SlateRebuilds(Holds(value), load_settings())  # type: ignore[arg-type]
    assert await rebuilds.asked() is None
    rebuilds = SlateRebuilds(Holds(b'{"id":"1","ends":{"0":1},"users_per_s":5}'), load_settings())  # type: ignore[arg-type]
    assert await rebuilds.asked() == SlateRebuild("1", {0: 1}, 5.0)


def letter(**fields: Any) -> Letter:
    given = {"partition": 0, "value": b64encode(b'{"item_id":"a"}').decode(), "key": b64encode(b"a").decode(), **fields}
    message = DeadLetter(
        reason="not_json",
        detail="x",
        attempts=1,
        stage="catalogue",
        topic="tailrace.items.v1",
        offset=3,
        failed_at=datetime(2026, 11, 23, tzinfo=UTC),
        **given,
    )
    return Letter(id=LetterId(0, 1), message=message, replayed=False)


@pytest.mark.parametrize(
    "fields",
    [{"key": "\u6f22"}, {"value": "A"}, {"headers": [("ce_id", "\u6f22\u6f22")]}],
    ids=lambda one: next(iter(one)),
)
async def test_a_letter_that_is_not_base64_is_shown_and_not_replayed(fields: dict[str, Any]):
    """Characters beyond ASCII ended the command, and the letters after it were not replayed."""
    damaged = letter(**fields)
    with pytest.raises(InvalidMessage, match="not_replayable: it is damaged"):
        await original_record(damaged, load_settings())
    with pytest.raises(InvalidMessage, match="not_replayable: it is damaged"):
        carried(damaged.message)
    assert letter_rows(damaged)["content"].startswith("it is damaged")


@pytest.mark.parametrize("partition", [-1, 2**31])
async def test_a_letter_about_a_partition_that_cannot_be_is_not_replayed(partition: int):
    with pytest.raises(InvalidMessage, match=f"no topic has a partition {partition}"):
        await original_record(letter(partition=partition), load_settings())


def test_a_header_that_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]):
    _show(letter(headers=[("[/b]", b64encode(b"1").decode())]), raw_value=False)
    assert "[/b]" in capsys.readouterr().out


def test_a_mark_of_a_replay_without_content_marks_nothing(tmp_path: Path):
    (target,) = (one for one in targets.targets(tmp_path) if one.name == "dead-letter: replay")
    target.read(Sample(None, b"2:17", ((REPLAYED_MARK, None),)))
