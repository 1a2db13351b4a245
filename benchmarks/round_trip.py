"""What does one round trip cost, beside sync Django in the same process?

Nothing at all (`run(lambda: None)`), a `get()` by primary key inside of a run, and a run for each `get()`, where a
connection is borrowed and given back each time.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import contenders as known
from benchmarks.harness.figures import Row
from benchmarks.harness.rounds import Bench, cost

WORKS = ("noop", "get_many", "get")


def measure(bench: Bench) -> Iterator[list[Row]]:
    """Yield, for each work, a row for each contender."""
    taking_part = [each for each in [known.SYNC, known.SYNC_GREENORM, *known.ASYNCIO] if each is not known.THREADS_100]
    taking_part += [known.on_uvloop(known.GREENORM)] if bench.quick else known.UVLOOP
    for work in WORKS:
        # What is nothing in sync code is compared with the call to a thread that it takes the place of.
        calling = [
            known.GREENORM,
            known.THREADS_20,
            known.A_METHODS,
            *map(known.on_uvloop, [known.GREENORM, known.ONE_THREAD]),
        ]
        if work == "noop":
            yield cost(bench, work, calling, known.ONE_THREAD)
        else:
            yield cost(bench, work, taking_part, known.FLOOR)
