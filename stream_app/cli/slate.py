"""``tailrace slate``: a user's current slate, and why each item is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from schemas.messages import Slate

__all__ = ["slate"]


@click.command()
@click.argument("user")
@click.option("--json", "as_json", is_flag=True, help="The message as it is on the topic.")
@click.pass_context
def slate(context: click.Context, user: str, as_json: bool) -> None:
    """Show the current slate of USER, and why each item is in it. Exit status 1 when there is none."""
    from schemas.decode import decode_slate
    from stream_app.cli.console import PATIENCE_S, run
    from stream_app.delivery.reading import default_partition, latest
    from stream_app.settings import load_settings
    from stream_app.topics import Topics

    settings = load_settings()
    key = user.encode()
    record = run(
        latest(
            settings,
            Topics(settings).recommendations,
            key,
            partition=lambda count: default_partition(key, count),
            patience_s=PATIENCE_S,
        )
    )
    if record is None or record.value is None:
        gone = "has no slate any more" if record is not None else "has no slate: no event of theirs was processed yet"
        click.echo(f"user {user} {gone}", err=True)
        context.exit(1)
    if as_json:
        click.echo(record.value.decode())
        return
    _, found = decode_slate(record.key, record.value, record.headers)
    assert found is not None  # noqa: S101 - its value is not null
    _print(found)


def _print(found: Slate) -> None:
    from rich.table import Table
    from rich.text import Text

    from stream_app.cli.console import output

    table = Table("#", "item", "why", "sources", "score", title=f"Slate of {found.user_id}", title_justify="left")
    for item in found.items:
        table.add_row(
            str(item.rank),
            Text(item.item_id),
            Text(item.reason.text or item.reason.code),
            ", ".join(item.sources),
            f"{item.score:.3f}",
        )
    console = output()
    console.print(table)
    trigger, versions = found.trigger, found.versions
    event = f"event {trigger.event_id} of {trigger.occurred_at}, " if trigger.event_id else ""
    console.print(
        f"made {found.generated_at} after {event}{trigger.topic} partition {trigger.partition} offset "
        f"{trigger.offset}\nspace {versions.space}, index {versions.index}, ranker {versions.ranker}, variant "
        f"{found.variant}, slate {found.slate_id}",
        markup=False,
    )
