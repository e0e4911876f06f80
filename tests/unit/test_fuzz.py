"""Mutated messages: a few thousand with every test run, and what longer runs found (``python -m tests.fuzz``)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrays import LARGEST_LEARNED, learnable, pack_float32
from stream_app.errors import SnapshotError
from stream_app.items.catalogue import Catalogue
from stream_app.items.signals import Signals
from stream_app.settings import ItemSettings
from stream_app.stores.embedding_cache import EmbeddingCache
from stream_app.textify.templates import load_languages
from stream_app.users.state import STATE_VERSION
from tests.fuzz import run, targets
from tests.fuzz.mutate import mutated, mutated_document
from tests.fuzz.run import fuzz
from tests.fuzz.targets import Sample, Target

MESSAGES = 4_000


def test_every_mutated_message_is_read_or_refused(tmp_path: Path):
    report = fuzz(MESSAGES, seed=0, folder=tmp_path)
    assert report.messages == MESSAGES
    assert not report.finds, "\n\n".join(map(str, report.finds))
    assert all(report.read[name] for name in ("interactions", "items", "user states")), "some are still valid"
    assert report.refused.total() > MESSAGES / 3, "and many are not"


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
