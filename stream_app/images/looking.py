"""Files of images looked at beside the event loop, in few threads and with patience that ends.

A folder on a share whose host is gone does not fail: whoever reads a file there waits until it is back, and such a
thread cannot be ended. So each part is given up when for a while no image of it was found or refused, and its thread
counts as taken until it comes back. When all threads are taken, further parts wait for one as long and no longer: the
catalogue goes on without images.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from stream_app.images.sources import ImageSource
from stream_app.logs import get_logger
from workers.picture_requests import Reason, Unusable

__all__ = ["Looking"]

_log = get_logger(__name__)

PATIENCE_S = 15.0
"""The largest file that settings usually allow takes a share that is well a fraction of a second."""
THREADS = 4


class Looking:
    """Asks a source about images. Use from one event loop.

    Args:
        source: where images are.
        patience_s: how long one image may take (seconds).
        threads: that look, at most, those that hang included.

    Attributes:
        hanging: threads whose parts were given up and that did not come back yet.
    """

    def __init__(self, source: ImageSource, *, patience_s: float = PATIENCE_S, threads: int = THREADS) -> None:
        self.hanging = 0
        self._source = source
        self._patience_s = patience_s
        self._free = asyncio.Semaphore(threads)

    async def requests(self, image_urls: Sequence[str]) -> list[str | Reason]:
        """What the image model is to be asked for each image, or why it is not used, in the order given.

        Images that were not reached in time are ``MISSING``, as are those the source fails at.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                await self._free.acquire()
        except TimeoutError:
            self._say("every thread that looks at images hangs", len(image_urls))
            return [Reason.MISSING] * len(image_urls)
        part = _Part(self._source, image_urls, self._came_back)
        part.start()
        seen = -1
        while not part.done.is_set() and seen != len(part.found):
            seen = len(part.found)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s):
                    await part.done.wait()
        found = part.found[:]  # from here on the thread may add to it
        lacking = len(image_urls) - len(found)
        if lacking:
            part.given_up = True
            self.hanging += 1
            self._say("looking at an image takes too long", lacking)
        return found + [Reason.MISSING] * lacking

    def _came_back(self, part: _Part) -> None:
        part.done.set()
        self.hanging -= part.given_up
        self._free.release()

    def _say(self, what: str, images: int) -> None:
        _log.warning(
            what,
            folder=str(self._source.folder),
            patience_s=self._patience_s,
            hanging=self.hanging,
            images=images,
            effect="these images count as missing; is the share of encoder.image_folder there?",
        )


class _Part(threading.Thread):
    """One part, in a thread that keeps no process from ending: it may hang for ever."""

    def __init__(self, source: ImageSource, image_urls: Sequence[str], came_back: Callable[[_Part], None]) -> None:
        super().__init__(name="images", daemon=True)
        self.found: list[str | Reason] = []
        self.given_up = False
        self.done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._image_urls = image_urls
        self._came_back = came_back

    def run(self) -> None:
        for url in self._image_urls:
            if self.given_up:
                break
            self.found.append(self._request(url))
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._came_back, self)

    def _request(self, url: str) -> str | Reason:
        try:
            return self._source.request(url)
        except Unusable as error:
            return error.reason
        except Exception as error:  # an address is anybody's: none may end the agent, again at every redelivery
            _log.error("an image_url cannot be looked at", image_url=url[:200], error=repr(error))
            return Reason.MISSING
