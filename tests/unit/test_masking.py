"""Personal data is taken out of texts, and what only looks like it stays."""

from __future__ import annotations

import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Interaction, Item, User
from stream_app.datasets.online_retail import load_online_retail
from stream_app.textify import event_text, item_text, profile_texts, said
from stream_app.textify.clean import clean, shortened
from stream_app.textify.masking import MASKS, mask, pattern_mask
from stream_app.textify.plain import plain


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
    "address",
    [
        "李雷@example.cn",
        "李雷01@example.cn",
        "иван@пример.рф",
        "علی\u200cرضا@مثال.ایران",
        "हिन्दी@उदाहरण.भारत",
        "ünal.mü@example.org",
        "john'@example.org",
        "o'neil@example.org",
        "anna＠example.org",
        "ａｎｎａ＠ｅｘａｍｐｌｅ．ｏｒｇ",
        "anna@exam\u200dple.org",
        "anna\u200d@example.org",
        "ａｎｎａ@ｅｘａ\u200dｍｐｌｅ．ｏｒｇ",
        '"john doe"@example.org',
        "anna [at] example [dot] org",
        "anna(at)mail(dot)example(dot)org",
        "anna at example dot com",
        "anna.b @ example.org",
        "anna_b99 @ example.org",
        "anna99 @ example.org",
        "иван.п @ пример.рф",
        "anna@ example.org",
        f"{'a' * 80}@example.org",
        "tom&jerry@example.org",
    ],
)
def test_an_address_is_masked_whole_in_any_script_and_disguise(address: str) -> None:
    assert event_text(address, max_chars=400) == "[email]"
    assert item_text(Item(item_id="1", title="Mug", description=f"write to {address}, please")) == (
        "Mug. write to [email], please"
    )


