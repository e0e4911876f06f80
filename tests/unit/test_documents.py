"""What the documents name is there: files, commands, settings, metrics, topics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from stream_app.cli.root import root
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.topics import TOPICS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")])
OPERATIONS = ROOT / "docs" / "operations.md"

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"(?:^    (?:\w+=\S+ )*|`)tailrace ((?:--\w+ [^\s`]+ )*[a-z][^`#\n]*)", re.MULTILINE)
_VARIABLE = re.compile(r"\bTAILRACE_[A-Z_]+\b")
_DOTTED = re.compile(r"`([a-z_]+)\.([a-z_0-9]+)`")


def slug(heading: str) -> str:
    """The anchor GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_project_lead_somewhere(document: Path) -> None:
    for target in _LINK.findall(document.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), f"{document.name} links to {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{document.name} links to {target}"


def commands() -> Iterator[tuple[Path, str]]:
    for document in DOCUMENTS:
        for text in _COMMAND.findall(document.read_text(encoding="utf-8")):
            yield document, re.sub(r"^(--\w+ \S+ )+", "", text).split("&&")[0].strip()


def test_commands_and_their_options_exist() -> None:
    seen = 0
    for document, text in commands():
        words = text.split()
        command: click.Command = root
        names: list[str] = []
        while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z|-]+", words[0]):
            context = click.Context(command)
            for name in words[0].split("|"):
                found = command.get_command(context, name)
                assert found is not None, f"{document.name}: tailrace {text}"
            names.append(words.pop(0))
            command = found
        options = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"--[a-z-]+", " ".join(words)):
            assert option in options, f"{document.name}: tailrace {text}: there is no {option}"
        seen += 1
    assert seen > 20


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Names of all settings, dotted."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")


def test_settings_named_in_the_documents_exist() -> None:
    names = set(fields(Settings))
    groups = {name.partition(".")[0] for name in names if "." in name}
    variables = {"TAILRACE_" + name.replace(".", "__").upper() for name in names}
    elsewhere = {"TAILRACE_CONFIG", "TAILRACE_KAFKA_JARS", "TAILRACE_"}
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for group, field in _DOTTED.findall(text):
            if group in groups and field not in {"v1", "py"}:
                assert f"{group}.{field}" in names, f"{document.name}: {group}.{field}"
        assert set(_VARIABLE.findall(text)) <= variables | elsewhere, document.name


def test_every_metric_is_explained_and_every_explained_metric_exists() -> None:
    own = {metric.name for metric in Metrics().registry.collect() if metric.name.startswith("tailrace_")}
    text = OPERATIONS.read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(tailrace_\w+)` \|", text, re.MULTILINE))
    assert explained == own
    named = {name.removesuffix("_total").removesuffix("_count") for name in re.findall(r"\btailrace_\w+", text)}
    assert named <= own


@pytest.mark.parametrize("document", ["docs/operations.md", "deploy/README.md"])
def test_topic_tables_are_those_of_the_registry(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for topic in TOPICS:
        row = re.search(rf"^\| `{re.escape(topic.name)}` \|.*$", text, re.MULTILINE)
        assert row, f"{document} lacks {topic.name}"
        assert ("compact" in row[0]) == topic.compacted, row[0]
        assert ("LogAppendTime" in row[0]) == ("message.timestamp.type" in topic.config), row[0]
        if topic.partitions is not None:
            assert f"| {topic.partitions} |" in row[0], row[0]
