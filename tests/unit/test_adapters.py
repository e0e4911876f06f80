"""Adapters: maps of vectors, their files, what they learn from, and whether they are better than their base."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from schemas.messages import Interaction
from stream_app.adapters.adapter import Adapter
from stream_app.adapters.choices import HARD, Choices, Taken, task_of
from stream_app.adapters.file import FORMAT, AdapterFile, Training
from stream_app.adapters.prequential import catalogue_whitening, compare, wins
from stream_app.adapters.scoring import Adapted, paired
from stream_app.adapters.shown import Shown, SlateShown
from stream_app.adapters.train import Examples, train, windows_of
from stream_app.adapters.training import Trainer, TrainingOptions
from stream_app.errors import SettingsError
from stream_app.evaluation.baselines import Told
from stream_app.settings import Settings
from tests.logs import DAY, buy, catalogue, events

DIMENSIONS = 8
SPACE = "model/mean/8/raw/0"


def vectors(count: int, dimensions: int = DIMENSIONS, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors, float32 [count, dimensions]."""
    drawn = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def an_adapter(seed: int = 0, *, hidden: int = 5, head: float = 1.0) -> Adapter:
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    return Adapter(
        whitening=catalogue_whitening(vectors(40)),
        trunk=drawn(DIMENSIONS, hidden),
        bias=drawn(hidden),
        heads={task: head * drawn(hidden, DIMENSIONS) for task in ("click", "purchase")},
        shares={"click": 0.25, "purchase": 0.75},
    )


def a_file(adapter: Adapter | None = None) -> AdapterFile:
    return AdapterFile(
        adapter=adapter or an_adapter(),
        base_space=SPACE,
        training=Training(
            data="shop",
            events=10,
            examples={"click": 1, "purchase": 2},
            items=40,
            first="2026-01-01T00:00:00+00:00",
            last="2026-02-01T00:00:00+00:00",
            windows=4,
            seed=0,
            options={"hidden": 5},
        ),
        metrics={"tests": 7},
        promoted=True,
    )


# --- the map ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.booleans())
@settings(max_examples=25, deadline=None)
def test_adapted_vectors_have_unit_length_and_zeros_stay_zeros(seed: int, count: int, zero: bool) -> None:
    given_vectors = vectors(count, seed=seed)
    if zero and count:
        given_vectors[0] = 0.0
    found = an_adapter(seed).apply(given_vectors)
    assert found.dtype == np.float32
    assert found.shape == given_vectors.shape
    expected = np.ones(count)
    if zero and count:
        expected[0] = 0.0
    assert np.linalg.norm(found, axis=1) == pytest.approx(expected, abs=1e-5)


def test_with_heads_of_zeros_it_is_the_half_whitened_space() -> None:
    adapter = an_adapter(head=0.0)
    assert adapter.apply(vectors(12)) == pytest.approx(adapter.whitening.apply(vectors(12)), abs=1e-6)


def test_large_catalogues_are_adapted_in_blocks_with_the_same_result() -> None:
    adapter = an_adapter()
    many = vectors(4_096 + 3)
    assert adapter.apply(many)[-5:] == pytest.approx(adapter.apply(many[-5:]), abs=1e-6)


def test_a_head_that_takes_a_vector_away_entirely_leaves_its_direction() -> None:
    whitening = catalogue_whitening(np.zeros((0, 2), np.float32))
    one = np.array([[1.0, 0.0]], np.float32)
    # The trunk gives gelu(large) = large, and the head exactly its opposite.
    adapter = Adapter(
        whitening=whitening,
        trunk=np.array([[16.0], [0.0]], np.float32),
        bias=np.zeros(1, np.float32),
        heads={"click": np.array([[-1.0 / 16.0, 0.0]], np.float32)},
        shares={"click": 1.0},
    )
    assert adapter.apply(one) == pytest.approx(one)


def test_the_served_head_is_the_mean_of_the_tasks_by_their_shares() -> None:
    adapter = an_adapter()
    alone = replace(adapter, shares={"click": 1.0, "purchase": 0.0})
    assert alone.apply(vectors(6)) == pytest.approx(adapter.apply(vectors(6), task="click"), abs=1e-6)
    assert adapter.apply(vectors(6)) != pytest.approx(adapter.apply(vectors(6), task="click"), abs=1e-3)


