"""Simple published methods to compare with, one file each; the names are what ``tailrace evaluate --compare`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_app.evaluation.baselines.baseline import Baseline, Told

__all__ = ["BASELINES", "Baseline", "Told", "make_baselines"]

BASELINES: Final = ("popularity", "covisitation", "text", "isgd", "bpr")


def make_baselines(names: Sequence[str], vectors: NDArray[np.float32], *, seed: int) -> list[Baseline]:
    """The baselines of these names.

    Args:
        names: of :data:`BASELINES`.
        vectors: float32 [items, dimensions], unit vectors of the items' texts by row, zeros where there is none.
        seed: of those that draw random numbers.
    """
    # Here, because they compile; what only asks for the names should not wait for that.
    from stream_app.evaluation.baselines.bpr import BPR
    from stream_app.evaluation.baselines.covisitation import Covisitation
    from stream_app.evaluation.baselines.isgd import ISGD
    from stream_app.evaluation.baselines.popularity import Popularity
    from stream_app.evaluation.baselines.text import Text

    items = len(vectors)
    made: dict[str, Baseline] = {}
    for name in dict.fromkeys(names):
        if name == "popularity":
            made[name] = Popularity(items)
        elif name == "covisitation":
            made[name] = Covisitation(items)
        elif name == "text":
            made[name] = Text(vectors)
        elif name == "isgd":
            made[name] = ISGD(items, seed=seed)
        else:
            made[name] = BPR(items, seed=seed)
    return list(made.values())
