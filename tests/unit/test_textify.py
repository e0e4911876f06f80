"""Items and events as text: golden files per kind of item, and what must hold for any item."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Item
from stream_app.textify import event_text, item_text, text_hash
from stream_app.textify.clean import clean, clip

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "textify").glob("*.json"))
MUG = Item(item_id="1", title="Ceramic mug", brand="Nordlys", categories=["Kitchen"], description="Blue. 350 ml.")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_item_text_equals_the_golden_file(path: Path) -> None:
    golden = json.loads(path.read_text("utf-8"))
    assert item_text(msgspec.convert(golden["item"], Item, strict=False)) == golden["text"]


def test_golden_files_are_there() -> None:
    assert len(GOLDEN) >= 10


def test_item_text_does_not_depend_on_price_availability_or_id() -> None:
    changed = msgspec.structs.replace(MUG, item_id="2", price=9.0, currency="EUR", available=False, owner_id="o")
    assert item_text(changed) == item_text(MUG)


def test_item_text_changes_with_what_the_item_is() -> None:
    assert item_text(msgspec.structs.replace(MUG, title="Ceramic bowl")) != item_text(MUG)
    assert item_text(msgspec.structs.replace(MUG, description="Red.")) != item_text(MUG)


def test_item_text_says_nothing_twice_and_respects_word_limits() -> None:
    item = Item(item_id="1", title="Heart mug", brand="HEART", categories=["Mug", "Art"], tags=["art", "gift"])
    assert item_text(item) == "Heart mug. Art. gift"


def test_one_capital_word_stays_an_acronym() -> None:
    assert item_text(Item(item_id="1", title="SQL")) == "SQL"


labels = st.lists(st.text(max_size=256), max_size=64)


@given(st.text(min_size=1, max_size=500), labels, labels, st.text(max_size=2_000), st.text(max_size=256))
def test_item_text_of_any_item_is_one_bounded_clean_line(
    title: str, categories: list[str], tags: list[str], description: str, brand: str
) -> None:
    item = Item(item_id="1", title=title, categories=categories, tags=tags, description=description, brand=brand)
    text = item_text(item)
    assert len(text) <= 1_200
    assert text == text.strip()
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text)
    text.encode("utf-8")


@given(st.text(max_size=300), st.integers(1, 100))
def test_clip_never_exceeds_its_limit_and_keeps_a_prefix(text: str, limit: int) -> None:
    cut = clip(text, limit)
    assert len(cut) <= limit
    assert text.startswith(cut)


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("5 < 6 and 7 > 3", "5 < 6 and 7 > 3"),
        ("I <3 you", "I <3 you"),
        ("a<br/>b", "a b"),
        ("H<sub>2</sub>O", "H2O"),
        ("&amp;lt;p&amp;gt;twice&amp;lt;/p&amp;gt;", "twice"),
        ("&lt;p&gt;once&lt;/p&gt;", "once"),
        ("<!-- never closed", ""),
        ("<script>never closed", ""),
        ("<![CDATA[x]]>", "x"),
        ("tab\tnull\x00bell\x07", "tab null bell"),
        ("e\u0301", "é"),
        ("\ud800lone", "lone"),
        ("", ""),
    ],
)
def test_clean(raw: str, plain: str) -> None:
    assert clean(raw) == plain


@pytest.mark.parametrize(
    "unit", ["<", "<a", "<a ", "</", "<!--", "<script", "<script>", "<![CDATA[", "&", "&#", "&lt;", "\n ", "<b>x"]
)
def test_clean_is_linear_in_hostile_input(unit: str) -> None:
    hostile = unit * (200_000 // len(unit))
    started = time.process_time()
    clean(hostile)
    assert time.process_time() - started < 2.0  # quadratic behaviour takes minutes


def test_event_text_is_cleaned_and_cut_at_a_word() -> None:
    assert event_text("  blue\n<b>mug</b> ", max_chars=100) == "blue mug"
    assert event_text("word " * 50_000, max_chars=22) == "word word word word"
    assert event_text("\x00\u200b", max_chars=16) == ""


def test_event_text_of_a_megabyte_looks_only_at_its_beginning() -> None:
    assert event_text("漢" * 1_000_000, max_chars=2_000) == "漢" * 2_000


def test_text_hash_is_stable_and_takes_any_text() -> None:
    assert text_hash("blue mug") == "acd2b82e00ba03d069f4103b3e7f1a1f"
    assert text_hash("\ud800") != text_hash("")
