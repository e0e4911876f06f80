"""Interests derived from history, transition scores, and what each source proposes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.arrays import pack_float32, pack_float64
from schemas.messages import Item, ItemSignals, ItemVector
from stream_app.index.hnsw import VectorIndex
from stream_app.items.catalogue import Catalogue
from stream_app.ranking.recommender import RankRequest, Recommender
from stream_app.retrieval.candidates import _merge, _strongest
from stream_app.retrieval.interests import FAST, LAST, NEGATIVE, SLOW, Interests, derive_interests, history_view, locate
from stream_app.retrieval.links import SCORES, Scratch, add_links, clear, lags_of, link_scores, strongest_origins
from stream_app.retrieval.source import Context, best_of, first_allowed
from stream_app.retrieval.sources import TRANSITIONS
from stream_app.retrieval.transitions import score_links
from stream_app.serving import ServingState
from stream_app.settings import IndexSettings, ItemSettings, RetrievalSettings, Settings
from stream_app.users.state import HistoryEntry, UserState, id_hash

DIMENSIONS = 8
SPACE = "test"
DAY = 86_400.0


def unit(*values: float) -> NDArray[np.float32]:
    vector = np.zeros(DIMENSIONS, np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def vector_message(item_id: str, vector: NDArray[np.float32]) -> ItemVector:
    return ItemVector(item_id=item_id, space=SPACE, text_hash="", dimensions=DIMENSIONS, vector=pack_float32(vector))


def signals_message(
    item_id: str, count: float, links: dict[str, tuple[float, float]] | None = None, *, at: float = 0.0
) -> ItemSignals:
    links = links or {}
    return ItemSignals(
        item_id=item_id,
        at=at,
        counts=[count] * 4,
        neighbours=list(links),
        symmetric=pack_float64(np.array([symmetric for symmetric, _ in links.values()])),
        directed=pack_float64(np.array([directed for _, directed in links.values()])),
        applied={"0": 1},
    )


def history(*entries: tuple[str, float] | tuple[str, float, float]) -> tuple[HistoryEntry, ...]:
    """Entries (item id, weight[, event time]); a text in place of an id when it has a space."""
    made = []
    for offset, (name, weight, *at) in enumerate(entries):
        time = at[0] if at else float(offset)
        item_id, text = ("", name) if " " in name else (name, "")
        made.append(HistoryEntry(item_id, "click", time, weight, offset, text))
    return tuple(made)


def test_a_view_holds_what_was_strictly_before() -> None:
    events = history(("a", 1.0, 1.0), ("b", 1.0, 2.0), ("c", 1.0, 2.0))
    assert [entry.item_id for entry in history_view(events, 2.0)] == ["a"]
    assert history_view(events, None) == events
    assert history_view(events, 1.0) == ()


class TestInterests:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings()

    @pytest.fixture
    def catalogue(self) -> Catalogue:
        catalogue = Catalogue(unknown_items=10)
        for name in "abc":
            catalogue.put(Item(item_id=name, title=name))
        return catalogue

    @pytest.fixture
    def index(self) -> VectorIndex:
        index = VectorIndex(DIMENSIONS, IndexSettings())
        index.upsert(np.array([0, 1], np.int32), np.stack([unit(1), unit(0, 1)]))
        return index

    def test_slow_and_fast_weigh_the_newest_more(
        self, settings: Settings, catalogue: Catalogue, index: VectorIndex
    ) -> None:
        interests = derive_interests(history(("a", 1.0), ("b", 1.0)), catalogue, index, settings, {})
        assert interests.vectors[SLOW] == pytest.approx(unit(0.97, 1.0))
        assert interests.vectors[FAST] == pytest.approx(unit(0.7, 1.0))
        assert interests.vectors[LAST] == pytest.approx(unit(0, 1))
        assert not interests.vectors[NEGATIVE].any()
        assert interests.recent.tolist() == [1, 0]

    def test_dislikes_subtract_and_are_kept_apart(
        self, settings: Settings, catalogue: Catalogue, index: VectorIndex
    ) -> None:
        interests = derive_interests(history(("a", 1.0), ("b", -2.0)), catalogue, index, settings, {})
        assert interests.vectors[SLOW] == pytest.approx(unit(0.97, -2.0))
        assert interests.vectors[NEGATIVE] == pytest.approx(unit(0, 1))
        assert interests.vectors[LAST] == pytest.approx(unit(1))
        assert interests.recent.tolist() == [0]

    def test_what_has_no_vector_yet_counts_when_it_arrives(
        self, settings: Settings, catalogue: Catalogue, index: VectorIndex
    ) -> None:
        events = history(("unheard of", 0.5), ("c", 1.0), ("nowhere", 1.0), ("a", 1.0))
        before = derive_interests(events, catalogue, index, settings, {})
        assert before.vectors[SLOW] == pytest.approx(unit(1))
        assert before.recent.tolist() == [0, 2]
        index.upsert(np.array([2], np.int32), unit(0, 0, 1)[None])
        after = derive_interests(events, catalogue, index, settings, {"unheard of": unit(0, 0, 0, 1)})
        assert after.vectors[SLOW] == pytest.approx(unit(1, 0, 0.97**2, 0.5 * 0.97**3))

    def test_no_history_gives_zeros(self, settings: Settings, catalogue: Catalogue, index: VectorIndex) -> None:
        interests = derive_interests((), catalogue, index, settings, {})
        assert not interests.vectors.any()
        assert (len(interests.recent), interests.events) == (0, 0)

    def test_a_prior_is_all_there_is_and_fades_with_events(
        self, settings: Settings, catalogue: Catalogue, index: VectorIndex
    ) -> None:
        texts = {"films": unit(0, 0, 1), "jazz": unit(0, 0, 0, 1)}
        prior = ("films", "jazz", "not embedded yet")
        alone = derive_interests((), catalogue, index, settings, texts, prior, 3.0)
        for vector in (SLOW, FAST, LAST):
            assert alone.vectors[vector] == pytest.approx(unit(0, 0, 1, 1))
        assert alone.events == 3
        together = np.sqrt(0.5) * 3.0
        one = derive_interests(history(("a", 1.0)), catalogue, index, settings, texts, prior, 3.0)
        assert one.vectors[SLOW] == pytest.approx(unit(1, 0, 0.97 * together, 0.97 * together))
        assert one.vectors[FAST] == pytest.approx(unit(1, 0, 0.7 * together, 0.7 * together))
        assert one.vectors[LAST] == pytest.approx(unit(1))
        many = derive_interests(history(*[("a", 1.0)] * 50), catalogue, index, settings, texts, prior, 3.0)
        assert many.vectors[SLOW][2] < 0.05
        assert many.vectors[FAST][2] < 1e-6

    def test_a_prior_without_any_vector_changes_nothing(
        self, settings: Settings, catalogue: Catalogue, index: VectorIndex
    ) -> None:
        for events in ((), history(("a", 1.0))):
            plain = derive_interests(events, catalogue, index, settings, {})
            prior = derive_interests(events, catalogue, index, settings, {}, ("nothing",), 3.0)
            assert np.array_equal(plain.vectors, prior.vectors)
            assert plain.events == prior.events

    def test_an_item_seen_twice_is_recent_once(
        self, settings: Settings, catalogue: Catalogue, index: VectorIndex
    ) -> None:
        interests = derive_interests(history(("a", 1.0), ("b", 1.0), ("a", 1.0)), catalogue, index, settings, {})
        assert interests.recent.tolist() == [0, 1]


class Links:
    """What the recent items point to at one time."""

    def __init__(self, state: ServingState, interests: Interests, at: float, *, room: int = 10_000) -> None:
        self._scratch = Scratch()
        self._scratch.reserve(max(state.catalogue.rows, state.signals.rows), room)
        state.signals.reserve(state.catalogue.rows)
        signals, self._arena = state.signals, state.signals.arena
        self._asked = interests.recent, lags_of(state.settings), at, signals.transition_rate, self._arena
        scratch = self._scratch
        count = add_links(*self._asked, scratch.link_slot, scratch.links, scratch.sums)
        self.rows = scratch.links[:count]

    def scores(self, rows: NDArray[np.int32]) -> NDArray[np.float64]:
        """Of any rows: float64 [7, rows]."""
        scores = np.full((len(SCORES), len(rows)), np.nan)
        link_scores(rows, self._scratch.link_slot, self._scratch.sums, self._arena.scale, scores)
        return scores

    def origins(self, rows: NDArray[np.int32]) -> tuple[list[int], list[int]]:
        """The strongest symmetric and the strongest directed one of each row."""
        origins = np.full((2, len(rows)), 99, np.int64)
        strongest_origins(*self._asked, rows, self._scratch.slot, origins)
        assert (self._scratch.slot == -1).all(), "scratch arrays are left as they were"
        symmetric, directed = origins.tolist()
        return symmetric, directed

    def cleared(self) -> bool:
        """Whether the scratch arrays are as they were once the links are cleared."""
        clear(self.rows, self._scratch.link_slot)
        return bool((self._scratch.link_slot == -1).all() and (self._scratch.slot == -1).all())


def brute_force_links(state: ServingState, events: Sequence[HistoryEntry], at: float) -> dict[str, dict[str, float]]:
    """The formulas of the module, written out."""
    settings = state.settings
    names = list(dict.fromkeys(entry.item_id for entry in reversed(events)))
    sums: dict[str, dict[str, float]] = {name: {} for name in SCORES}
    total = {
        state.catalogue.item_id(row): float(state.signals.total(np.array([row]))[0])
        for row in range(state.catalogue.rows)
    }
    for lag, name in enumerate(names):
        neighbours = state.signals.neighbours(state.catalogue.row(name))
        faded = 0.5 ** (max(at - neighbours.at, 0.0) / (settings.items.transition_half_life_days * DAY))
        for row, symmetric, directed in zip(
            neighbours.rows.tolist(), neighbours.symmetric.tolist(), neighbours.directed.tolist(), strict=True
        ):
            other = state.catalogue.item_id(row)
            scale = faded / (max(total[name], 1.0) * max(total[other], 1.0)) ** 0.5
            slow = settings.users.slow_decay**lag * symmetric * scale
            short = settings.items.symmetric_decay**lag * symmetric * scale
            after = (
                settings.items.directed_decay**lag * directed * scale if lag < settings.items.directed_history else 0.0
            )
            for score, value in (("symmetric", slow), ("recent", short), ("directed", after)):
                sums[score][other] = sums[score].get(other, 0.0) + value
            share = settings.items.symmetric_decay**lag * symmetric * faded / max(total[name], 1.0)
            sums["share"][other] = sums["share"].get(other, 0.0) + share
            sums["best"][other] = max(sums["best"].get(other, 0.0), symmetric * scale)
            if lag == 0:
                sums["last"][other] = directed * faded / max(total[name], 1.0)
            sums["count"][other] = sums["count"].get(other, 0.0) + 1.0
    return {score: {other: value**0.5 for other, value in values.items()} for score, values in sums.items()}


def test_transition_scores_are_those_of_the_formula() -> None:
    state = ServingState(Settings(), space=SPACE, dimensions=DIMENSIONS)
    rng = np.random.default_rng(3)
    names = [f"i{number}" for number in range(30)]
    for name in names:
        state.apply_item(name, Item(item_id=name, title=name))
        others = rng.choice([other for other in names if other != name], 12, replace=False)
        links = {str(other): (float(rng.uniform(0.1, 5)), float(rng.choice([0.0, 1.0]))) for other in others}
        state.apply_signals(
            name, signals_message(name, float(rng.uniform(0.2, 40)), links, at=float(rng.uniform(0, DAY)))
        )
    events = history(*[(names[number], 1.0) for number in range(15)])
    at = 5 * DAY
    interests = derive_interests(events, state.catalogue, state.index, state.settings, {})
    links = Links(state, interests, at)
    expected = brute_force_links(state, events, at)
    rows = np.arange(state.catalogue.rows, dtype=np.int32)
    found = links.scores(rows)
    for column, score in enumerate(SCORES):
        by_row = [expected[score].get(state.catalogue.item_id(row), 0.0) for row in rows.tolist()]
        assert found[column] == pytest.approx(by_row)
    symmetric, _ = links.origins(rows[:5])
    assert links.cleared(), "scratch arrays are left as they were"
    for row, origin in zip(rows[:5].tolist(), symmetric, strict=True):
        parts = [
            float(part.symmetric[part.rows == row].sum())
            * state.signals.decay(part.at, at)
            * state.settings.users.slow_decay**lag
            / max(float(state.signals.total(np.array([recent]))[0]), 1.0) ** 0.5
            for lag, recent in enumerate(interests.recent.tolist())
            for part in (state.signals.neighbours(recent),)
        ]
        assert parts[origin] == pytest.approx(max(parts))


def matrix_links(
    state: ServingState, interests: Interests, at: float
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """The same scores by one matrix with a row per recent item and a column per target; and the strongest origins."""
    settings, signals = state.settings, state.signals
    parts = [signals.neighbours(row) for row in interests.recent.tolist()]
    rows = np.unique(np.concatenate([part.rows for part in parts]))
    symmetric = np.zeros((len(parts), len(rows)))
    directed = np.zeros((len(parts), len(rows)))
    own = 1.0 / np.sqrt(np.maximum(signals.total(interests.recent), 1.0))
    for place, part in enumerate(parts):
        faded = own[place] * signals.decay(part.at, at)
        symmetric[place, np.searchsorted(rows, part.rows)] = part.symmetric * faded
        directed[place, np.searchsorted(rows, part.rows)] = part.directed * faded
    lag = np.arange(len(parts), dtype=np.float64)
    slow = settings.users.slow_decay**lag
    short = settings.items.symmetric_decay**lag
    ahead = np.where(lag < settings.items.directed_history, settings.items.directed_decay**lag, 0.0)
    pointed = np.zeros(symmetric.shape)
    for place, part in enumerate(parts):
        pointed[place, np.searchsorted(rows, part.rows)] = 1.0
    sums = [slow @ symmetric, short @ symmetric, symmetric.max(axis=0), ahead @ directed, (short * own) @ symmetric]
    sums += [own[0] * directed[0], pointed.sum(axis=0)]
    scores = np.stack(sums)
    scores[:4] /= np.sqrt(np.maximum(signals.total(rows), 1.0))
    followed = (directed * ahead[:, None]).max(axis=0) > 0
    origins = (slow[:, None] * symmetric).argmax(axis=0), (ahead[:, None] * directed).argmax(axis=0)
    return rows, np.sqrt(scores), origins[0], np.where(followed, origins[1], -1)


@pytest.mark.parametrize("seed", range(3))
def test_transition_scores_are_those_of_one_matrix_product(seed: int) -> None:
    state = ServingState(Settings(), space=SPACE, dimensions=DIMENSIONS)
    rng = np.random.default_rng(seed)
    names = [f"i{number}" for number in range(400)]
    for name in names:
        state.apply_item(name, Item(item_id=name, title=name))
    for name in names[: 300 + 50 * seed]:
        others = rng.choice([other for other in names if other != name], int(rng.integers(0, 120)), replace=False)
        links = {str(other): (float(rng.uniform(0.1, 5)), float(rng.choice([0.0, 1.0, 2.0]))) for other in others}
        state.apply_signals(
            name, signals_message(name, float(rng.uniform(0.2, 90)), links, at=float(rng.uniform(0, 9 * DAY)))
        )
    events = history(*[(names[number], 1.0) for number in rng.permutation(400)[:60].tolist()])
    interests = derive_interests(events, state.catalogue, state.index, state.settings, {})
    links = Links(state, interests, 5 * DAY)
    rows, scores, together, after = matrix_links(state, interests, 5 * DAY)
    assert np.array_equal(np.sort(links.rows), rows)
    assert links.scores(rows) == pytest.approx(scores, rel=3e-7)
    shown = rng.permutation(rows)[:10]
    place = np.searchsorted(rows, shown)
    assert links.origins(shown) == (together[place].tolist(), after[place].tolist())
    # Without room for all of them the scores of those there is room for are the same.
    few = Links(state, interests, 5 * DAY, room=20)
    assert few.rows.tolist() == links.rows[:20].tolist()
    assert np.array_equal(few.scores(few.rows), links.scores(few.rows))
    assert not few.scores(links.rows[20:]).any()
    assert links.cleared()
    assert few.cleared()


def test_without_links_every_score_is_zero() -> None:
    state = ServingState(Settings(), space=SPACE, dimensions=DIMENSIONS)
    state.apply_item("a", Item(item_id="a", title="a"))
    interests = derive_interests(history(("a", 1.0)), state.catalogue, state.index, state.settings, {})
    links = Links(state, interests, 0.0)
    rows = np.array([0], np.int32)
    assert not len(links.rows)
    assert not links.scores(rows).any()
    assert links.origins(rows) == ([-1], [-1])


def test_what_is_blocked_stays_blocked_when_room_is_made() -> None:
    scratch = Scratch()
    scratch.reserve(10, 5)
    scratch.blocked[3] = 7
    scratch.reserve(100_000, 3)
    assert len(scratch.links) == len(scratch.sums) == 5
    assert scratch.blocked[3] == 7
    assert len(scratch.slot) == len(scratch.link_slot) == len(scratch.blocked) >= 100_000


def context(
    hashes: NDArray[np.int64],
    servable: NDArray[np.bool_] | None = None,
    blocked: NDArray[np.int64] | None = None,
    request: int = 1,
) -> Context:
    """A request of which nothing is known but what may be recommended."""
    count = len(hashes)
    state = ServingState(Settings(), space=SPACE, dimensions=DIMENSIONS)
    tables = state.tables(0.0, 0)._replace(
        hashes=hashes, servable=np.ones(count, np.bool_) if servable is None else servable
    )
    rows, numbers = np.zeros(0, np.int32), np.zeros(0)
    two_rows = np.zeros((2, 0), np.int32)
    return Context(
        tables=tables, queries=np.zeros((5, DIMENSIONS), np.float32), own=rows, own_weights=numbers, links=rows,
        link_scores=numbers, near=two_rows, by_factors=two_rows,
        cold_counts=numbers, cold_closeness=np.zeros(0, np.float32),
        blocked=np.zeros(count, np.int64) if blocked is None else blocked, request=request,
        seed=np.uint64(0),
    )  # fmt: skip


@pytest.mark.parametrize("more", [0, 1, 3, 9])
@pytest.mark.parametrize("length", [0, 1, 4, 50])
def test_rows_kept_with_a_history_are_those_of_looking_everything_up(more: int, length: int) -> None:
    catalogue = Catalogue(unknown_items=0)
    for number in range(100):
        catalogue.put(Item(item_id=f"i{number}", title="t"))
    events = history(*[(f"i{number * 7 % 110}", 1.0 + number) for number in range(length + more)])
    for kept in (50, 3):
        before, after = events[:length][-kept:], events[-kept:]
        held = locate(before, catalogue)
        assert locate(before, catalogue, held) is held
        found, expected = locate(after, catalogue, held), locate(after, catalogue)
        assert found.history is after
        assert found.rows.tolist() == expected.rows.tolist()
        assert found.weights.tolist() == expected.weights.tolist() == [entry.weight for entry in after[::-1]]


def test_rows_kept_with_a_history_are_looked_up_again_when_items_get_rows() -> None:
    catalogue, events = Catalogue(unknown_items=0), history(("a", 1.0), ("b", 1.0))
    held = locate(events, catalogue)
    assert held.rows.tolist() == [-1, -1]
    catalogue.put(Item(item_id="a", title="a"))
    held = locate(events, catalogue, held)
    assert held.rows.tolist() == [-1, 0]
    other = Catalogue(unknown_items=0)
    for name in ("b", "a"):
        other.put(Item(item_id=name, title=name))
    assert locate(events, other, held).rows.tolist() == [0, 1], "another catalogue numbers otherwise"
    shorter = history(("a", 1.0), ("c", 1.0))[:1] + events[1:]
    assert locate(shorter, other, locate(events, other)).rows.tolist() == [0, 1]


def test_best_breaks_ties_by_id_and_not_by_row() -> None:
    scores = np.array([1.0, 0.5, 1.0, 1.0 + 1e-9])
    first, second = Catalogue(unknown_items=0), Catalogue(unknown_items=0)
    for name in "abcd":
        first.put(Item(item_id=name, title=name))
    for name in "dcba":
        second.put(Item(item_id=name, title=name))

    def chosen(catalogue: Catalogue, scores: NDArray[np.float64], count: int) -> list[str]:
        rows, kept = np.arange(4, dtype=np.int32), np.empty(count, np.int32)
        found = best_of(rows, scores, catalogue.id_hash, count, kept)
        return [catalogue.item_id(row) for row in kept[:found].tolist()]

    assert chosen(first, scores, 2) == chosen(second, scores[::-1], 2) == sorted("acd", key=id_hash)[:2]
    assert chosen(first, scores, 4) == chosen(second, scores[::-1], 4) == [*sorted("acd", key=id_hash), "b"]


def test_first_leaves_out_what_may_not_be_recommended() -> None:
    rows = np.array([3, -1, 0, 2, 1], np.int32)
    servable, blocked = np.array([True, True, False, True]), np.array([5, 4, 5, 4])
    asked, kept = context(np.arange(4), servable, blocked, 5), np.empty(5, np.int32)
    found = first_allowed(asked, rows, 5, kept)
    assert kept[:found].tolist() == [3, 1], "row 0 is blocked, 2 is not servable, -1 is none; in the same order"
    assert first_allowed(asked, rows, 1, kept) == 1
    assert first_allowed(asked, rows, 0, kept) == 0


@pytest.mark.parametrize("count", [0, 1, 40, 64, 65, 700])
def test_best_of_few_and_of_many_are_those_of_sorting(count: int) -> None:
    rng = np.random.default_rng(count)
    rows, hashes = rng.permutation(1_000).astype(np.int32)[:count], rng.permutation(1_000)
    scores = np.where(rng.random(count) < 0.1, -np.inf, np.round(rng.normal(size=count), 1))
    sorted_by = sorted(range(count), key=lambda place: (-scores[place], hashes[rows[place]]))
    expected = [int(rows[place]) for place in sorted_by if scores[place] > -np.inf]
    for wanted in (0, 1, 30, 1_000):
        kept = np.empty(wanted, np.int32)
        found = best_of(rows, scores, hashes, wanted, kept)
        assert kept[:found].tolist() == expected[:wanted]


def test_links_are_ordered_by_what_the_recent_items_say_and_by_nothing_that_is_not_allowed() -> None:
    links = np.array([0, 1, 2, 3], np.int32)
    sums, scale = np.zeros((4, 8), np.float32), np.array([1.0, 0.25, 1.0, 1.0])
    sums[:, SCORES.index("symmetric")], sums[:, SCORES.index("directed")] = [4.0, 4.0, 4.0, 4.0], [0.0, 1.0, 9.0, 9.0]
    servable, blocked = np.array([True, True, True, False]), np.array([0, 0, 7, 0])
    scores = np.empty(4)
    score_links(links, sums, scale, servable, blocked, 7, scores)
    np.testing.assert_allclose(scores, [2.0, 1.5, -np.inf, -np.inf])


def test_only_the_strongest_of_many_links_are_looked_at_by_factors() -> None:
    rng = np.random.default_rng(1)
    few, many = rng.random(400), rng.random(3_000)
    wanted = np.full(8, 80)
    places = np.empty(3_000, np.int32)
    assert places[: _strongest(few, wanted, places[:400])].tolist() == list(range(400))
    looked_at = places[: _strongest(many, wanted, places)]
    assert 400 <= len(looked_at) < 450, "and a few that are close to the last"
    assert set(np.argsort(-many)[:400].tolist()) <= set(looked_at.tolist())
    wanted[TRANSITIONS] = 900
    assert _strongest(many, wanted, places) >= 900, "not fewer than may be proposed"


@pytest.mark.parametrize("spread", [False, True])
def test_candidates_of_several_sources_are_merged_by_id_hash(spread: bool) -> None:
    rng = np.random.default_rng(6)
    hashes, slot = rng.permutation(50).astype(np.int64), np.full(50, -1, np.int32)
    if spread:
        hashes = rng.integers(0, 2**63, 50)
        hashes[7], hashes[8], hashes[9] = -1, 2**63 - 1, hashes[10] + 1
    for _ in range(20):
        lengths = rng.integers(0, 10, 5)
        found = np.stack([rng.permutation(50)[:10] for _ in lengths]).astype(np.int32)
        rows, masks = np.empty(50, np.int32), np.empty(50, np.uint32)
        count = _merge(found, lengths, slot, hashes, rows, masks)
        by = [set(of_source[:length].tolist()) for of_source, length in zip(found, lengths, strict=True)]
        expected = sorted(set().union(*by), key=lambda row: hashes[row])
        assert rows[:count].tolist() == expected
        assert masks[:count].tolist() == [
            sum(1 << bit for bit, source in enumerate(by) if row in source) for row in expected
        ]
        assert (slot == -1).all()


@pytest.fixture
def shop() -> ServingState:
    """Ten items in two directions of text; ``i0`` to ``i4`` have sold, ``i0`` leads to ``i4``."""
    settings = Settings(
        items=ItemSettings(half_lives_days=(1.0, 7.0, 30.0)), retrieval=RetrievalSettings(slow=3, fast=3, cold=2)
    )
    state = ServingState(settings, space=SPACE, dimensions=DIMENSIONS)
    for number in range(10):
        name = f"i{number}"
        state.apply_item(name, Item(item_id=name, title=name))
        state.apply_vector(
            name, vector_message(name, unit(1.0, number / 10) if number % 2 else unit(0, 0, 1.0, number / 10))
        )
    for number in range(5):
        links = {"i4": (3.0, 3.0)} if number == 0 else {}
        state.apply_signals(f"i{number}", signals_message(f"i{number}", 10.0 + number, links))
    return state


def proposed(recommender: Recommender, request: RankRequest) -> dict[str, NDArray[np.int32]]:
    """What each source proposed, by its name."""
    (ranking,) = recommender.rank([request])
    return {source.name: rows for source, rows in zip(recommender.sources, ranking.proposed, strict=True)}


def proposals(state: ServingState, user: UserState, *, now: float = 0.0) -> dict[str, list[str]]:
    found = proposed(Recommender(state.settings, state), RankRequest(user=user, at=0.0, now=now, n=5))
    return {source: [state.catalogue.item_id(row) for row in rows.tolist()] for source, rows in found.items()}


def test_each_source_proposes_what_it_stands_for(shop: ServingState) -> None:
    found = proposals(shop, UserState("u", history(("i0", 1.0))))
    assert found["text_slow"] == ["i2", "i4", "i6"]
    assert found["transitions"] == ["i4"]
    assert found["trending_7d"] == ["i4", "i3", "i2", "i1"]
    assert found["new"] == ["i6", "i8"]


def test_what_the_user_had_is_proposed_by_again_alone(shop: ServingState) -> None:
    """It is nearest to every interest: where clicks consume nothing, it took the places of what it leads to."""
    had = {"i0", "i1", "i4", "i8"}
    found = proposals(shop, UserState("u", history(*((name, 1.0) for name in sorted(had)))))
    assert set(found.pop("again")) == had
    assert not had & {name for names in found.values() for name in names}
    hidden = UserState("u", history(("i0", 1.0), ("i4", 1.0)), hidden={id_hash("i0"): None})
    assert proposals(shop, hidden)["again"] == ["i4"]


def test_what_is_consumed_hidden_or_not_servable_is_not_proposed(shop: ServingState) -> None:
    user = UserState(
        "u",
        history(("i0", 1.0)),
        consumed={id_hash("i0"): math.inf, id_hash("elsewhere"): math.inf},
        hidden={id_hash("i6"): None},
    )
    shop.apply_item("i4", None)
    shop.apply_item("i3", Item(item_id="i3", title="i3", available=False))
    found = proposals(shop, user)
    assert found["text_slow"][:2] == ["i2", "i8"]
    assert not {"i0", "i3", "i4", "i6"} & {name for names in found.values() for name in names}


def test_a_user_without_history_gets_trending_and_new_items(shop: ServingState) -> None:
    found = proposals(shop, UserState("u"))
    assert found["text_slow"] == found["text_fast"] == found["transitions"] == []
    assert found["trending_1d"][0] == "i4"
    assert len(found["new"]) == 2
    assert set(found["new"]) <= {"i5", "i6", "i7", "i8", "i9"}
    samples = {tuple(proposals(shop, UserState(f"u{number}"))["new"]) for number in range(20)}
    assert len(samples) > 3, "every user has a sample of their own"


def with_factors() -> ServingState:
    """Twenty items whose factors are learned, and one without any."""
    state = ServingState(Settings(), space=SPACE, dimensions=DIMENSIONS)
    rng = np.random.default_rng(11)
    for number in range(21):
        state.apply_item(f"i{number}", Item(item_id=f"i{number}", title="t"))
    rows = np.array([state.catalogue.row(f"i{number}") for number in range(20)], np.int32)
    size = state.settings.factors.dimensions
    context, target = rng.normal(size=(2, 20, size)).astype(np.float32)
    state.factors.apply(rows, context, target, rng.normal(size=20).astype(np.float32))
    return state


def test_factors_propose_the_largest_scores_among_what_is_allowed() -> None:
    state = with_factors()
    recommender = Recommender(state.settings, state)
    hidden = {id_hash("i3"): None}
    person = UserState("u", history(("i1", 1.0), ("i2", 1.0)), hidden=hidden, events=2)
    found = proposed(recommender, RankRequest(user=person, at=100.0, now=100.0, n=5))["factors"]
    names = [state.catalogue.item_id(row) for row in found.tolist()]
    assert set(names) == {f"i{number}" for number in range(20)} - {"i1", "i2", "i3"}
    user = state.factors.users(np.array([state.catalogue.row("i2"), state.catalogue.row("i1")], np.int32))
    scores = user[0] @ state.factors.target[found].T + state.factors.bias[found]
    assert (np.diff(scores) <= 1e-5).all()
    assert not state.factors.has[state.catalogue.row("i20")]


def test_factors_propose_nothing_for_a_user_they_do_not_know() -> None:
    state = with_factors()
    recommender = Recommender(state.settings, state)
    for person in (UserState("u"), UserState("v", history(("i20", 1.0)), events=1)):
        found = proposed(recommender, RankRequest(user=person, at=1.0, now=1.0, n=5))
        assert not len(found["factors"])
        assert not len(found["factors_fast"])


def test_what_the_user_had_is_proposed_again_unless_it_is_consumed_or_hidden() -> None:
    state = with_factors()
    entries = history(("i1", 1.0), ("i2", 1.0), ("i2", 1.0), ("i3", 1.0), ("i4", 1.0), ("i5", -1.0))
    person = UserState("u", entries, {id_hash("i3"): math.inf}, {id_hash("i4"): None}, events=6)
    found = proposed(Recommender(state.settings, state), RankRequest(user=person, at=100.0, now=100.0, n=5))["again"]
    assert [state.catalogue.item_id(row) for row in found.tolist()] == ["i2", "i1"], "twice and later comes first"


def test_the_items_with_the_most_events_of_all_time_are_proposed(shop: ServingState) -> None:
    for item_id, count in (("i7", 300.0), ("i8", 900.0)):
        shop.apply_signals(item_id, signals_message(item_id, count, {}, at=0.0))
    assert proposals(shop, UserState("u"))["popular"][0] == "i8"


def test_of_new_items_the_rising_ones_come_first() -> None:
    state = ServingState(Settings(), space=SPACE, dimensions=DIMENSIONS)
    for number in range(40):
        state.apply_item(f"i{number}", Item(item_id=f"i{number}", title="t"))
    state.apply_signals("i7", signals_message("i7", 3.0, {}, at=50.0))
    state.apply_signals("i9", signals_message("i9", 1.0, {}, at=50.0))
    recommender = Recommender(state.settings, state)
    found = proposed(recommender, RankRequest(user=UserState("u"), at=60.0, now=60.0, n=5))["new"]
    assert [state.catalogue.item_id(row) for row in found[:2].tolist()] == ["i7", "i9"]
    assert len(found) == state.settings.retrieval.cold


def large_shop(*, whole_below: int) -> ServingState:
    """400 items in 20 groups, with factors; everything is looked at, or a pool."""
    settings = Settings(
        retrieval=RetrievalSettings(whole_below=whole_below, slow=10, fast=10), index={"neighbours": 12}
    )
    state = ServingState(settings, space=SPACE, dimensions=DIMENSIONS)
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(20, DIMENSIONS))
    vectors = (centres[np.arange(400) % 20] + 0.3 * rng.normal(size=(400, DIMENSIONS))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for number, vector in enumerate(vectors):
        state.apply_item(f"i{number}", Item(item_id=f"i{number}", title="x", available=number != 21))
        state.apply_vector(f"i{number}", vector_message(f"i{number}", vector))
        state.apply_signals(f"i{number}", signals_message(f"i{number}", 10.0 + number))
    rows = np.array([state.catalogue.row(f"i{number}") for number in range(400)], np.int32)
    target = rng.normal(size=(400, state.settings.factors.dimensions)).astype(np.float32)
    state.factors.apply(rows, target, target, np.zeros(400, np.float32))
    return state


def test_a_pool_holds_what_lies_near_to_the_last_items_and_nothing_that_may_not_be_shown() -> None:
    whole, pool = large_shop(whole_below=10_000), large_shop(whole_below=0)
    events = history(("i1", 1.0), ("i2", 1.0), ("i61", 1.0), ("i999", 1.0))
    user = UserState("u", events, consumed={id_hash("i41"): math.inf}, hidden={id_hash("i81"): None}, events=4)
    expected, found = proposals(whole, user), proposals(pool, user)
    assert set(found) == set(expected)
    for source in ("text_slow", "text_fast"):
        assert len(found[source]) == 10
        assert len(set(found[source]) & set(expected[source])) >= 7
    # What they rank by is the same, so what both propose stands in the same order.
    both = set(found["text_fast"]) & set(expected["text_fast"])
    assert [name for name in found["text_fast"] if name in both] == [
        name for name in expected["text_fast"] if name in both
    ]
    for names in found.values():
        assert not {"i21", "i41", "i81"} & set(names)
        assert len(names) == len(set(names))
    ranking = Recommender(pool.settings, pool).rank([RankRequest(user=user, at=10.0, now=0.0, n=20)])[0]
    assert len(ranking.rows) == 20


def test_words_are_looked_for_everywhere() -> None:
    """A profile is near to no item in particular, and what somebody dislikes has no neighbours that are liked."""
    whole, pool = large_shop(whole_below=10_000), large_shop(whole_below=0)
    words = {"a lamp": unit(1, 2, 3)}
    for user, prior in (
        (UserState("u", (), events=0), ("a lamp",)),
        (UserState("u", history(("a lamp", 1.0)), events=1), ()),
        (UserState("u", history(("i1", -1.0)), events=1), ()),
    ):
        request = RankRequest(user=user, at=10.0, now=0.0, n=5, extra_vectors=words, prior=prior, prior_weight=1.0)
        expected, found = (proposed(Recommender(state.settings, state), request) for state in (whole, pool))
        for source in ("text_slow", "text_fast"):
            names = [whole.catalogue.item_id(row) for row in expected[source].tolist()]
            assert names
            assert [pool.catalogue.item_id(row) for row in found[source].tolist()] == names


def test_an_item_that_arrives_is_proposed_to_whom_it_is_near() -> None:
    state = large_shop(whole_below=0)
    user = UserState("u", history(("i1", 1.0)), events=1)
    proposals(state, user)
    close = state.index.vectors(np.array([state.catalogue.row("i1")], np.int32))[0]
    state.apply_item("new", Item(item_id="new", title="x"))
    state.apply_vector("new", vector_message("new", close))
    assert proposals(state, user)["text_fast"][0] == "new"


def test_what_others_say_changes_nothing_for_a_user_who_says_nothing() -> None:
    """Texts of a whole batch are handed to every user of it."""
    state = large_shop(whole_below=0)
    # An item that nobody knows any more has no vector, like words.
    user = UserState("u", history(("i1", 1.0), ("gone", 1.0)), events=2)
    alone, among = (
        proposed(
            Recommender(state.settings, state), RankRequest(user=user, at=10.0, now=0.0, n=5, extra_vectors=others)
        )
        for others in ({}, {"somebody else's search": unit(1, 2, 3)})
    )
    assert {name: rows.tolist() for name, rows in alone.items()} == {
        name: rows.tolist() for name, rows in among.items()
    }


@pytest.mark.parametrize(("events", "heard"), [(1, True), (10, True), (11, False)])
def test_a_profile_is_heard_while_there_is_little_else_however_little_it_weighs(events: int, heard: bool) -> None:
    state = large_shop(whole_below=0)
    interests = derive_interests(
        history(*[(f"i{number}", 1.0) for number in range(events)]),
        state.catalogue,
        state.index,
        state.settings,
        {"a lamp": unit(1, 2)},
        ["a lamp"],
        0.3,
    )
    assert interests.words is heard


def test_words_are_heard_over_ten_events() -> None:
    state = large_shop(whole_below=0)
    said = {"a lamp": unit(1, 2)}
    after = [(f"i{number}", 1.0) for number in range(9)]
    for more, heard in (((), True), ((("i9", 1.0),), False)):
        events = history(("a lamp", 1.0), *after, *more)
        assert derive_interests(events, state.catalogue, state.index, state.settings, said).words is heard


def test_an_item_whose_vector_is_gone_is_not_ranked_by_what_it_was() -> None:
    index = VectorIndex(DIMENSIONS, IndexSettings())
    index.upsert(np.array([0, 1], np.int32), np.stack([unit(1), unit(0, 1)]))
    assert index.codes.values[0].any()
    index.remove(np.array([0], np.int32))
    assert not index.codes.values[0].any()
    assert index.codes.steps[0] == 0.0
    assert index.codes.steps[1] > 0.0


def test_all_links_count_also_of_rows_that_are_longer_than_this_process_would_keep() -> None:
    settings = Settings(items=ItemSettings(neighbours=20), retrieval=RetrievalSettings(recent_items=3, transitions=120))
    state = ServingState(settings, space=SPACE, dimensions=DIMENSIONS)
    for number in range(400):
        state.apply_item(f"i{number}", Item(item_id=f"i{number}", title="t"))
    for number in range(3):
        links = {f"i{10 + 100 * number + other}": (0.01 + other, 0.0) for other in range(90)}
        state.apply_signals(f"i{number}", signals_message(f"i{number}", 50.0, links))
    found = proposals(state, UserState("u", history(("i2", 1.0), ("i1", 1.0), ("i0", 1.0)), events=3))["transitions"]
    assert len(found) == 120
    assert found[0] == "i99", "the strongest links of a row come last in it"


def test_a_profile_is_all_there_is_of_somebody_new_whatever_it_weighs() -> None:
    state = ServingState(Settings(), space=SPACE, dimensions=DIMENSIONS)
    interests = derive_interests(
        (), state.catalogue, state.index, state.settings, {"a lamp": unit(0, 1)}, ("a lamp",), 0.0
    )
    assert interests.vectors[SLOW] == pytest.approx(unit(0, 1))
    assert interests.vectors[FAST] == pytest.approx(unit(0, 1))
