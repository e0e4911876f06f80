"""Personal data is taken out of texts, and what only looks like it stays."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Interaction, Item, User
from stream_app.textify import event_text, item_text, profile_texts, said
from stream_app.textify.clean import clean
from stream_app.textify.masking import MASKS, mask, pattern_mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Call +45 31 22 11 00 or mail anna@example.org", "Call [phone] or mail [email]"),
        ("anna.b+x@mail.example.co.uk!", "[email]!"),
        ("write to bob (at) example.com now", "write to [email] now"),
        ("BOB [AT] EXAMPLE.COM", "[email]"),
        ("user@例子.中国", "[email]"),
        ("发到anna@example.org谢谢", "发到[email]谢谢"),
        ("(020) 7946 0958 or 020 7946 0958", "[phone] or [phone]"),
        ("(212) 555-0123, 212-555-0123 and +1 (555) 123-4567", "[phone], [phone] and [phone]"),
        ("tel 0049 89 123456", "tel [phone]"),
        ("2 +4531221100 +4531221101", "2 [phone] [phone]"),
        ("13812345678", "[phone]"),
        ("电话13812345678联系, 请拨打 138-1234-5678 或 010-62781234", "电话[phone]联系, 请拨打 [phone] 或 [phone]"),
        ("card 4111 1111 1111 1111 ok", "card [card] ok"),
        ("5500-0000-0000-0004", "[card]"),
        ("3782 822463 10005", "[card]"),
        ("卡号6222021234567894谢谢", "卡号[card]谢谢"),
    ],
)
def test_addresses_and_numbers_of_people_are_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # the check digit is wrong
        "ISBN 978-3-16-148410-0",
        "EAN 4006381333931",
        "1920 x 1080, 12.99, 2024-05-06, 1984",
        "2024-11-27 10:11:12",
        "order 20241127001122",
        "10 000 000 000 000 000 stars",
        "192.168.100.200",
        "v1.2.3-4567",
        "price 1.234.567,89",
        "a@b, @somebody, meet @ noon. 5 > 3",
        "0.5 l, 0 to 60, 007, 0800",
        "Lot of 12 34 56 78 pieces",
    ],
)
def test_what_a_catalogue_is_full_of_stays(text: str) -> None:
    assert mask(text) == text


def test_every_text_that_is_embedded_is_masked() -> None:
    private = "reach me: anna@example.org"
    item = Item(
        item_id="1", title=f"Mug, {private}", brand="sold by bob@example.org", categories=["carl@example.org"],
        tags=["dora@example.org"], description=f"<p>Blue.</p> {private}, +45 31 22 11 00",
    )  # fmt: skip
    text = item_text(item)
    assert text.startswith("Mug, reach me: [email]")
    assert text.endswith("[phone]")
    user = User(user_id="u", text=private, interests=["eva@example.org"])
    texts = [text, *profile_texts(user, max_chars=200), event_text(private, max_chars=200)]
    event = Interaction(
        event_id="e", user_id="u", type="search", occurred_at="2026-01-01T00:00:00Z", context={"query": private}
    )  # type: ignore[arg-type]
    texts.append(said(event, max_chars=200))
    assert not any("@" in one or "31 22" in one for one in texts)


def test_a_context_of_any_size_says_a_line() -> None:
    for category in ("word " * 200_000, ["a@example.org", *["x" * 10_000] * 10_000]):
        event = Interaction(
            event_id="e", user_id="u", type="visit", occurred_at="2026-01-01T00:00:00Z", context={"category": category}
        )  # type: ignore[arg-type]
        text = said(event, max_chars=100)
        assert len(text) <= 100
        assert text.startswith(("word word", "[email], x"))


@pytest.mark.parametrize("gap", range(60))
def test_no_half_of_a_number_is_left_where_a_long_text_is_cut(gap: int) -> None:
    number = "+4531221100 "
    text = "<b></b>" * 200 + " " * gap + number * 400
    kept = event_text(text, max_chars=200)
    assert set(kept.split()) <= {"[phone]"}, kept


def test_a_pattern_of_ones_own_masks_what_it_matches() -> None:
    iban = pattern_mask("iban", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}\b")
    assert mask("to DE89 3704 0044 0532 0130 00, a@b.dk", [*MASKS, iban]) == "to [iban] 00, [email]"
    assert mask("a@b.dk", []) == "a@b.dk"
    with pytest.raises(ValueError, match=r"mask 'x': '\(' is not a regular expression"):
        pattern_mask("x", "(")
    with pytest.raises(ValueError, match="matches the empty text"):
        pattern_mask("x", "a*")


@given(st.text(max_size=500))
def test_masked_text_is_not_masked_again(text: str) -> None:
    once = mask(clean(text))
    assert mask(once) == once


@pytest.mark.parametrize("piece", ["a", "a.", "1 ", "1", "@", "a@", "+", "0-", "a@b.", "(", "00 1", "(0", "1-", "4 "])
def test_time_is_linear_in_the_text(piece: str) -> None:
    def took(size: int) -> float:
        text = (piece * size)[:size]
        began = time.thread_time()
        mask(text)
        return time.thread_time() - began

    # Not a limit of time: eight times the text in much less than sixty-four times the time.
    small = min(took(40_000) for _ in range(3))
    assert took(320_000) < 32 * small + 0.05