def test_the_name_of_the_space_follows_everything_that_decides_a_vector() -> None:
    adapter = an_adapter()
    assert adapter.space(SPACE) == f"{SPACE}+a-{adapter.fingerprint}"
    changed = [
        replace(adapter, trunk=adapter.trunk + 1),
        replace(adapter, bias=adapter.bias + 1),
        replace(adapter, shares={"click": 0.5, "purchase": 0.5}),
        replace(adapter, heads={**adapter.heads, "click": adapter.heads["click"] + 1}),
        replace(adapter, whitening=catalogue_whitening(vectors(41))),
    ]
    assert len({other.fingerprint for other in (adapter, *changed)}) == 6
    assert an_adapter().fingerprint == adapter.fingerprint


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 9\) do not fit an adapter of 8 dimensions"):
        an_adapter().apply(vectors(3, 9))


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_file_holds_everything(tmp_path: Path) -> None:
    saved = a_file()
    saved.save(tmp_path / "a.safetensors")
    loaded = AdapterFile.load(tmp_path / "a.safetensors", base_space=SPACE)
    assert loaded.space == saved.space
    assert loaded.adapter.apply(vectors(9)).tobytes() == saved.adapter.apply(vectors(9)).tobytes()
    assert (loaded.training, loaded.metrics, loaded.promoted) == (saved.training, saved.metrics, saved.promoted)
    assert loaded.training.ended == datetime(2026, 2, 1, tzinfo=UTC)
    assert os.listdir(tmp_path) == ["a.safetensors"]  # noqa: PTH208 - nothing partial is left


def test_an_adapter_of_another_model_is_refused_with_both_spaces(tmp_path: Path) -> None:
    a_file().save(tmp_path / "a.safetensors")
    with pytest.raises(SettingsError, match=r"a\.safetensors: .*model/mean/8/raw/0, the encoder gives other; set"):
        AdapterFile.load(tmp_path / "a.safetensors", base_space="other")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.safetensors"
    a_file().save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SettingsError, match=r"a\.safetensors: not a whole safetensors file .*; copy the file again"):
        AdapterFile.load(path)


Change = Callable[[dict[str, Any], dict[str, str]], None]


