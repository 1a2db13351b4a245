"""`python -m benchmarks`, run as its users run it, for the cheapest question; and what keeps its figures honest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connections
from psycopg.conninfo import make_conninfo

from benchmarks.contenders import ALL, Contender
from benchmarks.harness import tables
from benchmarks.harness.figures import figure
from benchmarks.harness.proxy import delayed
from benchmarks.harness.turns import Checker, Order, Outcome, Wrong

ROOT = Path(__file__).parents[1]
# How long, in seconds, any of it may take on a slow machine.
PATIENCE = 240.0
TAKING_PART = ["sync Django", "greenorm.run", "sync_to_async", "raw asyncpg"]

pytestmark = [pytest.mark.no_database, pytest.mark.one_loop]


@pytest.fixture(scope="module")
def test_server() -> str:
    """The address of the server that the tests use."""
    params = connections["default"].get_connection_params()
    return make_conninfo(
        **{name: params[name] for name in ("dbname", "user", "password", "host", "port") if name in params}
    )


def benchmarks(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(scope="module")
def answered(test_server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """One question, answered by a few contenders in one round: where its figures are, what was said, the figures."""
    output = tmp_path_factory.mktemp("figures")
    only = [word for name in TAKING_PART for word in ("--only", name)]
    done = benchmarks("round_trip", "--quick", *only, "--output", str(output), DATABASE_URL=test_server)
    assert (done.returncode, done.stderr) == (0, "")
    return output, done.stdout, json.loads((output / "round_trip.json").read_text())


def test_every_contender_has_figures_or_is_named_as_missing(answered: tuple[Path, str, dict[str, Any]]) -> None:
    _, said, answer = answered
    there = {row["contender"] for row in answer["rows"]}
    assert there | set(answer["missing"]) == set(TAKING_PART)
    assert there & set(answer["missing"]) == set()
    assert ("raw asyncpg" in there) == (find_spec("asyncpg") is not None)
    assert answer["failed"] == {}
    for label, reason in answer["missing"].items():
        assert f"Not there: {label} ({reason})." in said


def test_figures_are_medians_with_their_spread(answered: tuple[Path, str, dict[str, Any]]) -> None:
    _, _, answer = answered
    assert {row["situation"] for row in answer["rows"]} == {"noop", "get_many", "get"}
    for row in answer["rows"]:
        for name in ("cpu_us", "wall_us", "cpu_ratio", "wall_ratio"):
            low, high = row[name]["quartiles"]
            assert 0 < row[name]["range"][0] <= low <= row[name]["median"] <= high <= row[name]["range"][1]
            assert row[name]["rounds"] >= 1
        if row["contender"] == row["floor"]:
            assert row["cpu_ratio"]["median"] == 1


def test_figures_say_where_and_when_they_were_measured(answered: tuple[Path, str, dict[str, Any]]) -> None:
    _, _, answer = answered
    assert answer["quick"] is True
    around = answer["surroundings"]
    assert {"django", "psycopg", "greenlet"} <= set(around["versions"])
    assert {"date", "cpus", "processor", "python", "postgresql", "load_before"} <= set(around)
    assert os.uname().nodename not in json.dumps(answer)


def test_report_is_made_again_from_the_figures_alone(answered: tuple[Path, str, dict[str, Any]]) -> None:
    output, said, _ = answered
    (output / "README.md").unlink()
    done = benchmarks("--report", "--output", str(output), DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == said
    assert "| greenorm.run |" in (output / "README.md").read_text()


def test_nothing_is_left_on_the_server(
    answered: tuple[Path, str, dict[str, Any]], admin: psycopg.Connection[tuple[Any, ...]]
) -> None:
    left: list[Any] | None = None
    deadline = time.monotonic() + PATIENCE
    while left != [] and time.monotonic() < deadline:  # a session that was ended is on the list for a moment
        left = admin.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'greenorm_demo%' "
            "UNION ALL SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'greenorm_demo%'"
        ).fetchall()
    assert left == []


def test_contender_without_its_package_says_which_one_it_needs() -> None:
    assert Contender("nobody", "nowhere:nothing", ("no-such-distribution",)).missing() == (
        "no-such-distribution is not installed"
    )
    assert Contender("nobody", "nowhere:nothing", django=(1, 0)).missing() == "it needs Django 1.0"
    assert ALL["sync Django"].missing() is None


def test_wrong_result_is_refused(test_server: str) -> None:
    checker = Checker(test_server)
    checker.reference.items = {5: (5, "Item 5")}
    order = Order("somebody", "get", 1, 0, test_server, "public", 1)
    checker.after(order, None, 1, Outcome(results=[(5, (5, "Item 5"))]))
    with pytest.raises(Wrong, match="somebody"):
        checker.after(order, None, 1, Outcome(results=[(5, (5, "Item 6"))]))


def test_proxy_hands_on_everything_and_later(test_server: str) -> None:
    with delayed(test_server, 50) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        since = time.perf_counter()
        answer = conn.execute("SELECT repeat('x', 3000000), %s::text", ["y" * 1_000_000]).fetchone()
        assert time.perf_counter() - since >= 0.05
    assert answer == ("x" * 3_000_000, "y" * 1_000_000)


def test_figure_of_rounds_is_their_median_and_quartiles() -> None:
    assert figure([5, 1, 2, 4, 3]) == {"median": 3, "quartiles": [2, 4], "range": [1, 5], "rounds": 5}
    assert figure([7]) == {"median": 7, "quartiles": [7, 7], "range": [7, 7], "rounds": 1}


def test_tables_are_put_between_their_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    for text in ("first", "![plot](a.png)"):
        tables.put_into_readme(readme, text)
    assert readme.read_text() == f"before\n{tables.BEGIN}\n\n![plot](results/a.png)\n{tables.END}\nafter\n"
