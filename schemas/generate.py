"""JSON Schema and AsyncAPI from the typed messages and the registry of topics.

``python -m schemas.generate`` writes ``schemas/v1/<name>.json`` (JSON Schema, draft 2020-12) for every topic and
``schemas/asyncapi.json`` (AsyncAPI 3.0); ``--check`` writes nothing and fails when a file is not what would be
written. A test runs the check, so the published contract cannot drift from the code.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas.cloudevents import SPEC_VERSION, event_type
from stream_app import __version__
from stream_app.topics import TOPICS, Topic

__all__ = ["documents", "main"]

_ROOT: Final = Path(__file__).resolve().parent
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_SCHEMA_FORMAT: Final = "application/schema+json;version=draft-2020-12"


def documents() -> dict[Path, str]:
    """Every generated file: its path, and the text it must have."""
    made: dict[str, Any] = {f"v1/{_name(topic)}.json": _json_schema(topic) for topic in TOPICS}
    made["asyncapi.json"] = _asyncapi()
    return {_ROOT / path: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for path, document in made.items()}


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with ``--check`` say which are out of date; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m schemas.generate", description="Generate the contract's documents."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    check = parser.parse_args(arguments).check
    wanted = documents()
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    left_over = [path for path in (_ROOT / "v1").glob("*.json") if path not in wanted]
    if check:
        for path in [*stale, *left_over]:
            sys.stderr.write(f"{path.relative_to(_ROOT.parent)} is out of date: run python -m schemas.generate\n")
        return 1 if stale or left_over else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(wanted[path])
    for path in left_over:
        path.unlink()
    return 0


def _name(topic: Topic) -> str:
    """``items`` of ``items.v1``."""
    return topic.name.removesuffix(".v1")


def _title(topic: Topic) -> str:
    """``Item vectors`` of ``item-vectors.v1``."""
    return _name(topic).replace("-", " ").capitalize()


def _json_schema(topic: Topic) -> dict[str, Any]:
    """A schema that stands alone: the message's own keywords at the root, what it refers to under ``$defs``."""
    (reference,), definitions = msgspec.json.schema_components([topic.message])
    root_name = reference["$ref"].rpartition("/")[2]
    root = definitions.pop(root_name)
    schema = {
        "$schema": _DIALECT,
        "$id": f"urn:tailrace:schema:{topic.name}",
        **root,
    }
    if definitions:
        schema["$defs"] = definitions
    plain: dict[str, Any] = _plain_text(schema)
    return plain


def _plain_text(node: Any) -> Any:
    """``node`` with descriptions as plain text: one paragraph, no reStructuredText quotes."""
    if isinstance(node, dict):
        return {
            key: " ".join(value.replace("``", "`").split())
            if key == "description" and isinstance(value, str)
            else _plain_text(value)
            for key, value in node.items()
        }
    return [_plain_text(value) for value in node] if isinstance(node, list | tuple) else node


def _asyncapi() -> dict[str, Any]:
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tailrace",
            "version": __version__,
            "description": "A streaming recommender: a catalogue and user events go in, a current slate for every user "
            "comes out. Operations are named from Tailrace's side: what it receives, others send.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka",
                "description": "Any Kafka-compatible broker (setting kafka, TAILRACE_KAFKA).",
                "variables": {
                    "bootstrap": {"default": "127.0.0.1:9092", "description": "Bootstrap server, host:port."}
                },
            }
        },
        "channels": {_name(topic): _channel(topic) for topic in TOPICS},
        "operations": {name: operation for topic in TOPICS for name, operation in _operations(topic).items()},
        "components": {
            "messages": {_name(topic): _message(topic) for topic in TOPICS},
            "schemas": {"cloudEventHeaders": _headers_schema()},
        },
    }


def _channel(topic: Topic) -> dict[str, Any]:
    binding: dict[str, Any] = {
        "topicConfiguration": {"cleanup.policy": ["compact" if topic.compacted else "delete"]},
        "bindingVersion": "0.5.0",
    }
    if topic.partitions is not None:
        binding["partitions"] = topic.partitions
    audience = "Part of the contract." if topic.public else "Internal: may change with any release."
    return {
        "address": f"{{prefix}}.{topic.name}",
        "title": _title(topic),
        "summary": topic.summary,
        "description": audience,
        "parameters": {"prefix": {"default": "tailrace", "description": "Setting topics.prefix."}},
        "messages": {_name(topic): {"$ref": f"#/components/messages/{_name(topic)}"}},
        "bindings": {"kafka": binding},
    }


def _operations(topic: Topic) -> dict[str, Any]:
    actions = {"in": ("receive",), "out": ("send",), "internal": ("send", "receive")}[topic.direction]
    camel = _title(topic).title().replace(" ", "")
    return {
        f"{action}{camel}": {
            "action": action,
            "channel": {"$ref": f"#/channels/{_name(topic)}"},
            "summary": f"Tailrace {action}s: {topic.summary}",
            "messages": [{"$ref": f"#/channels/{_name(topic)}/messages/{_name(topic)}"}],
        }
        for action in actions
    }


def _message(topic: Topic) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": event_type(_name(topic)),
        "title": _title(topic),
        "summary": topic.summary,
        "contentType": "application/json",
        "payload": {"schemaFormat": _SCHEMA_FORMAT, "schema": {"$ref": f"./v1/{_name(topic)}.json"}},
        "bindings": {"kafka": {"key": {"type": "string", "description": topic.key}, "bindingVersion": "0.5.0"}},
    }
    if topic.public:
        message["headers"] = {"$ref": "#/components/schemas/cloudEventHeaders"}
    if topic.compacted:
        message["description"] = "A null value (tombstone) removes what the key stands for."
    return message


def _headers_schema() -> dict[str, Any]:
    """CloudEvents attributes, binary mode; all optional, for producers that do not know them."""

    def text(description: str, **more: Any) -> dict[str, Any]:
        return {"type": "string", "description": description, **more}

    return {
        "type": "object",
        "description": "CloudEvents attributes, binary mode. Optional; without ce_type, version 1 is assumed.",
        "properties": {
            "ce_specversion": text("Version of CloudEvents.", const=SPEC_VERSION),
            "ce_id": text("Unique per source."),
            "ce_type": text("tailrace.<message>.v1; anything else is refused.", pattern=r"^tailrace\.[a-z-]+\.v1$"),
            "ce_source": text("Who made it, a URI reference.", format="uri-reference"),
            "ce_time": text("When it happened.", format="date-time"),
            "ce_subject": text("What it is about, for example a user id."),
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
