"""``tailrace topics``: create the topics of the contract, compare those on the broker with it, print them for an
operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stream_app.delivery.admin import TopicState

__all__ = ["topics"]


@click.group()
def topics() -> None:
    """Create topics, and compare them with the contract."""


@topics.command()
def create() -> None:
    """Create the topics that are missing. Existing ones are left as they are."""
    from stream_app.cli.console import run
    from stream_app.delivery.admin import create_topics
    from stream_app.settings import load_settings

    settings = load_settings()
    _print(run(create_topics(settings)), kafka=settings.kafka)


@topics.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per topic.")
def list_(as_json: bool) -> None:
    """Show the topics, and where they differ from the contract."""
    from stream_app.cli.console import run, to_json
    from stream_app.delivery.admin import describe_topics
    from stream_app.settings import load_settings

    settings = load_settings()
    states = run(describe_topics(settings))
    if not as_json:
        _print(states, kafka=settings.kafka)
        return
    for state in states:
        click.echo(
            to_json(
                {
                    "name": state.name,
                    "partitions": state.partitions,
                    "config": {name: state.config.get(name) for name in state.wanted_config},
                    "differences": [{"severity": one.severity, "text": one.text} for one in state.differences],
                }
            )
        )


@topics.command()
@click.argument("partitions", type=click.IntRange(2, 10_000))
def grow(partitions: int) -> None:
    """Give interactions.v1 and users.v1 so many PARTITIONS, so that more processes can share the users.

    It must be a multiple of what they have: then users move to new partitions only, and these wait for the old ones.
    Safe while everything runs: every process notices within connection.metadata_max_age_s, and no user is set back. It
    cannot be taken back. docs/operations.md says what moves.
    """
    from stream_app.cli.console import output, run
    from stream_app.delivery.admin import grow_topics
    from stream_app.settings import load_settings

    grown = run(grow_topics(load_settings(), partitions))
    console = output()
    for name, before in grown.items():
        console.print(f"{name}: {before} -> {partitions} partitions", markup=False)
    if not grown:
        console.print(f"they have {partitions} partitions already", markup=False)


@topics.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["strimzi", "helm"]),
    default="strimzi",
    show_default=True,
    help="strimzi: KafkaTopic resources; helm: the list the chart in deploy/ makes them from.",
)
@click.option(
    "--cluster", default="kafka", show_default=True, help="Name of the Kafka resource that is to have the topics."
)
def manifests(form: str, cluster: str) -> None:
    """Print the topics as resources for Strimzi. No broker is asked."""
    from stream_app.settings import load_settings
    from stream_app.strimzi import chart_topics, strimzi_topics

    settings = load_settings()
    click.echo(strimzi_topics(settings, cluster=cluster) if form == "strimzi" else chart_topics(settings), nl=False)


@topics.command()
@click.option("--role", "roles", multiple=True, metavar="NAME", help="Only this one; may be given again.")
@click.option("--principal", metavar="User:NAME", help="Whom one --role is granted to; default: User:<prefix>-<role>.")
@click.option(
    "--format",
    "as_",
    type=click.Choice(["kafka", "strimzi", "json"]),
    default="kafka",
    show_default=True,
    help="kafka: a script of kafka-acls.sh lines; strimzi: KafkaUser resources; json: an object per right.",
)
@click.option("--cluster", default="kafka", show_default=True, help="Name of Strimzi's Kafka resource.")
def acls(roles: tuple[str, ...], principal: str | None, as_: str, cluster: str) -> None:
    """Print the rights on the broker that each role needs, and those of people and services around it.

    Names: catalogue, items, ranker, interactions; producer, reader, keda, operator. No broker is asked.
    """
    from stream_app.rights import WHO, rights_of
    from stream_app.rights_formats import default_principals, json_lines, kafka_script, strimzi_users
    from stream_app.settings import load_settings

    who = [one for one in WHO if not roles or one in roles]
    if unknown := [name for name in roles if name not in WHO]:
        raise click.BadParameter(f"{', '.join(unknown)}: there are {', '.join(WHO)}", param_hint="--role")
    if principal is not None and len(who) != 1:
        raise click.UsageError("--principal goes with one --role")
    settings = load_settings()
    rights = {one: rights_of(one, settings) for one in who}
    principals = default_principals(who, settings.topics.prefix)
    if principal is not None:
        principals = {who[0]: principal}
    command = f"tailrace topics acls --format {as_}"
    if as_ == "kafka":
        click.echo(kafka_script(rights, principals, command=command), nl=False)
    elif as_ == "strimzi":
        click.echo(strimzi_users(rights, principals, cluster=cluster, command=command), nl=False)
    else:
        click.echo(json_lines(rights, principals), nl=False)


def _print(states: list[TopicState], *, kafka: str) -> None:
    from rich.table import Table

    from stream_app.cli.console import output
    from stream_app.delivery.admin import copartition_difference

    table = Table(title=f"Topics on {kafka}", title_justify="left")
    for column in ("topic", "partitions", "cleanup", "key", "state"):
        table.add_column(column)
    for state in states:
        worst = state.differences[0].severity if state.differences else None
        style = {"wrong": "red", "differs": "yellow", None: "green"}[worst]
        said = "; ".join(one.text for one in state.differences) or ("created" if state.created else "ok")
        table.add_row(
            state.name,
            str(state.partitions or "-"),
            state.config.get("cleanup.policy", "?") if state.partitions else "-",
            state.topic.key,
            f"[{style}]{said}[/]",
        )
    console = output()
    console.print(table)
    if unequal := copartition_difference(states):
        console.print(unequal.text, style="red")
