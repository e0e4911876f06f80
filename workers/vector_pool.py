"""What every pool of a vector space offers, whatever processes are behind it: text in, vectors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import EncodeError, TailraceError
from workers.texts import TextKind
from workers.waiting import Priority, same_error

if TYPE_CHECKING:
    from workers.pool import EncoderPool

__all__ = ["VectorCache", "VectorPool"]


class VectorCache(Protocol):
    """Where vectors are looked up by text hash and kept; see ``stream_app.stores.embedding_cache``."""

    async def get_many(self, hashes: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Those that are known. Never raises for a cache that is not reachable."""
        ...

    async def put_many(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep these. Never raises for a cache that is not reachable."""
        ...


class VectorPool(ABC):
    """The pool of one vector space. Use from one event loop.

    Attributes:
        space: that its vectors are of.
        dimensions: length of a vector.
    """

    space: str
    dimensions: int

    @property
    @abstractmethod
    def parts(self) -> tuple[EncoderPool, ...]:
        """The pools of processes behind it, that of texts first."""

    @property
    @abstractmethod
    def share(self) -> float:
        """Share of the time the processes may compute for the catalogue, above 0 to 1."""

    @share.setter
    @abstractmethod
    def share(self, share: float) -> None: ...

    @property
    @abstractmethod
    def pids(self) -> tuple[int, ...]:
        """Process ids of the processes that are ready, by index."""

    @property
    @abstractmethod
    def started(self) -> bool:
        """Whether :meth:`start` was called."""

    @property
    @abstractmethod
    def error(self) -> TailraceError | None:
        """Why the pool gave up, or that it was closed; None while it works."""

    @property
    @abstractmethod
    def queue_length(self) -> int:
        """Texts (and images) that wait for a process."""

    @abstractmethod
    def waiting(self, priority: Priority) -> int:
        """Those of one priority that wait for a process; at most ``encoder.queue`` and those tried again."""

    @property
    @abstractmethod
    def devices(self) -> tuple[str, ...]:
        """Device and precision of each ready process, for example ``("cpu bfloat16",)``."""

    @abstractmethod
    async def start(self) -> None:
        """Start the processes in the background. Texts may be given at once; they wait."""

    @abstractmethod
    async def ready(self) -> None:
        """Wait until vectors can be had.

        Raises:
            SettingsError: when the processes say that they cannot work as configured.
            Unavailable: when none could be started, or the pool was closed.
        """

    @abstractmethod
    async def close(self) -> None:
        """End the processes. Who waits gets :class:`~stream_app.errors.Unavailable`. Safe to call twice."""

    async def encode(
        self, texts: Sequence[str], priority: Priority, *, kind: TextKind = "document"
    ) -> NDArray[np.float32]:
        """The vectors of ``texts``: float32 [n, dimensions], unit length, in the order given; hardly a text has none.

        ``kind`` decides the prefix, which many models were trained to see: what is found is a document, what finds it
        a query. A text has a vector of each kind.

        Texts of the catalogue wait for as long as it takes, also while processes are restarted; those of queries until
        ``encoder.query_deadline_s`` after the call, those of events until ``encoder.deadline_s``.

        Raises:
            PoisonText: when one of the texts ends every process that tries it (see :meth:`encode_each`).
            EncodeError: when the model gives one of the texts a vector that is not finite.
            TooLate: when one of the texts had to wait too long.
            Unavailable, SettingsError: when the pool is closed or could not start a process.
        """
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for row, outcome in enumerate(await self.encode_each(texts, priority, kind=kind)):
            if isinstance(outcome, EncodeError):
                raise same_error(outcome)
            vectors[row] = outcome
        return vectors

    @abstractmethod
    async def encode_each(
        self, texts: Sequence[str], priority: Priority, *, kind: TextKind = "document"
    ) -> list[NDArray[np.float32] | EncodeError]:
        """As :meth:`encode`, but each text has its own outcome: a finite vector, float32 [dimensions], or the error.

        Raises:
            Unavailable, SettingsError: when the pool is closed or could not start a process.
        """

    async def encode_items(
        self, texts: Sequence[str], image_urls: Sequence[str | None]
    ) -> list[NDArray[np.float32] | EncodeError]:
        """The outcomes of items of the catalogue, as those of :meth:`encode_each`. Images count where the space is one
        of images, too (:class:`~stream_app.images.pool.FusedPool`); here only texts do."""
        return await self.encode_each(texts, Priority.CATALOGUE)
