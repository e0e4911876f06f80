"""Images are looked at in few threads, and what hangs there holds up nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from stream_app.images.looking import Looking
from tests.waiting import eventually
from workers.picture_requests import Reason, Unusable


class Share:
    """A source that finds every image, hangs at those that begin with ``hang`` until it is let go, and has a bug."""

    folder = Path("/images")

    def __init__(self) -> None:
        self.back = threading.Event()
        self.asked: list[str] = []

    def request(self, image_url: str) -> str:
        self.asked.append(image_url)
        if image_url.startswith("hang"):
            self.back.wait()
        if image_url == "none":
            raise Unusable(Reason.OUTSIDE)
        if image_url == "bug":
            raise ValueError("never seen before")
        return f"found {image_url}"


@pytest.fixture(name="share")
def _share() -> Iterator[Any]:
    share = Share()
    yield share
    share.back.set()


async def test_each_image_has_its_own_outcome_whatever_happens(share: Any) -> None:
    with capture_logs() as logs:
        found = await Looking(share).requests(["a", "none", "bug", "b"])
    assert found == ["found a", Reason.OUTSIDE, Reason.MISSING, "found b"]
    assert [one["error"] for one in logs] == ["ValueError('never seen before')"]


async def test_nothing_is_asked_of_nobody(share: Any) -> None:
    assert await Looking(share).requests([]) == []


async def test_a_folder_that_hangs_costs_the_images_that_were_not_reached(share: Any) -> None:
    looking = Looking(share, patience_s=0.01)
    with capture_logs() as logs:
        assert await looking.requests(["a", "hang", "b"]) == ["found a", Reason.MISSING, Reason.MISSING]
    (said,) = logs
    assert (said["folder"], said["images"], said["hanging"]) == ("/images", 2, 1)
    share.back.set()
    await eventually(lambda: looking.hanging == 0)
    assert "b" not in share.asked, "what was given up is not looked at any more"
    assert await looking.requests(["c"]) == ["found c"]


async def test_no_more_threads_hang_than_there_may_be(share: Any) -> None:
    looking = Looking(share, patience_s=0.01, threads=2)
    for _ in range(4):
        assert await looking.requests(["hang"]) == [Reason.MISSING]
    assert share.asked == ["hang", "hang"]
    assert looking.hanging == 2
    share.back.set()
    await eventually(lambda: looking.hanging == 0)
    assert await looking.requests(["a"]) == ["found a"]
