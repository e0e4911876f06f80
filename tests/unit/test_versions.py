"""What lets two releases run side by side: every message and state says or implies its version, a golden copy of each
that was ever published is read, and what a later release adds is passed over.

Golden bytes are never made again to have a test pass. A new field gets a new golden message beside the old ones; a new
state version gets a file ``users/v<n>.hex`` and whoever reads older ones goes on reading them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import orjson
import pytest
import zstandard

from schemas import decode
from stream_app.errors import InvalidMessage, NewerVersion
from stream_app.topics import TOPICS
from stream_app.users.state import STATE_VERSION, UserState, decode_state, encode_state
from tests.unit.test_schemas_contract import GOLDEN, MESSAGES, decode_golden

STATES = GOLDEN.parent / "users"


def structs_of(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """Every message type within a type."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for hint in get_type_hints(kind).values():
            yield from structs_of(hint)
    for part in get_args(kind):
        yield from structs_of(part)


def test_every_field_of_every_message_is_in_a_golden_one() -> None:
    """A field that is added without one fails here."""
    for topic in TOPICS:
        paths = [path for path in MESSAGES if path.name.partition(".")[0] == topic.name.removesuffix(".v1")]
        seen = [message for path in paths for message in within(decode_golden(path))]
        for kind in dict.fromkeys(structs_of(topic.message)):
            of_kind = [message for message in seen if isinstance(message, kind)]
            fields = msgspec.structs.fields(kind)
            written = {name for message in of_kind for name in orjson.loads(decode.encode(message))}
            lacking = [one.encode_name for one in fields if one.encode_name not in written]
            assert not lacking, f"{topic.name}: no golden message has {kind.__name__}.{', '.join(lacking)}"


def within(value: Any) -> Iterator[msgspec.Struct]:
    if isinstance(value, msgspec.Struct):
        yield value
        for name in value.__struct_fields__:
            yield from within(getattr(value, name))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from within(one)


RULES = [path for path in MESSAGES if path.name.startswith("rules.")]


@pytest.mark.parametrize("path", [path for path in MESSAGES if path not in RULES], ids=lambda path: path.stem)
def test_what_a_later_release_adds_is_passed_over(path: Path, tmp_path: Path) -> None:
    later = tmp_path / path.name
    later.write_bytes(orjson.dumps(with_more(orjson.loads(path.read_bytes()))))
    assert decode.encode(decode_golden(later)) == path.with_suffix(".encoded").read_bytes()


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_a_rule_with_a_field_nobody_knows_is_refused(path: Path, tmp_path: Path) -> None:
    """People write them: a word that is not understood may be the one that says to whom the rule applies."""
    later = tmp_path / path.name
    later.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "onlly_for": ["a"]}))
    with pytest.raises(InvalidMessage, match="no such field"):
        decode_golden(later)


def with_more(value: Any) -> Any:
    """A field nobody knows yet in each object of ours. What is the producer's own, and what is named by the data, are
    none."""
    if isinstance(value, list):
        return [with_more(one) for one in value]
    if not isinstance(value, dict):
        return value
    free = {"attributes", "context", "params", "applied", "encoder"}
    changed = {key: one if key in free else with_more(one) for key, one in value.items()}
    return {**changed, "field_of_a_later_release": {"a": [1, None]}}


def test_every_version_of_a_users_state_has_golden_bytes() -> None:
    assert {path.stem for path in STATES.glob("*.hex")} == {f"v{number}" for number in range(1, STATE_VERSION + 1)}


@pytest.mark.parametrize("version", range(1, STATE_VERSION + 1))
def test_states_of_every_version_are_read_and_written_anew(version: int) -> None:
    golden = bytes.fromhex((STATES / f"v{version}.hex").read_text())
    state = decode_state("u", golden)
    assert (state.events, state.applied, state.history[0].item_id) == (2, {0: 8}, "a")
    assert 12 in state.consumed
    anew = encode_state(state)
    assert anew[0] == STATE_VERSION
    assert decode_state("u", anew) == state


@pytest.mark.parametrize("version", [STATE_VERSION + 1, STATE_VERSION + 2, 0x1F])
def test_a_state_of_a_newer_release_is_no_broken_one(version: int) -> None:
    with pytest.raises(NewerVersion, match=f"'u' has version {version}.*upgrade this process"):
        decode_state("u", bytes([version]) + b"in a form nobody knows yet")


def test_a_state_says_nothing_its_version_does_not_have() -> None:
    """Its fields by place: one more is another version, or older processes would write it away unseen."""
    state = UserState("u", consumed={12: math.inf}, applied={0: 8}, events=2)
    packed = msgspec.msgpack.decode(zstd(encode_state(state)[1:]), strict=True)
    kinds = [list, bytes, bytes, bytes, dict, int, dict, type(None), dict, float, dict, list, dict, list]
    assert [type(one) for one in packed] == kinds


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data)
