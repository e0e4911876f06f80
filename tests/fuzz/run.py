"""The run: so many mutated messages, each read or refused, and no memory that stays."""

from __future__ import annotations

import faulthandler
import gc
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.target import RENEWED, Sample, Target, mutation
from tests.fuzz.targets import targets

__all__ = ["Find", "Report", "fuzz"]

_MOST_FINDS = 20
_SLOW_S = 2.0
"""A message that takes longer is a find as well: a few of them stop a partition."""
_STUCK_S = 60.0
_LEAK_OBJECTS = 20_000
_LEAK_BYTES = 48 << 20
"""What may be more at the end than at half of it: caches with a bound fill up for a while."""


@dataclass(frozen=True)
class Find:
    """A message that was neither read nor refused."""

    target: str
    sample: Sample
    problem: str

    def __str__(self) -> str:
        sample = self.sample
        shown = repr(sample.value)
        shown = shown if len(shown) <= 1_500 else f"{shown[:1_500]}... ({len(sample.value or b''):,} bytes)"
        return f"{self.target}\n  key {sample.key!r}\n  value {shown}\n{self.problem}"


@dataclass
class Report:
    """What became of the messages.

    Attributes:
        read, refused: messages by target.
        finds: what must not be, the first of each kind.
        found: how many messages that were.
        objects, rss: at half of the run and at its end.
    """

    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    finds: list[Find] = field(default_factory=list)
    found: int = 0
    objects: list[int] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)

    @property
    def messages(self) -> int:
        """So far."""
        return self.read.total() + self.refused.total()

    def leaks(self) -> str:
        """What grew in the second half beyond the bound; empty: nothing."""
        if len(self.objects) < 2:
            return ""
        objects, rss = self.objects[-1] - self.objects[0], self.rss[-1] - self.rss[0]
        grown = []
        if objects > _LEAK_OBJECTS:
            grown.append(f"{objects:,} objects (bound {_LEAK_OBJECTS:,})")
        if rss > _LEAK_BYTES:
            grown.append(f"{rss >> 20} MiB (bound {_LEAK_BYTES >> 20})")
        return " and ".join(grown)


def fuzz(
    messages: int,
    *,
    seed: int,
    folder: Path,
    only: str = "",
    on_progress: Callable[[int, float], None] = lambda done, seconds: None,
) -> Report:
    """Let every target read ``messages`` mutated messages together.

    Args:
        messages: of all targets.
        seed: the same seed gives the same messages.
        folder: for files.
        only: a part of the names of targets to be run; empty: all.
        on_progress: is told how many are done, and in how many seconds.
    """
    random_ = random.Random(seed)
    chosen = [target for target in targets(folder) if only in target.name]
    if not chosen:
        raise ValueError(f"no target has {only!r} in its name")
    report, kinds = Report(), Counter[tuple[str, str]]()
    for target in chosen:
        if target.renew is not None:
            target.read = target.renew()
        for sample in target.corpus:
            target.read(sample)  # what is valid is read
    shares = [target.share for target in chosen]
    turns, began = Counter[str](), time.perf_counter()
    for number, target in enumerate(random_.choices(chosen, shares, k=messages)):
        if number == messages // 2:
            _measure(report)
        turns[target.name] += 1
        if target.renew is not None and turns[target.name] % RENEWED == 0:
            target.read = target.renew()
        sample = mutation(target, random_)
        # What never ends is in compiled code or waits: only the stack says where.
        faulthandler.dump_traceback_later(_STUCK_S, exit=True)
        started = time.process_time()
        problem = _attempt(target, sample, report)
        took = time.process_time() - started
        faulthandler.cancel_dump_traceback_later()
        report.seconds[target.name] += took  # type: ignore[assignment]
        if not problem and took > _SLOW_S:
            problem = f"took {took:.1f} s"
        if problem:
            kind = (target.name, problem.strip().splitlines()[-1][:40])
            kinds[kind] += 1
            report.found += 1
            if kinds[kind] == 1 and len(report.finds) < _MOST_FINDS:
                report.finds.append(Find(target.name, sample, problem))
        if number % 1_000 == 999:
            on_progress(number + 1, time.perf_counter() - began)
    _measure(report)
    return report


def _attempt(target: Target, sample: Sample, report: Report) -> str:
    try:
        target.read(sample)
    except target.refusals:
        report.refused[target.name] += 1
        return ""
    except Exception:
        report.refused[target.name] += 1
        return traceback.format_exc(limit=-6)
    report.read[target.name] += 1
    return ""


def _measure(report: Report) -> None:
    gc.collect()
    report.objects.append(len(gc.get_objects()))
    fields = Path("/proc/self/statm").read_text().split()
    import resource

    report.rss.append(int(fields[1]) * resource.getpagesize())
