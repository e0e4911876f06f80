"""``python -m stream_app.embedded.kafka install [--directory FOLDER]``: what ``tailrace kafka install`` does,
for scripts that run before the rest is set up."""

from __future__ import annotations

from pathlib import Path

import click

from stream_app.embedded.kafka.install import install_kafka, kafka_missing
from stream_app.errors import EmbeddedStackError

_DIRECTORY = click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the jars; default: TAILRACE_KAFKA_JARS, else the user's cache.",
)


@click.group()
def main() -> None:
    """Apache Kafka's jars for the embedded stack."""


@main.command()
@_DIRECTORY
def install(directory: Path | None) -> None:
    """Fetch the jars with Maven, unless they are there."""
    try:
        folder = install_kafka(directory, on_output=click.echo)
    except EmbeddedStackError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"Apache Kafka is in {folder}")


@main.command()
@_DIRECTORY
def check(directory: Path | None) -> None:
    """Exit with status 0 when Apache Kafka can be run here, else say what is missing."""
    missing = kafka_missing(directory)
    if missing is not None:
        raise click.ClickException(missing)
    click.echo("Apache Kafka can be run here")


if __name__ == "__main__":
    main()
