"""``tailrace textify``: what models read of items and of a user, what is cut of it, and what is masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stream_app.cli.textified import TextifiedItem, TextifiedUser

__all__ = ["textify"]

_SHOWN_CHARS = 100
"""Of what is cut; --json has all of it."""


@click.group()
def textify() -> None:
    """Show what models read of items, and of a user, with the templates and masks of the settings (docs/textify.md)."""


@textify.command("items")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--limit", type=click.IntRange(1), help="Only the first so many lines.")
@click.option("--estimate", is_flag=True, help="Estimate tokens; the model's tokenizer is not loaded.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per item.")
@click.pass_context
def items(context: click.Context, file: str, limit: int | None, estimate: bool, as_json: bool) -> None:
    """Show the text of each item of FILE (.jsonl, .jsonl.zst, or - for standard input), as it would be embedded.

    With each: its template, how many tokens the text has, what the budget or the encoder cuts off, and how often
    something was masked. Needs no broker. Lines that Tailrace would refuse are named, and make the exit status 1.
    """
    from stream_app.cli.console import errors, run, to_json
    from stream_app.cli.textified import Summary, read_with, textified_items
    from stream_app.settings import load_settings

    settings = load_settings()
    summary, console = Summary(), errors()

    def refused(number: int, why: str) -> None:
        summary.refused += 1
        console.print(f"{'standard input' if file == '-' else file}:{number}: {why}", style="red", markup=False)

    def shown(item: TextifiedItem) -> None:
        summary.add(item)
        if as_json:
            click.echo(to_json(item))
        else:
            _print_item(item)

    run(textified_items(settings, file, read_with(settings.encoder, estimate=estimate), shown, refused, limit=limit))
    if not as_json:
        click.echo(str(summary))
    if summary.refused:
        context.exit(1)


def _print_item(item: TextifiedItem) -> None:
    about = "about " if item.estimated else ""
    click.echo(f"{item.item_id}  ({item.domain}, {item.language}, {about}{item.tokens} tokens)")
    click.echo(f"  {item.text[: len(item.text) - len(item.not_read)] or '(nothing: it has no visible text)'}")
    _print_cut("not read, beyond encoder.max_tokens", item.not_read)
    _print_cut("cut, beyond textify.max_tokens", item.cut)
    if item.masked:
        click.echo("  masked: " + ", ".join(f"{name} {count}" for name, count in item.masked.items()))


def _print_cut(why: str, text: str) -> None:
    if text:
        click.echo(f"  {why}: {text[:_SHOWN_CHARS]}{'...' if len(text) > _SHOWN_CHARS else ''}")


@textify.command("user")
@click.argument("user")
@click.option("--max-tokens", type=click.IntRange(1, 8_192), help="Budget of the text, strongest first (estimated).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def user(context: click.Context, user: str, max_tokens: int | None, as_json: bool) -> None:
    """Show USER in words: the profile on users.v1, and the history in Redis, strongest and newest first.

    Items are named by items.v1. Exit status 1 when nothing is known.
    """
    from stream_app.cli.console import run, to_json
    from stream_app.cli.textified import textified_user
    from stream_app.settings import load_settings

    found = run(textified_user(load_settings(), user, max_tokens=max_tokens or 0))
    if not found.text:
        click.echo(f"user {user} {'was forgotten' if found.forgotten else 'has said and done nothing known'}", err=True)
        context.exit(1)
    if as_json:
        click.echo(to_json(found))
    else:
        _print_user(found)


def _print_user(found: TextifiedUser) -> None:
    from rich.table import Table
    from rich.text import Text

    from stream_app.cli.console import output

    table = Table(title=found.user_id, title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column()
    rows = [("embedded of the profile", text) for text in found.embedded]
    rows += [("behaviour", text) for text in found.behaviours]
    rows.append(("in words", f"{found.text}  (about {found.tokens} tokens)"))
    for name, text in rows:
        table.add_row(name, Text(text))
    output().print(table)
