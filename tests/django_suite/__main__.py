"""Runs Django's own tests with and without greenorm, and compares test by test.

stock: Django's own backend, without greenorm.
hook: greenorm's backend and its hook, under Django's runner as it is, where sync code waits for each async test.
run: the same, and all of runtests.py inside one greenorm.run: every test is on the event loop's thread.
asgi: as hook, with greenorm's ASGI handler where a test asks for Django's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import django
import psycopg
from psycopg import sql
from rich.console import Console
from rich.progress import track
from rich.table import Table

from greenorm.demo.server import database_settings, embedded_server
from tests.servers import system_server, with_postgis

from .outcomes import Outcomes, known_differences
from .suites import DJANGO, SUITES, Suite, all_labels

console = Console(soft_wrap=True, highlight=False, markup=False)


def server() -> AbstractContextManager[str]:
    """Return the server to use, as a context that gives its DSN: GREENORM_TEST_DSN's, else one of our own."""
    if named := os.environ.get("GREENORM_TEST_DSN"):
        return nullcontext(named)
    programs = with_postgis()  # it has the extensions and collations that some of Django's tests ask for
    return embedded_server() if programs is None else system_server(programs)


def run_way(suite: Suite, way: str, shards: list[list[str]], dsn: str, jobs: int) -> Outcomes:
    """Run the tests of all shards in one way, `jobs` of them at a time. Blocks meanwhile."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(jobs) as executor:

        def run(number: int) -> Path:
            return run_shard(suite, way, shards[number], dsn, Path(directory, str(number)))

        done = track(executor.map(run, range(len(shards))), f"{way:>5}", len(shards), console=console)
        return Outcomes(list(done), time.monotonic() - started)


def run_shard(suite: Suite, way: str, labels: list[str], dsn: str, results: Path) -> Path:
    """Run the tests of `labels`, in a process and on databases of their own, and return the file of their outcomes."""
    names = {alias: f"greenorm_suite_{os.getpid()}_{results.name}_{alias}" for alias in ("default", "other")}
    databases = {
        alias: {**database_settings(dsn), "ENGINE": engine(way, labels), "TEST": {"NAME": name}}
        for alias, name in names.items()
    }
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "GREENORM_SUITE_DATABASES": json.dumps(databases),
        "GREENORM_SUITE_RESULTS": str(results),
    }
    results.touch()
    # -P: the tests' directory may have a package `tests`, too.
    command = [sys.executable, "-P", "-m", "tests.django_suite.worker", suite.project, way, *labels]
    try:
        ended = subprocess.run(
            command,
            cwd=suite.tests(),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    finally:
        with psycopg.connect(dsn, autocommit=True) as conn:  # which it has left behind, if it has crashed
            for name in names.values():
                conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
    if '"ended"' not in results.read_text():
        console.print(f"{way}: the process of {' '.join(labels)} did not come to its end:\n{ended.stdout[-5000:]}")
    return results


def engine(way: str, labels: list[str]) -> str:
    """Return the ENGINE for the tests of `labels`."""
    spatial = labels == ["gis_tests"]
    if way == "stock":
        return "django.contrib.gis.db.backends.postgis" if spatial else "django.db.backends.postgresql"
    return "greenorm.backends.postgis" if spatial else "greenorm.backends.postgresql"


def in_shards(labels: list[str], tests: Path, count: int) -> list[list[str]]:
    """Divide the labels into at most `count` shards that take about as long, and one for those on PostGIS."""
    sizes = {
        label: sum(path.read_text().count("def test_") for path in (tests / label).rglob("*.py")) for label in labels
    }
    if "admin_scripts" in sizes:
        sizes["admin_scripts"] *= 8  # each of its tests starts a process
    shards: list[list[str]] = [[] for _ in range(count)]
    for label in sorted(set(labels) - {"gis_tests"}, key=lambda label: -sizes[label]):
        min(shards, key=lambda shard: sum(sizes[label] for label in shard)).append(label)
    return [shard for shard in [*shards, ["gis_tests"] if "gis_tests" in labels else []] if shard]


def figures(suite: Suite, ways: dict[str, Outcomes]) -> Table:
    """Return the figures of all ways, beside each other."""
    stock, all_of_them = ways["stock"], ways.values()
    title = f"Django {django.__version__}"
    table = Table(title if suite is DJANGO else f"{suite.project} {suite.version}, {title}", *ways)
    rows = {
        "tests run": [len(way.tests) for way in all_of_them],
        "passed": [way.count("passed", "expected failure") for way in all_of_them],
        "failed": [way.count("failed", "unexpected success") for way in all_of_them],
        "errored": [way.count("errored") for way in all_of_them],
        "skipped": [way.count("skipped") for way in all_of_them],
        "newly failing": [len(way.worse_than(stock)) for way in all_of_them],
        "newly passing": [len(way.better_than(stock)) for way in all_of_them],
        "seconds": [round(way.seconds) for way in all_of_them],
        "statements, awaited": [way.statements["async"] for way in all_of_them],
        "statements, blocking": [way.statements["sync"] for way in all_of_them],
        "statements, in other threads": [way.statements["thread"] for way in all_of_them],
    }
    for title, row in rows.items():
        table.add_row(title, *map(str, row))
    return table


def report(way: str, outcomes: Outcomes, stock: Outcomes) -> bool:
    """Print in what one way differs, and return whether that is just what is known."""
    known, failing = known_differences(way), outcomes.worse_than(stock)
    unknown = [test for test in failing if test not in known]
    fixed = [test for test in known if test in outcomes.tests and test not in failing]
    missing = [test for test in unknown if test not in outcomes.tests]
    said = [f"known: {test} {known[test]}" for test in failing if test in known]
    said += [f"newly {outcomes.tests[test]}: {outcomes.details[test]}" for test in unknown if test not in missing]
    said += [f"newly passing: {test}" for test in outcomes.better_than(stock)]
    said += [f"passes, and known.toml says it fails: {test}" for test in fixed]
    if outcomes is stock:
        said += [f"{stock.tests[test]}: {test}: {stock.details[test].splitlines()[-1:]}" for test in stock.failing()]
    if way == "run":
        said += [f"blocks the event loop: {test}" for test in outcomes.blocking]
    if missing or not outcomes.complete:
        said.append(f"{len(missing)} tests are missing: {' '.join(missing[:20])}")
    for line in said:
        console.print(f"{way}: {line}")
    return outcomes.complete and not unknown and not fixed


def main() -> bool:
    """Run the command, and return whether all is as it should be."""
    parser = argparse.ArgumentParser(
        "python -m tests.django_suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "labels", nargs="*", help=f"as of the project's own command; default: {' '.join(DJANGO.labels)}"
    )
    parser.add_argument("--project", choices=SUITES, default=DJANGO.project, help="whose tests; default: %(default)s")
    parser.add_argument("--django", default=django.__version__, help="a version; it must be the installed one")
    parser.add_argument("--all", action="store_true", help="all of Django's labels")
    parser.add_argument(
        "--way", action="append", choices=["hook", "run", "asgi"], help="beside stock; default: hook and run"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time; default: %(default)s"
    )
    options = parser.parse_args()
    if options.django != django.__version__:
        raise SystemExit(
            f"Django {django.__version__} is installed, and its tests run with their own version only. For "
            f"{options.django}: pip install 'django=={options.django}', or use an environment that has it."
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and so stop the server
    suite = SUITES[options.project]
    labels = options.labels or suite.labels
    if suite is DJANGO:
        if options.all:
            labels = all_labels(suite.tests(), with_postgis() is not None)
        shards = in_shards(labels, suite.tests(), 4 * options.jobs if options.all else options.jobs)
    else:
        shards = [labels]
    with server() as dsn:
        ways = {
            way: run_way(suite, way, shards, dsn, options.jobs) for way in ["stock", *(options.way or ["hook", "run"])]
        }
    console.print(figures(suite, ways))
    as_known = [report(way, outcomes, ways["stock"]) for way, outcomes in ways.items()]
    return all(as_known)


if __name__ == "__main__":
    sys.exit(not main())
