"""Rights on the broker: complete, least, printed in three forms, and the committed copies are current."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from stream_app.app import ROLES
from stream_app.cli.root import root
from stream_app.delivery.rights import allowed_operations
from stream_app.rights import WHO, Right, rights_of
from stream_app.rights_formats import default_principals, json_lines, kafka_script, strimzi_users
from stream_app.settings import Settings, load_settings
from stream_app.topics import TOPICS

DEPLOY = Path(__file__).parents[2] / "deploy"
OTHERS = ("producer", "reader", "keda", "operator")


@pytest.fixture
def settings() -> Settings:
    return load_settings(topics={"prefix": "shop"})


def told(settings: Settings) -> dict[str, tuple[Right, ...]]:
    return {who: rights_of(who, settings) for who in WHO}


def topics_with(rights: tuple[Right, ...], operation: str) -> set[str]:
    return {right.name for right in rights if right.resource == "topic" and right.operation == operation}


def test_every_role_and_everybody_around_them_is_there():
    assert set(WHO) == {*ROLES, *OTHERS}


def test_every_name_is_of_the_registry_under_the_configured_prefix(settings: Settings):
    known = {f"shop.{topic.name}" for topic in TOPICS}
    for who, rights in told(settings).items():
        for right in rights:
            if right.resource == "group":
                assert right.name.startswith("shop-")
            elif who == "operator":
                assert right.name in known | {"shop.", "shop.item-vectors.v1."}
            else:
                assert right.name in known


def test_every_topic_has_somebody_who_writes_and_somebody_who_reads_it(settings: Settings):
    roles = [rights_of(role, settings) for role in ROLES]
    written = set().union(*(topics_with(rights, "Write") for rights in roles))
    read = set().union(*(topics_with(rights, "Read") for rights in roles))
    for topic in TOPICS:
        name = f"shop.{topic.name}"
        assert (name in written) == (topic.direction != "in"), "what comes in is written by producers alone"
        # Letters are for people; everything else is for somebody.
        assert (name in read) == (topic.name != "dead-letter.v1")


def test_nobody_but_the_operator_may_create_delete_or_configure_anything(settings: Settings):
    for who, rights in told(settings).items():
        if who != "operator":
            assert {right.operation for right in rights} <= ({"Describe"} if who == "keda" else {"Read", "Write"})
        assert not any(right.prefixed and right.operation == "Delete" and right.name == "shop." for right in rights)


def test_a_producer_reads_nothing_and_a_reader_writes_nothing(settings: Settings):
    assert not topics_with(rights_of("producer", settings), "Read")
    assert topics_with(rights_of("reader", settings), "Read") == {"shop.recommendations.v1"}
    assert not topics_with(rights_of("reader", settings), "Write")


def test_keda_sees_how_far_behind_the_scaled_roles_are_and_reads_nothing(settings: Settings):
    rights = rights_of("keda", settings)
    assert {(right.resource, right.name) for right in rights} == {
        ("group", "shop-interactions"),
        ("topic", "shop.interactions.v1"),
        ("group", "shop-items"),
        ("topic", "shop.transitions.v1"),
        ("group", "shop-catalogue"),
        ("topic", "shop.items.v1"),
    }
    assert {(right.operation, right.prefixed) for right in rights} == {("Describe", False)}


def test_a_prefixed_right_covers_what_begins_so_and_a_literal_one_only_its_name():
    right = Right(resource="topic", name="shop.item-vectors.v1", prefixed=True, operation="Write")
    assert right.covers("topic", "shop.item-vectors.v1.3")
    assert not right.covers("topic", "shop.items.v1")
    assert not right.covers("group", "shop.item-vectors.v1")
    literal = Right(resource="group", name="shop-items", prefixed=False, operation="Read")
    assert literal.covers("group", "shop-items")
    assert not literal.covers("group", "shop-items-2")


def stated_by_script(script: str) -> set[tuple[str, bool, str, str, str]]:
    """What the commands of a script grant: principal, whether prefixed, operation, kind and name of the resource."""
    found = set()
    for line in script.replace("\\\n", "").splitlines():
        if not line.startswith("allow User"):
            continue
        words = iter(shlex.split(line)[1:])
        principal, prefixed, operations, resources = next(words), False, [], []
        for option in words:
            value = next(words)
            if option == "--resource-pattern-type":
                prefixed = value == "prefixed"
            elif option == "--operation":
                operations.append(value)
            else:
                resources.append((option.removeprefix("--"), value))
        found |= {(principal, prefixed, one, *resource) for one in operations for resource in resources}
    return found


def test_the_three_forms_say_the_same(settings: Settings):
    rights = told(settings)
    principals = default_principals(WHO, "shop")
    wanted = {
        (principals[who], right.prefixed, right.operation, right.resource, right.name)
        for who in WHO
        for right in rights[who]
    }
    assert stated_by_script(kafka_script(rights, principals, command="test")) == wanted
    by_json = [json.loads(line) for line in json_lines(rights, principals).splitlines()]
    assert {
        (one["principal"], one["pattern"] == "prefixed", one["operation"], one["resource"], one["name"])
        for one in by_json
    } == wanted
    assert len(by_json) == len(wanted)
    users = [
        user for user in yaml.safe_load_all(strimzi_users(rights, principals, cluster="main", command="t")) if user
    ]
    assert {
        (f"User:{user['metadata']['name']}", acl["resource"]["patternType"] == "prefix", operation,
         acl["resource"]["type"], acl["resource"]["name"])
        for user in users
        for acl in user["spec"]["authorization"]["acls"]
        for operation in acl["operations"]
    } == wanted  # fmt: skip
    assert all(user["metadata"]["labels"] == {"strimzi.io/cluster": "main"} for user in users)


def test_the_script_gives_kafka_acls_what_it_says(settings: Settings, tmp_path: Path):
    tool = tmp_path / "kafka-acls"
    tool.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\nprintf "\\n"\n')
    tool.chmod(0o755)
    principal = "User:CN=it's ours,OU=$HOME"
    script = tmp_path / "acls.sh"
    script.write_text(kafka_script({"reader": rights_of("reader", settings)}, {"reader": principal}, command="test"))
    environment = {"PATH": "/bin:/usr/bin", "KAFKA_ACLS": str(tool), "BOOTSTRAP": "b:1", "COMMAND_CONFIG": "a b"}
    run = subprocess.run(["sh", script], env=environment, capture_output=True, text=True, check=True)
    first = run.stdout.split("\n\n")[0].splitlines()
    assert first[:7] == [
        "--bootstrap-server",
        "b:1",
        "--command-config",
        "a b",
        "--add",
        "--allow-principal",
        principal,
    ]
    del environment["BOOTSTRAP"]
    refused = subprocess.run(["sh", script], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "BOOTSTRAP" in refused.stderr


NOT_TOLD = -(2**31)
READ_AND_DESCRIBE = 1 << 3 | 1 << 8


@pytest.mark.parametrize(
    ("error_code", "operations", "allowed"),
    [
        (0, READ_AND_DESCRIBE, READ_AND_DESCRIBE),
        (29, NOT_TOLD, 0),
        (30, NOT_TOLD, 0),
        (0, NOT_TOLD, NOT_TOLD),
        (0, 0, NOT_TOLD),
        (0, 1 << 3, NOT_TOLD),
        (3, NOT_TOLD, NOT_TOLD),
        (15, 0, NOT_TOLD),
    ],
)
def test_only_what_a_broker_tells_counts_as_missing(error_code: int, operations: int, allowed: int):
    assert allowed_operations(error_code, operations) == allowed


@pytest.mark.parametrize(("file", "form"), [("kafka/acls.sh", "kafka"), ("strimzi/users.yaml", "strimzi")])
def test_the_committed_copy_is_current(file: str, form: str):
    printed = CliRunner().invoke(root, ["topics", "acls", "--format", form])
    assert printed.exit_code == 0
    command = f"tailrace topics acls --format {form} > deploy/{file}"
    assert (DEPLOY / file).read_text() == printed.output, f"renew it: {command}"


def test_one_role_can_be_granted_to_somebody_else():
    arguments = ["topics", "acls", "--format", "json", "--role", "items", "--principal", "User:CN=items,O=Shop"]
    printed = [json.loads(line) for line in CliRunner().invoke(root, arguments).output.splitlines()]
    assert len(printed) == len(rights_of("items", load_settings()))
    assert {(one["role"], one["principal"]) for one in printed} == {("items", "User:CN=items,O=Shop")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--role", "item"],
            "item: there are catalogue, items, ranker, interactions, producer, reader, keda, operator",
        ),
        (["--principal", "User:x"], "--principal goes with one --role"),
    ],
)
def test_what_cannot_be_printed_is_said(arguments: list[str], said: str):
    refused = CliRunner().invoke(root, ["topics", "acls", *arguments])
    assert refused.exit_code == 2
    assert said in refused.output
