"""``tailrace doctor``: what is wrong here, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from stream_app.cli.checks import Finding
    from stream_app.settings import Settings

__all__ = ["doctor"]


@click.command()
@click.option("--skip-model", is_flag=True, help="Do not load the language model (saves some seconds).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per finding.")
@click.pass_context
def doctor(context: click.Context, skip_model: bool, as_json: bool) -> None:
    """Check broker, topics, Redis, model, versions and settings. Exit status 1 when something has to be done."""
    from stream_app.cli.console import output, run, to_json
    from stream_app.settings import load_settings

    console = output()
    styles = {"ok": "green", "warn": "yellow", "fail": "red"}

    def tell(finding: Finding) -> None:
        if as_json:
            click.echo(to_json(finding))
            return
        status = f"[{styles[finding.status]}]{finding.status.upper():<4}[/]"
        console.print(f"{status} {finding.what:<10}", end=" ")
        console.print(finding.text, markup=False)

    failed = run(_examine(load_settings(), tell, skip_model=skip_model))
    if failed:
        context.exit(1)


async def _examine(settings: Settings, tell: Callable[[Finding], None], *, skip_model: bool) -> bool:
    """Tell every finding as it is made; whether any has failed."""
    from stream_app.cli import checks

    failed = False

    def note(finding: Finding) -> None:
        nonlocal failed
        failed = failed or finding.status == "fail"
        tell(finding)

    for finding in checks.libraries():
        note(finding)
    note(_settings_summary(settings))
    for services in (checks.broker(settings), checks.redis(settings)):
        async for finding in services:
            note(finding)
    if not skip_model:
        for finding in checks.model(settings):
            note(finding)
    for finding in checks.snapshots(settings):
        note(finding)
    return failed


def _settings_summary(settings: Settings) -> Finding:
    from stream_app.cli.checks import Finding
    from stream_app.cli.settings_reference import effective_settings

    changed = [f"{row.name}={row.value}" for row in effective_settings(settings) if row.value != row.default]
    return Finding("ok", "settings", f"differing from the defaults: {', '.join(changed) or 'none'}")
