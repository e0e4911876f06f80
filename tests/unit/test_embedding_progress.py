"""Lines for whoever waits for a catalogue: when, and what they say."""

from __future__ import annotations

from stream_app.embedding_progress import EmbeddingProgress, Report


def test_a_line_every_few_seconds_with_rate_and_time_left_and_one_at_the_end() -> None:
    progress = EmbeddingProgress()
    assert progress.report(100.0, texts=50, remaining=10_000) is None  # nothing is known of the rate yet
    assert progress.report(104.9, texts=4_000, remaining=6_000) is None
    assert progress.report(105.0, texts=5_050, remaining=5_000) == Report(5_000, 1_000.0, 5.0)
    assert progress.report(109.0, texts=9_050, remaining=1_000) is None
    assert progress.report(110.0, texts=10_050, remaining=0) == Report(0, 1_000.0, 0.0)
    assert progress.report(111.0, texts=10_050, remaining=0) is None


def test_nobody_waits_for_a_few_items() -> None:
    progress = EmbeddingProgress()
    assert all(progress.report(now, texts=0, remaining=499) is None for now in range(0, 100, 10))


def test_a_pool_that_stands_still_says_so_without_a_guess() -> None:
    progress = EmbeddingProgress()
    assert progress.report(0.0, texts=0, remaining=1_000) is None
    assert progress.report(5.0, texts=0, remaining=1_000) == Report(1_000, 0.0, None)
