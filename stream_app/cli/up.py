"""``tailrace up``: one process with one or more roles."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stream_app.app import Role
    from stream_app.settings import Settings

__all__ = ["parse_roles", "run_roles", "up"]


def parse_roles(text: str) -> list[Role]:
    """Roles of ``--role``: names separated by commas, or ``all``.

    Raises:
        click.BadParameter: for a name that is not a role.
    """
    from stream_app.app import ROLES

    names = [name.strip() for name in text.split(",") if name.strip()]
    if "all" in names:
        return list(ROLES)
    unknown = [name for name in names if name not in ROLES]
    if unknown or not names:
        raise click.BadParameter(f"{', '.join(unknown) or 'nothing'}: roles are {', '.join(ROLES)} and all")
    return [role for role in ROLES if role in names]


def run_roles(settings: Settings, roles: list[Role]) -> None:
    """Run until SIGINT or SIGTERM."""
    import setproctitle
    import uvloop

    from stream_app.app import Tailrace, stop_on_signals
    from stream_app.logs import configure_logs

    configure_logs(settings.log, role=",".join(roles))
    setproctitle.setproctitle(f"tailrace {','.join(roles)}")

    async def main() -> None:
        stop = asyncio.Event()
        stop_on_signals(stop)
        await Tailrace(settings, roles).run(stop)

    uvloop.run(main())


@click.command("up")
@click.option(
    "--role",
    "roles",
    default="all",
    show_default=True,
    help="catalogue, interactions, items, ranker, several with commas, or all.",
)
def up(roles: str) -> None:
    """Run one process of Tailrace. Scale by starting more."""
    from stream_app.settings import load_settings

    run_roles(load_settings(), parse_roles(roles))