@pytest.mark.parametrize(
    "number",
    [
        *("07700900123", "2125550123", "1-212-555-0123", "1 (212) 555-0123", "1-800-555-0123", "212 555 0123"),
        *("0171 1234567", "089 123456", "030/1234567", "09012345678", "0612345678"),
        *("8-916-123-45-67", "8 (495) 123-45-67", "89161234567", "(+45) 31 22 11 00", "00 45 31 22 11 00"),
        *("030 / 1234567", "+49 (0)30 / 123456", "0171 - 1234567", "(212) 555 - 0123", "212 - 555 - 0123"),
        *(
            "+1 - 212 - 555 - 0123",
            "01 23 45 67 89",
            "06.12.34.56.78",
            "030 123 45 67",
            "0171 123 45 67",
            "03-0168-0250",
        ),
        *(
            "+33 1 23 45 67 89",
            "+55 11 9 1234 5678",
            "+54 9 11 1234-5678",
            "+4 5 3 1 2 2 1 1 0 0",
            "+49 1512 3456 789",
            "+49 151 234 567 89",
        ),
        *("(11) 91234-5678", "0 532 123 45 67", "0 (532) 123 45 67", "0043 1 5337 5678", "00447700900123"),
        *("+12125550123x5", "212-555-0123x45", "(212) 555-0123 ext. 45", "+1 212 555 0123 x 45"),
        *("１３８１２３４５６７８", "٠٧٧٠٠٩٠٠١٢٣", "+٤٥ ٣١ ٢٢ ١١ ٠٠", "020–7946–0958"),
    ],
)
def test_a_telephone_number_is_known_as_countries_write_it(number: str) -> None:
    assert event_text(number, max_chars=100) == "[phone]"
    item = Item(item_id="1", title="Mug", description=f"Ring {number}, please")
    assert item_text(item) == "Mug. Ring [phone], please"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("tel: 31 22 11 00", "tel: [phone]"),
        ("Tel. no. 31221100", "Tel. no. [phone]"),
        ("whatsapp+4531221100", "whatsapp[phone]"),
        ("phone 555-0123 or mobile 5550124", "phone [phone] or mobile [phone]"),
        ("手机号码是 555 01234", "手机号码是 [phone]"),
        ("电话：31221100", "电话：[phone]"),
        ("Телефон: 31221100", "Телефон: [phone]"),
        ("call me at 555 0123", "call me at [phone]"),
        ("Call #07700900123", "Call #[phone]"),
        ("07700900123 07700900124", "[phone] [phone]"),
        ("Tel.: 030 / 1234567", "Tel.: [phone]"),
        ("Tel: 030 - 123 45 67", "Tel: [phone]"),
        ("Tel: (30) - 123 45 67", "Tel: [phone]"),
        ("Telefonnummer 31221100", "Telefonnummer [phone]"),
        ("Mobilnummer: 31221100, Handynummer 31221100", "Mobilnummer: [phone], Handynummer [phone]"),
        ("Rufnummer 31221100", "Rufnummer [phone]"),
        ("Tél : 31221100", "Tél : [phone]"),
        ("numéro de téléphone : 31221100", "numéro de téléphone : [phone]"),
        ("Call me: 31221100", "Call me: [phone]"),
        ("Call us 5550123", "Call us [phone]"),
        ("Call us at 5550123x12", "Call us at [phone]"),
        ("ph 5550123", "ph [phone]"),
        ("reach me at 5550123", "reach me at [phone]"),
        ("contact # 212-555-0123", "contact # [phone]"),
        ("contact no. 2125550123", "contact no. [phone]"),
        ("tel 98765 43210", "tel [phone]"),
        ("+4531221100/+4531221101,07700900123", "[phone]/[phone],[phone]"),
    ],
)
def test_a_number_is_a_telephones_after_a_word_that_says_so(text: str, masked: str) -> None:
    assert event_text(text, max_chars=100) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("+45 31221100 20 pcs", "[phone] 20 pcs"),
        ("+4531221100 20 pcs", "[phone] 20 pcs"),
        ("+4531221100 - 20% off", "[phone] - 20% off"),
        ("+45 31221100 1000 pcs", "[phone] 1000 pcs"),
        ("+45 31221100 2 500 ml", "[phone] 2 500 ml"),
        ("+45 31 22 11 00 2 pcs", "[phone] 2 pcs"),
        ("+44 20 7946 0958 20 pcs", "[phone] 20 pcs"),
        ("+1 212 555 0123 200 pcs", "[phone] 200 pcs"),
        ("020 7946 0958 20 pcs", "[phone] 20 pcs"),
        ("tel 31221100 20 pcs", "tel [phone] 20 pcs"),
        ("+45 31221100 020 7946 0958", "[phone] [phone]"),
    ],
)
def test_a_number_does_not_take_the_next_with_it(text: str, masked: str) -> None:
    assert event_text(text, max_chars=100) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("４１１１１１１１１１１１１１１１", "[card]"),
        ("4111.1111.1111.1111", "[card]"),
        ("4111–1111–1111–1111", "[card]"),
        ("4111/1111/1111/1111", "[card]"),
        ("3782.822463.10005", "[card]"),
        ("no4111111111111111", "no[card]"),
        ("card#4111111111111111exp12/26", "card#[card]exp12/26"),
        ("4111\u200d1111\u200d1111\u200d1111", "[card]"),
        ("４１１１\u200d１１１１\u200d１１１１\u200d１１１１", "[card]"),
        ("2 4111 1111 1111 1111", "2 [card]"),
        ("4111 1111 1111 1111 123", "[card] 123"),
        ("4111 1111 1111 1111 12/26", "[card] 12/26"),
        ("4111111111111111,5500000000000004", "[card],[card]"),
        ("4111 - 1111 - 1111 - 1111", "[card]"),
        ("6222 0212 3456 7890 128", "[card]"),
        ("622202 1234567890128", "[card]"),
        ("3056 930902 5904 or 30569309025904", "[card] or [card]"),
        # A word before it that says otherwise is not believed of a whole card's number, but of 14 digits.
        ("order no. 4111111111111111", "order no. [card]"),
    ],
)
def test_a_card_is_known_however_it_is_written(text: str, masked: str) -> None:
    assert event_text(text, max_chars=100) == masked
    assert item_text(Item(item_id="1", title="Mug", description=text)) == f"Mug. {masked}"


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
        "10 x 20 x 30 cm, 1.5 x 2.5 m",
        "ISBN 978-0-306-40615-7",
        "ISBN 0306406157, ISBN-10: 0306406157",
        "EAN 5012345678900",
        "5012345678900 012345678905 96385074",
        "order no. 2125550123, Art. 07700900123, #2125550123",
        "EAN#07700900123, X№2125550123",
        "货号2125550123，订单号：07700900123",
        "AB-212-555-0123, X07700900123",
        "mobile phone 128 256 512 GB",
        "iPhone 15 128 256 512, Hotel 12345678, 1990–2000",
        "4500000000 years, 1700000000",
        "$1,234,567.89 / 12.345.678,90",
        "5² + 10³ ①②③④⑤⑥⑦⑧⑨⑩",
        "look at example.org, party at the polka dot inn",
        "Mug@home, a@b.c",
        # Bar codes that begin with zeros: a UPC among EAN-13, a GTIN of 14 digits.
        "0012345678905 0036000291452 00012345678905 012345678905",
        "0012345678905 12 pcs, EAN 0012345678905",
        "Sizes: 41 42 43 44 45 46 47 48",
        "56 62 68 74 80 86 92 98, 50 52 54 56 58 60 62 64",
        "4000 4100 4200 4300 4000 4500 5000 5500 lm",
        "size 02 04 06 08, 02 04 06 08 10 12, 00 2 4 6 8 10 12",
        "030 040 050 mm, 030 040 050, 0050 0100 0150",
        "150 2000 3000 mm, 150 2000 3000, 138 1384 2000 kg",
        "Open 09.00-17.00, Mo-Fr 09.00-18.00 Uhr, 09.00 - 12.30 13.30 - 17.00",
        "hotline 09.00-17.00, call 05.12.2024, phone 2024-11-27 10:11",
        "ship date 05.12.24 18:00, 05/12/24 10:30, 05/27/24 10:30, 05.12.24 1234",
        "05 12 2024, 05 12 2024 18:00, 05.12.24-07.12.24, 05-12-24",
        "10:00 12 34 56 78",
        "EAN 30000000000004, GTIN 36000000000008",
        "Artikelnummer 0445110369, Artikel-Nr. 0445110369, Bestellnummer: 0171234567, Best.-Nr. 0171234567",
        "P/N 0445110369, PN: 0445110369, S/N 0445110369, SN 0445110369, OEM 0445110369, OE-Nr. 0445110369",
        "Seriennummer 0445110369, Teilenummer: 0445110369, Ersatzteil 0445110369, Modellnr. 0445110369",
        "réf. 0445110369, commande n° 0445110369, numéro de série : 0445110369, référence 0445110369",
        "referencia 0445110369, pedido nº 0445110369, número de serie 0445110369, artículo 0445110369",
        "codice articolo 0445110369, ordine n. 0445110369, rif. 0445110369, ricambio 0445110369",
        "型番 0445110369、品番：0445110369、注文番号 0445110369、製造番号0445110369、商品コード 0445110369",
        "mobile phone 128 256 512 1024 GB",
        "phone 4.7 / 5.5 / 6.1 / 6.7 inch",
        "LEGO 75192 75313",
        "Reach 1000 2000 m",
        "Hôtel 12345678, motél 12345678, отел 12345678",
        # Names in social networks, and where something is had.
        "Available @ Amazon.com",
        "Photo by @john.doe",
        "Instagram @anna.schmidt, Follow us @ example.com",
        "lodash @ npm.js, 2 @ shop.com, a t-shirt @ shop.com, Visit us. @ shop.com",
    ],
)
def test_what_a_catalogue_is_full_of_stays(text: str) -> None:
    assert mask(text) == text


