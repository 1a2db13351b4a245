"""`python -m tests.stress.reset`: what the pool's `reset` costs at each give-back, in microseconds.

Runs with one SELECT each, one after the other, with and without a reset, in turns; medians of what the rounds differ.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any

import django
from django.conf import settings

from greenorm.demo.server import database_settings, embedded_server

ROUNDS, RUNS = 15, 50
RESETS = {
    "none": None,
    "RESET ROLE": lambda conn: conn.execute("RESET ROLE"),
    "RESET search_path; RESET ROLE": lambda conn: conn.execute("RESET search_path; RESET ROLE"),
    "DISCARD ALL": lambda conn: conn.execute("DISCARD ALL"),
}


async def measure() -> dict[str, list[tuple[float, float]]]:
    """Return wall and CPU time of a run, in microseconds, by the reset and the round."""
    from django.db import connections

    import greenorm

    def one(alias: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in RESETS}
    aliases = dict(zip(RESETS, ["default", "role", "path", "discard"], strict=True))
    for _ in range(ROUNDS + 1):
        for name, alias in aliases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(RUNS):
                await greenorm.run(one, alias)
            spent = time.perf_counter() - wall, time.process_time() - cpu
            found[name].append((spent[0] / RUNS * 1e6, spent[1] / RUNS * 1e6))
    return {name: rounds[1:] for name, rounds in found.items()}  # the first connects


def main() -> int:
    """Print a line for each reset."""
    with embedded_server() as dsn:
        databases: dict[str, Any] = {}
        for alias, reset in zip(["default", "role", "path", "discard"], RESETS.values(), strict=True):
            databases[alias] = database_settings(dsn, pool={"min_size": 1, "max_size": 1, "reset": reset})
        settings.configure(DATABASES=databases)
        django.setup()
        found = asyncio.run(measure())
    for name, rounds in found.items():
        words = []
        for what, index in (("wall", 0), ("CPU", 1)):
            more = [one[index] - base[index] for one, base in zip(rounds, found["none"], strict=True)]
            low, middle, high = statistics.quantiles(more, n=4)
            run = statistics.median(one[index] for one in rounds)
            words.append(f"{what} {run:.0f} µs a run, {middle:+.0f} ({low:+.0f}..{high:+.0f})")
        sys.stdout.write(f"{name}: {'; '.join(words)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
