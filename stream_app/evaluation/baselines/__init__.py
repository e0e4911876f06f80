"""Simple published methods to compare with, one file each; the table is what ``tailrace evaluate --compare`` takes."""

from __future__ import annotations

from stream_app.evaluation.baselines.baseline import Baseline, Told

__all__ = ["Baseline", "Told"]
