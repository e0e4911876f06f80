"""The published contract is what the code does: generated documents, golden messages, and both against each other.

Golden messages are never regenerated to make a test pass: a change of their bytes is a change of the contract. A
new message version gets new files, and the old ones still have to be decoded.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import orjson
import pytest

import schemas
from schemas import decode, generate
from stream_app.errors import InvalidMessage
from stream_app.settings import DEFAULT_EVENT_TYPES
from stream_app.topics import TOPICS

GOLDEN = Path(__file__).parents[1] / "golden" / "messages"
SCHEMAS = Path(schemas.__file__).parent
MESSAGES = sorted(GOLDEN.glob("*.json"))
KEYS = {
    "interactions": "user_id",
    "users": "user_id",
    "recommendations": "user_id",
    "ranker-weights": "variant",
    "factor-basis": "space",
    "rules": "rule_id",
    "spaces": "space",
}


def decode_golden(path: Path) -> msgspec.Struct:
    """The message in a golden file, decoded as its topic's records are."""
    value, name = path.read_bytes(), path.name.partition(".")[0]
    key = str(orjson.loads(value).get(KEYS.get(name, "item_id"))).encode()
    now = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
    message: Any
    match name:
        case "items":
            _, message = decode.decode_item(key, value)
        case "interactions":
            message = decode.decode_interaction(
                key, value, event_types=DEFAULT_EVENT_TYPES, now=now, oldest=0.0, future_tolerance_s=0.0
            )
        case "users":
            _, message = decode.decode_user(key, value)
        case "rules":
            _, message = decode.decode_rule(key, value)
        case "recommendations":
            _, message = decode.decode_slate(key, value)
        case "dead-letter":
            message = decode.decode_dead_letter(value)
        case "item-vectors":
            _, message = decode.decode_item_vector(key, value)
        case "spaces":
            _, message = decode.decode_vector_space(key, value)
        case "space-control":
            message = decode.decode_space_control(b"spaces", value)
        case "item-signals":
            _, message = decode.decode_item_signals(key, value)
        case "ranker-weights":
            _, message = decode.decode_ranker_weights(key, value)
        case "item-factors":
            _, message = decode.decode_item_factors(key, value)
        case "factor-basis":
            _, message = decode.decode_factor_basis(key, value)
        case "transitions":
            message = decode.decode_transitions(value)
        case "training-examples":
            message = decode.decode_training_examples(value)
        case _:
            raise AssertionError(f"no decoder for {name}")
    assert isinstance(message, msgspec.Struct)
    return message


def validator(name: str) -> Any:
    schema = json.loads((SCHEMAS / "v1" / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_generated_documents_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_drift_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(generate, "_ROOT", tmp_path)
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "v1" / "items.json").write_text("{}")
    (tmp_path / "v1" / "gone.json").write_text("{}")
    capsys.readouterr()
    assert generate.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert "items.json is out of date" in said
    assert "gone.json is out of date" in said
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


def test_every_topic_has_a_golden_message() -> None:
    assert {path.name.partition(".")[0] for path in MESSAGES} == {topic.name.removesuffix(".v1") for topic in TOPICS}


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_golden_message_is_valid_by_schema_and_decodes_to_its_bytes(path: Path) -> None:
    expected = path.with_suffix(".encoded").read_bytes()
    name = path.name.partition(".")[0]
    message = decode_golden(path)
    assert decode.encode(message) == expected
    assert decode_golden(path.with_suffix(".encoded")) == message
    for document in (path.read_bytes(), expected):
        validator(name).validate(orjson.loads(document))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("items.minimal", {"item_id": 42}),
        ("items.minimal", {"item_id": ""}),
        ("items.minimal", {"item_id": "a\n"}),
        ("items.minimal", {"item_id": "x" * 257}),
        ("items.minimal", {"title": None}),
        ("items.minimal", {"price": -1}),
        ("items.minimal", {"categories": ["a"] * 65}),
        ("items.minimal", {"attributes": []}),
        ("interactions.visit", {"user_id": 4}),
        ("interactions.visit", {"position": -1}),
        ("interactions.visit", {"items": ["a", 1]}),
        ("users.full", {"user_id": ""}),
        ("users.full", {"interests": "lamps"}),
        ("users.full", {"liked_items": [1]}),
        ("users.full", {"blocked_items": ["x"] * 1_001}),
        ("users.full", {"language": 5}),
        ("recommendations.slate", {"items": [{"item_id": "a"}]}),
        ("dead-letter.not-json", {"attempts": 0}),
    ],
)
def test_schema_and_decoder_refuse_the_same(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    document = {**orjson.loads((GOLDEN / f"{name}.json").read_bytes()), **changes}
    assert not validator(name.partition(".")[0]).is_valid(document)
    wrong = tmp_path / f"{name}.json"
    wrong.write_bytes(orjson.dumps(document))
    with pytest.raises(InvalidMessage):
        decode_golden(wrong)


def test_asyncapi_describes_every_topic_with_its_key_and_schema() -> None:
    document = json.loads((SCHEMAS / "asyncapi.json").read_text())
    assert document["asyncapi"] == "3.0.0"
    for topic in TOPICS:
        name = topic.name.removesuffix(".v1")
        channel, message = document["channels"][name], document["components"]["messages"][name]
        assert channel["address"] == f"{{prefix}}.{topic.name}"
        policy = channel["bindings"]["kafka"]["topicConfiguration"]["cleanup.policy"]
        assert policy == ["compact" if topic.compacted else "delete"]
        assert message["bindings"]["kafka"]["key"]["description"] == topic.key
        assert (SCHEMAS / message["payload"]["schema"]["$ref"]).is_file()


def test_asyncapi_references_lead_somewhere() -> None:
    document = json.loads((SCHEMAS / "asyncapi.json").read_text())

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for value in node for found in references(value)] if isinstance(node, list) else []

    for reference in references(document):
        if reference.startswith("#/"):
            node = document
            for step in reference[2:].split("/"):
                node = node[step]


def test_public_fields_are_described() -> None:
    """A producer reads the schema, not our code."""
    for topic in TOPICS:
        if topic.public:
            schema = json.loads((SCHEMAS / "v1" / f"{topic.name.removesuffix('.v1')}.json").read_text())
            undescribed = [
                name
                for name, field in schema["properties"].items()
                if "description" not in field
                and "$ref" not in field
                and not any("description" in option for option in field.get("anyOf", ()))
            ]
            assert not undescribed, topic.name


def test_contract_page_names_every_topic_and_every_reason() -> None:
    page = (SCHEMAS.parent / "docs" / "contracts.md").read_text()
    for topic in TOPICS:
        assert f"`{topic.name}`" in page
    for reason, meaning in decode.REASONS.items():
        assert f"| `{reason}` | {meaning} |" in page


def test_examples_of_the_contract_page_are_valid() -> None:
    page = (SCHEMAS.parent / "docs" / "contracts.md").read_text()
    item, interaction = (block.split("```")[0] for block in page.split("```json\n")[1:])
    validator("items").validate(json.loads(item))
    validator("interactions").validate(json.loads(interaction))
    assert decode.parse_item(item.encode())
    assert decode.parse_interaction(
        interaction.encode(), event_types=DEFAULT_EVENT_TYPES, now=2e9, oldest=0, future_tolerance_s=0
    )
