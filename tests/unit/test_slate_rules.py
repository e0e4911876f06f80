"""Choosing a slate: the compiled loop against a plain one, and what must hold whatever the candidates are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.messages import Item, Rule, RuleWhere, SlateItem
from stream_app.heap import in_order
from stream_app.ranking.exploration import _normal, draw_rates, explores, least_shown, thompson_order
from stream_app.ranking.recommender import Recommender, SeenRanking
from stream_app.ranking.slate import SlateRules
from stream_app.rules.book import Cap
from stream_app.serving import ServingState
from stream_app.settings import Settings, SlateSettings
from stream_app.users.state import UserState, id_hash
from tests.slates import Chosen, choose, codes_of
from tests.unit.test_ranking import DIMENSIONS, SPACE, fill, new_state, request, user


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    vectors = rng.normal(size=(count, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    caps = [
        Cap(
            rng.integers(-1, draw(st.integers(1, 6)), count).astype(np.int32),
            draw(st.integers(0, 3)),
            draw(st.integers(1, 15)),
        )
        for _ in range(draw(st.integers(0, 3)))
    ]
    hard = draw(st.integers(0, len(caps)))
    pins = rng.permutation(count)[: draw(st.integers(0, 4))].tolist()
    return {
        "scores": np.round(rng.normal(size=count), draw(st.sampled_from([1, 6]))),
        "vectors": vectors,
        "cold_order": rng.permutation(count)[: draw(st.integers(0, 6))].astype(np.intp),
        "size": draw(st.integers(1, 30)),
        "settings": SlateSettings(
            diversity=draw(st.sampled_from([0.0, 0.05, 0.5])),
            cold_places=draw(st.integers(0, 4)),
            cold_from_rank=draw(st.integers(1, 12)),
        ),
        "rules": SlateRules(
            pins=[(pin, draw(st.integers(1, 20))) for pin in pins], caps=caps[:hard], preferences=caps[hard:]
        ),
    }


def chosen(case: dict[str, Any]) -> Chosen:
    return choose(
        case["scores"],
        case["vectors"],
        case["cold_order"],
        size=case["size"],
        settings=case["settings"],
        rules=case["rules"],
    )


def held(cap: Cap, order: list[int], pins: set[int], *, ended_early: bool) -> bool:
    """Whether a cap holds: whatever is not pinned found room in its group.

    In a slate that ended early, pins from further down have moved up, whatever caps say.
    """
    groups = [int(cap.groups[candidate]) for candidate in order[: cap.first]]
    for group in set(groups) - {-1}:
        members = [candidate for candidate in order[: cap.first] if cap.groups[candidate] == group]
        pinned = sum(candidate in pins for candidate in members)
        room = cap.at_most if ended_early else max(0, cap.at_most - pinned)
        if len(members) - pinned > room:
            return False
    return True


def plain(case: dict[str, Any]) -> list[int]:
    """The same slate, everything computed anew for every place."""
    scores = case["scores"]
    # Diversity goes by codes.
    codes = codes_of(case["vectors"])
    whole, steps = codes.values.astype(np.int64), codes.steps.astype(np.float64)
    products = (whole @ whole.T) * steps[:, None] * steps[None, :]
    rules, slate = case["rules"], case["settings"]
    size = min(case["size"], len(scores))
    ranked = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    places: dict[int, int] = {}
    for pin, rank in rules.pins:
        free = next((place for place in range(rank - 1, size) if place not in places), None)
        if free is not None:
            places[free] = pin
    pool = min(size + 20, len(scores))
    share = slate.diversity if size > 1 else 0.0
    order: list[int] = []
    wanted = 0
    step = max(1, 20 // slate.cold_places) if slate.cold_places else 0
    cold = case["cold_order"].tolist()

    def barred(candidate: int, place: int, caps: list[Cap]) -> bool:
        for cap in caps:
            if place >= cap.first or cap.groups[candidate] < 0:
                continue
            others = [*order, *(pin for at, pin in places.items() if place <= at < cap.first)]
            if sum(cap.groups[other] == cap.groups[candidate] for other in others) >= cap.at_most:
                return True
        return False

    for place in range(size):
        kept = bool(cold) and step > 0 and place >= slate.cold_from_rank - 1
        kept = kept and (place - slate.cold_from_rank + 1) % step == 0
        wanted += kept
        if place in places:
            order.append(places[place])
            continue
        low, high = scores[ranked[pool - 1]], scores[ranked[0]]
        scale = (1.0 - share) / max(high - low, 1e-9) if share else 1.0

        def worth(candidate: int, scale: float = scale, low: float = low) -> float:
            likeness = max([0.0, *(float(products[candidate, above]) for above in order)])
            return float((scores[candidate] - low) * scale - share * likeness)

        taken = {*order, *places.values()}
        pick = None
        for limit, caps in (
            (pool, [*rules.caps, *rules.preferences]),
            (len(scores), [*rules.caps, *rules.preferences]),
            (len(scores), list(rules.caps)),
        ):
            free_ones = [one for one in ranked[:limit] if one not in taken and not barred(one, place, caps)]
            if free_ones:
                pick = max(free_ones, key=worth)
                break
        if kept and sum(one in cold for one in order) < wanted and pick not in cold:
            both = [*rules.caps, *rules.preferences]
            pick = next((one for one in cold if one not in taken and not barred(one, place, both)), pick)
        if pick is None:
            return [*order, *(pin for at, pin in sorted(places.items()) if at >= place)]
        order.append(pick)
    return order


@settings(max_examples=300, deadline=None)
@given(cases())
def test_the_compiled_loop_chooses_what_the_plain_one_does(case: dict[str, Any]) -> None:
    assert chosen(case).order.tolist() == plain(case)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_pins_are_at_their_places_and_caps_hold(case: dict[str, Any]) -> None:
    result, rules = chosen(case), case["rules"]
    order = result.order.tolist()
    assert len(set(order)) == len(order) <= case["size"]
    size = min(case["size"], len(case["scores"]))
    taken: set[int] = set()
    pins = set()
    for pin, rank in rules.pins:
        place = next((place for place in range(rank - 1, size) if place not in taken), None)
        if place is not None:
            taken.add(place)
            pins.add(pin)
            # Where a cap ends the slate early, what is pinned further down moves up.
            assert order.index(pin) == place or (len(order) < size and order.index(pin) < place)
    assert {order[place] for place in np.flatnonzero(result.pinned)} == pins
    assert all(held(cap, order, pins, ended_early=len(order) < size) for cap in rules.caps)
    if not rules.caps:
        assert len(order) == size
    assert not (result.pinned & result.reserved).any()
    assert set(result.order[result.reserved].tolist()) <= set(case["cold_order"].tolist())


def test_a_preference_gives_way_and_a_cap_does_not() -> None:
    scores, vectors = np.arange(6.0)[::-1].copy(), np.eye(6, dtype=np.float32)
    cap = Cap(np.array([0, 0, 0, 0, 0, 1], np.int32), 2, 4)
    none = np.zeros(0, np.intp)
    plain_settings = SlateSettings(diversity=0.0, cold_places=0)
    soft = choose(scores, vectors, none, size=6, settings=plain_settings, rules=SlateRules(preferences=[cap]))
    assert soft.order.tolist() == [0, 1, 5, 2, 3, 4]
    hard = choose(scores, vectors, none, size=6, settings=plain_settings, rules=SlateRules(caps=[cap]))
    assert hard.order.tolist() == [0, 1, 5]


@given(st.integers(0, 800), st.integers(1, 300), st.integers(0, 10_000))
def test_an_order_is_that_of_sorting_by_two_keys(count: int, distinct: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, distinct, count) / 8.0
    for seconds in (np.zeros(count), rng.integers(-3, 3, count) * 0.5, rng.integers(-(2**62), 2**62, count)):
        order = np.empty(count, np.intp)
        in_order(keys, seconds, order)
        assert order.tolist() == np.lexsort((seconds, -keys)).tolist()


def test_an_order_of_what_is_no_number_holds_indices_all_the_same() -> None:
    order = np.full(40, 10**9)
    in_order(np.full(40, np.nan), np.zeros(40), order)
    assert set(order.tolist()) <= set(range(40))


# Thompson sampling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "failures"), [(0.4, 20.0), (5.0, 95.0), (20.0, 80.0)])
def test_draws_have_the_mean_and_variance_of_the_beta_distribution(successes: float, failures: float) -> None:
    hashes = np.arange(100_000, dtype=np.int64) * 7_919
    drawn = np.empty(len(hashes))
    draw_rates(np.full(len(hashes), successes), np.full(len(hashes), failures), hashes, np.uint64(1), drawn)
    total = successes + failures
    mean = successes / total
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert drawn.var() == pytest.approx(mean * (1 - mean) / (total + 1), rel=0.05)


@pytest.mark.parametrize("share", [1e-12, 1e-6, 0.01, 0.0749, 0.0751, 0.3, 0.5, 0.9, 0.9999, 1 - 1e-9])
def test_normal_draws_are_those_of_the_distribution(share: float) -> None:
    assert _normal(share) == pytest.approx(NormalDist().inv_cdf(share), rel=2e-6, abs=1e-7)


def thompson(promise: NDArray[np.float64], *args: Any) -> NDArray[np.intp]:
    order = np.empty(len(promise), np.intp)
    return order[: thompson_order(promise, *args, order)]


def order_of(seed: int, *, trials: float = 200.0, taken: float = 0.0, passed: float = 0.0) -> list[int]:
    closeness = np.linspace(1.0, 0.0, 10)
    first = np.arange(10) == 0
    hashes = (np.arange(10, dtype=np.int64) + 1) * 104_729
    return thompson(
        closeness, np.where(first, taken, 0.0), np.where(first, passed, 0.0), hashes, np.uint64(seed), trials, 4
    ).tolist()


def test_the_closest_mostly_lead_and_others_get_their_chance() -> None:
    leaders = [order_of(seed, trials=50.0)[0] for seed in range(300)]
    assert leaders.count(0) > 80
    assert len(set(leaders)) > 2
    assert all(order_of(seed, trials=float("inf")) == list(range(10)) for seed in range(3))


def test_what_is_shown_and_not_taken_steps_back_and_what_is_taken_steps_up() -> None:
    def leads(**what: float) -> int:
        return sum(order_of(seed, **what)[0] == 0 for seed in range(200))

    assert leads(passed=500.0) < leads() < leads(taken=30.0)


def test_of_many_those_that_promise_most_compete_and_where_little_is_sure_everybody_does() -> None:
    promise, hashes, zeros = np.linspace(1.0, 0.0, 300), np.arange(300, dtype=np.int64) * 7_919, np.zeros(300)

    def order(trials: float, wanted: int) -> list[int]:
        return thompson(promise, zeros, zeros, hashes, np.uint64(9), trials, wanted).tolist()

    few, places = order(200.0, 4), order(200.0, 40)
    assert 64 <= len(few) < 80
    assert set(few) == set(range(len(few)))
    assert 160 <= len(places) < 180, "four for each place"
    assert set(order(0.01, 4)) == set(range(300))


def test_the_order_depends_on_ids_and_seed_alone() -> None:
    rng = np.random.default_rng(0)
    closeness, hashes = rng.random(12), rng.integers(1, 2**62, 12)
    zeros = np.zeros(12)
    first = hashes[thompson(closeness, zeros, zeros, hashes, np.uint64(5), 50.0, 4)]
    shuffle = rng.permutation(12)
    again = thompson(closeness[shuffle], zeros, zeros, hashes[shuffle], np.uint64(5), 50.0, 4)
    assert first.tolist() == hashes[shuffle][again].tolist()
    assert len(thompson(zeros[:0], zeros[:0], zeros[:0], hashes[:0], np.uint64(1), 10.0, 4)) == 0


# Rules through the recommender ------------------------------------------------------------------------------------


def rule(rule_id: str, kind: str, **fields: Any) -> Rule:
    where = {name: fields.pop(name) for name in list(fields) if name in RuleWhere.__struct_fields__}
    return Rule(rule_id=rule_id, kind=kind, where=RuleWhere(**where), **fields)


def described(number: int) -> Item:
    name = f"i{number}"
    return Item(
        item_id=name,
        title=f"Item {number}",
        categories=[f"c{number % 4}"],
        brand=f"b{number % 7}",
        owner_id=f"u{number % 5}",
        price=float(number),
    )


def rig(rules: Sequence[Rule], *, seed: int | None = None) -> Recommender:
    """The shop of ``test_ranking`` with categories, brands, owners and prices."""
    state = new_state()
    order = list(range(60)) if seed is None else np.random.default_rng(seed).permutation(60).tolist()
    if seed is not None:
        for each in reversed(rules):
            state.apply_rule(each.rule_id, each, now=0.0)
    fill(state, order)
    for number in order:
        state.apply_item(f"i{number}", described(number))
    for each in rules:
        state.apply_rule(each.rule_id, each, now=0.0)
    return Recommender(state.settings, state)


def slate_of(recommender: Recommender, state: UserState, **changes: Any) -> list[SlateItem]:
    return recommender.slate_items(recommender.rank([request(state, **changes)])[0])


def ids(items: list[SlateItem]) -> list[str]:
    return [item.item_id for item in items]


@st.composite
def rule_sets(draw: st.DrawFn) -> list[Rule]:
    numbers = st.integers(0, 59)
    made: list[Rule] = []
    for index in range(draw(st.integers(0, 5))):
        users = draw(st.sampled_from([[], [], ["u1"], ["u2"]]))
        priority = draw(st.integers(-2, 2))
        common = {"users": users, "priority": priority}
        match draw(st.sampled_from(["pin", "boost", "exclude", "cap"])):
            case "pin":
                pinned = draw(st.lists(numbers, min_size=1, max_size=3, unique=True))
                made.append(
                    rule(
                        f"r{index}", "pin", item_ids=[f"i{n}" for n in pinned], rank=draw(st.integers(1, 25)), **common
                    )
                )
            case "boost":
                made.append(
                    rule(f"r{index}", "boost", brands=[f"b{draw(numbers) % 7}"], boost=draw(st.floats(-5, 5)), **common)
                )
            case "exclude":
                made.append(rule(f"r{index}", "exclude", categories=[f"c{draw(numbers) % 4}"], **common))
            case _:
                made.append(
                    rule(
                        f"r{index}",
                        "cap",
                        per=draw(st.sampled_from([None, "category", "brand", "owner"])),
                        at_most=draw(st.integers(0, 4)),
                        first=draw(st.integers(1, 25)),
                        **common,
                    )
                )
    return made


@settings(max_examples=20, deadline=None)
@given(rule_sets(), st.sampled_from(["u1", "u2", "u9"]), st.lists(st.integers(0, 59), max_size=4), st.integers(0, 99))
def test_whatever_the_rules_a_slate_keeps_them_and_replicas_agree(
    rules: list[Rule], name: str, consumed: list[int], hidden: int
) -> None:
    person = user(*consumed, name=name)
    person.hidden[id_hash(f"i{hidden}")] = None
    recommender = rig(rules)
    items = slate_of(recommender, person, n=25)
    assert items == slate_of(rig(rules, seed=3), person, n=25)
    shown = [int(item.item_id[1:]) for item in items]
    assert len(set(shown)) == len(shown)
    mine = [each for each in rules if not each.users or name in each.users]
    barred = {int(category[1:]) for each in mine if each.kind == "exclude" for category in each.where.categories}
    pinned = {item.item_id for item in items if item.reason.code == "pinned"}
    for number in shown:
        assert number not in consumed
        assert number != hidden
        assert number % 4 not in barred
        assert f"u{number % 5}" != name, "the user's own"
    for each in mine:
        if each.kind != "cap":
            continue
        groups: dict[Any, list[str]] = {}
        for number in shown[: each.first]:
            group = {"category": number % 4, "brand": number % 7, "owner": number % 5, None: 0}[each.per]
            groups.setdefault(group, []).append(f"i{number}")
        for members in groups.values():
            assert len(set(members) - pinned) <= (each.at_most or 0)
    assert all("rules" in item.sources for item in items if item.item_id in pinned)


def test_a_pin_shows_what_no_source_proposed_and_says_so() -> None:
    recommender = rig([rule("r", "pin", item_ids=["i59", "i1"], rank=3)])
    items = slate_of(recommender, user(5, 6, name="x"))
    assert ids(items)[2:4] == ["i59", "i1"]
    assert [item.reason.text for item in items[2:4]] == ["Featured", "Featured"]
    assert "rules" in items[2].sources
    assert ids(slate_of(recommender, user(1, name="x")))[2] == "i59"
    assert ids(slate_of(recommender, user(1, name="x")))[3] != "i1", "consumed"


def test_a_boost_moves_items_and_is_the_reason_only_where_it_weighed_most() -> None:
    person = user(5, 6, name="x")
    before = slate_of(rig([]), person, n=40)
    lifted = slate_of(rig([rule("r", "boost", brands=["b3"], boost=8.0)]), person, n=40)
    assert all(int(item.item_id[1:]) % 7 == 3 for item in lifted[:4])
    assert {item.reason.code for item in lifted[:4]} == {"boosted"}
    assert not [item for item in lifted if int(item.item_id[1:]) % 7 != 3 and item.reason.code == "boosted"]
    slightly = slate_of(rig([rule("r", "boost", brands=["b3"], boost=1e-4)]), person, n=40)
    evident = [item.item_id for item in before if item.reason.code != "recommended"]
    assert not [item for item in slightly if item.item_id in evident and item.reason.code == "boosted"]
    lowered = slate_of(rig([rule("r", "boost", brands=["b3"], boost=-8.0)]), person, n=40)
    assert "boosted" not in {item.reason.code for item in lowered}


def test_own_items_stay_away_however_many_there_are() -> None:
    state = new_state()
    fill(state, list(range(60)))
    for number in range(60):
        state.apply_item(
            f"i{number}", Item(item_id=f"i{number}", title="x", owner_id="seller" if number < 50 else None)
        )
    recommender = Recommender(state.settings, state)
    assert set(ids(slate_of(recommender, user(1, 2, name="seller")))) <= {f"i{number}" for number in range(50, 60)}
    state.apply_item("i3", Item(item_id="i3", title="x", owner_id="other"))
    assert "i3" in ids(slate_of(recommender, user(1, 2, name="seller"), n=40))


def test_what_is_consumed_for_a_time_comes_back() -> None:
    person = user(5, name="x")
    person.consumed[id_hash("i5")] = 60_000.0
    recommender = rig([])
    assert "i5" not in ids(slate_of(recommender, person, n=60, at=59_999.0))
    assert "i5" in ids(slate_of(recommender, person, n=60, at=60_000.0))


def test_a_category_preference_mixes_the_first_ranks() -> None:
    person = user(5, 6, name="x")
    state = rig([])._serving
    mixed_settings = state.settings.model_copy(
        update={"slate": state.settings.slate.model_copy(update={"category_cap": 3})}
    )
    shown = [int(name[1:]) % 4 for name in ids(slate_of(Recommender(mixed_settings, state), person))]
    assert max(shown[:10].count(category) for category in range(4)) <= 3
    assert len(shown) == 20


def test_rules_survive_a_snapshot(tmp_path: Path) -> None:
    rules = [rule("r1", "pin", item_ids=["i59"], rank=1), rule("r2", "exclude", categories=["c2"])]
    recommender = rig(rules)
    recommender._serving.save(tmp_path)
    loaded = ServingState.load(tmp_path, Settings(), space=SPACE, dimensions=DIMENSIONS)
    assert loaded.rules.rules == rules
    person = user(5, 6, name="x")
    assert slate_of(Recommender(Settings(), loaded), person) == slate_of(recommender, person)
    (tmp_path / "rules.json").unlink()
    older = ServingState.load(tmp_path, Settings(), space=SPACE, dimensions=DIMENSIONS)
    assert older.rules.rules == []


# A place for less known items -------------------------------------------------------------------------------------


def test_the_share_of_slates_that_explore_is_the_setting_and_the_same_every_time() -> None:
    drawn = [explores(np.uint64(id_hash(f"u{number}")), 0.15) for number in range(4_000)]
    assert np.mean(drawn) == pytest.approx(0.15, abs=0.02)
    assert drawn == [explores(np.uint64(id_hash(f"u{number}")), 0.15) for number in range(4_000)]
    assert not any(explores(np.uint64(seed), 0.0) for seed in range(100))
    assert all(explores(np.uint64(seed), 1.0) for seed in range(100))


def test_what_was_shown_least_goes_first_and_of_that_the_best_scored() -> None:
    shown, scores, out = np.array([3, 0, 0, 1, 0], np.uint32), np.array([9.0, 1.0, 2.0, 8.0, 2.0]), np.zeros(5, bool)
    order = []
    while (first := least_shown(shown, scores, out)) >= 0:
        order.append(first)
        out[first] = True
    assert order == [2, 4, 1, 3, 0], "of equal ones the one with the smaller id hash, which comes first here"


def test_the_place_goes_to_the_first_that_is_not_above_and_not_to_one_a_rule_pins() -> None:
    scores, vectors = -np.arange(30.0), np.zeros((30, 2), np.float32)
    plain_order = SlateSettings(diversity=0.0, cold_places=0)

    def chosen(tail: list[int], **rules: Any) -> Chosen:
        none, tail_order = np.zeros(0, np.intp), np.array(tail, np.intp)
        made = SlateRules(**rules)
        return choose(scores, vectors, none, size=12, settings=plain_order, rules=made, tail_order=tail_order)

    plain = chosen([])
    assert plain.order.tolist() == list(range(12))
    assert not plain.explored.any()
    explored = chosen([3, 8, 25, 26])
    assert explored.order.tolist() == [*range(9), 25, 9, 10]
    assert np.flatnonzero(explored.explored).tolist() == [9]
    assert not explored.reserved.any()
    pinned = chosen([25], pins=[(20, 10)])
    assert pinned.order.tolist() == [*range(9), 20, 9, 10]
    assert not pinned.explored.any()
    assert not chosen([9]).explored.any(), "it stands there by its own score"


def test_with_a_place_for_them_more_of_the_catalogue_is_seen() -> None:
    seen = {}
    for share in (0.0, 0.5):
        state = new_state(Settings(slate=SlateSettings(explore=share)))
        fill(state, list(range(60)))
        recommender = Recommender(state.settings, state)
        shown: set[int] = set()
        for number in range(120):
            asked = replace(request(user(1, 2, 3)), user=replace(user(1, 2, 3), user_id=f"u{number}"))
            (ranking,) = recommender.rank([asked])
            none = np.zeros(0, np.int32)
            recommender.published(SeenRanking(none, None, ranking.context, ranking.rows, ranking.reclaims))
            shown.update(ranking.rows[:10].tolist())
            items = recommender.slate_items(ranking)
            explored = np.flatnonzero(ranking.explored).tolist()
            assert explored in ([], [9])
            assert all(items[place].reason.code.startswith("less_known") for place in explored)
        seen[share] = len(shown)
    assert seen[0.5] > 1.5 * seen[0.0]
