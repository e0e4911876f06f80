"""A release to come, as a process: ``python -m tests.integration.next_release up --role ...``.

It writes users' states as version n+1, in a form this release cannot read, and reads both. Everything else is as it is.
"""

from __future__ import annotations

import sys

from stream_app.users import state

NEXT = state.STATE_VERSION + 1
_PREFIX = bytes([NEXT]) + b"in a form of its own: "
_encode, _decode = state.encode_state, state.decode_state


def encode_next(user: state.UserState) -> bytes:
    """The state as the next release writes it."""
    return _PREFIX + _encode(user)


def decode_next(user_id: str, data: bytes) -> state.UserState:
    """A state of the next release or of this one."""
    return _decode(user_id, data.removeprefix(_PREFIX))


if __name__ == "__main__":
    state.STATE_VERSION, state.encode_state, state.decode_state = NEXT, encode_next, decode_next
    # Only now: who imports these takes what is there.
    from stream_app.cli import main

    sys.exit(main())
