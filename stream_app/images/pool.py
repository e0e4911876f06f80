"""Two encoder pools as one: texts by the text model, images and the same texts by the image model, fused.

What goes wrong with an image (it is not there, no picture, too large, ended its process) costs the item its image and
nothing else: in its place the image model reads the text, as where there is no image, and it is counted by reason.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stream_app.encoder_space import EncoderSpace
from stream_app.errors import EncodeError, SettingsError, TailraceError
from stream_app.images.fusion import fuse
from stream_app.images.looking import PATIENCE_S, Looking
from stream_app.images.sources import ImageSource
from stream_app.logs import get_logger
from stream_app.settings import EncoderSettings
from workers.image_models import describe_image_model
from workers.image_process import command
from workers.models import ModelInfo
from workers.picture_requests import MOST_CHARS, Reason, ask_for_text, reason_of
from workers.pool import CHARS_PER_TOKEN, EncoderPool, Priority
from workers.texts import TextKind
from workers.vector_pool import VectorCache, VectorPool

__all__ = ["FusedPool", "VectorsOnly", "image_pool", "image_source"]

_log = get_logger(__name__)

USED, NONE = "used", "none"
LOG_INTERVAL_S = 60.0
_TRIES = 2
"""A file that changes while it is read is looked at once more."""


class VectorsOnly:
    """A cache that keeps vectors and forgets refusals: a repaired file or another limit makes an image of them."""

    def __init__(self, cache: VectorCache) -> None:
        self._cache = cache

    async def get_many(self, hashes: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """As the cache inside."""
        return await self._cache.get_many(hashes)

    async def put_many(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """As the cache inside, but for refusals."""
        await self._cache.put_many({key: row for key, row in vectors.items() if reason_of(row) is None})


def image_source(settings: EncoderSettings) -> ImageSource:
    """Where images are, as the settings say.

    Raises:
        SettingsError: when the folder is not there.
    """
    folder = None if settings.image_folder is None else settings.image_folder.expanduser()
    if folder is not None and not folder.is_dir():
        raise SettingsError(f"encoder.image_folder = {str(folder)!r}: not a folder on this machine")
    return ImageSource(
        folder=None if folder is None else folder.resolve(),
        url_prefix=settings.image_url_prefix,
        max_bytes=settings.image_max_bytes,
    )


def image_pool(
    settings: EncoderSettings,
    source: ImageSource,
    *,
    cache: VectorCache | None = None,
    module: str = "workers.image_process",
) -> EncoderPool:
    """The processes of the image model; not started. ``module`` is what they run.

    Raises:
        SettingsError: when the model cannot be used.
    """
    info = describe_image_model(settings.image_model)
    # The pool cuts texts at a number of characters for each token; here the longest request decides.
    most = MOST_CHARS // CHARS_PER_TOKEN
    return EncoderPool(
        settings.model_copy(update={"model": settings.image_model, "max_tokens": most}),
        info=ModelInfo(
            name=settings.image_model,
            space=info.space,
            dimensions=info.dimensions,
            folder=info.folder,
            max_tokens=most,
            pooling="cls",
        ),
        cache=None if cache is None else VectorsOnly(cache),
        command=command(
            module,
            folder=source.folder,
            max_bytes=settings.image_max_bytes,
            max_pixels=settings.image_max_pixels,
        ),
    )


class FusedPool(VectorPool):
    """The pool of a fused space, to be used as :class:`~workers.pool.EncoderPool` is.

    Args:
        text: of the text model.
        images: of the image model.
        space: that they span together.
        weight: of the image, 0 to 1.
        source: where images are.
        patience_s: how long looking at one image may take (seconds).
        clock: monotonic seconds, for how often is logged.

    Attributes:
        outcomes: how often an item's image was ``used``, there was ``none``, or why it was not (the names of
            :class:`~workers.picture_requests.Reason`, in small letters).
    """

    def __init__(
        self,
        text: EncoderPool,
        images: EncoderPool,
        *,
        space: EncoderSpace,
        weight: float,
        source: ImageSource,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.text = text
        self.images = images
        self.space = space.space
        self.dimensions = space.dimensions
        self.outcomes: Counter[str] = Counter()
        self._weight = weight
        self._looking = Looking(source, patience_s=patience_s)
        self._clock = clock
        self._log_at = -float("inf")

    @property
    def parts(self) -> tuple[EncoderPool, EncoderPool]:
        """Both pools."""
        return self.text, self.images

    @property
    def share(self) -> float:
        """Share of the time the processes may compute for the catalogue, above 0 to 1."""
        return self.text.share

    @share.setter
    def share(self, share: float) -> None:
        for part in self.parts:
            part.share = share

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the processes that are ready."""
        return self.text.pids + self.images.pids

    @property
    def started(self) -> bool:
        """Whether :meth:`start` was called."""
        return self.text.started

    @property
    def error(self) -> TailraceError | None:
        """Why one of the pools gave up, or that it was closed; None while both work."""
        return self.text.error or self.images.error

    @property
    def queue_length(self) -> int:
        """Texts and images that wait for a process."""
        return self.text.queue_length + self.images.queue_length

    @property
    def devices(self) -> tuple[str, ...]:
        """Device and precision of each ready process."""
        return self.text.devices + self.images.devices

    async def start(self) -> None:
        """Start the processes of both in the background."""
        for part in self.parts:
            await part.start()

    async def ready(self) -> None:
        """Wait until a process of each is ready; errors as of :meth:`EncoderPool.ready`."""
        for part in self.parts:
            await part.ready()

    async def close(self) -> None:
        """End the processes of both. Safe to call twice."""
        await asyncio.gather(*(part.close() for part in self.parts))

    def waiting(self, priority: Priority) -> int:
        """Texts and images of one priority that wait for a process."""
        return sum(part.waiting(priority) for part in self.parts)

    async def encode_each(
        self, texts: Sequence[str], priority: Priority, *, kind: TextKind = "document"
    ) -> list[NDArray[np.float32] | EncodeError]:
        """The vectors of what people say (searches, reviews, profiles): both models read the text, so that it finds
        items by their text and by what is seen in their images. Float32 [dimensions], unit length, or the error.

        ``kind`` is for the text model; image models know no prefixes. A text that the image model cannot read, or not
        in time, has the text model's half alone.

        Raises:
            Unavailable, SettingsError: when one of the pools is closed or could not start a process.
        """
        read, seen = await asyncio.gather(
            self.text.encode_each(texts, priority, kind=kind),
            self.images.encode_each([ask_for_text(text) for text in texts], priority),
        )
        return self._fused(read, seen)

    async def encode_items(
        self, texts: Sequence[str], image_urls: Sequence[str | None]
    ) -> list[NDArray[np.float32] | EncodeError]:
        """The vectors of items: of their texts, and of their images where there are such (of their texts again where
        there are none); in the order given.

        Each item has its own outcome: float32 [dimensions], unit length, or why its *text* has no vector. Counts what
        became of the images (:attr:`outcomes`).

        Raises:
            Unavailable, SettingsError: when one of the pools is closed or could not start a process.
        """
        read, (seen, reasons) = await asyncio.gather(
            self.text.encode_each(texts, Priority.CATALOGUE), self._see(texts, image_urls)
        )
        self._count(image_urls, reasons)
        return self._fused(read, seen)

    async def _see(
        self, texts: Sequence[str], image_urls: Sequence[str | None]
    ) -> tuple[list[NDArray[np.float32] | EncodeError], dict[int, Reason]]:
        """The image model's vector of each item, of its image or else its text; and by row why an image is not used."""
        seen: dict[int, NDArray[np.float32] | EncodeError] = {}
        reasons: dict[int, Reason] = {}
        wanted = {row: url for row, url in enumerate(image_urls) if url}
        for _ in range(_TRIES):
            found = await self._looking.requests(list(wanted.values()))
            asked = dict(zip(wanted, found, strict=True))
            reasons |= {row: request for row, request in asked.items() if isinstance(request, Reason)}
            requests = {row: request for row, request in asked.items() if not isinstance(request, Reason)}
            rows = await self.images.encode_each(list(requests.values()), Priority.CATALOGUE)
            for row, vector in zip(requests, rows, strict=True):
                reason = Reason.POISON if isinstance(vector, EncodeError) else reason_of(vector)
                if reason is None:
                    seen[row] = vector
                    reasons.pop(row, None)
                else:
                    reasons[row] = reason
            wanted = {row: url for row, url in wanted.items() if reasons.get(row) is Reason.CHANGED}
            if not wanted:
                break
        left = [row for row in range(len(texts)) if row not in seen]
        rows = await self.images.encode_each([ask_for_text(texts[row]) for row in left], Priority.CATALOGUE)
        seen |= dict(zip(left, rows, strict=True))
        return [seen[row] for row in range(len(texts))], reasons

    def _count(self, image_urls: Sequence[str | None], reasons: Mapping[int, Reason]) -> None:
        names = [reason.name.lower() for reason in reasons.values()]
        none = sum(not url for url in image_urls)
        self.outcomes.update(names)
        self.outcomes.update({USED: len(image_urls) - none - len(names), NONE: none})
        if not names or self._clock() < self._log_at:
            return
        self._log_at = self._clock() + LOG_INTERVAL_S
        _log.warning(
            "images not used",
            reasons=dict(Counter(names)),
            example=(image_urls[next(iter(reasons))] or "")[:200],
            effect="the image model reads the texts of these items instead; docs/images.md",
            since_start={name: count for name, count in self.outcomes.items() if name not in (USED, NONE)},
        )

    def _fused(
        self, read: Sequence[NDArray[np.float32] | EncodeError], seen: Sequence[NDArray[np.float32] | EncodeError]
    ) -> list[NDArray[np.float32] | EncodeError]:
        outcomes: list[NDArray[np.float32] | EncodeError] = []
        nothing = np.zeros(self.images.dimensions, np.float32)
        for text, image in zip(read, seen, strict=True):
            if isinstance(text, EncodeError):
                outcomes.append(text)
                continue
            there = not isinstance(image, EncodeError)
            half = nothing if isinstance(image, EncodeError) else image
            outcomes.append(fuse(text[None], half[None], np.array([there]), self._weight)[0])
        return outcomes
