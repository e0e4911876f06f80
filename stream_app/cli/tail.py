"""``tailrace tail``: follow what comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from schemas.messages import Slate
    from stream_app.settings import Settings

__all__ = ["tail"]

_SHOWN = 3


@click.group()
def tail() -> None:
    """Follow what comes out, until Ctrl-C."""


@tail.command()
@click.option("--user", metavar="USER", help="Only this user's slates.")
@click.option("--from-start", is_flag=True, help="From the beginning of the topic instead of its end.")
@click.option("--json", "as_json", is_flag=True, help="The whole slate, one JSON object per line.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many.")
def recommendations(user: str | None, from_start: bool, as_json: bool, count: int | None) -> None:
    """Slates as they are published: who, the first items and why, and the event that caused them."""
    from stream_app.cli.console import run
    from stream_app.settings import load_settings

    run(_follow(load_settings(), user=user, from_start=from_start, as_json=as_json, count=count))


async def _follow(settings: Settings, *, user: str | None, from_start: bool, as_json: bool, count: int | None) -> None:
    from contextlib import aclosing

    from schemas.decode import decode_slate
    from stream_app.cli.console import errors, to_json, wait_for_kafka
    from stream_app.delivery.reading import tail as follow
    from stream_app.errors import InvalidMessage
    from stream_app.topics import Topics

    await wait_for_kafka(settings)
    wanted = None if user is None else user.encode()
    left = count
    async with aclosing(follow(settings, Topics(settings).recommendations, from_start=from_start)) as records:
        async for record in records:
            if wanted is not None and record.key != wanted:
                continue
            try:
                user_id, slate = decode_slate(record.key, record.value, record.headers)
            except InvalidMessage as error:
                errors().print(f"[{record.partition}]@{record.offset} is not a slate: {error}", markup=False)
                continue
            if as_json:
                click.echo(to_json(slate if slate is not None else {"user_id": user_id, "items": None}))
            else:
                click.echo(_line(user_id, slate))
            if left is not None:
                left -= 1
                if left == 0:
                    return


def _line(user_id: str, slate: Slate | None) -> str:
    if slate is None:
        return f"{user_id}: no slate any more"
    first = ", ".join(f"{item.item_id} ({item.reason.text or item.reason.code})" for item in slate.items[:_SHOWN])
    more = f", and {len(slate.items) - _SHOWN} more" if len(slate.items) > _SHOWN else ""
    cause = slate.trigger.event_id or f"{slate.trigger.topic}[{slate.trigger.partition}]@{slate.trigger.offset}"
    return f"{slate.generated_at:%H:%M:%S.%f} {user_id} after {cause}: {first or 'nothing'}{more}"
