"""``python -m benchmarks``: all of them, or the named one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import click
import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.encoder import encoder_figures
from benchmarks.live import latency, quality, throughput
from benchmarks.rig import about_this_machine
from stream_app.datasets.online_retail import load_online_retail
from stream_app.embedded.stack import BrokerKind
from stream_app.logs import configure_logs
from stream_app.settings import LogSettings
from stream_app.textify.items import item_text
from workers.models import Precision

_RESULTS = Path(__file__).with_name("results")


def _report(name: str, results: list[dict[str, Any]], json_file: Path | None) -> None:
    table = Table(title=name)
    columns = [key for key in results[0] if key != "benchmark"]
    for column in columns:
        table.add_column(column)
    for result in results:
        table.add_row(*(str(result[column]) for column in columns))
    Console(width=200).print(table)
    target = json_file or _RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": about_this_machine(), "results": results}
    target.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
    click.echo(f"written to {target}")


@click.group(invoke_without_command=True)
@click.option("--broker", type=click.Choice(["embedded", "kafka"]), default="embedded", show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here.")
@click.pass_context
def main(context: click.Context, broker: str, json_file: Path | None) -> None:
    """Speed and live quality of this checkout on this machine."""
    configure_logs(LogSettings(level="error", format="text"))
    context.obj = (cast(BrokerKind, broker), json_file)
    if context.invoked_subcommand is None:
        context.invoke(latency_command)
        context.invoke(throughput_command)
        context.invoke(quality_command)


@main.command("latency")
@click.option("--rates", default="100", show_default=True, help="Events per second, comma separated.")
@click.option("--seconds", default=30.0, show_default=True)
@click.pass_context
def latency_command(context: click.Context, rates: str = "100", seconds: float = 30.0) -> None:
    """Event to slate at steady rates, full catalogue."""
    broker, json_file = context.obj
    wanted = [float(rate) for rate in rates.split(",")]
    _report("latency", asyncio.run(latency(wanted, seconds, broker=broker)), json_file)


@main.command("throughput")
@click.option("--events", default=30_000, show_default=True)
@click.pass_context
def throughput_command(context: click.Context, events: int = 30_000) -> None:
    """Saturated, one interactions process."""
    broker, json_file = context.obj
    _report("throughput", asyncio.run(throughput(events, broker=broker)), json_file)


@main.command("quality")
@click.option("--limit", type=int, help="Only the first so many events.")
@click.option("--window", default=8, show_default=True, help="Baskets under way at a time.")
@click.pass_context
def quality_command(context: click.Context, limit: int | None = None, window: int = 8) -> None:
    """Prequential hit rate of published slates on Online Retail."""
    broker, json_file = context.obj
    _report("quality", asyncio.run(quality(broker=broker, limit=limit, window=window)), json_file)


@main.command("encoder")
@click.option("--device", default="auto", show_default=True, help="As the setting encoder.device.")
@click.option("--precisions", default="float32,bfloat16", show_default=True, help="Comma separated.")
@click.option("--batches", default="32,256", show_default=True, help="Most texts at once, comma separated.")
@click.option("--model", default="minilm", show_default=True, help="minilm, or a model's folder.")
@click.pass_context
def encoder_command(context: click.Context, device: str, precisions: str, batches: str, model: str) -> None:
    """Texts per second of the encoder alone, and what lower precision changes."""
    _, json_file = context.obj
    figures = encoder_figures(
        [item_text(item) for item in load_online_retail().items],
        model=model,
        device=device,
        precisions=cast(list[Precision], precisions.split(",")),
        batches=[int(batch) for batch in batches.split(",")],
    )
    _report("encoder", figures, json_file)


main()
