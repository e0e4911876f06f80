"""Which models' vector spaces are kept and which one is served: what every change of that makes of the record that says
so. Pure; :mod:`stream_app.replicas.spaces` reads and writes it.

There is one record (``space-control.v1``) and it says everything, so that a change is one message: whoever has read it
is in the new state, whoever has not is in the old one, and nothing is in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from schemas.messages import ModelSpace, SpaceControl
from stream_app.errors import SpaceError

__all__ = [
    "MOST_SPACES",
    "EncoderValue",
    "cut_over",
    "find_space",
    "first_control",
    "retire",
    "roll_back",
    "served_space",
    "with_space",
]

EncoderValue = str | int | float | bool | None
MOST_SPACES = 3
"""Served, served before, and being built: each is an index in every process and a share of the encoders."""


def first_control(space: str, dimensions: int, encoder: Mapping[str, EncoderValue] | None = None) -> SpaceControl:
    """What holds where nobody ever changed anything: the settings' model, in ``item-vectors.v1``.

    Args:
        encoder: settings of the encoder that decide its vectors.
    """
    first = ModelSpace(space=space, dimensions=dimensions, number=0, encoder=dict(encoder or {}))
    return SpaceControl(version=1, serving=space, spaces=[first], next_number=1)


def served_space(control: SpaceControl) -> ModelSpace:
    """The space that slates are made in."""
    return find_space(control, control.serving)


def find_space(control: SpaceControl, name: str) -> ModelSpace:
    """The space with this name, its number, or a beginning of its name that no other has.

    Raises:
        SpaceError: when it is none, or one of several.
    """
    exact = [one for one in control.spaces if name in (one.space, str(one.number))]
    found = exact or [one for one in control.spaces if one.space.startswith(name)]
    if len(found) != 1 or not name:
        kept = ", ".join(f"{one.number} ({one.space})" for one in control.spaces)
        raise SpaceError(f"{name!r} is {'several' if found and name else 'none'} of the spaces: {kept}")
    return found[0]


def with_space(
    control: SpaceControl,
    space: str,
    dimensions: int,
    encoder: Mapping[str, EncoderValue],
    *,
    at: datetime,
    number: int | None = None,
) -> SpaceControl:
    """A further space, to be built beside the one that is served.

    Args:
        encoder: settings of the encoder that decide its vectors.
        number: of the space, ``next_number`` at least; None: that.

    Raises:
        SpaceError: when it is there already, or there is no place for it.
    """
    if any(one.space == space for one in control.spaces):
        raise SpaceError(f"the space {space} is there already: tailrace spaces list")
    if len(control.spaces) >= MOST_SPACES:
        spare = [one for one in control.spaces if one.space != control.serving]
        raise SpaceError(
            f"{MOST_SPACES} spaces are kept at most; retire one first, for example: tailrace spaces retire "
            f"{spare[0].number}"
        )
    number = max(control.next_number, number or 0)
    added = ModelSpace(space=space, dimensions=dimensions, number=number, encoder=dict(encoder))
    return _changed(control, at, spaces=[*control.spaces, added], next_number=number + 1)


def cut_over(control: SpaceControl, space: str, *, at: datetime) -> SpaceControl:
    """The same with another space served.

    Raises:
        SpaceError: when there is no such space, or it is served.
    """
    target = find_space(control, space).space
    if target == control.serving:
        raise SpaceError(f"{target} is served already")
    return _changed(control, at, serving=target, previous=control.serving)


def roll_back(control: SpaceControl, *, at: datetime) -> SpaceControl:
    """Back to the space that was served before.

    Raises:
        SpaceError: when there was none, or it is retired.
    """
    if not control.previous:
        raise SpaceError("nothing was served before that is still kept: there is nothing to go back to")
    return cut_over(control, control.previous, at=at)


def retire(control: SpaceControl, space: str, *, at: datetime) -> SpaceControl:
    """The same without a space.

    Raises:
        SpaceError: when there is no such space, or it is served.
    """
    gone = find_space(control, space).space
    if gone == control.serving:
        raise SpaceError(f"{gone} is served; cut over to another one first: tailrace spaces cutover")
    previous = "" if control.previous == gone else control.previous
    return _changed(control, at, spaces=[one for one in control.spaces if one.space != gone], previous=previous)


def _changed(control: SpaceControl, at: datetime, **fields: object) -> SpaceControl:
    return msgspec.structs.replace(control, version=control.version + 1, changed_at=at, **fields)
