"""From records of ``interactions.v1`` and ``users.v1`` to what is folded into users' states.

The interactions role and a rebuild read the same records with this, so that they fold the same.
"""

from __future__ import annotations

from datetime import datetime

from schemas.decode import decode_interaction, decode_user
from schemas.messages import Interaction
from stream_app.delivery.records import InRecord
from stream_app.settings import Settings
from stream_app.textify import Textifier
from stream_app.users.profiles import profile_of
from stream_app.users.stage import SourcedEvent, SourcedProfile

__all__ = ["Sources"]


class Sources:
    """Decodes with the settings bound once.

    Args:
        settings: the table of event types, how old and how far ahead an event may be, what is kept of words.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._textifier = Textifier.of(settings.textify)
        self._oldest = datetime.fromisoformat(settings.events.oldest).timestamp()

    def event(self, record: InRecord, now: float) -> SourcedEvent:
        """A record of ``interactions.v1``.

        Args:
            now: when the record was appended (seconds since 1970); events too far ahead of it are refused.

        Raises:
            InvalidMessage: see ``decode_interaction``.
        """
        return SourcedEvent(self.interaction(record, now), record.partition, record.offset, record.timestamp_s)

    def interaction(self, record: InRecord, now: float) -> Interaction:
        """What a record of ``interactions.v1`` says; as :meth:`event`."""
        return decode_interaction(
            record.key,
            record.value,
            record.headers,
            event_types=self._settings.event_types,
            now=now,
            oldest=self._oldest,
            future_tolerance_s=self._settings.events.future_tolerance_s,
        )

    def profile(self, record: InRecord) -> SourcedProfile:
        """A record of ``users.v1``.

        Raises:
            InvalidMessage: see ``decode_user``.
        """
        user_id, user = decode_user(record.key, record.value, record.headers)
        profile = None if user is None else profile_of(user, self._settings.users, self._textifier)
        return SourcedProfile(user_id, profile, record.partition, record.offset, record.timestamp_s)