def test_what_a_shop_sells_stays() -> None:
    """Of Online Retail's titles not one looks like a person's, alone and all on one line."""
    titles = [item.title for item in load_online_retail().items]
    assert [title for title in titles if mask(title) != title] == []
    assert mask(", ".join(titles)) == ", ".join(titles)


sizes = st.builds(
    "{} {}".format,
    st.lists(st.decimals(0, 2_000, places=1), min_size=1, max_size=4).map(lambda many: " x ".join(map(str, many))),
    st.sampled_from(["cm", "mm", "m", "in", "ml"]),
)
codes = st.from_regex(r"(EAN|GTIN|UPC|ISBN|SKU|Art\. no\.|Order|货号)[ :#]{1,2}[0-9]{8,14}", fullmatch=True)
years = st.builds("{}-{}".format, st.integers(1900, 2030), st.integers(1900, 2030))
prices = st.builds("{}{:,.2f}".format, st.sampled_from("$€£¥"), st.floats(0, 10_000_000))
rows = st.builds(
    lambda first, step, many, width: " ".join(f"{first * step + step * one:0{width}}" for one in range(many)),
    st.integers(0, 8), st.integers(1, 10), st.integers(3, 10), st.integers(1, 2),
)  # fmt: skip
hours = st.builds("{:02}.{:02}-{:02}.{:02}".format, *[st.integers(0, 23), st.sampled_from([0, 15, 30, 45])] * 2)


def with_check_digit(digits: str) -> str:
    """As a GTIN has it: threes and ones from the right (GS1 General Specifications, 7.9)."""
    weighed = sum(int(digit) * (3, 1)[place % 2] for place, digit in enumerate(reversed(digits)))
    return f"{digits}{-weighed % 10}"


barcodes = st.from_regex(r"([02-9][0-9]{10,11}|0[0-9]{12})", fullmatch=True).map(with_check_digit)
FORMS = ["%Y-%m-%d", "%d/%m/%Y %H:%M", "%d.%m.%Y", "%d.%m.%y %H:%M", "%m/%d/%y %H:%M", "%d %m %Y", "%d-%m-%y"]
dates = st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2100, 1, 1))
moments = st.builds(lambda at, form: at.strftime(form), dates, st.sampled_from(FORMS))


