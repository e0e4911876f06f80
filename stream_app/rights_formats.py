"""The rights of :mod:`stream_app.rights` as others read them: a shell script, Strimzi's users, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from stream_app.rights import Right, grouped, summary_of

__all__ = ["default_principals", "json_lines", "kafka_script", "strimzi_users"]

_SCRIPT = """\
#!/bin/sh
# Rights on Kafka for Tailrace, the least that each needs. Generated: {command}
#
#   BOOTSTRAP=broker:9092 COMMAND_CONFIG=admin.properties sh acls.sh
#
# kafka-acls.sh comes with Apache Kafka; elsewhere it may be called kafka-acls (set KAFKA_ACLS).
set -eu
: "${{BOOTSTRAP:?set it to a broker, host:port}}"

allow() {{
  "${{KAFKA_ACLS:-kafka-acls.sh}}" --bootstrap-server "$BOOTSTRAP" \\
    ${{COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"}} --add --allow-principal "$@"
}}
"""
_WIDTH = 116
_PLAIN = re.compile(r"[A-Za-z0-9._:/-]+")


def default_principals(who: Sequence[str], prefix: str) -> dict[str, str]:
    """A principal for each: ``User:<prefix>-<who>``."""
    return {one: f"User:{prefix}-{one}" for one in who}


def kafka_script(rights: Mapping[str, Sequence[Right]], principals: Mapping[str, str], *, command: str) -> str:
    """A script with a ``kafka-acls.sh`` line for each set of operations; ``command`` is named as what made it."""
    parts = [_SCRIPT.format(command=command)]
    for who, granted in rights.items():
        parts.append(f"\n# {who}: {summary_of(who)}\n")
        for (prefixed, operations), resources in grouped(granted).items():
            words = [f"allow {_quoted(principals[who])}"]
            words += ["--resource-pattern-type prefixed"] if prefixed else []
            words += [f"--operation {operation}" for operation in operations]
            words += [f"--{resource} {_quoted(name)}" for resource, name in resources]
            parts.append(_wrapped(words))
    return "".join(parts)


def strimzi_users(
    rights: Mapping[str, Sequence[Right]], principals: Mapping[str, str], *, cluster: str, command: str
) -> str:
    """``KafkaUser`` resources with passwords that Strimzi makes (SCRAM-SHA-512), one YAML document each."""
    documents = [f"# Generated: {command}\n"]
    for who, granted in rights.items():
        lines = [
            "---",
            "apiVersion: kafka.strimzi.io/v1",
            "kind: KafkaUser",
            "metadata:",
            f"  name: {json.dumps(principals[who].removeprefix('User:'))}",
            "  labels:",
            f"    strimzi.io/cluster: {json.dumps(cluster)}",
            "spec:",
            "  authentication:",
            "    type: scram-sha-512",
            "  authorization:",
            "    type: simple",
            "    acls:",
        ]
        for (prefixed, operations), resources in grouped(granted).items():
            for resource, name in resources:
                lines += [
                    "      - resource:",
                    f"          type: {resource}",
                    f"          name: {json.dumps(name)}",
                    f"          patternType: {'prefix' if prefixed else 'literal'}",
                    f"        operations: [{', '.join(operations)}]",
                ]
        documents.append("\n".join(lines) + "\n")
    return "".join(documents)


def json_lines(rights: Mapping[str, Sequence[Right]], principals: Mapping[str, str]) -> str:
    """One object per right."""
    return "".join(
        json.dumps(
            {
                "role": who,
                "principal": principals[who],
                "resource": right.resource,
                "name": right.name,
                "pattern": "prefixed" if right.prefixed else "literal",
                "operation": right.operation,
            }
        )
        + "\n"
        for who, granted in rights.items()
        for right in granted
    )


def _quoted(word: str) -> str:
    """A word of a POSIX shell; principals of certificates have spaces, commas and equals signs."""
    return word if _PLAIN.fullmatch(word) else "'" + word.replace("'", "'\\''") + "'"


def _wrapped(words: Sequence[str]) -> str:
    lines, line = [], words[0]
    for word in words[1:]:
        if len(line) + len(word) + 3 > _WIDTH:
            lines.append(line + " \\")
            line = "    " + word
        else:
            line += " " + word
    return "\n".join([*lines, line]) + "\n"
