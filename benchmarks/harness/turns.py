"""One turn of one contender: the same requests for each, timed, and what came out of them checked.

Two ways to do them: one after the other, timed as a whole, for what a unit of work costs; and by many clients at once,
each with a request under way until none is left, with the latency of each and a ticker beside them.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .works import WORKS, Reference, plain

# Does one request, by whatever means.
Do: TypeAlias = Callable[[Any], Awaitable[Any]]
# How often, in seconds, the event loop is asked whether it is there.
TICK = 0.005
# Results that are compared: of what is timed as a whole, from the warm-up, and the last; of clients, the first.
FEW = 3
KEPT = 1_000


@dataclass
class Order:
    """What a contender is to do in its turn."""

    contender: str
    work: str
    count: int
    seed: int
    dsn: str
    schema: str
    connections: int
    clients: int = 0
    """How many at once; 0: one after the other, without measuring each."""
    duration: float = math.inf
    """Seconds after which clients begin nothing more."""
    deadline: float = math.inf
    """Seconds after which they are no longer waited for."""
    warm_up: int = 20
    rows: int = 0
    """Of a stream."""


@dataclass
class Outcome:
    """What was seen. Times are in seconds."""

    seconds: float = 0.0
    cpu: float = 0.0
    done: int = 0
    latencies: list[float] = field(default_factory=lambda: [])
    unfinished: list[float] = field(default_factory=lambda: [])
    """For how long the requests had been under way that were given up at the deadline."""
    stalls: list[float] = field(default_factory=lambda: [])
    """How late each tick came."""
    results: list[tuple[Any, Any]] = field(default_factory=lambda: [])
    """Requests with their results."""

    def finish(self, request: Any, result: Any, since: float) -> None:
        """Take down one request of a client."""
        self.latencies.append(time.perf_counter() - since)
        self.done += 1
        if len(self.results) < KEPT:
            self.results.append((request, result))

    def summary(self) -> dict[str, Any]:
        """Return the figures, without what they were made of."""
        latencies = sorted(self.latencies + self.unfinished)
        stalls = sorted(self.stalls)
        return {
            "seconds": self.seconds,
            "cpu": self.cpu,
            "done": self.done,
            "unfinished": len(self.unfinished),
            "p50": percentile(latencies, 50),
            "p99": percentile(latencies, 99),
            "stall_p99": percentile(stalls, 99),
            "stall": stalls[-1] if stalls else 0.0,
        }


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that `percent` of all do not exceed; 0 where there are none."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else 0.0


class Wrong(AssertionError):
    """A contender's result is not what the server has."""


class Checker:
    """Holds results against what the server has, read by other means."""

    def __init__(self, dsn: str) -> None:
        self.reference = Reference(dsn)
        self._expected: dict[tuple[str, str], Any] = {}

    def before(self, order: Order) -> Any:
        """Return what `after` has to be given."""
        return self.reference.written() if order.work == "write" else None

    def after(self, order: Order, before: Any, writes: int, outcome: Outcome) -> None:
        """Raise Wrong where a result is not as it should be."""
        for request, result in outcome.results:
            key = (order.work, repr(request))
            if key not in self._expected:
                self._expected[key] = WORKS[order.work].expected(self.reference, request)
            if plain(result) != self._expected[key]:
                raise Wrong(f"{order.contender}, {order.work}({request}): {plain(result)}"[:400])
        if order.work == "write":
            entries, value = self.reference.written()
            # What was given up at the deadline may be done nevertheless.
            if (entries - before[0], value - before[1]) != (writes, writes) and not outcome.unfinished:
                raise Wrong(f"{order.contender}: {writes} writes were ordered, {entries - before[0]} are there")


def requests_of(order: Order) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the requests to warm up with, and those to be measured."""
    if order.work == "stream":
        return [min(order.rows, 5_000)], [order.rows]
    work = WORKS[order.work]
    return work.requests(order.warm_up, order.seed + 1), work.requests(order.count, order.seed)


def _clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def do_in_sync(do: Callable[[Any], Any], order: Order) -> Outcome:
    """Let sync code do the requests, one after the other."""
    outcome = Outcome()
    warm_up, requests = requests_of(order)
    outcome.results = [(request, do(request)) for request in warm_up[-FEW:]]
    for request in warm_up[:-FEW]:
        do(request)
    gc.collect()
    since, cpu = _clock()
    if order.clients:
        _do_as_client(do, requests, order.duration, outcome)
    else:
        result = None
        for request in requests:
            result = do(request)
        outcome.done = len(requests)
        outcome.results.append((requests[-1], result))
    outcome.seconds, outcome.cpu = time.perf_counter() - since, time.process_time() - cpu
    return outcome


def _do_as_client(do: Callable[[Any], Any], requests: Sequence[Any], duration: float, outcome: Outcome) -> None:
    until = time.perf_counter() + duration
    for request in requests:
        since = time.perf_counter()
        if since > until:
            break
        outcome.finish(request, do(request), since)


async def do_in_turn(do: Do, order: Order) -> Outcome:
    """Await the requests, one after the other."""
    outcome = Outcome()
    warm_up, requests = requests_of(order)
    outcome.results = [(request, await do(request)) for request in warm_up[-FEW:]]
    for request in warm_up[:-FEW]:
        await do(request)
    gc.collect()
    since, cpu = _clock()
    result = None
    for request in requests:
        result = await do(request)
    outcome.seconds, outcome.cpu = time.perf_counter() - since, time.process_time() - cpu
    outcome.done = len(requests)
    outcome.results.append((requests[-1], result))
    return outcome


async def do_at_once(do: Do, order: Order) -> Outcome:
    """Let many clients await the requests, until all are done or the deadline is there."""
    warm_up, requests = requests_of(order)
    await _serve(do, warm_up, min(order.clients, 2 * order.connections), Outcome(), math.inf, math.inf)
    gc.collect()
    outcome = Outcome()
    ticking = asyncio.ensure_future(_tick(outcome))
    try:
        await asyncio.sleep(2 * TICK)
        outcome.stalls.clear()
        since, cpu = _clock()
        await _serve(do, requests, order.clients, outcome, order.duration, order.deadline)
        outcome.seconds, outcome.cpu = time.perf_counter() - since, time.process_time() - cpu
        await asyncio.sleep(2 * TICK)  # for a tick that the last request has kept waiting
    finally:
        ticking.cancel()
    return outcome


async def _serve(
    do: Do, requests: Sequence[Any], clients: int, outcome: Outcome, duration: float, deadline: float
) -> None:
    waiting = iter(requests)
    started: dict[int, float] = {}
    until = time.perf_counter() + duration

    async def client(number: int) -> None:
        for request in waiting:
            started[number] = since = time.perf_counter()
            outcome.finish(request, await do(request), since)
            if time.perf_counter() > until:
                break
        del started[number]

    tasks = [asyncio.ensure_future(client(number)) for number in range(min(clients, len(requests)))]
    try:
        _, late = await asyncio.wait(tasks, timeout=None if deadline == math.inf else deadline)
        now = time.perf_counter()
        outcome.unfinished = [now - since for since in started.values()] if late else []
    finally:
        for task in tasks:
            task.cancel()
        gathered = await asyncio.gather(*tasks, return_exceptions=True)
    for error in gathered:
        if isinstance(error, Exception):
            raise error


async def _tick(outcome: Outcome) -> None:
    while True:
        due = time.perf_counter() + TICK
        await asyncio.sleep(TICK)
        outcome.stalls.append(max(0.0, time.perf_counter() - due))
