"""The root command: global options, and the table of sub-commands.

A sub-command is one line in :data:`COMMANDS` and one module. Global options are shorthand for environment variables
and set them, so that sub-commands, and processes they start, see the same settings without passing them on.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Final

import click

from stream_app import __version__

__all__ = ["COMMANDS", "LazyGroup", "root"]

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("stream_app.cli.demo:demo", "Stream a real shop through the pipeline and watch it."),
    "up": ("stream_app.cli.up:up", "Run one process of Tailrace; scale by starting more."),
    "doctor": ("stream_app.cli.doctor:doctor", "Say what is wrong here, and what to do."),
    "health": ("stream_app.cli.health:health", "Ask a process of Tailrace how it is."),
    "topics": ("stream_app.cli.topics:topics", "Create topics, and compare them with the contract."),
    "produce": ("stream_app.cli.produce:produce", "Send items, interactions or profiles from a file."),
    "forget": ("stream_app.cli.forget:forget", "Forget users: history, profile and slate."),
    "tail": ("stream_app.cli.tail:tail", "Follow what comes out."),
    "slate": ("stream_app.cli.slate:slate", "Show a user's current slate."),
    "item": ("stream_app.cli.item:item", "Show what is known of an item."),
    "rebuild": ("stream_app.cli.rebuild:rebuild", "Make derived state again from the topics."),
    "spaces": ("stream_app.cli.spaces:spaces", "Change the model while serving."),
    "textify": ("stream_app.cli.textify:textify", "Show what models read of items, and of a user."),
    "dead-letters": ("stream_app.cli.dead_letters:dead_letters", "Look at refused records, and replay them."),
    "dataset": ("stream_app.cli.dataset:dataset", "Write a public data set in the contract."),
    "evaluate": ("stream_app.cli.evaluate:evaluate", "Measure on a log what Tailrace would have recommended."),
    "tune": ("stream_app.cli.tune:tune", "Search settings that suit a log."),
    "adapter": ("stream_app.cli.adapter:adapter", "Learn from events what texts do not say, and compare."),
    "bench": ("stream_app.cli.bench:bench", "Measure what the parts cost on this machine."),
    "torture": ("stream_app.cli.torture:torture", "Let things go wrong, and see that nothing is left of it."),
    "settings": ("stream_app.cli.settings:settings", "Show the settings in effect."),
    "kafka": ("stream_app.cli.kafka:kafka", "Fetch Apache Kafka itself, for tests and demos."),
}
"""Name: where the click command is (``module:attribute``), and its line in ``--help``."""


class LazyGroup(click.Group):
    """A group that imports a sub-command when it is called, and lists all of them without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - the table is ours, and tested
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of ``--help``, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kafka", metavar="HOST:PORT", help="Bootstrap servers, comma separated. [TAILRACE_KAFKA]")
@click.option("--redis", metavar="URL", help="Redis URL. [TAILRACE_REDIS]")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings file (TOML). [TAILRACE_CONFIG, else tailrace.toml in this folder]",
)
@click.version_option(__version__, prog_name="tailrace")
def root(kafka: str | None, redis: str | None, config: Path | None) -> None:
    """Tailrace: events go into Kafka, a current slate of recommendations for every user comes out of it."""
    given = {"TAILRACE_KAFKA": kafka, "TAILRACE_REDIS": redis, "TAILRACE_CONFIG": config and str(config)}
    os.environ.update({name: value for name, value in given.items() if value})
