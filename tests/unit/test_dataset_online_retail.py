"""The shipped data set is the original's, by the rules of its module; broken files are named."""

from __future__ import annotations

from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard

from schemas.decode import decode_interaction, decode_item
from stream_app.datasets.dataset import Dataset
from stream_app.datasets.files import write_dataset
from stream_app.datasets.online_retail import PACKED_FILE, load_online_retail
from stream_app.datasets.online_retail_source import pack, read_packed, read_raw
from stream_app.errors import DatasetError
from stream_app.settings import DEFAULT_EVENT_TYPES

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
TABLE = HEADER + (
    "1,A, RED MUG ,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom\n"
    '1,B,"MUG, BLUE",1,2010-12-01 08:26:00,3.0,17850.0,United Kingdom\n'
    "1,A,RED MUG,2,2010-12-01 08:26:00,0.0,17850.0,United Kingdom\n"
    "1,POST,POSTAGE,1,2010-12-01 08:26:00,9.0,17850.0,France\n"
    "C2,A,RED MUG,-6,2010-12-01 09:00:00,2.55,17850.0,United Kingdom\n"
    "3,A,RED MUG,1,2010-12-01 09:01:00,2.1,,United Kingdom\n"
    "4,A,RED  MUG,1,2010-12-01 09:02:00,2.1,12.0,United Kingdom\n"
    "1,A,RED MUG,1,2010-12-01 09:03:00,2.65,17850.0,United Kingdom\n"
)


@pytest.fixture(name="table")
def _table(tmp_path: Path) -> Path:
    path = tmp_path / "raw.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture(name="shipped", scope="module")
def _shipped() -> Dataset:
    return load_online_retail()


def test_rows_that_are_no_purchases_of_goods_by_a_customer_are_left_out(table: Path) -> None:
    events = list(load_online_retail(table).interactions)
    assert [(event.event_id, event.user_id, event.item_id, event.quantity) for event in events] == [
        ("1-1", "17850", "RED MUG", 6.0),
        ("1-2", "17850", "MUG, BLUE", 1.0),
        ("1-3", "17850", "RED MUG", 2.0),
        ("4-1", "12", "RED  MUG", 1.0),
        ("1-4", "17850", "RED MUG", 1.0),
    ]
    assert events[0].occurred_at.isoformat() == "2010-12-01T08:26:00+00:00"
    assert (events[0].session_id, events[0].value, events[0].type) == ("1", 2.55, "purchase")


def test_price_is_the_median_of_what_was_paid(table: Path) -> None:
    prices = {item.item_id: item.price for item in load_online_retail(table).items}
    assert prices == {"RED MUG": 2.55, "MUG, BLUE": 3.0, "RED  MUG": 2.1}


def test_packed_file_gives_the_same_invoices(table: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.jsonl.zst"
    assert pack(table, packed) == 5
    assert list(read_packed(packed)) == list(read_raw(table))


def test_packed_file_that_was_cut_off_is_named(table: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.jsonl.zst"
    pack(table, packed)
    whole = zstandard.ZstdDecompressor().stream_reader(packed.read_bytes()).read()
    packed.write_bytes(zstandard.compress(whole[: whole.rindex(b"\n", 0, -1)]))
    with pytest.raises(DatasetError, match="4 of 5 rows"):
        list(read_packed(packed))


def test_shipped_data_has_the_documented_size(shipped: Dataset) -> None:
    assert len(shipped.items) == 3_862
    assert shipped.interaction_count == 396_386
    assert len({item.item_id for item in shipped.items}) == 3_862


def test_shipped_interactions_are_in_time_order_with_unique_ids(shipped: Dataset) -> None:
    events = list(shipped.interactions)
    assert len(events) == shipped.interaction_count
    assert len({event.event_id for event in events}) == len(events)
    assert all(before.occurred_at <= after.occurred_at for before, after in pairwise(events))
    assert len({event.user_id for event in events}) == 4_336
    assert {event.item_id for event in events} == {item.item_id for item in shipped.items}


def test_shipped_file_is_the_one_that_was_compared_with_the_original() -> None:
    with zstandard.open(PACKED_FILE, "rb") as file:
        digest = sha256(file.read()).hexdigest()
    assert digest in (PACKED_FILE.parent / "README.md").read_text()


@pytest.mark.parametrize("compress", [False, True])
def test_written_files_are_accepted_at_the_edge(table: Path, tmp_path: Path, compress: bool) -> None:
    dataset = load_online_retail(table)
    progress: list[tuple[str, int]] = []
    paths = write_dataset(
        dataset, tmp_path / "out", compress=compress, on_progress=lambda name, lines: progress.append((name, lines))
    )
    items, interactions = (
        (zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read() if compress else path.read_bytes())
        for path in paths
    )
    decoded = [
        decode_item(item.item_id.encode(), line) for item, line in zip(dataset.items, items.splitlines(), strict=True)
    ]
    assert [item for _, item in decoded] == dataset.items
    assert [
        decode_interaction(
            event.user_id.encode(), line, event_types=DEFAULT_EVENT_TYPES, now=2e9, oldest=0, future_tolerance_s=0
        )
        for event, line in zip(dataset.interactions, interactions.splitlines(), strict=True)
    ] == list(dataset.interactions)
    assert b"null" not in items + interactions
    assert [lines for _, lines in progress] == [3, 5]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "no column InvoiceNo"),
        ("", "no column InvoiceNo"),
        (HEADER + "1,A,MUG,6,yesterday,2.55,17850.0,UK\n", "line 2"),
        (HEADER + "1,A,MUG\n", "line 2"),
        (HEADER + "1,A,MUG,six,2010-12-01 08:26:00,2.55,17850.0,UK\n", "'six'"),
    ],
)
def test_broken_table_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "broken.csv"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"broken\.csv") as caught:
        load_online_retail(path)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "content", [None, b"not zstd", zstandard.compress(b"\xff\xfe"), zstandard.compress(TABLE.encode())[:-9]]
)
def test_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "raw.csv.zst"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"raw\.csv\.zst"):
        load_online_retail(path)


def test_failed_writing_leaves_no_half_file(table: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(DatasetError, match="file: cannot be written"):
        write_dataset(load_online_retail(table), blocked)
