"""``tailrace health``: ask a running process how it is, as a container's health check does."""

from __future__ import annotations

import click

__all__ = ["ask", "health"]

_TIMEOUT_S = 4.0
"""Docker and Kubernetes give a check some seconds; ours says itself that there was no answer."""
_LONGEST_ANSWER_BYTES = 65_536
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104 - not listened on, asked at


def ask(host: str, port: int, probe: str, *, timeout_s: float = _TIMEOUT_S) -> tuple[bool, str]:
    """Whether the process that listens there says yes, and what it says.

    Args:
        host: as in ``metrics.host``; an address that means all interfaces is asked at loopback.
        port: as in ``metrics.port``, a fixed one.
        probe: ``live``, ``ready`` or ``started``.
        timeout_s: without an answer by then it is a no (seconds).
    """
    from http.client import HTTPConnection, HTTPException

    host = _EVERYWHERE.get(host, host)
    connection = HTTPConnection(host.strip("[]"), port, timeout=timeout_s)
    try:
        connection.request("GET", f"/{probe}")
        answer = connection.getresponse()
        return answer.status == 200, answer.read(_LONGEST_ANSWER_BYTES).decode("utf-8", "replace")
    except (OSError, HTTPException) as error:
        return False, f"no answer from http://{host}:{port}/{probe}: {error or type(error).__name__}"
    finally:
        connection.close()


@click.command()
@click.argument("probe", type=click.Choice(["live", "ready", "started"]), default="live")
@click.pass_context
def health(context: click.Context, probe: str) -> None:
    """Ask the process whose metrics.host and metrics.port are set here. Ends with 1 when it says no, or nothing."""
    from stream_app.errors import SettingsError
    from stream_app.settings import load_settings

    settings = load_settings().metrics
    if settings.port <= 0:
        raise SettingsError(
            f"metrics.port = {settings.port}: only a fixed port can be asked; give the process and this command the "
            "same TAILRACE_METRICS__PORT"
        )
    well, said = ask(settings.host, settings.port, probe)
    if not well:
        click.echo(said, err=True)
        context.exit(1)
    click.echo(f"{probe}: ok")
