"""``python -m stream_app.evaluation``: the same as ``tailrace evaluate``."""

from __future__ import annotations

import sys

from stream_app.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
