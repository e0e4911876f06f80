"""Business rules: what is one, which items it is about, and that compiled rules always say what the rules say."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.decode import decode_rule, encode, parse_rule
from schemas.messages import Item, Rule, RuleWhere
from stream_app.errors import InvalidMessage
from stream_app.items.catalogue import Catalogue
from stream_app.rules.book import MOST_BOOST, RuleBook
from stream_app.rules.where import fits, fitting_rows

NOW = 1_000.0


def instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def item(item_id: str, **fields: Any) -> Item:
    return Item(item_id=item_id, title=item_id, **fields)


# What is a rule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "reason", "said"),
    [
        ({"kind": "exclude"}, "missing_field", "where: a rule of kind 'exclude'"),
        ({"kind": "boost", "boost": 1}, "missing_field", "where"),
        ({"kind": "boost", "where": {"brands": ["a"]}}, "missing_field", "boost: a rule of kind 'boost' needs it"),
        ({"kind": "pin", "where": {"brands": ["a"]}, "rank": 1}, "missing_field", "where.item_ids"),
        ({"kind": "pin", "where": {"item_ids": ["a"]}}, "missing_field", "rank"),
        ({"kind": "cap", "at_most": 3}, "missing_field", "first"),
        ({"kind": "cap", "first": 10}, "missing_field", "at_most"),
        ({"kind": "exclude", "where": {"brands": ["a"]}, "rank": 3}, "invalid_field", "rank: a rule of kind 'exclude'"),
        ({"kind": "exclude", "where": {"brand": ["a"]}}, "invalid_field", "where.'brand': rules have no such field"),
        ({"kind": "exclude", "where": {"brands": ["a"]}, "wehre": 1}, "invalid_field", "'wehre'"),
        ({"kind": "hide", "where": {"brands": ["a"]}}, "invalid_field", "kind"),
        ({"kind": "boost", "boost": 11, "where": {"brands": ["a"]}}, "invalid_field", "boost: expected a number of"),
        ({"kind": "exclude", "where": {"min_price": 5, "max_price": 4}}, "invalid_field", "where.min_price"),
        (
            {
                "kind": "exclude",
                "where": {"brands": ["a"]},
                "starts_at": "2026-01-02T00:00:00Z",
                "ends_at": "2026-01-01T00:00:00Z",
            },
            "invalid_field",
            "ends_at",
        ),
        ({"kind": "exclude", "where": {"item_ids": ["x"] * 1_001}}, "invalid_field", "at most 1000 elements"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_field_and_what_to_do(rule: dict[str, Any], reason: str, said: str) -> None:
    with pytest.raises(InvalidMessage) as refused:
        parse_rule(json.dumps({"rule_id": "r", **rule}).encode())
    assert refused.value.reason == reason
    assert said in refused.value.detail


def test_key_and_id_must_agree_and_null_deletes() -> None:
    value = json.dumps({"rule_id": "r", "kind": "exclude", "where": {"brands": ["a"]}}).encode()
    assert decode_rule(b"r", value)[1] == parse_rule(value)
    assert decode_rule(b"r", None) == ("r", None)
    with pytest.raises(InvalidMessage, match="key"):
        decode_rule(b"s", value)


# Which items ------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "A ", "zh", "zh-Hans", "zhx"])
IDS = st.sampled_from([f"i{number}" for number in range(6)])
OWNERS = st.sampled_from(["o1", "o2", "u1"])
ITEMS = st.builds(
    item,
    IDS,
    categories=st.lists(NAMES, max_size=2),
    tags=st.lists(NAMES, max_size=2),
    brand=st.none() | NAMES,
    owner_id=st.none() | OWNERS,
    language=st.none() | NAMES,
    price=st.none() | st.sampled_from([0.1, 1.0, 2.5]),
)
WHERES = st.builds(
    RuleWhere,
    item_ids=st.lists(IDS, max_size=2),
    categories=st.lists(NAMES, max_size=2),
    tags=st.lists(NAMES, max_size=1),
    brands=st.lists(NAMES, max_size=2),
    owner_ids=st.lists(OWNERS, max_size=1),
    languages=st.lists(NAMES, max_size=1),
    min_price=st.none() | st.sampled_from([0.1, 1.0]),
    max_price=st.none() | st.sampled_from([0.1, 2.5]),
)


def test_what_fits() -> None:
    catalogue = Catalogue(unknown_items=0)
    row = catalogue.put(
        item("i", categories=["Home", "Candles "], tags=["Sale"], brand="ACME", language="zh-Hans", price=0.1)
    )
    facts = catalogue.facts(row)
    assert facts is not None
    for where in (
        RuleWhere(),
        RuleWhere(item_ids=["x", "i"]),
        RuleWhere(categories=["candles"]),
        RuleWhere(brands=["acme"], tags=["sale"]),
        RuleWhere(languages=["zh"]),
        RuleWhere(min_price=0.1, max_price=0.1),
    ):
        assert fits(where, "i", facts), where
    for where in (
        RuleWhere(item_ids=["x"]),
        RuleWhere(brands=["acme"], tags=["new"]),
        RuleWhere(languages=["en", "z"]),
        RuleWhere(owner_ids=["o"]),
        RuleWhere(min_price=0.2),
    ):
        assert not fits(where, "i", facts), where


@given(st.lists(ITEMS, max_size=8), WHERES, st.lists(IDS, max_size=2))
def test_one_item_some_rows_and_the_whole_catalogue_are_judged_alike(
    items: list[Item], where: RuleWhere, gone: list[str]
) -> None:
    catalogue = Catalogue(unknown_items=10)
    for each in items:
        catalogue.put(each)
    for item_id in gone:
        catalogue.remove(item_id)
    expected = [
        (facts := catalogue.facts(row)) is not None and fits(where, catalogue.item_id(row), facts)
        for row in range(catalogue.rows)
    ]
    assert fitting_rows(where, catalogue).tolist() == expected
    rows = np.arange(catalogue.rows, dtype=np.int32)[::-1]
    assert fitting_rows(where, catalogue, rows).tolist() == expected[::-1]


# Compiled rules ---------------------------------------------------------------------------------------------------


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    kind = draw(st.sampled_from(["pin", "boost", "exclude", "cap"]))
    times = draw(st.sampled_from([(None, None), (500.0, None), (None, 1_500.0), (1_200.0, 1_800.0)]))
    return Rule(
        rule_id=draw(st.sampled_from(["r1", "r2", "r3", "r4", "r5"])),
        kind=kind,
        where=draw(WHERES),
        rank=draw(st.integers(1, 4)) if kind == "pin" else None,
        boost=draw(st.sampled_from([0.1, 0.2, -0.3, 9.0])) if kind == "boost" else None,
        at_most=draw(st.integers(0, 2)) if kind == "cap" else None,
        first=draw(st.integers(1, 6)) if kind == "cap" else None,
        per=draw(st.sampled_from([None, "category", "brand", "owner"])) if kind == "cap" else None,
        users=draw(st.sampled_from([[], [], ["u1"]])),
        starts_at=None if times[0] is None else instant(times[0]),
        ends_at=None if times[1] is None else instant(times[1]),
        priority=draw(st.integers(-1, 1)),
    )


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("item"), ITEMS),
        st.tuples(st.just("gone"), IDS),
        st.tuples(st.just("rule"), rules()),
        st.tuples(st.just("unrule"), st.sampled_from(["r1", "r2", "r3"])),
        st.tuples(st.just("time"), st.sampled_from([0.0, 600.0, 1_300.0, 2_000.0])),
    ),
    max_size=25,
)


def effects(catalogue: Catalogue, book: RuleBook, now: float, user_id: str) -> tuple[Any, ...]:
    """All that ranking asks, by item id, so that groups and rows may be numbered in any way."""
    rows = np.array(sorted(range(catalogue.rows), key=catalogue.item_id), np.int32)
    ids = [catalogue.item_id(row) for row in rows.tolist()]
    servable = book.servable(catalogue.servable(now), now)
    boosts = book.boosts(rows, user_id)
    refused = book.refused(rows, user_id)
    caps = []
    for cap in book.caps(rows, user_id):
        first_of: dict[int, str] = {}
        caps.append(
            (
                [
                    first_of.setdefault(group, name) if group >= 0 else None
                    for name, group in zip(ids, cap.groups, strict=True)
                ],
                cap.at_most,
                cap.first,
            )
        )
    return (
        dict(zip(ids, servable[rows].tolist(), strict=True)),
        dict(zip(ids, np.zeros(len(rows)).tolist() if boosts is None else boosts.tolist(), strict=True)),
        dict(zip(ids, [False] * len(ids) if refused is None else refused.tolist(), strict=True)),
        [(catalogue.item_id(pin.row), pin.rank) for pin in book.pins(user_id)],
        caps,
    )


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_rules_kept_up_to_date_are_those_compiled_anew(steps: list[tuple[str, Any]]) -> None:
    catalogue = Catalogue(unknown_items=100)
    book = RuleBook(catalogue, limit=4)
    now = NOW
    for what, value in steps:
        match what:
            case "item":
                book.item_changed(catalogue.put(value))
            case "gone":
                row = catalogue.remove(value)
                if row >= 0:
                    book.item_changed(row)
            case "rule":
                book.put(value.rule_id, value, now=now)
            case "unrule":
                book.put(value, None, now=now)
            case "time":
                now = value
        for user_id in ("u1", "u2"):
            held = effects(catalogue, book, now, user_id)
            fresh = RuleBook(catalogue, limit=4)
            for rule in book.rules:
                fresh.put(rule.rule_id, rule, now=now)
            assert held == effects(catalogue, fresh, now, user_id)


@settings(deadline=None)
@given(st.lists(ITEMS, max_size=6, unique_by=lambda each: each.item_id), st.lists(rules(), max_size=6), st.randoms())
def test_the_order_of_rules_and_items_does_not_matter(items: list[Item], given_rules: list[Rule], random: Any) -> None:
    by_id = {rule.rule_id: rule for rule in given_rules}
    seen = []
    for _ in range(2):
        catalogue = Catalogue(unknown_items=100)
        book = RuleBook(catalogue, limit=3)
        random.shuffle(items)
        order = list(by_id.values())
        random.shuffle(order)
        for each in items:
            book.item_changed(catalogue.put(each))
        for rule in order:
            book.put(rule.rule_id, rule, now=NOW)
        seen.append(effects(catalogue, book, NOW, "u1"))
    assert seen[0] == seen[1]


def shop(*items: Item) -> tuple[Catalogue, RuleBook]:
    catalogue = Catalogue(unknown_items=0)
    for each in items:
        catalogue.put(each)
    return catalogue, RuleBook(catalogue, limit=3)


def exclude(rule_id: str, **fields: Any) -> Rule:
    where = {name: fields.pop(name) for name in list(fields) if name in RuleWhere.__struct_fields__}
    return Rule(rule_id=rule_id, kind="exclude", where=RuleWhere(**where), **fields)


def test_what_is_newly_excluded_is_told_once() -> None:
    catalogue, book = shop(item("a", brand="x"), item("b", brand="x", tags=["t"]), item("c"))
    book.watched = True

    def told() -> list[tuple[str, list[str], tuple[str, ...]]]:
        return [
            (each.rule_id, [catalogue.item_id(row) for row in each.rows.tolist()], each.users)
            for each in book.take_exclusions()
        ]

    book.put("r1", exclude("r1", tags=["t"]), now=NOW)
    assert told() == [("r1", ["b"], ())]
    book.put("r2", exclude("r2", brands=["x"]), now=NOW)
    assert told() == [("r2", ["a"], ())], "b was excluded already"
    book.put("r2", exclude("r2", item_ids=["a", "c"]), now=NOW)
    assert told() == [("r2", ["c"], ())], "the rule before excluded a"
    book.put("r2", exclude("r2", item_ids=["a", "c"]), now=NOW)
    assert told() == [], "nothing changed"
    book.put("r3", exclude("r3", item_ids=["c"], users=["u"]), now=NOW)
    assert told() == [("r3", ["c"], ("u",))]


def test_rules_begin_and_end_by_the_clock() -> None:
    catalogue, book = shop(item("a"), item("b"))
    book.watched = True
    book.put("r", exclude("r", item_ids=["a"], starts_at=instant(2_000), ends_at=instant(3_000)), now=NOW)
    assert book.take_exclusions() == []
    for now, expected in ((1_999.0, True), (2_000.0, False), (2_999.0, False), (3_000.0, True), (2_500.0, False)):
        assert book.servable(catalogue.servable(now), now).tolist() == [expected, True], now
    assert [each.rule_id for each in book.take_exclusions()] == ["r", "r"]


def test_boosts_of_an_item_add_up_and_are_bounded() -> None:
    _, book = shop(item("a", brand="x", tags=["t"]), item("b", brand="x"))
    rows = np.array([0, 1], np.int32)
    assert book.boosts(rows, "u") is None
    book.put("r1", Rule(rule_id="r1", kind="boost", boost=0.1, where=RuleWhere(brands=["x"])), now=NOW)
    book.put("r2", Rule(rule_id="r2", kind="boost", boost=0.2, where=RuleWhere(tags=["t"])), now=NOW)
    boosts = book.boosts(rows, "u")
    assert boosts is not None
    assert boosts.tolist() == [0.3, 0.1]
    book.put("r3", Rule(rule_id="r3", kind="boost", boost=10.0, where=RuleWhere(item_ids=["a"])), now=NOW)
    boosts = book.boosts(rows, "u")
    assert boosts is not None
    assert boosts.tolist() == [MOST_BOOST, 0.1]
    for rule_id in ("r1", "r2", "r3"):
        book.put(rule_id, None, now=NOW)
    assert book.boosts(rows, "u") is None


def test_of_too_many_rules_those_of_the_highest_priority_are_kept() -> None:
    _, book = shop(item("a"))
    for number, priority in enumerate([0, 5, 0, 3, 0]):
        book.put(f"r{number}", exclude(f"r{number}", item_ids=["a"], priority=priority), now=NOW)
    assert [rule.rule_id for rule in book.rules] == ["r0", "r1", "r3"]
    assert book.left_out == 2


def test_a_rule_is_the_same_after_a_round_trip() -> None:
    rule = exclude("r", brands=["ü"], starts_at=instant(5), note="because")
    assert parse_rule(encode(rule)) == rule


def test_items_of_an_owner_are_found_after_every_change() -> None:
    catalogue = Catalogue(unknown_items=0)
    owned = catalogue.attributes.owned_by
    assert not len(owned("o", catalogue.rows))
    first = catalogue.put(item("a", owner_id="o"))
    second = catalogue.put(item("b", owner_id="o"))
    assert owned("o", catalogue.rows).tolist() == [first, second]
    catalogue.put(item("b", owner_id="p"))
    assert owned("o", catalogue.rows).tolist() == [first]
    catalogue.remove("a")
    assert not len(owned("o", catalogue.rows))
