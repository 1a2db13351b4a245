"""The cancellation storm: many clients move money, and are interrupted at random moments.

Afterwards all must be as if nothing had been interrupted: no money lost or made, each transfer whole, each promise of
on_commit kept, and nothing left behind, in the process or on the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any

from django.db import connection

import greenorm

from .books import Books, audit, open_wallets
from .footprint import Footprint
from .operations import draw
from .stalls import Stalls
from .storm_ways import WAYS, Tally

# Bounds, in seconds. What the loop's own thread works at a stretch does not depend on what else runs on the machine.
STALL_CPU = 1.0
STALL_WALL = 10.0
# How long the server may take to see that its clients are gone.
SETTLE_SECONDS = 30.0
# Objects and bytes that a process may have more than before, however long the storm was.
SPARE_OBJECTS = 1000
SPARE_BYTES = 24 * 2**20


@dataclass(frozen=True)
class Plan:
    """What a storm is to be. It ends when both numbers have been reached."""

    seed: int
    operations: int
    cancellations: int
    clients: int = 32
    warm_up: int = 300
    """Operations of a storm before, after which the footprint is taken: opens and caches what is kept."""


@dataclass
class Result:
    """What a storm came to. Times are in seconds."""

    plan: Plan
    wrong: list[str]
    operations: int = 0
    cancellations: int = 0
    by_way: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stall_wall: float = 0.0
    stall_cpu: float = 0.0
    grown: dict[str, int] = field(default_factory=dict)
    connections_opened: int = 0
    connections_closed: int = 0
    transfers: int = 0

    def figures(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)


async def storm(plan: Plan, report: Callable[[Tally], None] = lambda tally: None) -> Result:
    """Have a storm on the running loop. `report` is told of each operation that has ended."""
    # Numbers run on until enough have been cancelled; more than this many are not needed, or it is wrong.
    books = Books(plan.warm_up + 4 * (plan.operations + plan.cancellations) + 1000)
    numbers = count()
    await greenorm.run(open_wallets)
    await _blow(Tally(), books, numbers, plan, plan.warm_up, 0)
    await _park_greenlets()
    not_filled = await fill_pool()
    before = Footprint.take()
    started = greenorm.pool_stats()
    tally = Tally()
    since = perf_counter()
    async with Stalls() as stalls:
        await _blow(tally, books, numbers, plan, plan.operations, plan.cancellations, report)
    result = Result(plan, tally.wrong, tally.ended, tally.cancelled, dict(tally.by_way), perf_counter() - since)
    result.stall_wall, result.stall_cpu = stalls.wall, stalls.cpu
    result.wrong += await check_server()
    result.wrong += check_pool()
    result.wrong += not_filled + await fill_pool()
    result.grown = Footprint.take().grown_since(before)
    result.wrong += await greenorm.run(audit, books)
    result.wrong += _judge(result)
    ended = greenorm.pool_stats()
    result.connections_opened = ended.opened - started.opened
    result.connections_closed = ended.closed - started.closed
    result.transfers = sum(times == 2 for times in books.on_commit)
    return result


async def _blow(
    tally: Tally,
    books: Books,
    numbers: Iterator[int],
    plan: Plan,
    operations: int,
    cancellations: int,
    report: Callable[[Tally], None] = lambda tally: None,
) -> None:
    ways = list(WAYS)
    weights = [weight for weight, _ in WAYS.values()]
    before = asyncio.all_tasks()

    async def client() -> None:
        while tally.ended < operations or tally.cancelled < cancellations:
            operation, order, dice = draw(plan.seed, next(numbers))
            way = dice.choices(ways, weights)[0]
            started = [partial(operation, books, order)]
            for _ in range(WAYS[way][1] - 1):
                operation, order, _ = draw(plan.seed, next(numbers))
                started.append(partial(operation, books, order))
            await way(tally, started, dice)
            report(tally)

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.clients):
            group.create_task(client())
    # What a reading that was left has given a task of its own to close.
    deadline = perf_counter() + SETTLE_SECONDS
    while (late := asyncio.all_tasks() - before) and perf_counter() < deadline:
        await asyncio.wait(late, timeout=SETTLE_SECONDS)


async def _park_greenlets(count: int = 200) -> None:
    # More at once than are kept for reuse, so that their number says nothing about what came before.
    all_there = asyncio.Barrier(count)
    await asyncio.gather(*[greenorm.run(lambda: greenorm.await_(all_there.wait())) for _ in range(count)])


async def fill_pool() -> list[str]:
    """Have as many connections open as the pool may have: none of its places has been lost. Return what is wrong."""
    size = greenorm.pool_stats().max_size
    all_there = asyncio.Barrier(size)

    async def hold() -> None:
        async with greenorm.connection():
            await all_there.wait()

    holders = [asyncio.create_task(hold()) for _ in range(size)]
    _, late = await asyncio.wait(holders, timeout=SETTLE_SECONDS)
    wrong = [f"{all_there.n_waiting} of {size} connections could be had: {greenorm.pool_stats()}"] if late else []
    for holder in late:
        holder.cancel()
    errors = [error for error in await asyncio.gather(*holders, return_exceptions=True) if isinstance(error, Exception)]
    return wrong + [f"a connection that fills the pool: {error!r}" for error in errors]


def check_pool() -> list[str]:
    """Return what is wrong with a pool that nobody uses."""
    stats = greenorm.pool_stats()
    whole = (stats.in_use, stats.waiting) == (0, 0) and stats.size == stats.idle
    return [] if whole else [f"nobody uses the pool, and it says {stats}"]


def sessions() -> list[tuple[str, int]]:
    """Return, on the ORM side, the states of this application's sessions, other than this one, counted."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT state, count(*) FROM pg_stat_activity WHERE datname = current_database() AND state IS NOT NULL "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend' "
            "AND application_name = current_setting('application_name') GROUP BY state"
        )
        return cursor.fetchall()


async def check_server() -> list[str]:
    """Return what is wrong on the server: sessions that are not idle, or that no pool knows. Waits for late ones."""
    deadline = perf_counter() + SETTLE_SECONDS
    while True:
        found = dict(await greenorm.run(sessions))
        size = greenorm.pool_stats().size
        if not {*found} - {"idle"} and sum(found.values()) == size - 1:
            return []
        if perf_counter() > deadline:
            return [f"with {size} connections in the pool the server has, beside this one, {found}"]
        await asyncio.sleep(0.05)


def _judge(result: Result) -> list[str]:
    wrong = []
    for name, spare in {
        "tasks": 0,
        "greenlets": 0,
        "descriptors": 0,
        "threads": 0,
        "objects": SPARE_OBJECTS,
        "rss": SPARE_BYTES,
    }.items():
        if result.grown[name] > spare:
            wrong.append(f"{result.grown[name]} {name} more than before")
    if result.stall_cpu > STALL_CPU or result.stall_wall > STALL_WALL:
        wrong.append(f"the loop stalled for {result.stall_wall:.3f} s, {result.stall_cpu:.3f} s of it at work")
    return wrong
