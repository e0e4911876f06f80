"""``tailrace settings``: what is in effect, and the reference page."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["settings"]


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def settings(context: click.Context, as_json: bool) -> None:
    """Show the settings in effect. Secrets are hidden."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from stream_app.cli.console import output, to_json
    from stream_app.cli.settings_reference import effective_settings
    from stream_app.settings import load_settings

    rows = effective_settings(load_settings())
    if as_json:
        click.echo(to_json({row.name: row.value for row in rows}))
        return
    table = Table("setting", "value", "default", title="Settings in effect", title_justify="left")
    for row in rows:
        changed = row.value != row.default
        table.add_row(row.name, str(row.value), str(row.default) if changed else "", style="bold" if changed else "")
    output().print(table)


@settings.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write; without it: print.")
def reference(out: Path | None) -> None:
    """The reference page of all settings (docs/settings.md)."""
    from stream_app.cli.settings_reference import reference_page

    if out is None:
        click.echo(reference_page(), nl=False)
    else:
        out.write_text(reference_page())
