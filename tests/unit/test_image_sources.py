"""Where an item's image is: below one folder or in the item, and nowhere else; and what is asked about it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.images.sources import ImageSource
from workers.picture_requests import (
    MOST_CHARS,
    Reason,
    Unusable,
    ask_for_data,
    ask_for_text,
    read_picture,
    reason_of,
    refusal,
    requested_text,
)


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "shoes").mkdir(parents=True)
    (folder / "lamp.png").write_bytes(b"a lamp")
    (folder / "shoes" / "red one.png").write_bytes(b"a shoe")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return folder


def why(source: ImageSource, url: str) -> Reason:
    with pytest.raises(Unusable) as caught:
        source.request(url)
    return caught.value.reason


def content(source: ImageSource, url: str) -> bytes:
    return read_picture(source.request(url), source.folder, max_bytes=source.max_bytes)


@pytest.mark.parametrize("url", ["lamp.png", "./lamp.png", "shoes/../lamp.png"])
def test_a_path_below_the_folder_is_found(folder: Path, url: str) -> None:
    assert content(ImageSource(folder), url) == b"a lamp"


def test_the_same_bytes_under_one_name_are_one_request_and_others_are_another(folder: Path) -> None:
    source = ImageSource(folder)
    before = source.request("lamp.png")
    assert source.request("shoes/../lamp.png") == before
    (folder / "lamp.png").write_bytes(b"b lamp")
    assert source.request("lamp.png") != before


@pytest.mark.parametrize(
    "url", ["../secret.png", "shoes/../../secret.png", "/etc/hostname", "{outside}", "link.png", "away/secret.png"]
)
def test_what_leads_out_of_the_folder_is_refused(folder: Path, url: str) -> None:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "away").symlink_to(folder.parent)
    assert why(ImageSource(folder), url.format(outside=folder.parent / "secret.png")) is Reason.OUTSIDE


def test_a_link_within_the_folder_is_followed_and_the_folder_may_be_one(folder: Path) -> None:
    (folder / "again.png").symlink_to(folder / "lamp.png")
    linked = folder.parent / "linked"
    linked.symlink_to(folder)
    assert content(ImageSource(linked), "again.png") == b"a lamp"


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example/lamp.png",
        "HTTP://shop.example/lamp.png",
        "//shop.example/lamp.png",
        "file:///etc/hostname",
        "ftp://shop.example/lamp.png",
        "gopher:lamp.png",
        "https://shop.example.evil/img/lamp.png",
    ],
)
def test_addresses_are_not_fetched(folder: Path, url: str) -> None:
    assert why(ImageSource(folder, url_prefix="https://shop.example/img/"), url) is Reason.ELSEWHERE


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://shop.example/img/lamp.png", b"a lamp"),
        ("https://shop.example/img/lamp.png?w=200&v=3#top", b"a lamp"),
        ("https://shop.example/img/shoes/red%20one.png", b"a shoe"),
        ("https://shop.example/img//lamp.png", b"a lamp"),
    ],
)
def test_an_address_with_the_prefix_names_a_file(folder: Path, url: str, expected: bytes) -> None:
    assert content(ImageSource(folder, url_prefix="https://shop.example/img/"), url) == expected


@pytest.mark.parametrize(
    "path", ["../secret.png", "%2e%2e/secret.png", "%2e%2e%2fsecret.png", "a%2f..%2f../secret.png"]
)
def test_an_address_with_the_prefix_leads_nowhere_else(folder: Path, path: str) -> None:
    assert why(ImageSource(folder, url_prefix="https://shop.example/img/"), f"https://shop.example/img/{path}") in (
        Reason.OUTSIDE,
        Reason.MISSING,
    )


@pytest.mark.parametrize(
    "path", ["http://[x", "x://[a]b/c.jpg", "http://℀/x", "//[", "http://shop.example/lamp.png", "%ff%00.png"]
)
def test_what_follows_the_prefix_is_the_name_of_a_file_whatever_it_looks_like(folder: Path, path: str) -> None:
    source = ImageSource(folder, url_prefix="https://shop.example/img/")
    assert why(source, f"https://shop.example/img/{path}") is Reason.MISSING


@given(st.text())
def test_whatever_follows_the_prefix_is_found_or_unusable(name: str) -> None:
    with pytest.raises(Unusable):
        ImageSource(Path(__file__).parent / "unit", url_prefix="img/").request("img/" + name)


@pytest.mark.parametrize("url", ["", "nothing.png", "shoes", ".", "lamp.png/x", "lamp\0.png", "a\nb.png", "x" * 4_000])
def test_what_is_no_file_is_missing(folder: Path, url: str) -> None:
    assert why(ImageSource(folder), url) is Reason.MISSING


def test_a_pipe_is_no_image_and_nobody_waits_for_it(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    assert why(ImageSource(folder), "pipe.png") is Reason.MISSING


def test_links_in_a_circle_are_missing(folder: Path) -> None:
    (folder / "one.png").symlink_to(folder / "other.png")
    (folder / "other.png").symlink_to(folder / "one.png")
    assert why(ImageSource(folder), "one.png") is Reason.MISSING


def test_without_a_folder_no_path_is_found() -> None:
    assert why(ImageSource(None), "lamp.png") is Reason.MISSING


def test_a_file_of_more_bytes_than_allowed_is_refused(folder: Path) -> None:
    assert content(ImageSource(folder, max_bytes=6), "lamp.png") == b"a lamp"
    assert why(ImageSource(folder, max_bytes=5), "lamp.png") is Reason.TOO_LARGE


def test_a_file_that_changes_on_the_way_is_not_taken_for_the_one_that_was_asked_for(folder: Path) -> None:
    request = ImageSource(folder).request("lamp.png")
    (folder / "lamp.png").write_bytes(b"another")
    with pytest.raises(Unusable) as caught:
        read_picture(request, folder, max_bytes=100)
    assert caught.value.reason is Reason.CHANGED


@pytest.mark.parametrize("url", ["data:image/png;base64,YSBsYW1w", "DATA:;base64,YSBsYW1w", "data:,a%20lamp"])
def test_an_image_in_the_item_itself_is_read(url: str) -> None:
    assert content(ImageSource(None), url) == b"a lamp"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64", Reason.DAMAGED),
        ("data:image/png;base64,@@@", Reason.DAMAGED),
        ("data:,seven b", Reason.TOO_LARGE),
    ],
)
def test_a_data_uri_that_is_wrong_is_refused(url: str, reason: Reason) -> None:
    with pytest.raises(Unusable) as caught:
        read_picture(ask_for_data(url), None, max_bytes=6)
    assert caught.value.reason is reason


@pytest.mark.parametrize("request_", ["", "file\n", "file\nx", "what\nelse", "lamp.png"])
def test_requests_that_say_nothing_are_missing(folder: Path, request_: str) -> None:
    with pytest.raises(Unusable) as caught:
        read_picture(request_, folder, max_bytes=100)
    assert caught.value.reason is Reason.MISSING


@given(st.text())
def test_a_text_comes_back_whatever_it_looks_like(text: str) -> None:
    assert requested_text(ask_for_text(text)) == text


def test_the_longest_reference_of_an_item_fits_in_a_request() -> None:
    assert len(ask_for_data("data:," + "x" * 4_090)) <= MOST_CHARS


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_is_told_from_every_vector(reason: Reason) -> None:
    assert reason_of(refusal(reason, 8)) is reason
    assert reason_of(np.array([-1.0, 0, 0], np.float32)) is None
