"""How much is answered, and how soon, with many tasks on 20 connections, near and far from the server?

A run for each `get()`. Each contender has a process of its own. Every task has a request under way until the turn is
over. The distance is made by a proxy in a process of its own: each round trip takes so much longer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from benchmarks import contenders as known
from benchmarks.harness.figures import Row, figure
from benchmarks.harness.rounds import Bench, beside_the_floor
from benchmarks.harness.workers import Seen

CLIENTS = (1, 10, 100, 1_000, 10_000)
# Milliseconds.
DELAYS = (0, 1, 2, 10)
# The situation that is compared in detail: with all rounds, and on uvloop as well. The others have one round each.
MAIN = (100, 2)
OTHER_ROUNDS = 1
# Seconds in which clients begin requests, and after which they are no longer waited for.
DURATION = 1.0
DEADLINE = 15.0
MAIN_DURATION, QUICK_DURATION = 2.0, 0.3
# More than anyone answers in that time.
REQUESTS = 40_000


def situations(quick: bool) -> Iterator[tuple[int, int]]:
    """Yield how many tasks, and how far from the server."""
    if quick:
        yield MAIN
        return
    yield MAIN
    for delay in DELAYS:
        for clients in CLIENTS:
            if (clients, delay) != MAIN:
                yield clients, delay


def measure(bench: Bench) -> Iterator[list[Row]]:
    """Yield, for each situation, a row for each contender."""
    for clients, delay in situations(bench.quick):
        main = (clients, delay) == MAIN
        taking_part = [*known.ASYNCIO, known.on_uvloop(known.GREENORM)]
        if main and not bench.quick:
            taking_part = [*known.ASYNCIO, *known.UVLOOP]
        if clients == 1:
            taking_part = [known.SYNC, *taking_part]
        rounds = bench.rounds if main else min(bench.rounds, OTHER_ROUNDS)
        yield _compare(bench, bench.present(taking_part), clients, delay, rounds)


def _compare(bench: Bench, contenders: list[known.Contender], clients: int, delay: int, rounds: int) -> list[Row]:
    seen: dict[str, dict[str, list[float]]] = {each.label: defaultdict(list) for each in contenders}
    main = (clients, delay) == MAIN
    duration = QUICK_DURATION if bench.quick else MAIN_DURATION if main else DURATION
    for number in range(rounds):
        done = number * len(contenders)
        for group in _groups(contenders, main, number):
            outcomes = {}
            for contender in group:
                bench.steps.advance(
                    done, rounds * len(contenders), f"{clients:,} tasks, +{delay} ms: {contender.label}"
                )
                found = bench.turn(
                    contender,
                    "get",
                    REQUESTS,
                    number,
                    apart=not bench.quick,
                    delay=delay,
                    clients=clients,
                    duration=duration,
                    deadline=DEADLINE,
                    warm_up=100,
                )
                if found:
                    outcomes[contender.label] = _figures(*found)
            done += len(group)
            beside = outcomes.get(known.GREENORM.label)
            for label, figures in outcomes.items():
                if beside:
                    figures["greenorm_times"] = beside["per_second"] / figures["per_second"]
                for name, value in figures.items():
                    seen[label][name].append(value)
    return [
        {
            "situation": f"{clients} tasks, +{delay} ms",
            "clients": clients,
            "delay_ms": delay,
            "contender": label,
            **{name: figure(values) for name, values in figures.items()},
        }
        for label, figures in seen.items()
        if figures
    ]


def _groups(contenders: list[known.Contender], main: bool, number: int) -> Iterator[tuple[known.Contender, ...]]:
    """Yield the turns of a round: those that are compared in detail with greenorm's turn right beside each."""
    if main and known.GREENORM in contenders and len(contenders) > 1:
        yield from beside_the_floor(contenders, known.GREENORM, number)
    else:
        yield tuple(contenders if number % 2 == 0 else reversed(contenders))


def _figures(outcome: dict[str, Any], watched: Seen) -> dict[str, float]:
    return {
        "per_second": outcome["done"] / outcome["seconds"],
        "p50_ms": 1e3 * outcome["p50"],
        "p99_ms": 1e3 * outcome["p99"],
        "stall_p99_ms": 1e3 * outcome["stall_p99"],
        "stall_ms": 1e3 * outcome["stall"],
        "cpu_us": 1e6 * outcome["cpu"] / max(1, outcome["done"]),
        "memory_mib": watched.memory / 2**20,
        "threads": watched.threads,
        "unfinished": outcome["unfinished"],
    }
