"""What came of the tests of one way, how that differs from another, and which differences are known."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

import django

KNOWN = Path(__file__).with_name("known.toml")
# From well to badly off. All else is worse, and so is what a crash has lost.
RANKS = {"passed": 0, "expected failure": 0, "skipped": 1}
WORST = 2


class Outcomes:
    """The outcomes of one way, by test; as far as its processes got."""

    def __init__(self, results: list[Path], seconds: float) -> None:
        self.seconds = seconds
        self.tests: dict[str, str] = {}
        self.details: dict[str, str] = {}
        self.statements: Counter[str] = Counter()
        self.blocking: list[str] = []
        self.ended = 0
        for line in (json.loads(line) for path in results for line in path.read_text().splitlines()):
            if "ended" in line:
                self.ended += 1
                continue
            self.tests[line["test"]] = line["outcome"]
            self.details[line["test"]] = line["detail"]
            self.statements.update(line["statements"])
            if "sync" in line["statements"]:
                self.blocking.append(line["test"])
        self.complete = self.ended == len(results)

    def count(self, *outcomes: str) -> int:
        """Return how many tests had one of `outcomes`."""
        return sum(outcome in outcomes for outcome in self.tests.values())

    def failing(self) -> list[str]:
        """Return the tests that did not do as they should."""
        return [test for test in sorted(self.tests) if self._rank(test) == WORST]

    def worse_than(self, other: Outcomes) -> list[str]:
        """Return the tests that fail, are skipped or are missing here, and were better off there."""
        return [test for test in sorted({*self.tests, *other.tests}) if self._rank(test) > other._rank(test)]

    def better_than(self, other: Outcomes) -> list[str]:
        """Return the tests that were run here and there, and are better off here."""
        return [test for test in other.worse_than(self) if test in self.tests and test in other.tests]

    def _rank(self, test: str) -> int:
        if test not in self.tests and test.startswith("setUp"):
            return 0  # a setUpClass is listed only where it has failed
        return RANKS.get(self.tests.get(test, "missing"), WORST)


def known_differences(way: str) -> dict[str, str]:
    """Return the reasons of the tests that may fail in one way, with the installed Django."""
    return {
        test: difference["reason"]
        for difference in tomllib.loads(KNOWN.read_text())["difference"]
        if way in difference["ways"] and django.__version__.startswith(tuple(difference["django"]))
        for test in difference["tests"]
    }
