"""The harness: contenders do the same work in turn, in one process, and are held to the same results.

A round is one contender's turn at one situation. Contract: a contender opens what it needs when its turn comes and
closes all of it at the end of the turn, so that nothing of it burdens the next.
"""

from __future__ import annotations

import asyncio
import gc
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

# Calls a function with arguments, by whatever means, and is awaited for its result.
Call: TypeAlias = Callable[..., Awaitable[Any]]
# A function, and its arguments.
Request: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]

# How often, in seconds, the event loop is asked whether it is there.
TICK = 0.001


@dataclass(frozen=True)
class Contender:
    """A name, and a way to call functions."""

    name: str
    opened: Callable[[], AbstractAsyncContextManager[Call]]
    """Enters a turn. Gives what is called with each request's function and arguments, and awaited."""


@dataclass(frozen=True)
class Situation:
    """Work to be done: so many clients, each with a request under way until none is left."""

    name: str
    clients: int
    requests: Sequence[Request]
    warm_up: Sequence[Request]
    """Done by the same clients before the clock starts: opens connections, and pays what is paid once."""


@dataclass
class Round:
    """What was seen while one contender had its turn. Times are in seconds."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=lambda: [])
    stall: float = 0.0
    """The longest time for which the event loop did not get round to a task that was due."""
    threads: int = 0
    """Threads that ran at the most: the event loop's, and those that were not there before the turn."""
    connections: int = 0
    results: list[Any] = field(default_factory=lambda: [])


@dataclass(frozen=True)
class Figure:
    """A number, and the lowest and highest of the rounds that it stands for."""

    value: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Row:
    """The figures of one contender in one situation."""

    situation: str
    contender: str
    clients: int
    requests: int
    rounds: int
    requests_per_second: Figure
    p50_ms: Figure
    p99_ms: Figure
    longest_stall_ms: Figure
    threads: Figure
    connections: Figure


async def compare(
    situations: Sequence[Situation],
    contenders: Sequence[Contender],
    rounds: int,
    count_connections: Callable[[], int],
    report: Callable[[int, int, str], None] = lambda done, total, turn: None,
) -> list[Row]:
    """Let each contender have `rounds` turns at each situation, and return a row for each pair.

    Their order changes from round to round. `report` is told before each turn how many turns of how many are done, and
    what comes; `count_connections` is called after it, before what the contender opened is closed. Raises
    AssertionError where two contenders' results differ.
    """
    rows: list[Row] = []
    done, total = 0, len(situations) * rounds * len(contenders)
    for situation in situations:
        seen: dict[str, list[Round]] = {contender.name: [] for contender in contenders}
        expected: list[Any] | None = None
        for number in range(rounds):
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                report(done, total, f"{situation.name}: {contender.name}")
                turn = await _take_turn(situation, contender, count_connections)
                if expected is None:
                    expected = turn.results
                if turn.results != expected:
                    raise AssertionError(f"{contender.name} gave other results than expected: {situation.name}")
                turn.results = []
                seen[contender.name].append(turn)
                done += 1
        rows.extend(_row(situation, name, turns) for name, turns in seen.items())
    return rows


async def _take_turn(situation: Situation, contender: Contender, count_connections: Callable[[], int]) -> Round:
    turn = Round()
    others = {*threading.enumerate()} - {threading.current_thread()}
    async with contender.opened() as call:
        await _serve(situation.warm_up, situation.clients, call, Round())
        gc.collect()
        ticking = asyncio.create_task(_tick(turn, others))
        try:
            since = perf_counter()
            await _serve(situation.requests, situation.clients, call, turn)
            turn.seconds = perf_counter() - since
            await asyncio.sleep(2 * TICK)  # for a tick that the last request has kept waiting
        finally:
            ticking.cancel()
        turn.connections = count_connections()
    return turn


async def _serve(requests: Sequence[Request], clients: int, call: Call, turn: Round) -> None:
    turn.results = [None] * len(requests)
    waiting = iter(enumerate(requests))

    async def client() -> None:
        for index, (fn, args) in waiting:
            since = perf_counter()
            turn.results[index] = await call(fn, *args)
            turn.latencies.append(perf_counter() - since)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())


async def _tick(turn: Round, others: set[threading.Thread]) -> None:
    while True:
        due = perf_counter() + TICK
        await asyncio.sleep(TICK)
        turn.stall = max(turn.stall, perf_counter() - due)
        turn.threads = max(turn.threads, len({*threading.enumerate()} - others))


def _row(situation: Situation, contender: str, turns: list[Round]) -> Row:
    return Row(
        situation=situation.name,
        contender=contender,
        clients=situation.clients,
        requests=len(situation.requests),
        rounds=len(turns),
        requests_per_second=_figure(median, [len(turn.latencies) / turn.seconds for turn in turns]),
        p50_ms=_figure(median, [1000 * _percentile(turn.latencies, 50) for turn in turns]),
        p99_ms=_figure(median, [1000 * _percentile(turn.latencies, 99) for turn in turns]),
        longest_stall_ms=_figure(max, [1000 * turn.stall for turn in turns]),
        threads=_figure(max, [turn.threads for turn in turns]),
        connections=_figure(max, [turn.connections for turn in turns]),
    )


def _figure(choose: Callable[[list[float]], float], values: list[float]) -> Figure:
    return Figure(choose(values), min(values), max(values))


def _percentile(values: list[float], percent: int) -> float:
    """Return the smallest value that `percent` of all do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]
