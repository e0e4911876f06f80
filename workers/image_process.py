"""An encoder process of an image model: ``python -m workers.image_process --fd N --parent PID``, started by the pool.

The loop and everything that is said on the socket are those of :mod:`workers.process`; the strings it gets are those of
:mod:`workers.picture_requests`. Pictures are decoded here and nowhere else.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from workers.frames import Configure
from workers.lanes import lanes_for
from workers.process import Encoder
from workers.process import main as run

__all__ = ["command", "main"]


class Load(Protocol):
    """Makes the encoder of a process."""

    def __call__(self, configure: Configure, *, folder: Path | None, max_bytes: int, max_pixels: int) -> Encoder:
        """Of these pictures, with these bounds."""
        ...


def command(module: str, *, folder: Path | None, max_bytes: int, max_pixels: int) -> Sequence[str]:
    """What starts such a process, one that runs ``module``.

    Pictures are files below ``folder``, of so many bytes and pixels at most.
    """
    limits = ("--max-bytes", str(max_bytes), "--max-pixels", str(max_pixels))
    return (
        *(sys.executable, "-m", module, *limits),
        *(() if folder is None else ("--folder", str(folder))),
    )


def main(load: Load | None = None) -> None:
    """Run an encoder process; the arguments are those of :mod:`workers.process` and of :func:`command`. ``load`` makes
    the encoder (default: the model)."""
    parser = argparse.ArgumentParser(prog="python -m workers.image_process", allow_abbrev=False, add_help=False)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--max-bytes", type=int, required=True)
    parser.add_argument("--max-pixels", type=int, required=True)
    own, sys.argv[1:] = parser.parse_known_args()
    run(partial(load or _load, folder=own.folder, max_bytes=own.max_bytes, max_pixels=own.max_pixels))


def _load(configure: Configure, *, folder: Path | None, max_bytes: int, max_pixels: int) -> Encoder:
    import setproctitle

    from workers.faults import with_faults
    from workers.image_models import describe_image_model

    if configure.nice:
        os.nice(configure.nice)
    _, threads = lanes_for(configure.device, configure.threads)
    # The libraries read these when they are loaded, so before torch is imported.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(threads)
    setproctitle.setproctitle(f"tailrace-images {configure.index} (loading {configure.model})")
    from workers.images import ImageEncoder

    encoder = ImageEncoder(
        describe_image_model(configure.model),
        folder=folder,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        device=configure.device,
        precision=configure.precision,
        threads=threads,
        batch=configure.batch,
        index=configure.index,
    )
    setproctitle.setproctitle(f"tailrace-images {configure.index} {configure.model} {encoder.device}")
    return with_faults(encoder)


if __name__ == "__main__":
    main()
