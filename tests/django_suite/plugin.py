"""For packages that run their tests by pytest-django: the databases to use, and the outcome of each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connections

from .outcomes import RANKS, WORST
from .recorder import on_suite_database, settle, watch, write_test

_seen: dict[str, tuple[str, str]] = {}


def pytest_collection_finish() -> None:
    """Change the databases when the tests have been chosen by what the conftest has set: they ask for PostgreSQL."""
    for alias, settings in connections.settings.items():
        settings.update(on_suite_database())
        for name, default in {"CHARSET": None, "COLLATION": None, "MIGRATE": True, "MIRROR": None}.items():
            settings["TEST"].setdefault(name, default)
        if hasattr(connections._connections, alias):
            del connections[alias]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the worst of what set-up, test and tear-down came to."""
    outcome = report.outcome if report.when == "call" or report.outcome != "failed" else "errored"
    if hasattr(report, "wasxfail"):
        outcome = "expected failure" if report.skipped else "unexpected success"
    former = _seen.get(report.nodeid, ("passed", ""))
    if RANKS.get(outcome, WORST) >= RANKS.get(former[0], WORST):
        _seen[report.nodeid] = outcome, report.longreprtext if outcome != "passed" else ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Write down what came of a test, when it has ended."""
    result = yield
    write_test(item.nodeid, *_seen.pop(item.nodeid))
    watch()
    settle()
    return result
