"""How ``tailrace`` starts in a container whose file system is read-only: ``python -m stream_app.container ARGUMENTS``.

The image brings the compiled functions along (``stream_app.compiled``), so that no process compiles for the better
part of a minute. numba, however, takes only a folder that it can write to. So, before anything that compiles is
imported, what the image has is copied (some megabytes) to where ``NUMBA_CACHE_DIR`` says, in memory or on a volume.
What is missing there, as on another kind of processor, is compiled as elsewhere.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

__all__ = ["bring_compiled", "main"]

_BROUGHT = Path(sys.prefix) / "compiled"


def bring_compiled(brought: Path, cache: Path) -> bool:
    """Copy the folder ``brought`` to ``cache``, unless that is there; whether it was copied.

    It is there whole or not at all, also when several processes start at once. A place that cannot be written to costs
    only time: then functions are compiled when the process starts.
    """
    if cache.exists() or not brought.is_dir():
        return False
    scratch = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{cache.name}-", dir=cache.parent))
        # Names and contents alone: that it is somebody else's and read-only in the image must not come along.
        shutil.copytree(brought, scratch / "whole", copy_function=shutil.copyfile)
        (scratch / "whole").chmod(0o700)
        (scratch / "whole").rename(cache)
    except OSError as error:
        sys.stderr.write(f"compiled functions are not copied to {cache}: {error}; they are compiled anew\n")
        return False
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return True


def main() -> int:
    """``tailrace`` with the arguments of this process; the exit status."""
    cache = os.environ.get("NUMBA_CACHE_DIR")
    if cache:
        bring_compiled(_BROUGHT, Path(cache))
    from stream_app.cli import main as tailrace

    return tailrace()


if __name__ == "__main__":
    sys.exit(main())
