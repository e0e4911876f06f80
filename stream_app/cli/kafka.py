"""``tailrace kafka``: Apache Kafka itself, for tests and for demos that should last."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["kafka"]


@click.group()
def kafka() -> None:
    """Fetch Apache Kafka itself, for tests and demos."""


@kafka.command()
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the jars go. [TAILRACE_KAFKA_JARS, else the user's cache folder]",
)
def install(directory: Path | None) -> None:
    """Fetch the jars with Maven (43 MB, once); needs Java 17 or newer."""
    from stream_app.cli.console import errors
    from stream_app.embedded.kafka import install_kafka

    console = errors()
    with console.status("fetching Apache Kafka with Maven ..."):
        jars = install_kafka(directory, on_output=lambda line: console.print(line, style="dim", markup=False))
    click.echo(f"Apache Kafka is in {jars}; use it with: tailrace demo --broker kafka")
