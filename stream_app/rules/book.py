"""The business rules in force, compiled against the catalogue: what ranking needs of them, by row.

Each rule for everybody is applied to the whole catalogue once, when it comes into force, and to single items when
they change; a request then only looks up its candidates. Rules for named users are few, and are applied to the
candidates of those users' requests. Sums are kept in whole millionths, so that rules may come and go in any order and
leave nothing behind.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.messages import Rule
from stream_app.items.attributes import folded
from stream_app.items.catalogue import Catalogue, ItemFacts
from stream_app.rules.where import fits, fitting_rows

__all__ = ["MOST_BOOST", "Cap", "Exclusion", "Pin", "RuleBook"]

MOST_BOOST = 10.0
"""Boosts of one item add up to at most this, and to at least its negative (log-odds)."""
_MILLION = 1_000_000
_MOST_CAPS = 32
_MOST_PINS = 1_000
"""Caps and pinned items in force at once that are looked at, those of the highest priority."""
_START_CAPACITY = 1_024
_INDEXED = ("item_ids", "owner_ids", "brands", "tags", "categories")
"""Fields by whose values rules are found for one item, the most telling first."""
_IDS = ("item_ids", "owner_ids")


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Items a rule newly keeps out of slates.

    Attributes:
        rule_id: the rule.
        rows: int32, the items.
        users: whose slates; empty: everybody's.
    """

    rule_id: str
    rows: NDArray[np.int32]
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pin:
    """An item that belongs at a rank (from 1)."""

    row: int
    rank: int


@dataclass(frozen=True, slots=True)
class Cap:
    """At most ``at_most`` candidates of each group in the first ranks.

    Attributes:
        groups: int32 [k], the group of each candidate; -1: it does not count.
        at_most: how many of a group.
        first: ranks it holds for.
    """

    groups: NDArray[np.int32]
    at_most: int
    first: int


