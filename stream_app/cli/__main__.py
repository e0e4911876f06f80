"""``python -m stream_app.cli`` is ``tailrace``."""

from stream_app.cli import main

raise SystemExit(main())
