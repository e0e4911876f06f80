"""The ``tailrace`` command.

Sub-commands are small modules, one each, listed in ``stream_app.cli.root``; they import what is heavy when they run,
so that ``tailrace --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from stream_app.errors import TailraceError

__all__ = ["main"]

_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``tailrace`` with ``arguments`` (those of the process when None); the exit status.

    0: done. 1: done, and something was not as it should be. 2: not possible; one message says why. 130: Ctrl-C.
    """
    from stream_app.cli.root import root

    try:
        status = root.main(args=arguments, prog_name="tailrace", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TailraceError as error:
        click.echo(f"tailrace: {error}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (``| head``). Nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status if isinstance(status, int) else 0
