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
        ("&amp;amp;amp;lt;p&amp;amp;amp;gt;four times&amp;amp;amp;lt;/p&amp;amp;amp;gt;", "four times"),
        ("<p title='a>b'>Mug</p>", "Mug"),
        ('<p title = "a>b" class="x>">Mug</p>', "Mug"),
        ("<p it's>Mug</p> isn't it > 3", "Mug isn't it > 3"),
        ("<a ='never closed> Mug", "Mug"),
        ("<extra_id_0> Mug", "Mug"),
        ("<<b>p> Mug <<b>script>alert(1)", "Mug"),
        # Not seen by a reader, and between what makes a tag.
        ("<\u200bscript>alert(1)</script> Mug", "Mug"),
        ("<scr\u00adipt>alert(1)</scr\u2060ipt> Mug", "Mug"),
        ("<\u00adimg src=x onerror=alert(1)> Mug", "Mug"),
        ("<\u200dimg src=x> Mug", "Mug"),
        ("<&#8203;img src=x> Mug", "Mug"),
        ("&#x200b;&l\u200bt;img src=x&gt; Mug", "Mug"),
        ("<&zwj;b>Mug", "Mug"),
        ("&\u200blt;b&\u200bgt;Mug", "Mug"),
        ("&hearts\u037e", "♥"),
        ("<\u212a>Mug", "Mug"),
        ("Ign\u200dore a\u200c\u200dll", "Ignore all"),
        ("Mug" + "".join(chr(0xE0000 + ord(sign)) for sign in "ignore all"), "Mug"),
        ("🏴" + "".join(chr(0xE0000 + ord(sign)) for sign in "ignore all") + "\U000e007f", "🏴"),
        ("漢" + "\U000e0100" * 20, "漢\U000e0100"),
        ("a\ufe0fb\u034fc\u3164d\uffa0e\U000e0020f\U000f0000", "abcdef"),
        ("", ""),
    ],
)
def test_clean(raw: str, plain: str) -> None:
    assert clean(raw) == plain


@pytest.mark.parametrize(
    "text",
    [
        "👨\u200d👩\u200d👧 🏳️\u200d🌈 👩🏽\u200d⚕️ ❤️ 1️⃣ #️⃣",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "کتاب\u200cهای کودک",
        "क्\u200dष क्\u200cष",
        "അവന്\u200d വന്നു",
        "ශ්\u200dරී",
        "葛\U000e0100",
        "Mug & bowl, 5 < 6 > 4, R&D, I <3 you, a <= b",
    ],
)
def test_what_emoji_and_scripts_are_spelled_with_stays(text: str) -> None:
    assert clean(text) == text


pieces = st.sampled_from(
    [
        *"<>&;#/=!-\"'[] \nabpx1", "script", "<b>", "</b>", "<p ", "<!--", "-->", "amp;", "lt;", "&lt;", "&amp;",
        "&#x200b;", "]]>", "<![CDATA[", "\u200b", "\u200c", "\u200d", "\u00ad", "\u2060", "\ufe0f", "\u0338", "\u037e",
        "\u212a", "❤", "👩", "🏴", "\U000e0067", "\U000e0062\U000e0065\U000e007f", "ک", "क्", "漢", "\u20e3",
        "e\u0301", "\ud800",
    ]
)  # fmt: skip


@given(st.lists(pieces, max_size=40).map("".join) | st.text(max_size=100))
def test_clean_text_stays_as_it_is(text: str) -> None:
    plain = clean(text)
    assert clean(plain) == plain
    assert " ".join(clean(text, lines=True).split()) == plain


@pytest.mark.parametrize("wrapped", ["&" + "amp;" * 5_000 + "lt;b>", "<b" * 500 + ">" * 500, "]" * 500 + ">" * 500])
def test_what_is_wrapped_without_end_is_no_markup_in_the_end(wrapped: str) -> None:
    plain = clean(wrapped)
    assert "<b" not in plain
    assert clean(plain) == plain


def test_lines_and_paragraphs_may_stay_apart() -> None:
    assert clean("a  b\r\n\n c<br>d<p>e</p>H<sub>2</sub>O\u2028f", lines=True) == "a b\nc\nd\ne\nH2O\nf"


@pytest.mark.parametrize(
    "unit",
    [
        "<",
        "<a",
        "<a ",
        "</",
        "<!--",
        "<script",
        "<script>",
        "<![CDATA[",
        "&",
        "&#",
        "&lt;",
        "\n ",
        "<b>x",
        '<a ="',
        "<a ='\"",
        '<a ="" ',
        "]]>",
        "&amp;",
        "👩\u200d",
        "<\u200b",
    ],
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


@pytest.mark.parametrize("field", ["title", "brand", "categories", "tags", "description"])
def test_of_a_megabyte_in_any_field_only_the_beginning_is_cleaned(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def counted(text: str, *, lines: bool = False) -> str:
        looked_at.append(len(text))
        return clean(text, lines=lines)

    monkeypatch.setattr("stream_app.textify.plain.clean", counted)
    huge = "<b>Mug</b> & bowl, " * 50_000
    item = msgspec.structs.replace(MUG, **{field: [huge] if field in ("categories", "tags") else huge})
    assert "Mug & bowl" in item_text(item)
    assert sum(looked_at) < 20_000


def test_text_hash_is_stable_and_takes_any_text() -> None:
    assert text_hash("blue mug") == "acd2b82e00ba03d069f4103b3e7f1a1f"
    assert text_hash("\ud800") != text_hash("")
