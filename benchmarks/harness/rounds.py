"""Rounds: every contender has its turn in each, in an order that changes from round to round.

The machine is never quiet, and its speed drifts. So a figure that is to be compared is a ratio to the floor, whose turn
was right beside, and what is published is the median of the rounds with their quartiles.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.contenders import Contender
from greenorm.demo.steps import Steps

from .figures import Row, figure
from .place import Place
from .turns import Order
from .workers import Died, Seen, Workers
from .works import WORKS

CONNECTIONS = 20
# What is timed as a whole takes the floor so many seconds of CPU.
TURN = 0.15
QUICK_TURN = 0.02


@dataclass
class Bench:
    """What a question is answered with."""

    place: Place
    workers: Workers
    steps: Steps
    rounds: int
    quick: bool
    only: Sequence[str] | None = None
    """The contenders that are compared, where it is not to be all."""
    missing: dict[str, str] = field(default_factory=lambda: {})
    """Contenders that cannot take part here, with the reason."""
    failed: dict[str, str] = field(default_factory=lambda: {})
    """Turns that went wrong, with what went wrong. Their contender has no figures there."""
    cannot: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Works that contenders have no means for."""

    def present(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Return those that can take part; the others are taken down."""
        found = []
        for contender in contenders:
            if self.only and contender.label not in self.only:
                continue
            if reason := contender.missing():
                self.missing[contender.label] = reason
            else:
                found.append(contender)
        return found

    def absent(self) -> dict[str, Any]:
        """Return who has no figures, and why, by name."""
        return {"missing": self.missing, "failed": self.failed, "cannot": dict(self.cannot)}

    def turn(
        self,
        contender: Contender,
        work: str,
        count: int,
        seed: int,
        *,
        apart: bool = False,
        delay: float = 0.0,
        **more: Any,
    ) -> tuple[dict[str, Any], Seen] | None:
        """Let a contender have a turn, and return its outcome and what was seen of its process meanwhile.

        None where it cannot do that work, or did it wrongly, or failed; it has no further turns at it then.
        """
        place = f"{contender.label}, {work}" + (f", {more['clients']} at once" if more.get("clients") else "")
        if place in self.failed or work in self.cannot.get(contender.label, []):
            return None
        more.setdefault("connections", CONNECTIONS if more.get("clients") else 1)
        target = self.place.target(more["connections"], delay)
        order = Order(contender.label, work, count, seed, target.dsn, target.schema, **more)
        question = {"order": "turn", "near": self.place.schema.dsn, "turn": _finite(asdict(order))}
        worker = self.workers.get(contender.process, contender.label if apart else "")
        try:
            answer = worker.ask(question)
        except Died as exc:
            self.workers.forget(worker)
            answer = {"error": str(exc)}
        if "cannot" in answer:
            self.cannot[contender.label].append(work)
            return None
        if "error" in answer:
            self.failed[place] = answer["error"]
            return None
        return answer, worker.seen


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != float("inf")}


def beside_the_floor(contenders: Sequence[Contender], floor: Contender, number: int) -> Iterator[tuple[Contender, ...]]:
    """Yield the turns of a round in twos and threes, with the floor's beside each contender's."""
    others = [contender for contender in contenders if contender is not floor]
    if not others:
        yield (floor,)
        return
    others = others[number % len(others) :] + others[: number % len(others)]
    ordered = others if number % 2 == 0 else others[::-1]
    for first in range(0, len(ordered), 2):
        pair = ordered[first : first + 2]
        yield (pair[0], floor, *pair[1:])


def cost(bench: Bench, work: str, contenders: Sequence[Contender], floor: Contender) -> list[Row]:
    """Let the contenders do a work one after the other, and return a row for each: what a unit costs, CPU and time."""
    contenders = bench.present([floor, *(each for each in contenders if each is not floor)])
    if floor not in contenders:
        return []
    length = QUICK_TURN if bench.quick else TURN
    probe = bench.turn(floor, work, 10, 0)
    if probe is None:
        return []
    count = max(10, round(length / (probe[0]["cpu"] / 10)))
    seen: dict[str, dict[str, list[float]]] = {each.label: defaultdict(list) for each in contenders}
    steps = (len(contenders)) * bench.rounds
    done = 0
    for number in range(bench.rounds):
        for group in beside_the_floor(contenders, floor, number):
            outcomes = {}
            for contender in group:
                bench.steps.advance(done, steps, f"{WORKS[work].title}: {contender.label}")
                if turn := bench.turn(contender, work, count, number, warm_up=min(20, 3 + count // 5)):
                    outcomes[contender.label] = turn[0]
                done += contender is not floor
            beside = outcomes.get(floor.label)
            for label, outcome in outcomes.items():
                units = outcome["done"] * outcome["queries"]
                seen[label]["cpu_us"].append(1e6 * outcome["cpu"] / units)
                seen[label]["wall_us"].append(1e6 * outcome["seconds"] / units)
                if beside is not None:
                    seen[label]["cpu_ratio"].append(outcome["cpu"] / beside["cpu"])
                    seen[label]["wall_ratio"].append(outcome["seconds"] / beside["seconds"])
    return [
        {
            "situation": work,
            "contender": label,
            "floor": floor.label,
            "requests": count,
            **{name: figure(values) for name, values in figures.items()},
        }
        for label, figures in seen.items()
        if figures
    ]
