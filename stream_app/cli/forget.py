"""``tailrace forget``: a null value on ``users.v1`` for each user, acknowledged by the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stream_app.settings import Settings

__all__ = ["forget"]


@click.command()
@click.argument("users", metavar="USER...", nargs=-1, required=True)
@click.confirmation_option("--yes", prompt="Forget the history, profile and slate of these users for good?")
def forget(users: tuple[str, ...]) -> None:
    """Forget users: history, profile and slate.

    Ends when the broker has the request; the process that owns the user carries it out at once. docs/users.md says what
    is deleted and what stays until the topics' retention. Events from then on make a new user.
    """
    from stream_app.cli.console import run
    from stream_app.settings import load_settings

    settings = load_settings()
    run(_forget(settings, users))
    click.echo(f"{len(users):,} users to be forgotten, acknowledged by Kafka at {settings.kafka}")


async def _forget(settings: Settings, users: tuple[str, ...]) -> None:
    from stream_app.cli.console import wait_for_kafka
    from stream_app.delivery.publisher import OutRecord, Publisher
    from stream_app.metrics import Metrics
    from stream_app.topics import Topics

    await wait_for_kafka(settings)
    publisher = Publisher(settings, Metrics())
    await publisher.start()
    try:
        await publisher.publish([OutRecord(Topics(settings).users, user.encode(), None) for user in users])
    finally:
        await publisher.stop()
