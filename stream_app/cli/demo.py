"""``tailrace demo``: a real shop's purchases through the whole pipeline, live on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stream_app.demo.runner import DemoOptions

__all__ = ["demo"]


@click.command()
@click.option("--seconds", type=click.FloatRange(min=1), help="End after so many seconds. [default: at Ctrl-C]")
@click.option(
    "--rate", type=click.FloatRange(min=0.1, max=100_000), default=100.0, show_default=True, help="Events per second."
)
@click.option(
    "--workers", type=click.IntRange(1, 16), default=1, show_default=True, help="Processes that take interactions."
)
@click.option(
    "--broker",
    type=click.Choice(["embedded", "kafka"]),
    default="embedded",
    show_default=True,
    help="kafka: Apache Kafka itself (needs Java; `tailrace kafka install` fetches it).",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def demo(seconds: float | None, rate: float, workers: int, broker: str, json_file: Path | None) -> None:
    """Stream a real shop through the pipeline and watch it.

    Starts a broker, Redis and Tailrace on this machine, sends the shop's catalogue and its purchases (UCI Online
    Retail, time-compressed), and shows what comes out. Everything it starts ends with it.
    """
    from stream_app.demo.runner import DemoOptions

    options = DemoOptions(
        seconds=seconds, rate=rate, workers=workers, broker="kafka" if broker == "kafka" else "embedded"
    )
    summary = _run(options)
    if json_file is not None:
        import orjson

        json_file.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
    _tell(summary, json_file)


def _run(options: DemoOptions) -> dict[str, Any]:
    import asyncio

    from stream_app.app import stop_on_signals
    from stream_app.demo.display import open_display
    from stream_app.demo.runner import run_demo
    from stream_app.logs import configure_logs
    from stream_app.settings import LogSettings

    configure_logs(LogSettings(level="error", format="text"))

    async def main() -> dict[str, Any]:
        stop = asyncio.Event()
        stop_on_signals(stop)
        with open_display() as display:
            return await run_demo(options, display, stop)

    return asyncio.run(main())


def _tell(summary: dict[str, Any], json_file: Path | None) -> None:
    """The figures in words, and what to try next."""
    rates, freshness = summary["hit_rate_at_10"], summary["freshness_ms"]
    first = summary["first_slate_s"]
    click.echo()
    if first is None:
        click.echo("Stopped before the first slate.")
    else:
        click.echo(
            f"{summary['events_in']:,} events in, {summary['slates_out']:,} slates out, "
            f"{summary['events_lost']} lost; first slate after {first:.1f} s.\n"
            f"Event to slate: p50 {freshness['p50']} ms, p99 {freshness['p99']} ms.\n"
            f"Bought from the ten best of the slate shown before: {rates['slates']:.1%} of {summary['tests']:,} "
            f"purchases (the ten most popular items of the week: {rates['popularity']:.1%})."
        )
    if json_file is not None:
        click.echo(f"Figures: {json_file}")
    click.echo(
        "\nWhat to try next:\n"
        "  tailrace demo --rate 300                 a busier shop\n"
        "  tailrace demo --workers 2                two processes share the users\n"
        "  tailrace dataset online-retail --out .   the same shop as files in the contract\n"
        "  tailrace --kafka HOST:PORT doctor        your own Kafka and Redis: what is missing\n"
        "  README.md                                ten lines that produce, ten lines that consume"
    )