def _about(**changes: Any) -> Change:
    def change(_arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata["adapter"] = msgspec.json.encode({**msgspec.json.decode(metadata["adapter"]), **changes}).decode()

    return change


def _training(**changes: Any) -> Change:
    return _about(training={**msgspec.to_builtins(a_file().training), **changes})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda arrays, _: arrays.update(trunk=arrays["trunk"][:-1]),
            r"trunk is float32 \[7, 5\], not float32 \[8, 5\]",
        ),
        (lambda arrays, _: arrays.update(bias=arrays["bias"].astype(np.float64)), "bias is float64"),
        (lambda arrays, _: arrays["bias"].__setitem__(0, np.nan), "bias holds numbers that are not finite"),
        (lambda arrays, _: arrays["head.click"].__setitem__((0, 0), np.inf), "head.click holds numbers"),
        (lambda arrays, _: arrays["scales"].__setitem__(0, 0.0), "scales must be positive"),
        (lambda arrays, _: arrays["mean"].fill(1.0), "the mean shorter than 1"),
        (lambda arrays, _: arrays.pop("head.purchase"), "expected axes, bias, head.click, head.purchase"),
        (lambda arrays, _: arrays.update(extra=np.zeros(1, np.float32)), "it holds axes, bias, extra"),
        (lambda _, metadata: metadata.update(format="tailrace/adapter/9"), "its format is 'tailrace/adapter/9'"),
        (lambda _, metadata: metadata.clear(), "its format is 'none'"),
        (lambda _, metadata: metadata.update(adapter="{"), "what it says of itself cannot be read"),
        (_about(shares={"click": 0.5, "purchase": 0.6}), "add up to 1"),
        (_about(shares={"click": -0.5, "purchase": 1.5}), "not negative"),
        (_about(shares={"sale": 1.0}), "tasks sale are no adapter"),
        (_about(dimensions=0), "0 dimensions"),
        (_training(last="yesterday"), r"training\.last is 'yesterday', not a time of RFC 3339 .*copy the file again"),
        (_training(first="2026-02-01T00:00:00"), r"training\.first is '2026-02-01T00:00:00', not a time"),
        (_about(hidden=6), r"bias is float32 \[5\], not float32 \[6\]|trunk is"),
    ],
)
def test_a_file_that_is_no_adapter_says_why(tmp_path: Path, change: Change, said: str) -> None:
    path = tmp_path / "a.safetensors"
    a_file().save(path)
    arrays = {name: array.copy() for name, array in load_file(path).items()}
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    assert metadata["format"] == FORMAT
    change(arrays, metadata)
    save_file(arrays, path, metadata=metadata)
    with pytest.raises(SettingsError, match=said) as raised:
        AdapterFile.load(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_an_array_of_a_type_that_numpy_lacks_is_refused(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.safetensors"
    a_file().save(path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    head["bias"] |= {"dtype": dtype, "shape": [10 if dtype == "BF16" else 20]}  # in the 20 bytes of 5 float32
    changed = json.dumps(head).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + size :])
    with pytest.raises(SettingsError, match=rf"a\.safetensors: bias is {dtype}, which numpy does not have; .*copy"):
        AdapterFile.load(path)


def test_a_file_that_is_not_there_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.safetensors cannot be read: .*is the path right"):
        AdapterFile.load(tmp_path / "none.safetensors")
    with pytest.raises(SettingsError, match="cannot be written"):
        a_file().save(tmp_path / "nowhere" / "a.safetensors")


def test_reading_and_applying_need_no_torch() -> None:
    code = "import sys, stream_app.adapters.file, stream_app.adapters.prequential; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- what there is to learn ------------------------------------------------------------------------------------------


def test_types_are_grouped_into_tasks_by_weight() -> None:
    found = {name: task_of(kind) for name, kind in Settings().event_types.items() if kind.weight and kind.polarity > 0}
    assert {name for name, task in found.items() if task == 1} == {"like", "rating", "review", "purchase"}


def taken(*rows: int, task: int = 1, weight: float = 4.0) -> list[Taken]:
    return [Taken(row, task, weight) for row in rows]


def test_a_choice_is_the_first_of_an_item_by_a_user_of_whom_something_is_known() -> None:
    choices = Choices(10)
    choices.add(0, taken(1, 2))
    assert len(choices) == 0
    choices.add(0, taken(3, 1, 3))
    assert len(choices) == 1
    choices.add(1, taken(3))
    assert len(choices) == 1
    batch = choices.batch(np.array([0]))
    assert batch.rows[batch.taken].tolist() == [3]
    assert batch.rows[batch.before].tolist() == [1, 2]
    assert choices.popularity.tolist() == [0, 2, 1, 3, 0, 0, 0, 0, 0, 0]


def test_a_batch_holds_what_came_before_each_choice_newest_kept_and_what_was_passed_over() -> None:
    choices = Choices(40, history=3, decay=0.5)
    choices.add(7, taken(0, 1, 2, 3, weight=4.0))
    choices.add(7, taken(4, task=0, weight=1.0), shown=[9, 4, 9, *range(20, 40)])
    choices.add(7, taken(5))
    batch = choices.batch(np.array([1, 0]))
    starts = [*batch.starts.tolist(), len(batch.before)]
    before = [batch.rows[batch.before[low:high]].tolist() for low, high in itertools.pairwise(starts)]
    assert before == [[2, 3, 4], [1, 2, 3]]
    assert batch.pooled.tolist() == [1.0, 2.0, 1.0, 1.0, 2.0, 4.0]
    assert batch.rows[batch.taken].tolist() == [5, 4]
    assert batch.task.tolist() == [1, 0]
    assert batch.weight.tolist() == [4.0, 1.0]
    assert batch.hard[0].tolist() == [-1] * HARD
    assert batch.rows[batch.hard[1]].tolist() == [9, *range(20, 29)]
    assert choices.task_weights() == {"click": 1.0, "purchase": 4.0}
    choices.add(7, taken(6))  # the arrays may still grow
    assert len(choices) == 3


def test_what_was_shown_is_the_last_impression_else_the_last_slate_and_soon_forgotten() -> None:
    rows = {"a": 0, "b": 1, "c": 2}
    shown = Shown(
        lambda item: rows.get(item, -1), [SlateShown(10.0, "u", ("a", "x", "b")), SlateShown(99.0, "u", ("c",))]
    )
    assert shown.before("u", 10.0) == ()
    assert shown.before("u", 20.0) == (0, 1)
    assert shown.before("v", 20.0) == ()
    shown.note(buy(1, "u", None, 50.0, "impression", items=["b"]))
    assert shown.before("u", 100.0) == (1,)  # seen counts more than offered
    assert shown.before("u", 50.0 + 1_800.0) == (1,)
    assert shown.before("u", 51.0 + 1_800.0) == ()


# --- training --------------------------------------------------------------------------------------------------------

SMALL = TrainingOptions(hidden=16, batch=64, epochs=3, learning_rate=1e-2)


def moved_log(users: int = 240, items: int = 24, seed: int = 3) -> list[Interaction]:
    """Whoever takes item i takes i + items / 2 next, which no text says."""
    rng = np.random.default_rng(seed)
    bought, clock = [], 1e9
    for user in range(users):
        first = int(rng.integers(items))
        bought += [(f"u{user}", f"i{first}", clock), (f"u{user}", f"i{(first + items // 2) % items}", clock + 60.0)]
        clock += DAY / 10
    return events(*bought)


def the_examples(interactions: list[Interaction], items: int = 24, dimensions: int = 16) -> Examples:
    table = vectors(items, dimensions, seed=5)
    return Examples(
        name="moved",
        items=catalogue(items),
        interactions=interactions,
        vectors={f"i{row}": vector for row, vector in enumerate(table)},
        space=SPACE,
    )


def test_it_learns_what_no_text_says_and_is_promoted() -> None:
    told: list[tuple[str, int, int]] = []
    found = train(
        the_examples(moved_log()), Settings(), SMALL, windows=6, on_progress=lambda *progress: told.append(progress)
    )
    assert found.promoted
    assert found.metrics["adapted"]["ndcg@10"] > 1.5 * found.metrics["base"]["ndcg@10"]
    assert found.adapter.shares == {"purchase": 1.0}
    assert found.training.examples == {"click": 0, "purchase": 240}
    assert {what for what, _, _ in told} == {"interactions", *(f"window {number} of 6" for number in range(1, 7))}
    assert all(done <= total for _, done, total in told)


def test_no_event_is_ranked_by_what_learned_from_it() -> None:
    """What comes last has no influence on how what came before was ranked."""
    log = moved_log(120)
    found = train(the_examples(log), Settings(), SMALL, windows=4)
    turned = train(the_examples(log[:180] + moved_log(120, seed=9)[180:]), Settings(), SMALL, windows=4)
    assert found.metrics["windows"][:2] == turned.metrics["windows"][:2]
    assert found.adapter.fingerprint != turned.adapter.fingerprint


def test_before_anything_was_learned_both_rank_alike() -> None:
    found = train(the_examples(moved_log()), Settings(), SMALL, windows=6, train_share=0.0)
    first = found.metrics["windows"][0]
    assert first["base"] == pytest.approx(first["adapted"], abs=0.05)


def test_a_seed_decides_everything() -> None:
    log = moved_log(40)
    first, again = (train(the_examples(log), Settings(), SMALL, windows=3) for _ in range(2))
    other = train(the_examples(log), Settings(), replace(SMALL, seed=1), windows=3)
    assert first.adapter.fingerprint == again.adapter.fingerprint
    assert first.metrics == again.metrics
    assert other.adapter.fingerprint != first.adapter.fingerprint


def test_random_purchases_teach_nothing_and_are_not_promoted() -> None:
    rng = np.random.default_rng(0)
    log = events(*((f"u{rng.integers(40)}", f"i{rng.integers(24)}", 1e9 + 60.0 * number) for number in range(400)))
    found = train(the_examples(log), Settings(), SMALL, windows=4)
    assert not found.promoted
    assert found.metrics["tests"] > 100


def test_what_torch_trained_is_what_numpy_serves() -> None:
    table = vectors(24, 16, seed=5)
    trainer = Trainer(catalogue_whitening(table), table, SMALL)
    choices = Choices(24)
    for user in range(30):
        choices.add(user, taken(user % 24))
        choices.add(user, taken((user + 12) % 24))
    assert trainer.learn(choices, 0) is not None
    adapter = trainer.adapter({"purchase": 2.0})
    import torch
    from torch.nn import functional

    inputs = torch.from_numpy(adapter.whitening.apply(table))
    hidden = functional.gelu(
        inputs @ torch.from_numpy(adapter.trunk) + torch.from_numpy(adapter.bias), approximate="tanh"
    )
    expected = functional.normalize(inputs + hidden @ torch.from_numpy(adapter.heads["purchase"]), dim=1)
    assert adapter.apply(table) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_start_is_gone_on_from_and_a_new_catalogue_has_its_own_whitening() -> None:
    start = train(the_examples(moved_log()), Settings(), SMALL, windows=4)
    table = vectors(24, 16, seed=5)
    same = Trainer(catalogue_whitening(table), table, SMALL, start=start.adapter).adapter(start.adapter.shares)
    assert same.apply(table) == pytest.approx(start.adapter.apply(table), abs=1e-6)
    other = vectors(30, 16, seed=6)
    moved = Trainer(catalogue_whitening(other), other, SMALL, start=start.adapter).adapter(start.adapter.shares)
    assert moved.trunk == pytest.approx(start.adapter.trunk)
    assert moved.whitening.mean != pytest.approx(start.adapter.whitening.mean)
    again = train(the_examples(moved_log()), Settings(), SMALL, windows=4, start=start)
    assert again.training.started_from == start.adapter.fingerprint
    assert again.metrics["adapted"]["ndcg@10"] > start.metrics["adapted"]["ndcg@10"]
    with pytest.raises(ValueError, match="of 16 dimensions cannot begin one of 8"):
        Trainer(catalogue_whitening(vectors(9)), vectors(9), SMALL, start=start.adapter)


def test_each_task_has_a_head_of_its_own_and_the_trunk_is_shared() -> None:
    log = [
        msgspec.structs.replace(event, type="purchase" if number % 8 == 3 else "click")
        for number, event in enumerate(moved_log(120))
    ]
    found = train(the_examples(log), Settings(), SMALL, windows=3)
    assert set(found.adapter.heads) == {"click", "purchase"}
    assert not np.allclose(found.adapter.heads["click"], found.adapter.heads["purchase"])
    assert sum(found.adapter.shares.values()) == pytest.approx(1.0)
    assert found.training.examples["click"] > 0


def test_passed_over_items_are_pushed_away() -> None:
    table = vectors(24, 16, seed=5)

    def closeness(hard: float) -> float:
        trainer = Trainer(catalogue_whitening(table), table, replace(SMALL, hard=hard, anchor=0.0, epochs=20))
        choices = Choices(24)
        for user in range(60):
            choices.add(user, taken(0))
            choices.add(user, taken(1 + user % 8), shown=[20])
        trainer.learn(choices, 0)
        found = trainer.adapter({}).apply(table)
        return float(found[0] @ found[20])

    assert closeness(1.0) < closeness(0.0) - 0.05


def test_an_anchor_holds_items_where_their_texts_have_them() -> None:
    log = moved_log()

    def moved(anchor: float) -> float:
        found = train(the_examples(log), Settings(), replace(SMALL, anchor=anchor), windows=3).adapter
        table = vectors(24, 16, seed=5)
        return float((found.apply(table) * found.whitening.apply(table)).sum(axis=1).mean())

    assert moved(3.0) > moved(0.0) + 0.02


def test_a_log_without_choices_gives_an_adapter_that_changes_nothing_and_is_not_promoted() -> None:
    log = events(*((f"u{number}", f"i{number % 24}", 1e9 + number) for number in range(30)))
    found = train(the_examples(log), Settings(), SMALL, windows=2)
    table = vectors(24, 16, seed=5)
    assert not found.promoted
    assert found.metrics["tests"] == 0
    assert found.metrics["losses"] == [None, None]
    assert found.adapter.apply(table) == pytest.approx(found.adapter.whitening.apply(table), abs=1e-6)


def test_items_without_text_are_never_moved_and_never_found_by_text() -> None:
    log = moved_log()
    examples = the_examples(log)
    without = {item_id: vector for item_id, vector in examples.vectors.items() if item_id != "i3"}
    found = train(replace(examples, vectors=without), Settings(), SMALL, windows=3)
    assert not found.adapter.apply(np.zeros((1, 16), np.float32)).any()


# --- measuring -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 7), max_size=60), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_windows_hold_every_event_once_in_order_and_cut_no_basket(sizes: list[int], count: int) -> None:
    log = [
        buy(10 * basket + number, f"u{basket % 3}", f"i{number}", 1e9 + basket)
        for basket, size in enumerate(sizes)
        for number in range(size)
    ]
    parts = windows_of(log, count)
    assert len(parts) == count
    assert [event for part in parts for event in part] == log
    times = [{event.occurred_at for event in part} for part in parts]
    assert sum(map(len, times)) == len(set().union(*times))


def test_ranking_with_other_vectors_forgets_no_user() -> None:
    table, other = vectors(12), vectors(12, seed=1)
    moved, fresh = Adapted(table), Adapted(other)
    had, tested = np.array([1, 2], np.int32), np.array([5, 6], np.int32)
    for ranking in (moved, fresh):
        ranking.learn(Told(0, 0.0, np.array([1, 2], np.int32)))
    before, _ = moved.test(0, 1.0, had, tested)
    moved.serve(other)
    after, first = moved.test(0, 1.0, had, tested)
    expected, expected_first = fresh.test(0, 1.0, had, tested)
    assert after.tolist() == expected.tolist() != before.tolist()
    assert first.tolist() == expected_first.tolist()


def test_an_interval_is_wider_when_the_tests_of_a_user_come_out_alike() -> None:
    gains = np.repeat(np.random.default_rng(0).normal(0.1, 1.0, 50), 20)
    alike = paired(gains, np.repeat(np.arange(50), 20).astype(np.int32))
    alone = paired(gains, np.arange(1_000, dtype=np.int32))
    assert alike.value == alone.value
    assert alike.low is not None
    assert alone.low is not None
    assert alike.low < alone.low
    assert paired(gains[:0], np.zeros(0, np.int32)).value is None
    assert paired(gains[:3], np.zeros(3, np.int32)).low == -1.0


@pytest.mark.parametrize(
    ("ndcg", "cold", "better"),
    [
        ([0.01, 0.001, 0.02], None, True),
        ([0.01, 0.0, 0.02], None, False),
        (None, None, False),
        ([0.01, 0.001, 0.02], [-0.01, -0.02, 0.001], True),
        ([0.01, 0.001, 0.02], [-0.01, -0.02, -0.001], False),
    ],
)
def test_it_wins_only_beyond_chance_and_not_at_the_cost_of_new_items(ndcg: Any, cold: Any, better: bool) -> None:
    assert wins({"difference": {"ndcg@10": ndcg, "cold hr@50": cold}}) is better


def test_a_finished_adapter_is_compared_without_learning() -> None:
    examples = the_examples(moved_log())
    table = np.stack(list(examples.vectors.values()))
    found = train(examples, Settings(), SMALL, windows=4)
    rows = {item.item_id: row for row, item in enumerate(examples.items)}
    later = moved_log(60, seed=11)
    both = [
        compare(Settings(), later, rows, table, found.adapter, counted=lambda _before, _event: True) for _ in range(2)
    ]
    assert both[0].adapted.tolist() == both[1].adapted.tolist()
    assert len(both[0].base) == 60
    assert both[0].adapted.mean() < both[0].base.mean()
    none = compare(Settings(), later, rows, table, found.adapter, counted=lambda _before, _event: False)
    assert len(none.base) == 0
