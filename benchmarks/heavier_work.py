"""What does heavier work cost: lists, prefetch, a transaction, a million rows streamed?

Beside sync Django in the same process; what streams, in processes of their own, with their memory over time.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import contenders as known
from benchmarks.harness.figures import Row, figure
from benchmarks.harness.rounds import Bench, cost

WORKS = ("list_100", "list_1000", "prefetch", "write")
# A stream takes seconds: not more rounds than these.
STREAM_ROUNDS = 3
# Points of memory over time that are kept.
POINTS = 60


def measure(bench: Bench) -> Iterator[list[Row]]:
    """Yield, for each work, a row for each contender."""
    taking_part = [each for each in [known.SYNC, known.SYNC_GREENORM, *known.ASYNCIO] if each is not known.THREADS_100]
    if not bench.quick:
        taking_part.append(known.on_uvloop(known.GREENORM))
    for work in WORKS:
        yield cost(bench, work, taking_part, known.FLOOR)
    yield _stream(bench, [each for each in taking_part if each not in (known.SYNC_GREENORM, known.THREADS_20)])


def _stream(bench: Bench, contenders: list[known.Contender]) -> list[Row]:
    rounds = min(bench.rounds, STREAM_ROUNDS)
    contenders = bench.present(contenders)
    seen: dict[str, list[tuple[float, float, float, int]]] = {each.label: [] for each in contenders}
    over_time: dict[str, list[tuple[float, int]]] = {}
    for number in range(rounds):
        for index, contender in enumerate(contenders if number % 2 == 0 else reversed(contenders)):
            bench.steps.advance(
                number * len(contenders) + index, rounds * len(contenders), f"stream: {contender.label}"
            )
            apart = not bench.quick
            if number == 0:  # so that no import is seen as memory that grows
                bench.turn(contender, "stream", 1, 0, apart=apart, rows=1)
            # As a client, so that a ticker runs beside it.
            found = bench.turn(
                contender, "stream", 1, 0, apart=apart, rows=bench.place.streamed, clients=1, connections=1
            )
            if found:
                outcome, watched = found
                seen[contender.label].append(
                    (outcome["seconds"], outcome["cpu"], 1e3 * outcome["stall"], watched.memory)
                )
                over_time[contender.label] = watched.memories[:: max(1, len(watched.memories) // POINTS)]
    return [
        {
            "situation": "stream",
            "contender": label,
            "rows": bench.place.streamed,
            "wall_us": figure([1e6 * each[0] / bench.place.streamed for each in turns]),
            "cpu_us": figure([1e6 * each[1] / bench.place.streamed for each in turns]),
            "stall_ms": figure([each[2] for each in turns]),
            "memory_mib": figure([each[3] / 2**20 for each in turns]),
            "memory_over_time": over_time[label],
        }
        for label, turns in seen.items()
        if turns
    ]