class RuleBook:
    """Rules by id, and their effect on the rows of a catalogue.

    Not safe for use from several threads.

    Args:
        catalogue: whose rows are meant; every change of an entry is told by :meth:`item_changed`.
        limit: rules kept; of more, those of the highest priority (then the smaller id) are.

    Attributes:
        version: grows with every change of what is in force.
        left_out: rules that were not kept because of the limit.
        watched: whether somebody takes the exclusions; otherwise none are noted.
    """

    def __init__(self, catalogue: Catalogue, *, limit: int) -> None:
        self._catalogue = catalogue
        self._limit = limit
        self._rules: dict[str, Rule] = {}
        self._in_force: set[str] = set()
        self._since, self._until = -math.inf, math.inf
        self._now = -math.inf
        self._finder: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._unindexed: set[str] = set()
        self._personal: dict[str, list[str]] = {}
        self._capped: list[str] = []
        self._cap_rows: dict[str, NDArray[np.bool_]] = {}
        self._pinned: tuple[tuple[str, int], ...] = ()
        self._pinned_ids: frozenset[str] = frozenset()
        self._pins: tuple[Pin, ...] | None = ()
        self._excludes = 0
        self._boosts = 0
        self._exclusions: list[Exclusion] = []
        self._masked: tuple[NDArray[np.bool_], int, int, NDArray[np.bool_]] | None = None
        self.version = 0
        self.left_out = 0
        self.watched = False
        self._allocate(_START_CAPACITY)

    def _allocate(self, capacity: int) -> None:
        self._excluding = np.zeros(capacity, np.int32)
        self._allowed = np.ones(capacity, np.bool_)
        self._boost = np.zeros(capacity, np.int64)

    def __len__(self) -> int:
        return len(self._rules)

    @property
    def rules(self) -> list[Rule]:
        """Every rule, by id."""
        return [self._rules[rule_id] for rule_id in sorted(self._rules)]

    @property
    def active(self) -> int:
        """How many rules are in force."""
        return len(self._in_force)

    def put(self, rule_id: str, rule: Rule | None, *, now: float) -> None:
        """Add, replace or delete (None) a rule.

        Args:
            rule_id: its id.
            rule: as :func:`schemas.decode.parse_rule` accepts it.
            now: wall clock, seconds since 1970.
        """
        if rule is not None and rule == self._rules.get(rule_id):
            return
        held = self._rules.pop(rule_id, None)
        replaced = rule_id in self._in_force
        before = ~self._allowed[: self._catalogue.rows] if replaced and self.watched else None
        if replaced and held is not None:
            self._take_back(rule_id, held)
        if rule is not None:
            self._rules[rule_id] = rule
            if len(self._rules) > self._limit:
                self._drop(min(self._rules.values(), key=_by_precedence_reversed).rule_id)
        self._now = now
        self._settle(before)

    def advance(self, now: float) -> None:
        """Let rules begin and end that do by ``now`` (wall clock, seconds since 1970). Costs nothing otherwise."""
        self._now = now
        if not self._since <= now < self._until:
            self._settle(None)

    def take_exclusions(self) -> list[Exclusion]:
        """What rules newly keep out of slates since the last call."""
        taken, self._exclusions = self._exclusions, []
        return taken

    def item_changed(self, row: int) -> None:
        """Look at an item again: its entry is new, different or gone."""
        if not self._rules:
            return
        self._reserve(row + 1)
        self._excluding[row] = self._boost[row] = 0
        for mask in self._cap_rows.values():
            mask[row] = False
        facts = self._catalogue.facts(row)
        if facts is not None:
            item_id = self._catalogue.item_id(row)
            for rule_id in self._found(item_id, facts):
                rule = self._rules[rule_id]
                if not fits(rule.where, item_id, facts):
                    continue
                if rule.kind == "exclude":
                    self._excluding[row] += 1
                elif rule.kind == "boost":
                    self._boost[row] += _millionths(rule)
                elif rule_id in self._cap_rows:
                    self._cap_rows[rule_id][row] = True
            if item_id in self._pinned_ids:
                self._pins = None
        self._allowed[row] = self._excluding[row] == 0

    def servable(self, mask: NDArray[np.bool_], now: float) -> NDArray[np.bool_]:
        """``mask`` (of :meth:`Catalogue.servable`) without what rules for everybody exclude: bool [rows], read-only.

        Made again only when the catalogue, its mask or the rules changed.
        """
        self.advance(now)
        if not self._excludes:
            return mask
        base = mask if mask.base is None else mask.base
        held = self._masked
        versions = (self._catalogue.version, self.version)
        if held is not None and held[0] is base and held[1:3] == versions and len(held[3]) == len(mask):
            return held[3]
        self._reserve(len(mask))
        allowed = mask & self._allowed[: len(mask)]
        self._masked = (base, *versions, allowed)
        return allowed

    def refused(self, rows: NDArray[np.int32], user_id: str) -> NDArray[np.bool_] | None:
        """Which rows rules for this very user exclude: bool, in the same order; None: no such rule."""
        refused = None
        for rule in self._for_user(user_id, "exclude"):
            fitting = fitting_rows(rule.where, self._catalogue, rows)
            refused = fitting if refused is None else refused | fitting
        return refused

    def boosts(self, rows: NDArray[np.int32], user_id: str) -> NDArray[np.float64] | None:
        """What rules add to the scores of rows: float64 log-odds; None: nothing."""
        total = None
        if self._boosts:
            self._reserve(self._catalogue.rows)
            total = self._boost[rows]
        for rule in self._for_user(user_id, "boost"):
            added = fitting_rows(rule.where, self._catalogue, rows) * _millionths(rule)
            total = added if total is None else total + added
        if total is None or not total.any():
            return None
        boosts: NDArray[np.float64] = np.clip(total / _MILLION, -MOST_BOOST, MOST_BOOST)
        return boosts

    def pins(self, user_id: str) -> Sequence[Pin]:
        """Pinned items for a user, those that come first when places are short first."""
        if self._pins is None:
            self._pins = self._resolved(self._pinned)
        personal = list(self._for_user(user_id, "pin"))
        if not personal:
            return self._pins
        shared = [self._rules[rule_id] for rule_id in self._in_force]
        everyone = [rule for rule in shared if rule.kind == "pin" and not rule.users]
        return self._resolved(_in_order([*everyone, *personal]))

    def caps(self, rows: NDArray[np.int32], user_id: str) -> list[Cap]:
        """Caps on the first ranks, over candidates ``rows``."""
        if self._cap_rows:
            self._reserve(self._catalogue.rows)
        caps = [
            self._cap(rule, rows, self._cap_rows[rule_id][rows])
            for rule_id, rule in ((rule_id, self._rules[rule_id]) for rule_id in self._capped)
        ]
        personal = sorted(self._for_user(user_id, "cap"), key=_by_precedence)[: _MOST_CAPS - len(caps)]
        caps += [self._cap(rule, rows, fitting_rows(rule.where, self._catalogue, rows)) for rule in personal]
        return caps

    def _cap(self, rule: Rule, rows: NDArray[np.int32], fitting: NDArray[np.bool_]) -> Cap:
        attributes = self._catalogue.attributes
        groups: NDArray[np.int32]
        match rule.per:
            case "category":
                groups = attributes.category.at(rows)
            case "brand":
                groups = attributes.brand.at(rows)
            case "owner":
                groups = attributes.owner.at(rows)
            case None:
                groups = np.zeros(len(rows), np.int32)
        return Cap(np.where(fitting, groups, np.int32(-1)), rule.at_most or 0, rule.first or 0)

    def _for_user(self, user_id: str, kind: str) -> Iterable[Rule]:
        if user_id not in self._personal:  # as nearly always
            return ()
        rules = (self._rules[rule_id] for rule_id in self._personal[user_id])
        return [rule for rule in rules if rule.kind == kind]

    def _drop(self, rule_id: str) -> None:
        dropped = self._rules.pop(rule_id)
        if rule_id in self._in_force:
            self._take_back(rule_id, dropped)
        self.left_out += 1

    def _settle(self, before: NDArray[np.bool_] | None) -> None:
        """Bring into force what belongs in force now, and take the rest back.

        ``before``: which rows were excluded before, where a rule that was in force is being replaced.
        """
        now = self._now
        wanted = set()
        since, until = -math.inf, math.inf
        for rule_id, rule in self._rules.items():
            starts = -math.inf if rule.starts_at is None else rule.starts_at.timestamp()
            ends = math.inf if rule.ends_at is None else rule.ends_at.timestamp()
            if starts <= now < ends:
                wanted.add(rule_id)
            for instant in (starts, ends):
                if instant <= now:
                    since = max(since, instant)
                else:
                    until = min(until, instant)
        self._since, self._until = since, until
        for rule_id in self._in_force - wanted:
            self._take_back(rule_id, self._rules[rule_id])
        for rule_id in sorted(wanted - self._in_force):
            self._enforce(rule_id, self._rules[rule_id], before)
        self._excludes = self._count("exclude")
        self._boosts = self._count("boost")
        self._settle_personal()
        self._settle_caps()
        pins = [rule for rule_id in self._in_force if (rule := self._rules[rule_id]).kind == "pin" and not rule.users]
        self._pinned = _in_order(pins)
        self._pinned_ids = frozenset(item_id for item_id, _ in self._pinned)
        self._pins = None
        self.version += 1

    def _count(self, kind: str) -> int:
        rules = (self._rules[rule_id] for rule_id in self._in_force)
        return sum(rule.kind == kind and not rule.users for rule in rules)

    def _settle_personal(self) -> None:
        self._personal = {}
        for rule_id in sorted(self._in_force):
            for user_id in dict.fromkeys(self._rules[rule_id].users):
                self._personal.setdefault(user_id, []).append(rule_id)

    def _settle_caps(self) -> None:
        rules = (self._rules[rule_id] for rule_id in self._in_force)
        caps = sorted((rule for rule in rules if rule.kind == "cap" and not rule.users), key=_by_precedence)
        self._capped = [rule.rule_id for rule in caps[:_MOST_CAPS]]
        kept = {rule_id: mask for rule_id, mask in self._cap_rows.items() if rule_id in self._capped}
        self._reserve(self._catalogue.rows)
        for rule_id in self._capped:
            if rule_id not in kept:
                mask = kept[rule_id] = np.zeros(len(self._allowed), np.bool_)
                mask[: self._catalogue.rows] = fitting_rows(self._rules[rule_id].where, self._catalogue)
        self._cap_rows = kept

    def _enforce(self, rule_id: str, rule: Rule, before: NDArray[np.bool_] | None) -> None:
        self._in_force.add(rule_id)
        if rule.users:
            if rule.kind == "exclude" and self.watched:
                rows = np.flatnonzero(fitting_rows(rule.where, self._catalogue)).astype(np.int32)
                self._exclusions.append(Exclusion(rule_id, rows, tuple(rule.users)))
            return
        for key in _keys(rule):
            self._finder[key].add(rule_id)
        if not _keys(rule):
            self._unindexed.add(rule_id)
        if rule.kind in ("exclude", "boost"):
            fitting = self._apply(rule, 1)
            if rule.kind == "exclude" and self.watched:
                new = fitting & (self._excluding[: len(fitting)] == 1)
                if before is not None:
                    new[: len(before)] &= ~before
                self._exclusions.append(Exclusion(rule_id, np.flatnonzero(new).astype(np.int32)))

    def _take_back(self, rule_id: str, rule: Rule) -> None:
        self._in_force.discard(rule_id)
        self._cap_rows.pop(rule_id, None)
        if rule.users:
            return
        for key in _keys(rule):
            self._finder[key].discard(rule_id)
            if not self._finder[key]:
                del self._finder[key]
        self._unindexed.discard(rule_id)
        if rule.kind in ("exclude", "boost"):
            self._apply(rule, -1)

    def _apply(self, rule: Rule, sign: int) -> NDArray[np.bool_]:
        """Add a rule to (or take it from) the rows that fit; which those are."""
        fitting = fitting_rows(rule.where, self._catalogue)
        count = len(fitting)
        self._reserve(count)
        if rule.kind == "exclude":
            self._excluding[:count][fitting] += sign
            np.equal(self._excluding[:count], 0, out=self._allowed[:count])
        else:
            self._boost[:count][fitting] += sign * _millionths(rule)
        return fitting

    def _found(self, item_id: str, facts: ItemFacts) -> set[str]:
        """Rules in force, for everybody, that may be about the item."""
        found = set(self._unindexed)
        held: dict[str, Iterable[str | None]] = {
            "item_ids": (item_id,),
            "owner_ids": (facts.owner_id,),
            "brands": folded(() if facts.brand is None else (facts.brand,)),
            "tags": folded(facts.tags),
            "categories": folded(facts.categories),
        }
        for field, values in held.items():
            for value in values:
                if value is not None and (rules := self._finder.get((field, value))):
                    found |= rules
        return found

    def _resolved(self, pinned: Iterable[tuple[str, int]]) -> tuple[Pin, ...]:
        row_of = self._catalogue.row
        return tuple(Pin(row, rank) for item_id, rank in pinned if (row := row_of(item_id)) >= 0)

    def _reserve(self, count: int) -> None:
        held = len(self._allowed)
        if count <= held:
            return
        capacity = max(count, 2 * held)
        excluding, allowed, boost = self._excluding, self._allowed, self._boost
        self._allocate(capacity)
        self._excluding[:held], self._allowed[:held], self._boost[:held] = excluding, allowed, boost
        for rule_id, mask in self._cap_rows.items():
            self._cap_rows[rule_id] = np.concatenate([mask, np.zeros(capacity - held, np.bool_)])


def _millionths(rule: Rule) -> int:
    return round((rule.boost or 0.0) * _MILLION)


def _by_precedence(rule: Rule) -> tuple[int, str]:
    return -rule.priority, rule.rule_id


def _by_precedence_reversed(rule: Rule) -> tuple[int, tuple[int, ...]]:
    """The smallest is the rule that goes first when there are too many: low priority, then the largest id."""
    return rule.priority, (*(-ord(char) for char in rule.rule_id), 1)


def _keys(rule: Rule) -> list[tuple[str, str]]:
    """What a rule is found by: the values of its most telling field; none when it has no such field."""
    for field in _INDEXED:
        values = getattr(rule.where, field)
        if values:
            return [(field, value) for value in (values if field in _IDS else folded(values))]
    return []


def _in_order(rules: Iterable[Rule]) -> tuple[tuple[str, int], ...]:
    """Item ids and the ranks (from 1) they are wanted at, in order of precedence; an item counts once."""
    wanted: dict[str, int] = {}
    for rule in sorted(rules, key=_by_precedence):
        for place, item_id in enumerate(rule.where.item_ids):
            if len(wanted) >= _MOST_PINS:
                break
            wanted.setdefault(item_id, (rule.rank or 1) + place)
    return tuple(wanted.items())
