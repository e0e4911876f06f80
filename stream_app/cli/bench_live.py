"""``tailrace bench latency``, ``throughput``, ``floor`` and ``start``: live processes on a broker, and their limit."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stream_app.cli.bench_output import json_option, numbers, print_lines, seed_option, write_lines

if TYPE_CHECKING:
    from stream_app.bench.child import Progress
    from stream_app.bench.rig import Where
    from stream_app.settings import Settings

__all__ = ["cutover", "floor", "latency", "outages", "soak", "start", "throughput"]

F = TypeVar("F", bound=Callable[..., Any])
_MOST_EVENTS = 5_000_000
"""Of one command: they are encoded beforehand, 300 bytes each."""

_items = click.option("--items", default=10_000, show_default=True, type=click.IntRange(100, 1_000_000))
_users = click.option("--users", default=2_000, show_default=True, type=click.IntRange(10, 100_000))
_warm = click.option(
    "--warm",
    default=4_000,
    show_default=True,
    type=click.IntRange(0, 1_000_000),
    help="Events before anything is measured; the ranker learns from them.",
)
_share = click.FloatRange(0.0, 1.0)


def _hot(command: F) -> F:
    """Options that make an item and a user hot."""
    for name, what in (("item", "one item"), ("user", "one user")):
        command = click.option(
            f"--hot-{name}", default=0.0, show_default=True, type=_share, help=f"Share of all events of {what}."
        )(command)
    return command


def _events(default: int) -> Callable[[F], F]:
    return click.option("--events", default=default, show_default=True, type=click.IntRange(1, _MOST_EVENTS))


def _where(command: F) -> F:
    """Options that say which broker and Redis."""
    for option in (
        click.option("--redis", metavar="URL", help="Redis that is there; goes with --kafka."),
        click.option(
            "--kafka",
            metavar="HOST:PORT",
            help="A cluster that is there: topics get a prefix of their own, and are deleted at the end.",
        ),
        click.option(
            "--broker",
            type=click.Choice(["embedded", "kafka"]),
            help="Start this one: the embedded broker (the default) or Apache Kafka.",
        ),
    ):
        command = option(command)
    return command


_processes = click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="With the interactions role; at most topics.partitions.",
)


@click.command()
@click.option("--rates", default="100,500,1000,2000", show_default=True, help="Events per second, comma separated.")
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(0.1, 86_400), help="Of each rate.")
@_items
@_users
@_warm
@_processes
@_hot
@_where
@seed_option
@json_option
def latency(
    rates: str,
    seconds: float,
    items: int,
    users: int,
    warm: int,
    processes: int,
    hot_item: float,
    hot_user: float,
    seed: int,
    json_file: Path | None,
    **where: Any,
) -> int:
    """From an event's time to be sent to the arrival of the first slate that knows it, at fixed rates.

    The load comes from a process of its own, an open loop: a pipeline that falls behind shows it. Every event must be
    known to a slate; lost must be 0. With --hot-user what that user and the others waited is told apart.
    """
    wanted = numbers("--rates", rates, least=0.1, most=1_000_000)
    count = int(sum(wanted) * seconds)
    if count > _MOST_EVENTS:
        raise click.UsageError(f"--rates {rates} for {seconds:g} s each are {count:,} events; at most {_MOST_EVENTS:,}")

    def work(settings: Settings, place: Where, on_progress: Progress) -> Coroutine[Any, Any, list[dict[str, Any]]]:
        from stream_app.bench.live import latency_figures

        _check_processes(processes, settings)
        return latency_figures(
            settings, place, rates=wanted, seconds=seconds, items=items, users=users, warm=warm, seed=seed,
            processes=processes, hot_item=hot_item, hot_user=hot_user, on_progress=on_progress,
        )  # fmt: skip

    return _measured(f"event to slate, {items:,} items, {users:,} users", work, where, json_file)


@click.command()
@_events(100_000)
@_items
@_users
@_warm
@click.option("--floor/--no-floor", default=False, show_default=True, help="Also a bare aiokafka loop.")
@_processes
@_hot
@_where
@seed_option
@json_option
def throughput(
    events: int,
    items: int,
    users: int,
    warm: int,
    floor: bool,
    processes: int,
    hot_item: float,
    hot_user: float,
    seed: int,
    json_file: Path | None,
    **where: Any,
) -> int:
    """Events per second of interactions processes, one by default, when they come as fast as the broker takes them."""
    if floor and processes > 1:
        raise click.UsageError("--floor is the limit of one process; leave it out with --processes")

    def work(settings: Settings, place: Where, on_progress: Progress) -> Coroutine[Any, Any, list[dict[str, Any]]]:
        from stream_app.bench.live import throughput_figures

        _check_processes(processes, settings)
        return throughput_figures(
            settings, place, events=events, items=items, users=users, warm=warm, seed=seed, floor=floor,
            processes=processes, hot_item=hot_item, hot_user=hot_user, on_progress=on_progress,
        )  # fmt: skip

    return _measured(f"saturated, {items:,} items, {users:,} users", work, where, json_file)


def _check_processes(processes: int, settings: Settings) -> None:
    if processes > settings.topics.partitions:
        raise click.UsageError(
            f"--processes {processes}: interactions.v1 has {settings.topics.partitions} partitions "
            "(topics.partitions), and a process needs one"
        )


@click.command()
@_events(20_000)
@_items
@_users
@_warm
@_where
@seed_option
@json_option
def floor(events: int, items: int, users: int, warm: int, seed: int, json_file: Path | None, **where: Any) -> int:
    """The limit: the same domain functions in a plain loop, and in a bare aiokafka loop with Redis.

    The plain loop has the machine for itself. The aiokafka loop runs beside the processes that throughput has, on the
    same broker, under the same load; what it does and leaves out is in stream_app/bench/bare.py.
    """

    async def both(settings: Settings, place: Where, on_progress: Progress) -> list[dict[str, Any]]:
        from stream_app.bench.floor import in_process_floor
        from stream_app.bench.live import aiokafka_floor
        from stream_app.bench.publish import answering
        from stream_app.bench.shop import made_up_shop
        from stream_app.warm_up import warm_up

        if place.broker is None:
            await answering(settings)  # before minutes of work
        warm_up(settings)
        shop = made_up_shop(
            settings, items=items, users=users, events=warm + events, seed=seed, whiten=True, on_progress=on_progress
        )
        plain = in_process_floor(shop, warm=warm, on_progress=on_progress) | {"seed": seed}
        del shop
        return [
            plain,
            await aiokafka_floor(
                settings, place, events=events, items=items, users=users, warm=warm, seed=seed, on_progress=on_progress
            ),
        ]

    return _measured(f"the limit, {items:,} items, {users:,} users", both, where, json_file)


@click.command()
@click.option("--items", default="10000,100000", show_default=True, help="Sizes of the catalogue, comma separated.")
@_users
@click.option(
    "--behind",
    default=2_000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Events that come while the process is away.",
)
@_where
@seed_option
@json_option
def start(items: str, users: int, behind: int, seed: int, json_file: Path | None, **where: Any) -> int:
    """Until an interactions process takes events: from the topics, from a snapshot, and after it was away."""
    sizes = [int(size) for size in numbers("--items", items, least=100, most=1_000_000, whole=True)]

    def work(settings: Settings, place: Where, on_progress: Progress) -> Coroutine[Any, Any, list[dict[str, Any]]]:
        from stream_app.bench.start import start_figures

        return start_figures(
            settings, place, sizes=sizes, users=users, behind=behind, seed=seed, on_progress=on_progress
        )

    return _measured("start of an interactions process", work, where, json_file)


@click.command()
@click.option("--rate", default=300.0, show_default=True, type=click.FloatRange(1, 10_000), help="Events per second.")
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(1, 600), help="Of each phase.")
@_items
@_users
@_warm
@click.option(
    "--set",
    "changes",
    metavar="NAME=VALUE",
    multiple=True,
    default=["dimensions=256"],
    show_default=True,
    help="What is different in the other space, as for tailrace spaces build.",
)
@_where
@seed_option
@json_option
def cutover(
    rate: float,
    seconds: float,
    items: int,
    users: int,
    warm: int,
    changes: tuple[str, ...],
    seed: int,
    json_file: Path | None,
    **where: Any,
) -> int:
    """Another model's space is built, served and rolled back while events come: what it costs and what is lost.

    Status 1 when an event was lost, a slate knew less than the one before, or models went back and forth.
    """
    from stream_app.bench.cutover import failures
    from stream_app.cli.spaces import setting_change

    encoder = dict(setting_change(change) for change in changes)

    def work(settings: Settings, place: Where, on_progress: Progress) -> Coroutine[Any, Any, list[dict[str, Any]]]:
        from stream_app.bench.cutover import cut_over_figures

        return cut_over_figures(
            settings, place, rate=rate, seconds=seconds, items=items, users=users, warm=warm, seed=seed,
            encoder=encoder, on_progress=on_progress,
        )  # fmt: skip

    title = f"change of model, {items:,} items, {rate:g} events/s"
    return _measured(title, work, where, json_file, failures=failures)


@click.command()
@click.option("--rate", default=300.0, show_default=True, type=click.FloatRange(1, 10_000), help="Events per second.")
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(5, 600), help="Of each phase.")
@click.option(
    "--away", default=60.0, show_default=True, type=click.FloatRange(1, 600), help="Seconds without a server."
)
@click.option(
    "--processes", default=3, show_default=True, type=click.IntRange(2, 64), help="With the interactions role."
)
@_items
@_users
@_warm
@click.option(
    "--broker", type=click.Choice(["embedded", "kafka"]), help="Which is started; only Apache Kafka goes away."
)
@seed_option
@json_option
def outages(
    rate: float,
    seconds: float,
    away: float,
    processes: int,
    items: int,
    users: int,
    warm: int,
    broker: str | None,
    seed: int,
    json_file: Path | None,
) -> int:
    """A process, Redis and the broker go away while events come: how long nobody saw anything of what they did."""

    def work(settings: Settings, place: Where, on_progress: Progress) -> Coroutine[Any, Any, list[dict[str, Any]]]:
        from stream_app.bench.outages import outage_figures

        return outage_figures(
            settings, place, rate=rate, seconds=seconds, away_s=away, processes=processes, items=items, users=users,
            warm=warm, seed=seed, on_progress=on_progress,
        )  # fmt: skip

    where = {"broker": broker, "kafka": None, "redis": None}
    return _measured(f"outages, {processes} processes, {rate:g} events/s", work, where, json_file)


@click.command()
@click.option("--rate", default=300.0, show_default=True, type=click.FloatRange(1, 10_000), help="Events per second.")
@click.option("--minutes", default=30.0, show_default=True, type=click.FloatRange(0.2, 1_440), help="Of the load.")
@click.option(
    "--churn",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.1, 100),
    help="Items per second that come, that go, that are renamed, and that have another price.",
)
@_items
@_users
@_where
@seed_option
@json_option
def soak(
    rate: float,
    minutes: float,
    churn: float,
    items: int,
    users: int,
    seed: int,
    json_file: Path | None,
    **where: Any,
) -> int:
    """A steady load while the catalogue turns over: what the processes hold, and how it grows in the second half."""

    def work(settings: Settings, place: Where, on_progress: Progress) -> Coroutine[Any, Any, list[dict[str, Any]]]:
        from stream_app.bench.soak import soak_figures

        return soak_figures(
            settings, place, rate=rate, seconds=60.0 * minutes, churn=churn, items=items, users=users, seed=seed,
            on_progress=on_progress,
        )  # fmt: skip

    return _measured(f"soak, {minutes:g} minutes, {rate:g} events/s", work, where, json_file)


def _measured(
    title: str,
    work: Callable[[Settings, Where, Progress], Coroutine[Any, Any, list[dict[str, Any]]]],
    where: dict[str, str | None],
    json_file: Path | None,
    *,
    failures: Callable[[list[dict[str, Any]]], list[str]] | None = None,
) -> int:
    """Do the work, show and write its figures; 1 when something is wrong with them.

    Args:
        failures: says what; None: that events were lost.
    """
    from stream_app.cli.console import errors, run
    from stream_app.cli.evaluate import advancing, open_progress, writable
    from stream_app.settings import load_settings

    place = _place(**where)
    writable(json_file)
    settings = load_settings(**({"kafka": place.kafka, "redis": place.redis} if place.broker is None else {}))
    console = errors()
    with open_progress(console) as progress:
        lines = run(work(settings, place, advancing(progress)))
    print_lines(title, [{name: value for name, value in line.items() if name != "samples"} for line in lines])
    write_lines(json_file, lines)
    wrong = (failures or _lost)(lines)
    for one in wrong:
        console.print(one, style="red", markup=False)
    return int(bool(wrong))


def _lost(lines: list[dict[str, Any]]) -> list[str]:
    lost = sum(line.get("lost", 0) for line in lines)
    return [f"{lost:,} events are known to no slate"] if lost else []


def _place(*, broker: str | None, kafka: str | None, redis: str | None) -> Where:
    from stream_app.bench.rig import Where
    from stream_app.embedded.kafka.install import kafka_missing

    if (kafka is None) != (redis is None):
        raise click.UsageError("--kafka and --redis go together: name both, or neither to start them here")
    if kafka is not None and redis is not None:
        if broker is not None:
            raise click.UsageError("--broker starts one here; leave it out with --kafka")
        return Where(None, kafka, redis)
    if broker == "kafka" and (missing := kafka_missing()):
        raise click.UsageError(missing)
    return Where("kafka" if broker == "kafka" else "embedded")
