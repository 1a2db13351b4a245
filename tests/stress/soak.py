"""The long haul: a steady load through a network that fails now and then, and what becomes of memory and latency.

Operations arrive by a clock, each with its patience, and not when others have ended: what a fault holds up shows as
latency. What fails outside of a fault, and the time that it takes to heal, is wrong, unless it only took too long.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

from django.db import InterfaceError, OperationalError, connections

import greenorm
from greenorm import driver

from .books import Books, audit, open_wallets
from .footprint import Footprint
from .operations import draw
from .proxy import Proxy
from .soak_faults import FAULTS, Fault
from .stalls import Stalls
from .storm import SPARE_BYTES, check_pool, check_server, fill_pool

# Seconds: of patience with an operation; after a fault, until nothing of it is felt any more.
PATIENCE = 5.0
HEALING = PATIENCE + driver.CLEANUP_SECONDS + 2 * driver.CANCEL_SECONDS


@dataclass(frozen=True)
class Plan:
    """What a soak is to be. Times are in seconds."""

    seed: int
    seconds: float
    rate: float = 15.0
    """Operations in a second."""
    sample_every: float = 5.0
    fault_every: float = 40.0
    fault_seconds: float = 4.0
    """How long a fault may last."""
    patience: float = PATIENCE
    """With an operation."""
    healing: float = HEALING
    """How long before the end there is no new fault."""


@dataclass
class Sample:
    """What was seen in one stretch of time. Times are in seconds, memory in bytes."""

    at: float
    done: int
    errors: dict[str, int]
    p50: float
    p99: float
    stall_cpu: float
    rss: int
    descriptors: int
    greenlets: int
    tasks: int
    pool: int
    waiting: int


@dataclass
class Result:
    """What a soak came to."""

    plan: Plan
    samples: list[Sample] = field(default_factory=list)
    faults: list[tuple[float, str]] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    operations: int = 0
    late: int = 0
    """Operations that had too little time although there was no fault: of a machine that is too slow for the load."""
    grown: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)


class Soak:
    """A soak under way."""

    def __init__(self, plan: Plan, proxy: Proxy, report: Callable[[Sample], None]) -> None:
        self.plan, self.proxy, self.report = plan, proxy, report
        self.result = Result(plan)
        self.books = Books(int(plan.seconds * plan.rate * 2) + 1000)
        self.latencies: list[float] = []
        self.errors: Counter[str] = Counter()
        self.began = perf_counter()
        self.healed_at = 0.0

    def now(self) -> float:
        return perf_counter() - self.began

    async def operate(self, number: int) -> None:
        """Do one operation, and note what came of it."""
        operation, order, _ = draw(self.plan.seed, number)
        arrived, before = perf_counter(), self.now()
        try:
            async with asyncio.timeout(self.plan.patience):
                await operation(self.books, order)
        except (OperationalError, InterfaceError, TimeoutError) as exc:
            if _is_unknown(exc):
                self.books.note_unknown(number)
            self.errors[type(exc).__name__] += 1
            if before > self.healed_at:
                if isinstance(exc, TimeoutError):
                    self.result.late += 1
                else:
                    self.result.wrong.append(f"{self.now():.1f} s, with no fault: {type(exc).__name__}: {exc}")
        except Exception as exc:
            self.result.wrong.append(f"{self.now():.1f} s: {type(exc).__name__}: {exc}")
        else:
            self.latencies.append(perf_counter() - arrived)
        self.result.operations += 1

    async def load(self) -> None:
        """Start operations by the clock until the time is over, and wait for the last."""
        dice = Random(self.plan.seed)
        due, number = 0.0, 0
        async with asyncio.TaskGroup() as group:
            while due < self.plan.seconds:
                await asyncio.sleep(max(0.0, due - self.now()))
                group.create_task(self.operate(number))
                number += 1
                due += dice.expovariate(self.plan.rate)

    async def fail(self) -> None:
        """Have faults on the network, one after another, and an end of them in time for all to heal."""
        dice = Random(self.plan.seed + 1)
        bag: list[Fault] = []
        while self.now() + self.plan.fault_every + self.plan.healing < self.plan.seconds:
            await asyncio.sleep(self.plan.fault_every)
            if not bag:
                bag = dice.sample(FAULTS, len(FAULTS))
            fault = bag.pop()
            self.result.faults.append((self.now(), fault.__name__))
            self.healed_at = float("inf")
            await fault(self.proxy, dice, self.plan.fault_seconds)
            self.healed_at = self.now() + HEALING

    async def watch(self) -> None:
        """Take samples."""
        while True:
            async with Stalls() as stalls:
                await asyncio.sleep(self.plan.sample_every)
            latencies, self.latencies = sorted(self.latencies), []
            errors, self.errors = self.errors, Counter()
            for name, count in errors.items():
                self.result.errors[name] = self.result.errors.get(name, 0) + count
            there, pool = Footprint.take(collect=False), greenorm.pool_stats()
            sample = Sample(
                at=self.now(),
                done=len(latencies),
                errors=dict(errors),
                p50=median(latencies) if latencies else self.plan.patience,
                p99=latencies[int(len(latencies) * 0.99)] if latencies else self.plan.patience,
                stall_cpu=stalls.cpu,
                rss=there.rss,
                descriptors=there.descriptors,
                greenlets=there.greenlets,
                tasks=there.tasks,
                pool=pool.size,
                waiting=pool.waiting,
            )
            self.result.samples.append(sample)
            self.report(sample)


def _is_unknown(exc: BaseException | None) -> bool:
    while exc is not None:
        if isinstance(exc, greenorm.OutcomeUnknown):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


async def soak(plan: Plan, report: Callable[[Sample], None] = lambda sample: None) -> Result:
    """Have a soak on the running loop, through a proxy before the server of the default alias."""
    direct = connections.settings["default"]
    with Proxy(direct["HOST"], direct["PORT"] or 5432) as proxy:
        connections.settings["default"] = {**direct, "HOST": "127.0.0.1", "PORT": str(proxy.port)}
        try:
            return await _soak(Soak(plan, proxy, report))
        finally:
            await greenorm.run(lambda: connections["default"].close_pool())
            connections.settings["default"] = direct


async def _end_faults(proxy: Proxy) -> None:
    """End a fault that is under way, and with their connections those that are over: some are half-open."""
    proxy.heal()
    proxy.cut()
    while proxy.links:
        await asyncio.sleep(0.01)


async def _soak(soak: Soak) -> Result:
    result = soak.result
    await greenorm.run(open_wallets)
    result.wrong += await fill_pool()
    before = Footprint.take()
    soak.began = perf_counter()
    others = [asyncio.create_task(soak.watch()), asyncio.create_task(soak.fail())]
    try:
        await soak.load()
    finally:
        for other in others:
            other.cancel()
        await asyncio.wait(others)
        await _end_faults(soak.proxy)
    for other in others:
        if not other.cancelled() and (exc := other.exception()) is not None:
            raise exc
    result.wrong += check_pool() + await check_server()
    result.wrong += await fill_pool()
    gc.collect()
    result.grown = Footprint.take().grown_since(before)
    # Descriptors are for the picture: the proxy has its own of each connection, and some that are half-open.
    spare = {"tasks": 0, "threads": 0, "rss": SPARE_BYTES}
    result.wrong += [
        f"{result.grown[name]} {name} more than before" for name in spare if result.grown[name] > spare[name]
    ]
    result.wrong += await greenorm.run(audit, soak.books)
    return result
