"""What came of each test, and how its statements went to the server: one line of JSON each, written at once."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import threading
import unittest
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
from django.test.runner import DiscoverRunner

from greenorm import await_, in_run

# Where unittest lists what has not just passed, and what it is called here; the worst comes last.
OUTCOMES = {
    "expectedFailures": "expected failure",
    "skipped": "skipped",
    "unexpectedSuccesses": "unexpected success",
    "failures": "failed",
    "errors": "errored",
}
# How long, in seconds, a test may take; then it shows where it hangs, and the process ends.
TEST_SECONDS = 300
# How statements went to the server: awaited, blocking the main thread, blocking another one.
statements: Counter[str] = Counter()


def watch() -> None:
    """Let the next test begin its time."""
    faulthandler.dump_traceback_later(TEST_SECONDS, exit=True)


def count_statements() -> None:
    """Count each statement of this process from now on, whichever of psycopg's cursors it goes through."""
    for cursor in (psycopg.Cursor, psycopg.ServerCursor, psycopg.AsyncCursor, psycopg.AsyncServerCursor):
        for name in {"execute", "executemany"} & set(vars(cursor)):
            setattr(cursor, name, _counted(cursor, getattr(cursor, name)))


def _counted(cursor: type, execute: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        if issubclass(cursor, psycopg.AsyncCursor | psycopg.AsyncServerCursor) and in_run():
            statements["async"] += 1
        else:  # outside of a run greenorm's cursors block
            statements["sync" if threading.current_thread() is threading.main_thread() else "thread"] += 1
        return execute(*args, **kwargs)

    return counted


def on_suite_database(alias: str = "default") -> dict[str, Any]:
    """Return the settings of the database that the command has chosen, for an alias of a project's tests."""
    databases: dict[str, dict[str, Any]] = json.loads(os.environ["GREENORM_SUITE_DATABASES"])
    return databases[alias]


class _Counted:
    taken = statements.copy()


def write_test(test: str, outcome: str, detail: str) -> None:
    """Write down what came of a test, with the statements since the one before."""
    new = statements - _Counted.taken
    _Counted.taken = statements.copy()
    write_line(test=test, outcome=outcome, detail=detail, statements=new)


def settle() -> None:
    """End what a test has left behind on the loop that surrounds it, as the end of a loop of its own would."""
    if in_run():
        await_(_end_tasks())


class Result(unittest.TextTestResult):
    """Writes down each outcome. A subtest counts as its test, and a setUpClass that fails as one of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.taken: Counter[str] = Counter()
        _Counted.taken = statements.copy()  # what made the databases

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - a name of unittest, as below
        super().stopTest(test)
        watch()
        self._write({test.id(): ("passed", "")})
        settle()

    def stopTestRun(self) -> None:  # noqa: N802
        super().stopTestRun()
        self._write({})

    def _write(self, outcomes: dict[str, tuple[str, str]]) -> None:
        for name, outcome in OUTCOMES.items():
            for entry in getattr(self, name)[self.taken[name] :]:
                test, detail = entry if isinstance(entry, tuple) else (entry, "")
                outcomes[getattr(test, "test_case", test).id()] = outcome, f"{test}\n{detail}"
                self.taken[name] += 1
        for test_id, (outcome, detail) in outcomes.items():
            write_test(test_id, outcome, detail)


async def _end_tasks() -> None:
    # Those that a test leaves behind would end with its loop, where asgiref makes one for each test.
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Runner(DiscoverRunner):
    """Django's runner with that result, for Django's setting TEST_RUNNER."""

    def get_resultclass(self) -> type[unittest.TextTestResult]:
        return Result

    def run_tests(self, *args: Any, **kwargs: Any) -> int:
        failures = super().run_tests(*args, **kwargs)
        write_line(ended=True)  # the databases are gone, too
        return failures


def write_line(**line: Any) -> None:
    """Write one line of JSON to the file of this process' outcomes."""
    with open(os.environ["GREENORM_SUITE_RESULTS"], "a") as file:
        file.write(json.dumps(line) + "\n")
