"""What does it take that 10,000 calls wait for a connection, or for something else, and what do others feel of it?

Bytes of resident memory for each, in a process that does nothing else, and the CPU of a `get()` beside those that wait,
against the same without them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from benchmarks import contenders as known
from benchmarks.harness.figures import Row, figure
from benchmarks.harness.rounds import CONNECTIONS, Bench
from benchmarks.harness.workers import Died

COUNT, QUICK_COUNT = 10_000, 1_000
MOST_ROUNDS = 3

# What is waited for, and by whom. Django's a-methods and those with one thread wait as those with 20 do.
CASES = [
    ("connection", known.GREENORM),
    ("connection", known.GREENORM_A),
    ("connection", known.THREADS_20),
    ("connection", known.ASYNC_BACKEND),
    ("connection", known.GEVENT),
    ("connection", known.SQLALCHEMY_PSYCOPG),
    ("connection", known.SQLALCHEMY_ASYNCPG),
    ("connection", known.TORTOISE),
    ("connection", known.PSYCOPG),
    ("connection", known.ASYNCPG),
    ("await_", known.GREENORM),
    ("tasks", known.GREENORM),
]
QUICK_CASES = [
    ("connection", known.GREENORM),
    ("connection", known.THREADS_20),
    ("connection", known.SQLALCHEMY_PSYCOPG),
    ("await_", known.GREENORM),
    ("tasks", known.GREENORM),
]


def measure(bench: Bench) -> Iterator[list[Row]]:
    """Yield a row for each thing that is waited for and contender."""
    count = QUICK_COUNT if bench.quick else COUNT
    asked = QUICK_CASES if bench.quick else CASES
    present = bench.present([contender for _, contender in asked])
    cases = [case for case in asked if case[1] in present]
    rounds = min(bench.rounds, MOST_ROUNDS)
    seen: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(rounds):
        for index, (kind, contender) in enumerate(cases if number % 2 == 0 else reversed(cases)):
            bench.steps.advance(number * len(cases) + index, rounds * len(cases), f"{kind}: {contender.label}")
            for name, value in _wait(bench, kind, contender, count).items():
                seen[kind, contender.label][name].append(value)
    yield [
        {
            "situation": kind,
            "contender": "bare tasks" if kind == "tasks" else label,
            "count": count,
            **{name: figure(values) for name, values in figures.items()},
        }
        for (kind, label), figures in seen.items()
    ]


def _wait(bench: Bench, kind: str, contender: known.Contender, count: int) -> dict[str, float]:
    place = f"{contender.label}, waiting for {kind}"
    if place in bench.failed:
        return {}
    target = bench.place.target(CONNECTIONS)
    waiting = {
        "kind": kind,
        "contender": contender.label,
        "count": count,
        "dsn": target.dsn,
        "schema": target.schema,
        "connections": target.connections,
    }
    worker = bench.workers.get(contender.process, f"waiting {kind} {contender.label}")
    try:
        answer = worker.ask({"order": "waiting", "waiting": waiting})
    except Died as exc:
        answer = {"error": str(exc)}
    finally:
        # What one round has taken of the system is not given back: the next begins anew.
        bench.workers.forget(worker)
    if "error" in answer:
        bench.failed[place] = answer["error"]
        return {}
    return {name: float(value) for name, value in answer.items()}
