"""``python -m benchmarks``: all of them, or the named one with options of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import click
import orjson

from benchmarks.compare import ranking_ratios
from benchmarks.encoder import encoder_figures
from benchmarks.quality import quality
from stream_app.bench.machine import about_this_machine
from stream_app.cli.bench_output import print_lines
from stream_app.cli.evaluate import writable
from stream_app.datasets.online_retail import load_online_retail
from stream_app.embedded.stack import BrokerKind
from stream_app.logs import configure_logs
from stream_app.settings import LogSettings
from stream_app.textify import item_text
from workers.models import Precision

_RESULTS = Path(__file__).with_name("results")
_CHECKOUT = Path(__file__).parents[1]
_ALL: dict[str, tuple[str, ...]] = {
    "latency": (),
    "throughput": ("--floor",),
    "floor": (),
    "ranking": (),
    "index": (),
    "start": (),
    "cutover": ("--broker", "kafka"),
    "encoder": ("--parts", "pool,queries,embedded,kafka,precision"),
    "growth": ("--items", "1000,10000", "--users", "2000", "--history", "10,50"),
}
"""Sub-commands of ``tailrace bench``, and their options where all are run."""

_json = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here."
)


def _write(name: str, machine: dict[str, Any], results: list[dict[str, Any]], json_file: Path | None = None) -> None:
    target = json_file or _RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine, "results": results}
    target.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
    click.echo(f"written to {target}")


def _run(name: str, options: tuple[str, ...], json_file: Path | None = None) -> int:
    """``tailrace bench name`` in a process of its own, its figures kept; the exit status."""
    writable(json_file)
    machine = about_this_machine(_CHECKOUT)
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "stream_app.cli", "bench", name, *options]
        status = subprocess.run([*command, "--json", str(figures)], check=False).returncode
        if figures.exists():
            machine["command"] = " ".join(("tailrace bench", name, *options))
            _write(name, machine, orjson.loads(figures.read_bytes()), json_file)
    return status


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Speed and live quality of this checkout on this machine.

    Without a command: latency, throughput, floor, ranking, index, start, encoder and growth, which are those of
    `tailrace bench` and take its options.
    """
    configure_logs(LogSettings(level="error", format="text"))
    if context.invoked_subcommand is None:
        failed = [name for name, options in _ALL.items() if _run(name, options)]
        if failed:
            raise click.ClickException(f"not as it should be: {', '.join(failed)}")


def _of_tailrace(name: str) -> click.Command:
    @click.command(
        name,
        help=f"`tailrace bench {name}` and its options; the figures are kept.",
        context_settings={"ignore_unknown_options": True, "help_option_names": []},
    )
    @_json
    @click.argument("options", nargs=-1, type=click.UNPROCESSED)
    def command(options: tuple[str, ...], json_file: Path | None) -> None:
        if status := _run(name, options, json_file):
            raise SystemExit(status)

    return command


for _name in _ALL:
    main.add_command(_of_tailrace(_name))


@main.command("quality")
@click.option("--broker", type=click.Choice(["embedded", "kafka"]), default="embedded", show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many events.")
@click.option(
    "--window", type=click.IntRange(1, 1_000), default=8, show_default=True, help="Baskets under way at a time."
)
@_json
def quality_command(broker: str, limit: int | None, window: int, json_file: Path | None) -> None:
    """Prequential hit rate of published slates on Online Retail."""
    writable(json_file)
    machine = about_this_machine(_CHECKOUT)
    results = asyncio.run(quality(broker=cast(BrokerKind, broker), limit=limit, window=window))
    print_lines("quality", results)
    _write("quality", machine, results, json_file)


@main.command("encoder-alone")
@click.option("--device", default="auto", show_default=True, help="As the setting encoder.device.")
@click.option("--precisions", default="float32,bfloat16", show_default=True, help="Comma separated.")
@click.option("--batches", default="32,256", show_default=True, help="Most texts at once, comma separated.")
@click.option("--model", default="minilm", show_default=True, help="minilm, or a model's folder.")
@_json
def encoder_command(device: str, precisions: str, batches: str, model: str, json_file: Path | None) -> None:
    """Texts per second of the encoder alone, and what lower precision changes."""
    writable(json_file)
    machine = about_this_machine(_CHECKOUT)
    figures = encoder_figures(
        [item_text(item) for item in load_online_retail().items],
        model=model,
        device=device,
        precisions=cast(list[Precision], precisions.split(",")),
        batches=[int(batch) for batch in batches.split(",")],
    )
    print_lines("encoder", figures)
    _write("encoder-alone", machine, figures, json_file)


@main.command("compare")
@click.argument("base", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("head", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Runs of each.")
@click.option("--events", type=click.IntRange(256, 1_000_000), default=6_400, show_default=True, help="Of each run.")
@_json
def compare_command(base: Path, head: Path, rounds: int, events: int, json_file: Path | None) -> None:
    """`tailrace bench ranking` of two checkouts in alternation, on this machine, as ratios.

    BASE and HEAD are their folders, for example of `git worktree add`. Below 1: HEAD takes less.
    """
    writable(json_file)
    lines = ranking_ratios(base, head, rounds=rounds, events=events)
    print_lines("ranking, HEAD over BASE", lines)
    if json_file is not None:
        _write("compare", about_this_machine(head), lines, json_file)


main()