@given(
    st.sampled_from([item.title for item in load_online_retail().items]),
    st.lists(sizes | codes | years | prices | moments | barcodes | rows | hours, min_size=1, max_size=4),
)
def test_sizes_codes_years_and_prices_in_a_title_stay(title: str, things: list[str]) -> None:
    text = f"{title}, {', '.join(things)}."
    assert mask(text) == text


@given(
    st.sampled_from(["", "Mug, ", "发到", "Reach me: ", "(", "“"]),
    st.from_regex(r"[a-z][a-z0-9._+-]{0,10}[a-z0-9]@([a-z]{2,8}\.){1,2}(org|com|example)", fullmatch=True),
    st.sampled_from(["", " now", ", ok", "。", ")", "谢谢"]),
)
def test_no_address_is_left(before: str, address: str, after: str) -> None:
    for written in (address, wide(address)):
        assert mask(f"{before}{written}{after}") == f"{before}[email]{after}"


@given(st.from_regex(r"\+(45|49|44|1|86)[ -]?[1-9][0-9]{2}([ -]?[0-9]{2}){3}", fullmatch=True))
def test_no_number_with_a_countrys_code_is_left(number: str) -> None:
    for written in (number, wide(number)):
        assert mask(f"Mug {written}, blue") == "Mug [phone], blue"


def wide(text: str) -> str:
    """In full-width forms, as East Asian keyboards write."""
    return "".join(chr(ord(sign) + 0xFEE0) if sign != " " else sign for sign in text)


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


@pytest.mark.parametrize(
    "number",
    ["+4531221100", "+45 31 22 11 00", "+45 31&nbsp;22&nbsp;11 00", "020 7946 <b>0958</b>", "4111 1111 1111 1111"],
)
def test_no_half_of_a_number_is_left_where_a_long_text_is_cut(number: str) -> None:
    for gap in range(60):
        text = "<b></b>" * 200 + "Mug " + " " * gap + f"{number}, " * 3 + f"{number} " * 400
        kept = event_text(text, max_chars=200)
        assert set(kept.replace(",", "").split()) <= {"Mug", "[phone]", "[card]"}, kept
        assert kept.startswith("Mug")


def test_a_long_text_is_cut_before_a_number_that_may_go_on() -> None:
    assert shortened("Mug, tel +45 31 22 11 00", 18) == "Mug, tel "
    assert shortened("Mug, +45 31 22 11 00 +45 31 22 11 01", 30) == "Mug, +45 31 22 11 00 "
    assert shortened("Mug, tel 31 22 11 00", 15) == "Mug, tel"
    assert shortened("电话" * 200 + "13812345678", 405) == "电话" * 200
    assert shortened("a mug and a cup", 10) == "a mug and "
    assert shortened("1 " * 100_000, 150_000) == ""


def test_a_pattern_of_ones_own_masks_what_it_matches() -> None:
    iban = pattern_mask("iban", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}\b")
    assert mask("to DE89 3704 0044 0532 0130 00, a@b.dk", [*MASKS, iban]) == "to [iban] 00, [email]"
    assert mask("a@b.dk", []) == "a@b.dk"
    assert plain("abc", [pattern_mask("w", r"[a-z]")]) == "[w][w][w]"  # Its own word is no part of the text.
    with pytest.raises(ValueError, match=r"mask 'x': '\(' is not a regular expression"):
        pattern_mask("x", "(")
    with pytest.raises(ValueError, match="matches the empty text"):
        pattern_mask("x", "a*")


@given(st.text(max_size=500))
def test_masked_text_is_not_masked_again(text: str) -> None:
    once = mask(clean(text))
    assert mask(once) == once


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "a",
            "a.",
            "1 ",
            "1",
            "@",
            "a@",
            "+",
            "0-",
            "a@b.",
            "(",
            "00 1",
            "(0",
            "1-",
            "4 ",
            "漢",
            "漢@",
            "@a.bc ",
            "02 ",
            "0 - ",
            "+1 - ",
            "1 / ",
            "tel 1 - ",
            "a.b @ ",
            '"@',
        ),
        *(" at a dot ", "[at]a[dot]", "(at)", "tel 1", "4111 ", "+1 ", "1(", "٠", "@漢.", "a.漢", "０", "é@é.éé"),
    ],
)
def test_time_is_linear_in_the_text(piece: str) -> None:
    def took(size: int) -> float:
        text = (piece * size)[:size]
        began = time.thread_time()
        mask(text)
        return time.thread_time() - began

    # Not a limit of time: eight times the text in much less than sixty-four times the time.
    small = min(took(40_000) for _ in range(3))
    assert took(320_000) < 32 * small + 0.05
