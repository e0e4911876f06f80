"""How each thing that goes wrong is done, and healed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from stream_app.embedded.processes import Server
from stream_app.embedded.worker import WorkerProcess
from stream_app.errors import EmbeddedStackError
from stream_app.torture.clock import MovedClock, why_not
from stream_app.torture.proxy import Proxy
from stream_app.torture.schedule import ALL_KINDS, BROKER, REDIS, Fault, Kind

__all__ = ["Ground", "possible_kinds"]

_FULL_BYTES = 4_096
"""A file larger than that cannot be written while the disk is full."""
_NEEDS_A_LOG = frozenset(
    {Kind.BROKER_KILL, Kind.BROKER_RESTART, Kind.BROKER_SUSPEND, Kind.SLOW_BROKER, Kind.CUT_BROKER}
)


def possible_kinds(broker: str) -> tuple[Kind, ...]:
    """What can go wrong here: the embedded broker keeps nothing when it ends, and has no second listener; clocks are
    moved where :func:`~stream_app.torture.clock.why_not` has no objection."""
    left_out = set() if broker == "kafka" else set(_NEEDS_A_LOG)
    if why_not() is not None:
        left_out.add(Kind.CLOCK)
    return tuple(kind for kind in ALL_KINDS if kind not in left_out)


@dataclass
class Ground:
    """What faults happen to.

    Attributes:
        broker, redis: the servers.
        to_broker, to_redis: proxies in front of them, of the first process.
        workers: the processes by number.
        clocks: of the processes, where they can be moved.
    """

    broker: Server
    redis: Server
    to_broker: Proxy
    to_redis: Proxy
    workers: Sequence[WorkerProcess]
    clocks: Mapping[str, MovedClock]
    _busy: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    def busy(self, target: str) -> bool:
        """Whether something is wrong with it, on purpose, at the moment."""
        return self._busy[target].locked()

    async def suffer(self, fault: Fault) -> None:
        """Let it go wrong, and heal it. Waits for what goes wrong with the same target already.

        Raises:
            EmbeddedStackError: when a process or server does not come back.
        """
        async with self._busy[fault.target]:
            if fault.target == BROKER:
                await self._server(self.broker, fault)
            elif fault.target == REDIS:
                await self._server(self.redis, fault)
            elif fault.kind in {Kind.SLOW_BROKER, Kind.CUT_BROKER}:
                await self._network(self.to_broker, fault)
            elif fault.kind in {Kind.SLOW_REDIS, Kind.CUT_REDIS, Kind.STALL_REDIS}:
                await self._network(self.to_redis, fault)
            elif fault.kind is Kind.CLOCK:
                self.clocks[fault.target].move(fault.amount)
                await asyncio.sleep(fault.lasts_s)
                self.clocks[fault.target].move(0.0)
            elif fault.kind is Kind.DISK_FULL:
                await self._disk(self.workers[int(fault.target)], fault)
            else:
                await self._server(self.workers[int(fault.target)], fault)

    async def revive(self, target: str) -> bool:
        """Start a process that has ended by itself, as whoever runs it would. Whether it had."""
        worker = self.workers[int(target)]
        if worker.running or self.busy(target):
            return False
        async with self._busy[target]:
            if worker.running:
                return False
            await worker.start()
            return True

    async def _server(self, server: Server, fault: Fault) -> None:
        if fault.kind in {Kind.SUSPEND, Kind.BROKER_SUSPEND, Kind.REDIS_SUSPEND}:
            server.suspend()
            try:
                await asyncio.sleep(fault.lasts_s)
            finally:
                server.resume()
            return
        if fault.kind in {Kind.TERMINATE, Kind.BROKER_RESTART, Kind.REDIS_RESTART}:
            await server.stop()
        else:
            await server.kill()
        await asyncio.sleep(fault.lasts_s)
        await server.start()

    async def _network(self, proxy: Proxy, fault: Fault) -> None:
        if fault.amount:
            proxy.delay_s = fault.amount
        elif fault.kind is Kind.STALL_REDIS:
            proxy.stall()
        else:
            await proxy.cut()
        await asyncio.sleep(fault.lasts_s)
        proxy.heal()

    async def _disk(self, worker: WorkerProcess, fault: Fault) -> None:
        if worker.pid is None:
            raise EmbeddedStackError(f"{worker.name} does not run, and its disk cannot be full")
        process = psutil.Process(worker.pid)
        # A write beyond the limit fails in the middle of a file, as on a full disk; only the reason it gives is
        # another (EFBIG). It needs no rights, and can be taken back.
        _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (_FULL_BYTES, hard))
        await asyncio.sleep(fault.lasts_s)
        with suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
