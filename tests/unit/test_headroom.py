"""Short memory: when records wait, when caches shrink, and that neither is for ever."""

from __future__ import annotations

import asyncio
import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app import holding_back
from stream_app.delivery.gate import DRIP_S, Gate
from stream_app.headroom import Budget, Headroom, memory_budget
from stream_app.holding_back import hold_back
from stream_app.metrics import Metrics
from stream_app.settings import MemorySettings, load_settings
from stream_app.stores.users import UserStore
from stream_app.users.state import UserState
from tests.unit.test_draining import ONE, Log, draining
from tests.waiting import eventually


def test_records_wait_from_the_share_on_and_until_a_little_less_is_used():
    headroom = Headroom(1_000, 0.9)
    used = [899, 900, 899, 856, 855, 854, 899]
    assert [headroom.look(one).held_back for one in used] == [False, True, True, True, True, False, False]


@given(st.lists(st.integers(0, 2_000), max_size=30))
def test_what_follows_is_consistent(used: list[int]):
    headroom = Headroom(1_000, 0.9)
    held = False
    for one in used:
        look = headroom.look(one)
        assert look.changed == (look.held_back != held)
        held = look.held_back
        assert not (look.shrink and look.restore)
        assert not look.shrink or look.held_back
        assert not look.restore or not look.held_back


def cgroups(system: Path, lines: str, **files: str) -> Path:
    (system / "proc/self").mkdir(parents=True)
    (system / "proc/self/cgroup").write_text(lines)
    for name, content in files.items():
        path = system / "sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return system


def test_the_limit_of_a_container_counts_without_files_that_the_kernel_can_drop(tmp_path: Path):
    system = cgroups(
        tmp_path,
        "0::/\n",
        memory_DOT_max="1000000\n",
        memory_DOT_current="900000\n",
        memory_DOT_stat="anon 5\ninactive_file 300000\nactive_file 7\n",
    )
    budget = memory_budget(MemorySettings(), system=system)
    assert budget is not None
    assert (budget.limit, budget.used()) == (1_000_000, 600_000)


def test_the_nearest_group_with_a_limit_counts(tmp_path: Path):
    system = cgroups(
        tmp_path,
        "0::/a/b\n",
        a__b__memory_DOT_max="max\n",
        a__memory_DOT_max="2000\n",
        a__memory_DOT_current="500\n",
        memory_DOT_max="9999999\n",
    )
    budget = memory_budget(MemorySettings(), system=system)
    assert budget is not None
    assert (budget.limit, budget.used()) == (2_000, 500)


def test_version_1_of_cgroups_is_read_and_its_largest_number_is_no_limit(tmp_path: Path):
    lines = "5:cpu:/x\n4:memory:/x\n"
    limited = cgroups(
        tmp_path / "limited",
        lines,
        memory__x__memory_DOT_limit_in_bytes="7000",
        memory__x__memory_DOT_usage_in_bytes="6000",
        memory__x__memory_DOT_stat="total_inactive_file 1000\n",
    )
    budget = memory_budget(MemorySettings(), system=limited)
    assert budget is not None
    assert (budget.limit, budget.used()) == (7_000, 5_000)
    free = cgroups(tmp_path / "free", lines, memory__x__memory_DOT_limit_in_bytes="9223372036854771712")
    assert memory_budget(MemorySettings(), system=free) is None


def test_without_any_limit_and_off_nothing_is_watched(tmp_path: Path):
    assert memory_budget(MemorySettings(), system=tmp_path) is None
    assert memory_budget(MemorySettings(limit="off")) is None


def test_a_limit_in_bytes_is_compared_with_the_process():
    budget = memory_budget(MemorySettings(limit=1 << 34))
    assert budget is not None
    before = budget.used()
    assert before > 10 << 20
    # Not bytes of the heap: what other tests gave back there is still the process's.
    with mmap.mmap(-1, 64 << 20) as held:
        held.write(bytes(64 << 20))
        assert budget.used() - before > 48 << 20


@pytest.mark.parametrize("limit", [1, "much", -5])
def test_a_limit_that_is_none_is_refused(limit: object):
    with pytest.raises(Exception, match="limit"):
        load_settings(memory={"limit": limit})


def test_a_closed_gate_lets_an_idle_consumer_fetch_now_and_then():
    gate = Gate()
    assert gate.lets("a", idle=False, now=0.0)
    gate.closed = True
    assert not gate.lets("a", idle=False, now=0.0), "it has something to do"
    assert gate.lets("a", idle=True, now=1.0)
    assert not gate.lets("a", idle=True, now=1.0 + DRIP_S / 2)
    assert gate.lets("b", idle=True, now=1.5), "each has its own turn"
    assert gate.lets("a", idle=True, now=1.0 + DRIP_S)
    gate.closed = False
    assert gate.lets("a", idle=False, now=2.1)


async def test_while_the_gate_is_closed_one_fetch_is_taken_and_the_rest_waits():
    log = Log(t=range(10))
    log.at_most = 4
    async with draining(log) as drain:
        drain.app.tailrace_gate.closed = True
        drain.resume()
        await eventually(lambda: drain.offsets() == [0, 1, 2, 3])
        looked = drain.looked
        await eventually(lambda: drain.looked > looked + 3)
        assert drain.offsets() == [0, 1, 2, 3], "it was not idle"
        drain.app.tailrace_gate.closed = False
        await eventually(lambda: drain.offsets(ONE) == list(range(10)))


class Holder:
    """Memory that can be given back three times."""

    def __init__(self) -> None:
        self.halves = 0

    def shrink(self) -> bool:
        self.halves += self.halves < 3
        return self.halves < 3

    def restore(self) -> bool:
        self.halves = max(0, self.halves - 1)
        return self.halves > 0


async def test_consumption_is_held_back_while_memory_is_short_and_caches_shrink(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(holding_back, "_LOOK_S", 0.001)
    monkeypatch.setattr(holding_back, "_RESTORE_S", 0.0)
    used, gate, holder, metrics = [50], Gate(), Holder(), Metrics()
    budget = Budget(100, "test", lambda: used[0])
    watching = asyncio.create_task(hold_back(MemorySettings(), budget, gate=gate, shrinking=[holder], metrics=metrics))
    try:
        await eventually(lambda: metrics.memory_used._value.get() == 50)
        assert not gate.closed
        used[0] = 95
        await eventually(lambda: gate.closed and holder.halves == 3)
        assert metrics.held_back._value.get() == 1
        assert metrics.caches_shrunk._value.get() == 2
        used[0] = 80
        await eventually(lambda: not gate.closed)
        assert holder.halves == 3, "there is no room for more yet"
        used[0] = 40
        await eventually(lambda: holder.halves == 0)
        assert not watching.done()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def test_the_users_in_memory_are_halved_down_to_a_batch_and_back():
    settings = load_settings(users={"cache": 64, "unpacked": 32}, delivery={"batch": 8})
    store = UserStore(None, settings, Metrics())  # type: ignore[arg-type]
    for number in range(100):
        store._cache.put(f"u{number}", UserState(f"u{number}"), b"")
    assert len(store) == 64
    assert store.shrink()
    assert (len(store), len(store._cache._states)) == (32, 16)
    assert store._cache.get("u99") is not None, "the last stay"
    assert store.shrink()
    assert not store.shrink(), "a batch has to fit"
    assert (len(store), len(store._cache._states)) == (16, 8)
    assert store.restore()
    assert store.restore()
    assert not store.restore()
    for number in range(100):
        store._cache.put(f"u{number}", UserState(f"u{number}"), b"")
    assert len(store) == 64
