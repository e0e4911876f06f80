"""The errors of Tailrace, one small tree.

TailraceError
├── SettingsError          a setting is wrong; names it, its value and what is allowed
├── InvalidMessage         a record cannot be processed as it is; goes to the dead letter topic
├── EncodeError            a text could not be embedded
│   ├── PoisonText         it ended the encoder process every time it was tried
│   └── TooLate            it was not embedded by its deadline
├── DatasetError           a data set's file cannot be read; names the file and the line
├── NotAuthorized          the broker does not allow what has to be done; names operation and resource
├── EmbeddedStackError     the embedded broker or Redis could not be started
├── Forbidden              a service does not let our user do what it has to; names what
├── SnapshotError          a snapshot on disk cannot be used; the replica reads the topics instead
├── SpaceError             a change of vector spaces that cannot be made
├── TopicError             a topic is not there, or the broker refuses to create it
└── Unavailable            a broker, Redis or encoder is not there at the moment; worth trying again

NewerVersion               something stored was written by a newer release; apart, because nobody may go on without it
"""

from __future__ import annotations

__all__ = [
    "DatasetError",
    "EmbeddedStackError",
    "EncodeError",
    "Forbidden",
    "InvalidMessage",
    "NewerVersion",
    "NotAuthorized",
    "PoisonText",
    "SettingsError",
    "SnapshotError",
    "SpaceError",
    "TailraceError",
    "TooLate",
    "TopicError",
    "Unavailable",
]


class TailraceError(Exception):
    """Base of every error Tailrace raises on purpose."""


class SettingsError(TailraceError):
    """A setting is wrong."""


class InvalidMessage(TailraceError):
    """A record that cannot be processed as it is.

    ``reason`` is a stable code (used in metrics and to filter dead letters), ``detail`` a sentence that says
    what is wrong and what to do.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class EncodeError(TailraceError):
    """A text could not be embedded."""


class PoisonText(EncodeError):
    """A text ended the encoder process each time it was tried."""


class TooLate(EncodeError):
    """A text was not embedded by its deadline; another time it may be."""


class DatasetError(TailraceError):
    """A data set's file cannot be read as what it should be."""


class EmbeddedStackError(TailraceError):
    """The embedded broker or Redis could not be started."""


class Forbidden(TailraceError):
    """A service does not let our user do what it has to."""


class NotAuthorized(TailraceError):
    """The broker does not allow an operation. No record's fault: nothing is dead-lettered for it."""


class SnapshotError(TailraceError):
    """A snapshot on disk cannot be used."""


class SpaceError(TailraceError):
    """A change of vector spaces cannot be made as things are."""


class TopicError(TailraceError):
    """A topic is not there, or the broker refuses to create it."""


class Unavailable(TailraceError):
    """A service is not reachable at the moment."""


class NewerVersion(Exception):
    """Something stored was written by a newer release than this one, which can neither read nor replace it.

    No :class:`TailraceError`: those who catch these go on without the record or the user, and then the record would be
    dead-lettered, or what is stored set back. The process ends instead, with nothing acknowledged, and the event is for
    a process of the newer release.
    """
